"""A products table says which photos make which product; what is wrong with it is one line before anything starts."""

import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from enrich.errors import UsageError
from enrich.output import parquet, spill
from enrich.output.grouping import Grouped
from enrich.output.products_table import open_products, write_listed
from enrich.output.schema import LISTING_SCHEMA
from enrich.settings.run import ProductColumns
from enrich.storage.scratch import scratch

KEYS = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


def listed(
    path: Path, columns: ProductColumns | None = None, keys: tuple[str, ...] = KEYS
) -> tuple[dict[str, list[str]], Grouped]:
    with scratch() as folder:
        rows = pl.DataFrame({"key": sorted(keys), "size": [1] * len(keys), "etag": ["e"] * len(keys)})
        parquet.write(folder / "listing", [rows], LISTING_SCHEMA, {})
        table = open_products(str(path), columns or ProductColumns(), folder)
        made = write_listed(folder / "source", folder / "listing", table, {}, folder)
        found = pl.read_parquet(folder / "source").iter_rows(named=True)
        return {row["product_id"]: [photo["key"] for photo in row["photos"]] for row in found}, made


def csv(folder: Path, text: str) -> Path:
    path = folder / "products.csv"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("piece", [100_000, 1])
def test_its_products_have_its_photos_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(spill, "PARTITION_ROWS", piece)
    monkeypatch.setattr(spill, "SAMPLE_EVERY", 1)
    path = csv(tmp_path, "name,product_id,photos\nCoat,007,c.jpg | a.jpg|\nHat,1,b.jpg\n")
    assert listed(path) == ({"007": ["c.jpg", "a.jpg"], "1": ["b.jpg"]}, Grouped(2, None))


@pytest.mark.parametrize("photos", [[["c.jpg", "a.jpg"], ["b.jpg"]], ["c.jpg|a.jpg", "b.jpg"]])
def test_parquet_may_hold_lists_and_columns_may_have_other_names(tmp_path: Path, photos: list[Any]) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"sku": [7, 1], "pictures": photos}).write_parquet(path)
    columns = ProductColumns(product_id="sku", photos="pictures")
    assert listed(path, columns)[0] == {"7": ["c.jpg", "a.jpg"], "1": ["b.jpg"]}


