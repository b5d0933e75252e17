"""S3 Inventory as a source, in both formats, whole and broken."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrich.errors import EnrichError, RunFailed, UsageError
from enrich.output.listing import write_inventory
from enrich.storage import open_store
from enrich.storage.inventory import open_inventory, parse_manifest
from tests.testing.s3_server import S3Server

FIELDS = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
Row = tuple[str, int, str, bool, bool]  # key, size, etag, latest, delete marker

ROWS: list[Row] = [
    ("photos/b.jpg", 2, "e2", True, False),
    ("photos/a b%+ü.jpg", 1, "e1", True, False),
    ("photos/a b%+ü.jpg", 9, "old", False, False),
    ("photos/gone.jpg", 0, "", True, True),
    ("photos/folder/", 0, "e", True, False),
    ("photos/", 0, "e", True, False),
    ("photos/.enrich-lock", 1, "e", True, False),
    ("photos/x/.enrich-y", 1, "e", True, False),
    ("photos-old/a.jpg", 1, "e", True, False),
    ("photos//double.jpg", 3, "e3", True, False),
    ('photos/"quoted", with comma.jpg', 4, "e4", True, False),
    ("photos/empty.jpg", 0, "e5", True, False),
]
EXPECTED = [
    ('"quoted", with comma.jpg', 4, "e4"),
    ("/double.jpg", 3, "e3"),
    ("a b%+ü.jpg", 1, "e1"),
    ("b.jpg", 2, "e2"),
    ("empty.jpg", 0, "e5"),
]


def csv_of(rows: Sequence[Row]) -> bytes:
    lines = []
    for key, size, etag, latest, deleted in rows:
        flags, number = (str(latest).lower(), str(deleted).lower()), "" if deleted else str(size)
        values = ["shop", quote(key), "v1", *flags, number, "2026", etag]
        lines.append(",".join(f'"{value}"' for value in values))
    return gzip.compress("\n".join(lines).encode() + b"\n" * bool(lines), mtime=0)


def parquet_of(rows: Sequence[Row], path: Path) -> bytes:
    names = ("key", "size", "e_tag", "is_latest", "is_delete_marker")
    types = (pl.String, pl.Int64, pl.String, pl.Boolean, pl.Boolean)
    table = pl.DataFrame(list(rows), schema=dict(zip(names, types, strict=True)), orient="row")
    table.insert_column(0, pl.Series("bucket", ["shop"] * len(rows), pl.String)).write_parquet(path)
    return path.read_bytes()


def write(folder: Path, format: str, parts: Sequence[Sequence[Row]], **changes: Any) -> str:
    described = []
    for number, rows in enumerate(parts):
        data = csv_of(rows) if format == "CSV" else parquet_of(rows, folder / "made")
        path = folder / "data" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.md5(data).hexdigest()
        described.append({"key": f"data/{number}", "size": len(data), "MD5checksum": digest})
    content = {
        "sourceBucket": "shop", "destinationBucket": "arn:aws:s3:::lists", "version": "2016-11-30",
        "creationTimestamp": "1", "fileFormat": format, "fileSchema": FIELDS, "files": described, **changes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content))
    return str(folder / "manifest.json")


def vouch(uri: str, path: Path) -> None:
    """Makes the manifest agree with its only file, whatever that holds."""
    described, content = json.loads(Path(uri).read_text()), path.read_bytes()
    described["files"][0] |= {"size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()}
    Path(uri).write_text(json.dumps(described))


def listed(uri: str, folder: Path, images: str = "s3://shop/photos") -> list[tuple[str, int, str]]:
    opened, work = open_inventory(uri, images), folder / "work"
    work.mkdir(exist_ok=True)
    write_inventory(folder / "source", lambda: opened.frames(work), work)
    return pl.read_parquet(folder / "source").rows()


@pytest.mark.parametrize("format", ["CSV", "Parquet"])
def test_an_inventory_says_what_a_listing_says(tmp_path: Path, format: str) -> None:
    uri = write(tmp_path, format, [ROWS[:5], ROWS[5:], []])
    assert listed(uri, tmp_path) == EXPECTED
    assert len(listed(uri, tmp_path, "s3://shop")) == len(EXPECTED) + 1


@pytest.mark.parametrize("format", ["CSV", "Parquet"])
def test_an_inventory_larger_than_memory_comes_in_order(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enrich.output.spill.PARTITION_ROWS", 20)
    monkeypatch.setattr("enrich.output.spill.SAMPLE_EVERY", 3)
    rows = [(f"photos/{number * 7 % 199:03}", number, f"e{number}", True, False) for number in range(199)]
    found = listed(write(tmp_path, format, [rows[:90], rows[90:], rows[:1]]), tmp_path)
    assert [key for key, *_ in found] == [f"{number:03}" for number in range(199)]


def test_an_inventory_in_s3_names_its_own_bucket(s3_bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    local = write(tmp_path, "Parquet", [ROWS], destinationBucket=f"arn:aws:s3:::{bucket}")
    store = open_store(s3_bucket)
    store.put("deep/manifest.json", Path(local).read_bytes())
    store.put("data/0", (tmp_path / "data" / "0").read_bytes())
    assert listed(f"{s3_bucket}/deep/manifest.json", tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fileFormat": "ORC"}, "fileFormat: Input should be 'CSV' or 'Parquet'; it must be an inventory of format"),
        ({"files": "none"}, "files: Input should be a valid array"),
        ({"sourceBucket": "other"}, "is of bucket other, not of s3://shop/photos; name that bucket's"),
        ({"fileSchema": "Bucket, Key"}, "missing fields: ETag, Size; add them to it"),
    ],
)
def test_what_is_not_an_inventory_of_these_photos_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        open_inventory(write(tmp_path, "CSV", [ROWS], **changes), "s3://shop/photos")
    assert message in str(caught.value)


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name its manifest.json"):
        open_inventory(str(tmp_path / "manifest.txt"), "s3://shop")
    with pytest.raises(UsageError, match="no such object; check the path"):
        open_inventory(str(tmp_path / "manifest.json"), "s3://shop")


@pytest.mark.parametrize("format", ["CSV", "Parquet"])
def test_a_file_with_other_bytes_than_its_manifest_says_is_refused(tmp_path: Path, format: str) -> None:
    uri, path = write(tmp_path, format, [ROWS]), tmp_path / "data" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFailed, match="its bytes differ from those listed in the manifest; use a newer inventory"):
        listed(uri, tmp_path)


# ---- fuzzing: whatever the bytes are, there is a result or an error that says what to do


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["sourceBucket", "destinationBucket", "fileFormat", "fileSchema", "files", "key"]), inner
    ), max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_manifest_is_parsed_or_refused(data: bytes) -> None:
    try:
        parse_manifest(data, "x")
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_a_key_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    uri, path = write(tmp_path, "Parquet", [ROWS]), tmp_path / "data" / "0"
    table = pq.read_table(path)
    offsets = pa.array([0, 8] + [8] * (len(ROWS) - 1), pa.int32()).buffers()[1]
    keys = pa.Array.from_buffers(pa.string(), len(ROWS), [None, offsets, pa.py_buffer(b"photos/\xff")])
    pq.write_table(table.set_column(table.column_names.index("key"), "key", keys), path)
    vouch(uri, path)
    with pytest.raises(EnrichError, match=r"is not an inventory file .*UTF8"):
        listed(uri, tmp_path)


@pytest.mark.parametrize("format", ["CSV", "Parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file_of_an_inventory_is_read_or_refused(tmp_path: Path, format: str, data: st.DataObject) -> None:
    """Bytes changed, cut, or no inventory at all, under a manifest that vouches for them."""
    uri, path = write(tmp_path, format, [ROWS]), tmp_path / "data" / "0"
    content = bytearray(path.read_bytes())
    if format == "CSV" and data.draw(st.booleans()):
        content = bytearray(gzip.compress(data.draw(st.binary(max_size=200)), mtime=0))
    else:
        for at, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
        ):
            content[at] = value
        content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path.write_bytes(content)
    vouch(uri, path)
    try:
        found = listed(uri, tmp_path)
    except EnrichError as error:
        message = str(error)
    else:
        assert [key for key, *_ in found] == sorted({key for key, *_ in found}, key=lambda key: (key or "").encode())
        message = ""
    assert "\n" not in message
