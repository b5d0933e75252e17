"""A products table says which photos make which product; what is wrong with it is one line before anything starts."""

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


def listed(path: Path, columns: ProductColumns | None = None) -> tuple[dict[str, list[str]], Grouped]:
    with scratch() as folder:
        rows = pl.DataFrame({"key": KEYS, "size": [1] * 4, "etag": ["e"] * 4})
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
        ("product_id,photos\n", "it has no rows; list the products to process"),
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
    with pytest.raises(UsageError, match=r"x\.json: neither \.csv nor \.parquet; convert it to one of these"):
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
