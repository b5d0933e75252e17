"""Fetching a catalog's photos from a server that misbehaves, and a data set from a hub."""

import csv
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import polars as pl
import pytest
from huggingface_hub import constants
from PIL import Image

from enrich.catalog import download
from enrich.catalog.download import Pace
from enrich.catalog.fetch import FetchSummary, fetch_catalog
from enrich.catalog.read import read_catalog
from enrich.errors import RunFailed, UsageError
from enrich.settings.catalog import FetchSettings
from enrich.settings.photos import PhotoLimits
from tests.testing.badweb import Web, reply, reset, send
from tests.testing.photo_files import encoded

Request = BaseHTTPRequestHandler


def _bytes(image_format: str, side: int = 20) -> bytes:
    return encoded(Image.new("RGB", (side, side), "teal"), image_format)


JPEG = _bytes("JPEG")


def _photo(request: Request, hit: int) -> None:
    send(request, 200, JPEG, Content_Type="text/html")  # servers lie


def _fetch(
    source: str, out: Path, progress: Callable[[int, int], None] = lambda done, total: None, **changes: Any
) -> FetchSummary:
    """`fetch_catalog` with short waits; `changes` are settings or fields of Pace."""
    pace = Pace(backoff_seconds=0.01, max_wait_seconds=0.3, read_seconds=0.5)
    pace = replace(pace, **{name: changes.pop(name) for name in list(changes) if name in Pace.__annotations__})
    settings = FetchSettings.model_validate({"allow_private": True, "attempts": 3, **changes})
    return fetch_catalog(source, out, settings, progress, pace)


def _source(tmp_path: Path, urls: dict[str, str]) -> str:
    path = tmp_path / "source.csv"
    table = {"product_code": list(urls), "title": [f"Title {code}" for code in urls], "imageurl": list(urls.values())}
    pl.DataFrame(table).with_columns(category1_code=pl.lit("A")).write_csv(path)
    return str(path)


def _fetch_one(tmp_path: Path, url: str, **changes: Any) -> dict[str, str]:
    """The failure of this URL, {} where it brought a photo; a good row keeps the fetch from failing whole."""
    source = _source(tmp_path, {"good": url.rsplit("/", 1)[0] + "/good", "1": url})
    _fetch(source, tmp_path / "out", **changes)
    with (tmp_path / "out/failures.csv").open(newline="") as file:
        return next((row for row in csv.DictReader(file) if row["product_code"] == "1"), {})


