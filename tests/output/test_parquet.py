import io
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enrich.errors import RunFailed, unforeseen
from enrich.output import parquet
from enrich.output.schema import LISTING_SCHEMA, MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_SCHEMA, SOURCE_SCHEMA
from enrich.storage import open_store


@pytest.mark.parametrize("schema", [ROW_SCHEMA, PRODUCTS_SCHEMA, MANIFEST_SCHEMA, SOURCE_SCHEMA])
def test_no_rows_keep_their_types(schema: pa.Schema) -> None:
    data = parquet.encode(parquet.empty(schema), schema, {"a": "b"})
    assert pq.read_schema(io.BytesIO(data)).equals(schema)
    table, metadata = parquet.decode(data, schema, "here")
    assert table.equals(parquet.empty(schema))
    assert metadata == {"a": "b", "enrich.schema_version": "3"}


def test_columns_are_put_in_order_and_row_groups_have_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 4)
    table = pl.DataFrame({"etag": ["e"] * 10, "size": range(10), "key": [f"k{number}" for number in range(10)]})
    data = parquet.encode(table, LISTING_SCHEMA, {}, sorted_by=["key"])
    metadata = pq.read_metadata(io.BytesIO(data))
    assert metadata.schema.names == LISTING_SCHEMA.names
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [4, 4, 2]
    assert [(group.column(0).statistics.min, group.column(0).statistics.max) for group in groups] == [
        ("k0", "k3"),
        ("k4", "k7"),
        ("k8", "k9"),
    ]
    assert {group.column(0).compression for group in groups} == {"ZSTD"}
    assert groups[0].sorting_columns == (pq.SortingColumn(0, descending=False, nulls_first=False),)
    assert parquet.decode(data, LISTING_SCHEMA, "here")[0].equals(table.select("key", "size", "etag"))


def test_a_value_that_does_not_fit_its_column_is_not_bent() -> None:
    table = parquet.empty(MANIFEST_SCHEMA).vstack(
        parquet.from_records([{"product_id": "a", "attempt": 1, "shard": 0}], MANIFEST_SCHEMA)
    )
    with pytest.raises(pa.ArrowInvalid):
        parquet.encode(table.with_columns(attempt=pl.lit(40_000)), MANIFEST_SCHEMA, {})


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100, b"PAR1" + b"\xff" * 50 + b"PAR1"])
def test_what_is_not_parquet_is_named(data: bytes) -> None:
    with pytest.raises(RunFailed) as error:
        parquet.decode(data, SOURCE_SCHEMA, "s3://bucket/x.parquet")
    assert str(error.value) == (
        "s3://bucket/x.parquet is not a readable Parquet file; move it away and start the run again"
    )


def test_a_damaged_page_is_named() -> None:
    table = pl.DataFrame({"key": [f"k{number}" for number in range(999)], "size": range(999), "etag": ["e"] * 999})
    data = bytearray(parquet.encode(table, LISTING_SCHEMA, {}))
    data[60:400] = b"\x00" * 340
    with pytest.raises(RunFailed, match="is not a readable Parquet file"):
        parquet.decode(bytes(data), LISTING_SCHEMA, "here")


def test_a_file_of_another_schema_version_is_named() -> None:
    old = pa.schema([("key", pa.string())], metadata={"enrich.schema_version": "7"})
    sink = io.BytesIO()
    pq.write_table(old.empty_table(), sink)
    with pytest.raises(RunFailed) as error:
        parquet.decode(sink.getvalue(), SOURCE_SCHEMA, "here")
    assert str(error.value) == (
        "here has schema version 7, not 3; use the version of enrich that wrote it, or another --output"
    )


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert parquet.read(store, "x.parquet", SOURCE_SCHEMA) is None
    store.put("x.parquet", parquet.encode(parquet.empty(SOURCE_SCHEMA), SOURCE_SCHEMA, {}))
    file, info = parquet.read(store, "x.parquet", SOURCE_SCHEMA), store.head("x.parquet")
    assert file is not None
    assert info is not None
    assert file.etag == info.etag


def test_a_damaged_page_gives_no_wrong_rows(tmp_path: Path) -> None:
    table = pl.DataFrame({"key": ["a", "b", "c"], "size": [1, 2, 3], "etag": ["e", None, "f"]})
    data = parquet.encode(table, LISTING_SCHEMA, {})
    store, refused = open_store(str(tmp_path)), 0
    last = pq.read_metadata(io.BytesIO(data)).row_group(0).column(2)
    pages_end = last.dictionary_page_offset + last.total_compressed_size
    for at in range(4, pages_end):
        store.put("t.parquet", data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            found = parquet.fetch(store, "t.parquet", LISTING_SCHEMA, tmp_path / "local.parquet")
        except RunFailed as error:
            assert "t.parquet is not a readable Parquet file" in str(error)  # noqa: PT017
            refused += 1
        else:  # a byte of a page's header that pyarrow does not look at
            assert found is not None
            try:
                assert pl.read_parquet(found.path).equals(table)
            except (pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
                assert "a Parquet file is damaged" in str(unforeseen(error))  # noqa: PT017
    assert refused > 0.5 * (pages_end - 4)
