"""Products with several photos: a list, keys in one cell, or rows of one product code."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from enrich.catalog.dropped import Dropped
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.split import split_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns, SplitSettings
from enrich.settings.training import TrainSettings

COLUMNS = Columns.model_validate(
    {"product_code": "sku", "title": "name", "category": ["kind"], "price": "cost", "image_path": "photos"}
)
ROW = {"sku": "1", "name": "Red Hat", "kind": "Hats", "cost": "20", "photos": ""}


def _photos(directory: Path) -> None:
    (directory / "images").mkdir(exist_ok=True)
    for name in "abcdef":
        (directory / f"images/{name}.jpg").write_bytes(name.encode() * 10)


def _read(directory: Path, *rows: dict[str, str]) -> Catalog:
    _photos(directory)
    pl.DataFrame([ROW | row for row in rows]).write_csv(directory / "catalog.csv")
    return read_catalog(directory, COLUMNS)


def _names(catalog: Catalog) -> list[list[str]]:
    return [[Path(path).stem for path in product.image_paths] for product in catalog.products]


def _cell(names: str) -> str:
    return "|".join(f"images/{name}.jpg" for name in names)


def _rows(names: str, **cells: str) -> Sequence[dict[str, str]]:
    return [{**cells, "photos": _cell(name)} for name in names]


def test_keys_in_one_cell_are_photos_in_their_order(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"photos": f" {_cell('ba')} | {_cell('c')}|"}, {"sku": "2", "photos": _cell("d")})
    assert _names(catalog) == [["b", "a", "c"], ["d"]]
    assert catalog.products[0].image_paths[0] == f"{tmp_path}/images/b.jpg"
    assert (catalog.photos, catalog.rows, catalog.dropped) == (4, 2, ())
    assert catalog.lines == ("4 photos of 2 products",)


def test_a_list_column_of_a_parquet_file(tmp_path: Path) -> None:
    _photos(tmp_path)
    lists = [["images/c.jpg", "images/a.jpg"], ["images/b.jpg"], [], None]
    rows = [{**ROW, "sku": f"{number}", "photos": photos} for number, photos in enumerate(lists, start=1)]
    pl.DataFrame(rows).write_parquet(tmp_path / "catalog.parquet")
    catalog = read_catalog(tmp_path, COLUMNS)
    assert _names(catalog) == [["c", "a"], ["b"]]
    assert catalog.dropped == (Dropped(3, "3", "no image_path"), Dropped(4, "4", "no image_path"))


def test_rows_of_one_product_are_its_photos_in_their_order(tmp_path: Path) -> None:
    alike = {"name": " red  HAT ", "cost": "20.00"}
    catalog = _read(
        tmp_path, *_rows("c"), {"sku": "2", "photos": _cell("d")}, *_rows("a", **alike), *_rows("b", name="", cost="")
    )
    assert _names(catalog) == [["c", "a", "b"], ["d"]]
    assert [product.title for product in catalog.products] == ["Red Hat", "Red Hat"]
    assert (catalog.rows, catalog.row_of) == (2, {"1": 1, "2": 2})
    assert catalog.lines == ("4 photos of 2 products",)


@pytest.mark.parametrize(
    ("cells", "odd"), [({"name": "Blue Hat"}, "title"), ({"kind": "Caps"}, "category"), ({"cost": "21"}, "price")]
)
def test_rows_that_disagree_are_left_out_and_reported(tmp_path: Path, cells: dict[str, str], odd: str) -> None:
    catalog = _read(tmp_path, *_rows("a"), *_rows("b", **cells), *_rows("c"))
    assert _names(catalog) == [["a", "c"]]
    told = f"its {odd} differs from row 1"
    assert catalog.dropped == (Dropped(2, "1", "product_code is in an earlier row", told),)
    assert catalog.lines[1] == (
        f"left out: 1 of 2 rows: 1 product_code is in an earlier row (row 2, product 1: {told})"
    )


def test_a_missing_photo_is_left_out_and_reported(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"photos": _cell("xay")}, *_rows("z"), *_rows("b"), {"sku": "2", "photos": _cell("wc")})
    assert _names(catalog) == [["a", "b"], ["c"]]
    assert catalog.dropped == ()
    assert [(one.row, one.detail) for one in catalog.lost] == [
        (1, "images/x.jpg"), (1, "images/y.jpg"), (2, "images/z.jpg"), (4, "images/w.jpg"),
    ]  # fmt: skip
    assert catalog.lines == (
        "3 photos of 2 products",
        "photos left out: 4 of 7 photos: 4 photo not found (row 1, product 1: images/x.jpg)",
    )


def test_a_product_without_any_photo_left_is_left_out_once(tmp_path: Path) -> None:
    catalog = _read(tmp_path, *_rows("xyz"), {"sku": "2", "photos": _cell("a")})
    assert _names(catalog) == [["a"]]
    assert catalog.dropped == (Dropped(1, "1", "photo not found", "images/x.jpg"),)
    assert (catalog.lost, catalog.rows) == ((), 2)
    with pytest.raises(UsageError, match=r"none of its 1 rows can be used, .*photo not found \(1 rows\)"):
        _read(tmp_path, *_rows("xyz"))


def test_the_first_row_may_lack_a_photo_and_a_photo_counts_once(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"photos": ""}, *_rows("a", name="", kind="", cost=""), *_rows("a"))
    assert _names(catalog) == [["a"]]
    assert catalog.lines == ()


def test_a_catalog_changes_with_a_products_further_photos(tmp_path: Path) -> None:
    first = _read(tmp_path, {"photos": _cell("ab")}).fingerprint
    assert _read(tmp_path, *_rows("ab")).fingerprint == first
    for other in ("a", "ba", "abc"):
        assert _read(tmp_path, {"photos": _cell(other)}).fingerprint != first
    _read(tmp_path, {"photos": _cell("ab")})
    (tmp_path / "images/b.jpg").write_bytes(b"another photo")
    assert read_catalog(tmp_path, COLUMNS).fingerprint != first


def test_all_photos_of_a_product_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"sku": f"{n}", "name": f"Hat {n}", "photos": _cell("abcdef"[n % 6])} for n in range(40) for _ in range(3)]
    catalog = _read(tmp_path, *({**row, "photos": _cell("ab"[at % 2])} for at, row in enumerate(rows)))
    splits = split_catalog(catalog.products, SplitSettings())
    assert sum(len(split) for split in vars(splits).values()) == 40
    assert len({product.product_code for split in vars(splits).values() for product in split}) == 40


def _files(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode())


def _grouped(directory: Path, group_by: str, *named: str) -> list[list[str]]:
    rows = [ROW | {"sku": f"{number}", "photos": name} for number, name in enumerate(named, start=1)]
    pl.DataFrame(rows).write_csv(directory / "catalog.csv")
    catalog = read_catalog(directory, COLUMNS, group_by)
    return [[str(Path(path).relative_to(directory)) for path in one.image_paths] for one in catalog.products]


def test_photos_next_to_the_one_that_the_table_names(tmp_path: Path) -> None:
    _files(
        tmp_path, *(f"A/{n}.jpg" for n in (10, 2, 1)), "A/notes.txt", "A/.DS_Store", "B/1.jpg", "C/1.jpg", "root.jpg"
    )
    (tmp_path / "A/empty.jpg").touch()
    named = ["A/2.jpg", "B/1.jpg", "root.jpg"]
    assert _grouped(tmp_path, "photo", *named) == [[name] for name in named]
    assert _grouped(tmp_path, "folder", *named) == [["A/2.jpg", "A/1.jpg", "A/10.jpg"], ["B/1.jpg"], ["root.jpg"]]
    assert _grouped(tmp_path, "folder", "A/10.jpg|A/1.jpg") == [["A/10.jpg", "A/1.jpg"]]  # it names them itself
    _files(tmp_path, *(f"D/{n}.jpg" for n in range(40)))
    assert _grouped(tmp_path, "folder", "D/0.jpg") == [[f"D/{n}.jpg" for n in range(24)]]


def test_photos_are_grouped_by_an_expression(tmp_path: Path) -> None:
    _files(tmp_path, *(f"images/{name}.jpg" for name in ("S1_b", "S1_a", "S2_a", "other")))
    named = ["images/S1_a.jpg", "images/S2_a.jpg", "images/other.jpg"]
    by_sku = r"images/(?P<product_id>S\d+)_.*"
    assert _grouped(tmp_path, by_sku, *named) == [["images/S1_a.jpg", "images/S1_b.jpg"], [named[1]], [named[2]]]
    with pytest.raises(UsageError) as refused:
        _grouped(tmp_path, r"(?P<product_id>X\d+)", *named)
    where = f"catalog {tmp_path}/catalog.csv: group_by (?P<product_id>X\\d+)"
    assert str(refused.value) == f"{where}: matches no photo of the table; correct it, or use photo"
    with pytest.raises(UsageError) as refused:
        _grouped(tmp_path, "folder", *named)
    assert "the photos of products 1 and 2 (images/S1_a.jpg, images/S2_a.jpg) are in one group" in str(refused.value)


@pytest.mark.parametrize(("group_by", "said"), [("(", "is not a regular expression"), ("x", "has no group")])
def test_an_expression_that_cannot_group_is_refused(group_by: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainSettings(group_by=group_by)