def test_photos_are_kept_as_they_come(web: Web, tmp_path: Path) -> None:
    formats = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}
    urls = {}
    for number, name in enumerate(formats):
        web.answers[f"/is/image/{name}"] = reply(200, _bytes(name))
        urls[f"0{number}"] = f"{web.url}/is/image/{name}"
    seen: list[tuple[int, int]] = []
    source = _source(tmp_path, urls)
    summary = _fetch(source, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert summary == FetchSummary(photos=6, failed=0, resumed=0)
    assert seen == [(done, 6) for done in range(7)]
    catalog = read_catalog(tmp_path / "out")
    assert [product.product_code for product in catalog.products] == [f"0{number}" for number in range(6)]
    for product, (name, extension) in zip(catalog.products, formats.items(), strict=True):
        assert Path(product.image_paths[0]).suffix == f".{extension}"
        assert Path(product.image_paths[0]).read_bytes() == _bytes(name)
    assert web.headers["user-agent"] == "enrich-catalog-fetch/0.1"
    assert (tmp_path / "out/failures.csv").read_text() == "product_code,url,reason,attempts\n"
    assert pl.read_csv(tmp_path / "out/catalog.csv").columns == [
        "product_code", "title", "imageurl", "category1_code", "local_image_path",
    ]  # fmt: skip


def _slow(request: Request, hit: int) -> None:
    time.sleep(0.9)
    send(request, 200, JPEG)


def _drip(request: Request, hit: int) -> None:
    request.send_response(200)
    request.end_headers()
    for byte in JPEG:
        request.wfile.write(bytes([byte]))
        time.sleep(0.05)


def _cut_short(request: Request, hit: int) -> None:
    send(request, 200, JPEG[:300], Content_Length=str(len(JPEG)))


def _endless(request: Request, hit: int) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(1000):
        request.wfile.write(bytes(1000))


NO_IMAGE = "no image of an accepted format (JPEG, PNG, WEBP, GIF, BMP, AVIF)"
BAD: list[tuple[str, Callable[[Request, int], None], str, int]] = [
    ("not found", reply(404), "HTTP 404 Not Found", 1),
    ("forbidden", reply(403), "HTTP 403 Forbidden", 1),
    ("always busy", reply(503), "HTTP 503 Service Unavailable", 3),
    ("no content", reply(204), "HTTP 204 No Content", 1),
    ("slow", _slow, "no answer in time (timed out)", 3),
    ("drip", _drip, "not done in 0.6 seconds", 3),
    ("cut short", _cut_short, "connection failed (peer closed connection without sending complete message body.*", 3),
    ("reset", lambda r, _: reset(r), "connection failed (.*", 3),
    ("web page", reply(200, b"<!DOCTYPE html><p>gone"), "a web page, not a photo", 1),
    ("not an image", reply(200, b"%PDF-1.7"), NO_IMAGE, 1),
    ("format not accepted", reply(200, _bytes("TIFF")), NO_IMAGE, 1),
    ("empty", reply(200, b""), "the file is empty", 1),
    ("stated too large", reply(200, bytes(9000)), "9,000 bytes, more than the limit of 4,000", 1),
    ("found too large", _endless, "more than the limit of 4,000 bytes", 1),
    ("many pixels", reply(200, _bytes("PNG", 99)), "99 x 99 pixels, more than the limit of 9,000", 1),
    ("not really gzip", reply(200, JPEG, Content_Encoding="gzip"), "content-encoding 'gzip', .*", 1),
    ("redirect to itself", lambda r, _: send(r, 302, Location=r.path), "more than 5 redirects", 1),
    ("redirect to a file", reply(302, Location="file:///a"), "not an http or https URL (file)", 1),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "reason", "attempts"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_failures_have_a_reason(
    web: Web, tmp_path: Path, answer: Callable[[Request, int], None], reason: str, attempts: int
) -> None:
    web.answers |= {"/good": _photo, "/bad": answer}
    limits = PhotoLimits(max_bytes=4000, max_pixels=9000)
    failure = _fetch_one(tmp_path, f"{web.url}/bad", limits=limits, total_seconds=0.6)
    pattern = re.escape(reason.removesuffix(".*")) + (".*" if reason.endswith(".*") else "")
    assert re.fullmatch(pattern, failure["reason"]), failure
    assert (failure["url"], failure["attempts"]) == (f"{web.url}/bad", str(attempts))
    assert [product.product_code for product in read_catalog(tmp_path / "out").products] == ["good"]
    assert len(list((tmp_path / "out/images").iterdir())) == 1  # nothing half-done stays


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "no URL"),
        ("N.A.", "no URL"),
        ("ftp://example.com/a.jpg", "not an http or https URL (ftp)"),
        ("no url at all", "not an http or https URL (no scheme)"),
        ("http://", "not an http or https URL (http)"),
        ("http://[::1", "not a valid URL"),
        ("file:///etc/passwd", "not an http or https URL (file)"),
        ("http://127.0.0.1:1/a.jpg", "connection failed ([Errno 111] Connection refused)"),
    ],
)
def test_an_address_that_cannot_be_asked_is_a_failed_row(web: Web, tmp_path: Path, url: str, reason: str) -> None:
    web.answers["/good"] = _photo
    source = _source(tmp_path, {"good": f"{web.url}/good", "1": url})
    assert _fetch(source, tmp_path / "out") == FetchSummary(photos=1, failed=1, resumed=0)
    (failure,) = csv.DictReader((tmp_path / "out/failures.csv").open(newline=""))
    assert failure["reason"] == reason


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_what_may_be_temporary_is_retried(web: Web, tmp_path: Path, status: int) -> None:
    web.answers |= {"/good": _photo, "/moody": lambda r, hit: send(r, status) if hit < 3 else _photo(r, hit)}
    assert _fetch_one(tmp_path, f"{web.url}/moody") == {}
    assert web.hits["/moody"] == 3


