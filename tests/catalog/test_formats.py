"""Catalogs of every format come to the same products."""

from pathlib import Path

import pytest

from enrich.catalog.embedded import data_of
from enrich.catalog.find_photo import names_of
from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from tests.testing.sources import PATHS, ROWS, SOURCES, Source, json_lines, parquet
from tests.testing.tables import CODES, COLUMNS, csv_text, products, write_photos


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_format_comes_to_the_same_products(tmp_path: Path, source: Source) -> None:
    photos = write_photos(tmp_path / "catalog")
    for name, data in source.files(photos).items():
        (tmp_path / "catalog" / name).write_bytes(data)
    catalog = read_catalog(tmp_path / "catalog", source.columns)
    assert [(one.product_code, one.title, one.category, one.price) for one in catalog.products] == [
        (row["sku"], row["title"], row["category"], float(row["price"])) for row in ROWS
    ]
    assert [[Path(path).read_bytes() for path in one.image_paths] for one in catalog.products] == [[p] for p in photos]


def test_the_fingerprint_of_photos_inside_a_table_is_not_of_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "catalog")
    (tmp_path / "catalog/catalog.parquet").write_bytes(parquet([*photos]))
    first = read_catalog(tmp_path / "catalog", COLUMNS).fingerprint
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path / "elsewhere"))
    assert read_catalog(tmp_path / "catalog", COLUMNS).fingerprint == first


def test_folders_are_categories_where_there_is_no_table(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    for row, photo in zip(ROWS, photos, strict=True):
        path = tmp_path / "catalog" / row["category"] / f"{row['sku']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    (tmp_path / "catalog/Bags/red-tote.jpg").write_bytes(photos[0])
    found = {one.product_code: one for one in read_catalog(tmp_path / "catalog").products}
    assert {code: one.category for code, one in found.items() if code in CODES} == {
        row["sku"]: row["category"] for row in ROWS
    }
    assert (found["red-tote"].title, found["00101"].title) == ("red tote", "Shirts")


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("a.jpg|b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg, b.JPG;c.png", ["a.jpg", "b.JPG", "c.png"]),
        ('["a.jpg", "b,c.jpg"]', ["a.jpg", "b,c.jpg"]),
        ("shirt, red.jpg", ["shirt, red.jpg"]),
        ("https://x.example/w_3,h_2/a.jpg, https://x.example/b", ["https://x.example/w_3,h_2/a.jpg", "https://x.example/b"]),
        ("data:image/png;base64,AA==|b.jpg", ["data:image/png;base64,AA==", "b.jpg"]),
        (" ", []),
    ],
)  # fmt: skip
def test_a_cell_names_several_photos(cell: str, names: list[str]) -> None:
    assert names_of(cell) == names


@pytest.mark.parametrize("uri", ["data:image/png;base64,%%%", "data:image/png;base64,", "data:image/png", "data:,"])
def test_a_data_uri_without_bytes_is_reported(tmp_path: Path, uri: str) -> None:
    assert data_of(uri) is None
    write_photos(tmp_path)
    (tmp_path / "catalog.csv").write_text(csv_text(products(image=lambda n: uri if n == 3 else f"images/{n}.jpg")))
    (dropped,) = read_catalog(tmp_path, COLUMNS).dropped
    assert (dropped.row, dropped.reason) == (4, "photo is an empty data: URI")


def test_photos_of_several_columns_and_of_repeated_ones(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "catalog.csv").write_text(csv_text(products(back=lambda n: f"images/{(n + 1) % 12}.jpg")))
    columns = Columns.model_validate(COLUMNS.model_dump() | {"image_path": ["image", "back"]})
    assert {len(one.image_paths) for one in read_catalog(tmp_path, columns).products} == {2}
    (tmp_path / "catalog.csv").write_text((tmp_path / "catalog.csv").read_text().replace("back", "image", 1))
    assert {len(one.image_paths) for one in read_catalog(tmp_path, COLUMNS).products} == {2}


def test_urls_are_photos_only_for_those_who_look_at_the_table(tmp_path: Path) -> None:
    url = "https://x.example/a.jpg?w=1&amp;h=2"
    (tmp_path / "catalog.csv").write_text(csv_text(products(image=url)))
    assert read_catalog(tmp_path, COLUMNS, urls=True).products[0].image_paths == ("https://x.example/a.jpg?w=1&h=2",)
    with pytest.raises(UsageError, match="photo is a URL, not a file: `enrich catalog fetch` downloads it"):
        read_catalog(tmp_path, COLUMNS)


def test_texts_of_a_parquet_file_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path)
    data = parquet([{"bytes": None, "path": "images/\u2713.jpg"} for _ in ROWS], PATHS)
    assert "\u2713".encode() in data
    (tmp_path / "catalog.parquet").write_bytes(data.replace("\u2713".encode(), b"\x99\x99\x99"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_catalog(tmp_path, COLUMNS)


def test_broken_records_are_reported_and_other_files_refused(tmp_path: Path) -> None:
    write_photos(tmp_path)
    table = tmp_path / "catalog.jsonl"
    table.write_bytes(json_lines(ROWS) + b'\n{"sku": "9", "title": \n')
    (dropped,) = read_catalog(tmp_path, COLUMNS).dropped
    assert (dropped.row, dropped.reason, dropped.detail) == (13, "row cannot be read", "line 13 is not a JSON record")
    table.write_bytes(json_lines([{**row, "note": "\ud800", "deep": {"a": {"b": [[1], 2.5]}}} for row in ROWS]))
    assert len(read_catalog(tmp_path, COLUMNS).products) == 12
    for content in (b"", b"not json\n", b"[" * 100_000):
        table.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            read_catalog(tmp_path, COLUMNS)