@pytest.mark.parametrize(
    "data",
    [
        "product_id;photos\nMütze;c.jpg|a.jpg\n1;b.jpg\n".encode("cp1252"),
        "\ufeffsep=;\r\nproduct_id;name;photos\r\nMütze;1,5 m;c.jpg|a.jpg\r\n1;x;b.jpg\r\n".encode(),
        "product_id\tphotos\nMütze\tc.jpg|a.jpg\n1\tb.jpg\n".encode("utf-16"),
        " product_id , photos \n Mütze , c.jpg | a.jpg \n1,b.jpg\n".encode(),
        '\nproduct_id,name,photos\n\nMütze,"two\nlines, a comma",c.jpg|a.jpg\n1,12" wide,b.jpg\n'.encode(),
    ],
    ids=["windows-1252", "excel", "utf-16", "spaces", "lines"],
)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_text_may_have_any_separator_and_encoding(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"products.{ending}"
    path.write_bytes(data)
    assert listed(path)[0] == {"Mütze": ["c.jpg", "a.jpg"], "1": ["b.jpg"]}


def test_an_encoding_that_was_guessed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "products.csv"
    path.write_bytes("product_id,photos\nMütze,a.jpg\n".encode("cp1252"))
    with scratch() as folder:
        warning = open_products(str(path), ProductColumns(), folder).warning
    assert warning == f"products table {path}: read as windows-1252; if product ids look wrong, save it as UTF-8"


MAC, OTHER = unicodedata.normalize("NFD", "hüte/ä.jpg"), "hüte/ö.jpg"


@pytest.mark.parametrize("piece", [100_000, 1])
def test_keys_are_found_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(spill, "PARTITION_ROWS", piece)
    monkeypatch.setattr(spill, "SAMPLE_EVERY", 1)
    there = (MAC, OTHER, "a.jpg", "sub/b.jpg", "sub\\c.jpg", "sub/c.jpg")
    written = ("hüte\\ä.jpg", unicodedata.normalize("NFD", OTHER), "./a.jpg", "sub\\b.jpg", "sub/c.jpg", "sub\\c.jpg")
    path = csv(tmp_path, f"product_id,photos\n1,{'|'.join(written)}\n")
    assert listed(path, keys=there)[0] == {"1": [MAC, OTHER, "a.jpg", "sub/b.jpg", "sub/c.jpg", "sub\\c.jpg"]}


def test_a_key_that_may_be_two_photos_is_not_guessed_and_two_that_are_one_photo_are_told(tmp_path: Path) -> None:
    two = (MAC, unicodedata.normalize("NFC", MAC))
    path = csv(tmp_path, "product_id,photos\n1,hüte\\ä.jpg\n")
    with pytest.raises(UsageError, match="1 photo is not in the bucket, the first in row 1"):
        listed(path, keys=two)
    path = csv(tmp_path, "product_id,photos\n1,a.jpg\n2,./a.jpg\n")
    with pytest.raises(UsageError, match=r"1 photo is listed more than once, the first in row 2: 'a\.jpg'"):
        listed(path)


def test_ids_that_a_gap_made_floats_are_integers_again(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"product_id": [7.0, 1.5], "photos": ["a.jpg", "b.jpg"]}).write_parquet(path)
    assert listed(path)[0] == {"7": ["a.jpg"], "1.5": ["b.jpg"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("product_id,photos\n1,a.jpg\n2,x.jpg|b.jpg\n3,y.jpg\n",
         "2 photos are not in the bucket, the first in row 2: 'x.jpg'; keys are paths below the URI of the images"),
        ("product_id,photos\n1,a.jpg\n2,b.jpg\n1,c.jpg\n",
         "1 product_id is in more than one row, the first in row 3: '1'; put the photos of a product into one row"),
        ("product_id,photos\n1,a.jpg|b.jpg\n2,b.jpg\n",
         "1 photo is listed more than once, the first in row 2: 'b.jpg'; a photo belongs to one product"),
        ("product_id,photos\n1,a.jpg|a.jpg\n",
         "1 photo is listed more than once, the first in row 1: 'a.jpg'; a photo belongs to one product"),
        ("product_id,photos\n1,a.jpg\n,b.jpg\n", "1 row has no product_id, the first in row 2: ''; name each product"),
        ("product_id,photos\n1,a.jpg\n2, | \n3,\n",
         "2 products have no photos, the first in row 2: '2'; list its keys, or take the row out"),
        (f"product_id,photos\n1,a.jpg\n{4097 * 'x'},b.jpg\n",
         f"1 product_id is longer than 4,096 characters, the first in row 2: {40 * 'x'!r}; shorten it"),
        ("product_id,photos\n", "it has no rows; list the products to process"),
        ("product_id,photos, photos\n1,a.jpg,b.jpg\n",
         "column 'photos' (photos) exists more than once; keep one of them"),
        ("sku,photos\n1,a.jpg\n",
         "no column 'product_id' (product_id); its columns are: sku, photos; name the right one in the settings under "
         "products.product_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(UsageError) as error:
        listed(path)
    assert str(error.value) == f"products table {path}: {message}"


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.json: none of \.csv, \.tsv, \.parquet; convert it to one of these"):
        listed(tmp_path / "x.json")
    with pytest.raises(UsageError, match="no such object; check the path"):
        listed(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UsageError, match=r"bad\.parquet cannot be read: .*; correct the file"):
        listed(tmp_path / "bad.parquet")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(UsageError, match=r"empty\.csv cannot be read: .*; correct the file"):
        listed(tmp_path / "empty.csv")


def test_a_product_has_at_most_24_photos_and_it_is_said(tmp_path: Path) -> None:
    keys = tuple(f"{number:02}.jpg" for number in range(30))
    with scratch() as folder:
        rows = pl.DataFrame({"key": keys, "size": [1] * 30, "etag": ["e"] * 30})
        parquet.write(folder / "listing", [rows], LISTING_SCHEMA, {})
        table = open_products(str(csv(tmp_path, f"product_id,photos\n1,{'|'.join(keys)}\n")), ProductColumns(), folder)
        made = write_listed(folder / "source", folder / "listing", table, {}, folder)
        [photos] = pl.read_parquet(folder / "source")["photos"].to_list()
    assert len(photos) == 24
    assert made.warning is not None
    assert (
        "1 product has more than 24 photos, e.g. '1' (30 photos): the first ones in the table's order" in made.warning
    )