def test_resets_and_short_bodies_are_retried(web: Web, tmp_path: Path) -> None:
    tries = [lambda r, _: reset(r), _cut_short, _photo]
    web.answers |= {"/good": _photo, "/moody": lambda r, hit: tries[hit - 1](r, hit)}
    assert _fetch_one(tmp_path, f"{web.url}/moody") == {}
    (photo,) = (p for p in read_catalog(tmp_path / "out").products if p.product_code == "1")
    assert Path(photo.image_paths[0]).read_bytes() == JPEG


def test_retry_after_is_honoured_and_capped(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    asked = ["7", in_a_minute, "86400", "soon"]
    web.answers |= {
        "/good": _photo,
        "/busy": lambda r, hit: send(r, 429, Retry_After=asked[hit - 1]) if hit <= 4 else _photo(r, hit),
    }
    waits: list[float] = []
    # Only this module's: decoding processes are waited for with the same function.
    monkeypatch.setattr(download, "time", SimpleNamespace(**{**vars(time), "sleep": waits.append}))
    assert _fetch_one(tmp_path, f"{web.url}/busy", attempts=5, max_wait_seconds=90) == {}
    assert 7 <= waits[0] <= 7.01
    assert 55 <= waits[1] <= 60.02
    assert waits[2] == 90
    assert 0 <= waits[3] <= 0.08


def test_redirects_are_followed(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/good": _photo, "/there": _photo}
    for hop in range(5):
        target = "/there" if hop == 4 else f"/hop{hop + 1}"
        web.answers[f"/hop{hop}"] = reply(301, Location=target)
    assert _fetch_one(tmp_path, f"{web.url}/hop0") == {}
    assert web.hits["/there"] == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.7", "169.254.169.254", "0.0.0.0", "224.0.0.1"],
)
def test_private_addresses_are_refused(web: Web, tmp_path: Path, host: str) -> None:
    port = web.url.rsplit(":", 1)[1]
    with pytest.raises(RunFailed, match=r"is not a public address; allow_private permits it"):
        _fetch(_source(tmp_path, {"1": f"http://{host}:{port}/a"}), tmp_path / "out", allow_private=False)
    assert not web.hits


def test_an_unknown_host_is_a_failure(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> NoReturn:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        RunFailed, match=r"none of 1 photos could be downloaded \(host shop.invalid not found\); see .*failures"
    ):
        _fetch(_source(tmp_path, {"1": "http://shop.invalid/a"}), tmp_path / "out", allow_private=False)


def test_a_fetch_that_was_cut_short_continues(web: Web, tmp_path: Path) -> None:
    web.answers |= {f"/{name}": _photo for name in "abc"}
    source = _source(tmp_path, {name: f"{web.url}/{name}" for name in "abc"})
    out = tmp_path / "out"
    _fetch(source, out)
    whole = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    gone = next(path for path in (out / "images").iterdir() if path.name.startswith("b-"))
    gone.with_suffix(".part").write_bytes(JPEG[:100])  # what a killed process leaves
    gone.unlink()
    (out / "catalog.csv").unlink()
    assert _fetch(source, out) == FetchSummary(photos=3, failed=0, resumed=2)
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == whole
    assert (web.hits["/a"], web.hits["/b"], web.hits["/c"]) == (1, 2, 1)


def test_another_url_for_a_product_is_another_photo(web: Web, tmp_path: Path) -> None:
    web.answers |= {"/old": _photo, "/new": reply(200, _bytes("PNG"))}
    _fetch(_source(tmp_path, {"1": f"{web.url}/old"}), tmp_path / "out")
    _fetch(_source(tmp_path, {"1": f"{web.url}/new"}), tmp_path / "out")
    assert Path(read_catalog(tmp_path / "out").products[0].image_paths[0]).read_bytes() == _bytes("PNG")


def test_a_catalog_that_cannot_be_written_is_a_failed_run(web: Web, tmp_path: Path) -> None:
    web.answers["/p"] = _photo
    (tmp_path / "out/catalog.csv").mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"catalog.csv.*: Is a directory; fix that and run again"):
        _fetch(_source(tmp_path, {"1": f"{web.url}/p"}), tmp_path / "out")


