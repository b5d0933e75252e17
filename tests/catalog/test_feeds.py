"""What feeds and exports write is read as a catalog: structured_title, Shopify's new columns, escaped cells."""

from pathlib import Path
from typing import Any

import pytest

from enrich.catalog.layouts import propose
from enrich.catalog.read import Catalog, read_catalog
from enrich.settings.catalog import Columns
from tests.testing.tables import csv_text, write_photos


def read(folder: Path, rows: list[dict[str, Any]], separator: str = ",") -> Catalog:
    """With the columns that are proposed for its header."""
    write_photos(folder)
    (folder / "catalog.csv").write_text(csv_text(rows, separator), "utf-8")
    return read_catalog(folder, propose(list(rows[0]), {}).columns)


@pytest.mark.parametrize(
    ("title", "structured", "read_as"),
    [
        ("", "trained_algorithmic_media:Navy Coat", "Navy Coat"),
        ("", 'trained_algorithmic_media:"Coat: 24"" Navy"', 'Coat: 24" Navy'),
        ("", 'default:"Coat, Navy"', "Coat, Navy"),
        ("", ":Organic T-Shirt", "Organic T-Shirt"),
        ("", "Plain Coat", "Plain Coat"),
        ("Written", "trained_algorithmic_media:Made", "Written"),
        ("'=1+1", "", "=1+1"),
        ("'-Sale", "", "-Sale"),
        ("'til Dawn", "", "'til Dawn"),
    ],
)
def test_titles_of_a_merchant_feed(tmp_path: Path, title: str, structured: str, read_as: str) -> None:
    feed = {"id": "1", "title": title, "structured_title": structured, "image_link": "images/0.jpg",
            "product_type": "Clothing > Coats", "price": "12.500 KWD"}  # fmt: skip
    [product] = read(tmp_path, [feed], "\t").products
    assert (product.title, product.category, product.price) == (read_as, "Clothing > Coats", 12.5)


def test_a_feed_may_have_structured_titles_only(tmp_path: Path) -> None:
    feed = {"id": "1", "structured title": "trained_algorithmic_media:Coat", "image link": "images/0.jpg",
            "product type": "Coats", "price": "12.00 EUR"}  # fmt: skip
    assert read(tmp_path, [feed], "\t").products[0].title == "Coat"


def test_shopify_has_new_names_for_its_columns(tmp_path: Path) -> None:
    first = {"Title": "Shirt", "URL handle": "shirt", "Description": "x", "Product category": "Apparel > Shirts",
             "SKU": "1", "Price": "20.00", "Product image URL": "images/0.jpg", "Image position": "1"}  # fmt: skip
    second = dict.fromkeys(first, "") | {"URL handle": "shirt", "Product image URL": "images/1.jpg"}
    catalog = read(tmp_path, [first, second])
    [product] = catalog.products
    assert (product.product_code, product.category, product.price) == ("shirt", "Apparel > Shirts", 20.0)
    assert [Path(path).name for path in product.image_paths] == ["0.jpg", "1.jpg"]


def test_what_was_fetched_is_preferred_to_the_links() -> None:
    header = ["id", "title", "image_link", "additional_image_link", "product_type", "price", "local_image_path"]
    columns = propose(header, {}).columns
    assert (columns.image_path, columns.more_images) == ("local_image_path", ())
    assert propose(header[:-1], {}).columns.more_images == ("additional_image_link",)
    assert Columns().image_path == "local_image_path"