def test_product_codes_never_become_paths(web: Web, tmp_path: Path) -> None:
    codes = ["../../evil", "/etc/passwd", "a/b", "a_b", "..", "x" * 400, "été", "con:1"]
    web.answers["/p"] = _photo
    out = tmp_path / "out"
    summary = _fetch(_source(tmp_path, dict.fromkeys(codes, f"{web.url}/p")), out)
    assert summary.photos == len(codes)
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")} == {"out", "source.csv"}
    names = [path.name for path in (out / "images").iterdir()]
    assert len(names) == len(codes)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}\.jpg", name) for name in names)
    assert len(read_catalog(out).products) == len(codes)


def test_a_host_is_not_overrun(web: Web, tmp_path: Path) -> None:
    lock, busy = threading.Lock(), [0]
    seen: list[int] = []

    def lingering(request: Request, hit: int) -> None:
        """Counts a request until its answer begins: the client may send its next before this thread ends."""
        with lock:
            busy[0] += 1
            seen.append(busy[0])
        time.sleep(0.02)
        with lock:
            busy[0] -= 1
        _photo(request, hit)

    web.answers |= {f"/{number}": lingering for number in range(24)}
    source = _source(tmp_path, {str(number): f"{web.url}/{number}" for number in range(24)})
    assert _fetch(source, tmp_path / "out", per_host=3, threads=12).photos == 24
    assert max(seen) <= 3


def test_other_column_names_and_parquet(web: Web, tmp_path: Path) -> None:
    web.answers["/p"] = _photo
    table = pl.DataFrame(
        {"sku": [7, 8], "photo": [f"{web.url}/p", None], "raw": [b"\x00", b"\xff"], "cost": [1.0, 2.5]}
    )
    table.write_parquet(tmp_path / "table.parquet")
    summary = _fetch(str(tmp_path / "table.parquet"), tmp_path / "out", product_code="sku", image_url="photo")
    assert summary == FetchSummary(photos=1, failed=1, resumed=0)
    (row,) = csv.DictReader((tmp_path / "out/catalog.csv").open(newline=""))
    assert (row["sku"], row["cost"], "raw" in row) == ("7", "1", False)


def _say(source: str, out: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        _fetch(source, out, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, {"1": "http://example.com/a.jpg"})
    out = tmp_path / "out"
    assert _say("no/such/file.csv", out) == (
        "source no/such/file.csv: no such file; name a table (.csv, .tsv, .parquet, .xlsx, .jsonl, .ndjson, .json), or "
        "a Hugging Face data set as owner/name"
    )
    assert "no such file" in _say("../data", out)
    assert _say(source, out, image_url="photo") == (
        f"table {source}: no column 'photo'; its columns are: product_code, title, imageurl, category1_code; "
        "set image_url to one of them"
    )
    (tmp_path / "none.csv").write_text("product_code,imageurl\n")
    assert _say(str(tmp_path / "none.csv"), out) == f"table {tmp_path}/none.csv: has no rows; name another one"
    assert not out.exists()
    out.write_text("")
    assert _say(source, out) == f"out {out}: Not a directory; name a directory that can be written"


TREE = "/api/datasets/shop/prices/tree/main?recursive=true&expand=false"


@pytest.fixture
def hub(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], None]:
    """A Hugging Face hub with one data set, shop/prices, of the files given."""
    # What HF_ENDPOINT sets when huggingface_hub is imported.
    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    template = web.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    web.answers[TREE.replace("prices", "none")] = reply(404, b"{}", X_Error_Code="RepoNotFound")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"

    def hold(files: dict[str, bytes]) -> None:
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]
        body = json.dumps(tree).encode()
        web.answers[TREE] = reply(200, body, Content_Type="application/json")
        for name, content in files.items():
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
            web.answers[f"/datasets/shop/prices/resolve/main/{name}"] = reply(200, content, **headers)

    return hold


def _parquet(urls: list[str]) -> bytes:
    buffer = BytesIO()
    pl.DataFrame({"product_code": range(len(urls)), "imageurl": urls}).write_parquet(buffer)
    return buffer.getvalue()


def test_a_data_set_from_a_hub(web: Web, tmp_path: Path, hub: Callable[[dict[str, bytes]], None]) -> None:
    web.answers["/p"] = _photo
    train = _parquet([f"{web.url}/p", f"{web.url}/none"])
    hub({"README.md": b"#", "data/train-00000-of-00001.parquet": train, "data/test-00000-of-00001.parquet": b"no"})
    assert _fetch("shop/prices", tmp_path / "out") == FetchSummary(photos=1, failed=1, resumed=0)


def _with_photos_inside(codes: str, photos: list[bytes | None]) -> bytes:
    buffer = BytesIO()
    cells = [None if one is None else {"bytes": one, "path": None} for one in photos]
    table = {"product_code": list(codes), "title": [f"Hat {code}" for code in codes], "image": cells}
    pl.DataFrame(table).with_columns(category1_code=pl.lit("HATS")).write_parquet(buffer)
    return buffer.getvalue()


def test_a_data_set_with_photos_inside(tmp_path: Path, hub: Callable[[dict[str, bytes]], None]) -> None:
    parts = _with_photos_inside("ab", [_bytes("PNG"), _bytes("WEBP")]), _with_photos_inside("cd", [JPEG, None])
    hub({f"data/train-0000{n}-of-00002.parquet": part for n, part in enumerate(parts)})
    summary = _fetch("shop/prices", tmp_path / "out", image_url="image")
    assert summary == FetchSummary(photos=3, failed=1, resumed=0)
    catalog = read_catalog(tmp_path / "out")
    found = {one.product_code: Path(one.image_paths[0]) for one in catalog.products}
    assert {code: path.suffix for code, path in found.items()} == {"a": ".png", "b": ".webp", "c": ".jpg"}
    assert found["a"].read_bytes() == _bytes("PNG")
    assert {path.parent for path in found.values()} == {(tmp_path / "out/images").absolute()}
    assert "image" not in pl.read_csv(tmp_path / "out/catalog.csv").columns
    assert (tmp_path / "out/failures.csv").read_text() == 'product_code,url,reason,attempts\nd,"",no URL,0\n'


def test_columns_with_photos_inside_are_offered(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(_with_photos_inside("a", [JPEG]))
    with pytest.raises(UsageError, match=r"no column 'imageurl'; its columns are: .*image.*; set image_url to one"):
        _fetch(str(tmp_path / "table.parquet"), tmp_path / "out")


def test_bad_data_sets(web: Web, tmp_path: Path, hub: Callable[[dict[str, bytes]], None]) -> None:
    out = tmp_path / "out"
    expected = "data set shop/none: not found, or private without HF_TOKEN; check its name"
    assert _say("shop/none", out) == expected
    hub({"README.md": b"#"})
    assert (
        _say("shop/prices", out)
        == "data set shop/prices: contains no Parquet file; download its table and name the file"
    )
    hub({"de/train-0.parquet": b"", "fr/train-0.parquet": b""})
    assert _say("shop/prices", out) == (
        "data set shop/prices: several tables (de, fr); download one of them and name the file"
    )
    web.answers.clear()
    assert not out.exists()
