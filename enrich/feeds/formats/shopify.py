"""Shopify: the product CSV that its import reads. Each further photo is a row of the same Handle."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from enrich.errors import UsageError
from enrich.feeds.files import write_delimited
from enrich.feeds.formats.base import Feed, Format
from enrich.feeds.formats.merchant import DESCRIPTION, ODD_IDS, VALUES
from enrich.feeds.rows import cut, money, one_line, value, where
from enrich.settings.export import ExportSettings

LONGEST = 255  # characters of Handle, Title, Type and a tag
_NO_HANDLE = r"[^A-Za-z0-9-]|^-|-$|^.{256}"
# Ids of Shopify's own taxonomy: gid://shopify/TaxonomyCategory/aa-1-13, or its last part.
_SHOPIFY_ID = r"^(?:gid://shopify/TaxonomyCategory/)?[a-z]{2}(?:-[0-9]+)*$"
# Columns of what a product is for Google, by declared field.
_GOOGLE = {"gender": "Google Shopping / Gender", "age_group": "Google Shopping / Age Group"}


def check(feed: Feed) -> None:
    """Refuse several currencies: prices in Shopify's file have none, the shop's is used."""
    if len(feed.currencies) > 1:
        raise UsageError(
            f"shopify: prices in {', '.join(feed.currencies)}, but a file has one currency; export a run with one"
        )


def lacks(settings: ExportSettings) -> Mapping[str, pl.Expr]:
    """Rows whose SKU Shopify would change."""
    return ODD_IDS


def table(rows: pl.DataFrame, feed: Feed) -> pl.DataFrame:
    """The cells, by the names of Shopify's columns."""
    places = pl.int_ranges(1, pl.max_horizontal(pl.col("links").list.len(), 1) + 1)
    lines = rows.with_columns(place=places).explode("place")
    photo = pl.col("links").list.get(pl.col("place") - 1, null_on_oob=True)
    first = {name: pl.when(pl.col("place") == 1).then(cell) for name, cell in _first_line(feed).items()}
    handle = where(pl.col("product_id"), _NO_HANDLE, handle_of)
    position = pl.when(photo.is_not_null()).then("place")
    return lines.select(**{"Handle": handle, **first, "Image Src": photo, "Image Position": position})


def _first_line(feed: Feed) -> dict[str, pl.Expr]:
    least, settings = feed.settings.min_confidence, feed.settings
    description = value(DESCRIPTION, least) if DESCRIPTION in feed.fields else pl.lit(None, pl.String)
    path = one_line(pl.col("path"))
    is_shopify = pl.col("category_id").str.contains(_SHOPIFY_ID)
    google = {
        column: value(field, least).str.to_lowercase().replace_strict(VALUES[field], default=None)
        for field, column in _GOOGLE.items() if field in feed.fields
    }  # fmt: skip
    return {
        "Title": cut(one_line(pl.col("title")), LONGEST),
        "Body (HTML)": _as_html(description),
        "Vendor": pl.lit(settings.brand, pl.String),
        "Product Category": pl.when(is_shopify).then(path),
        "Type": cut(path, LONGEST),
        "Tags": _tags([field for field in feed.fields if field != DESCRIPTION], least),
        "Published": pl.lit("TRUE" if settings.status == "active" else "FALSE"),
        "Option1 Name": pl.lit("Title"),  # as Shopify has it for a product without variants
        "Option1 Value": pl.lit("Default Title"),
        "Variant SKU": pl.col("product_id"),
        "Variant Inventory Policy": pl.lit("deny"),
        "Variant Fulfillment Service": pl.lit("manual"),
        "Variant Price": money("price", feed.currencies),
        "Variant Requires Shipping": pl.lit("TRUE"),
        "Variant Taxable": pl.lit("TRUE"),
        "Gift Card": pl.lit("FALSE"),
        **google,
        "Status": pl.lit(settings.status),
    }


def _tags(fields: Iterable[str], least: float) -> pl.Expr:
    """`Colour: Navy, Material: Wool`; commas stand between tags."""
    said = {field.replace("_", " ").capitalize(): one_line(value(field, least)) for field in fields}
    tags = [cut(pl.lit(f"{label}: ") + text.str.replace_all(",", " "), LONGEST) for label, text in said.items()]
    return pl.concat_str(tags, separator=", ", ignore_nulls=True) if tags else pl.lit(None, pl.String)


def _as_html(text: pl.Expr) -> pl.Expr:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.str.replace_all(character, entity, literal=True)
    return text


def handle_of(product_id: str) -> str:
    """A handle for an id that cannot be one: its letters and digits, and eight digits that tell ids apart."""
    plain = unicodedata.normalize("NFKD", product_id).encode("ascii", "ignore").decode().lower()
    words = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:200] or "product"
    return f"{words}-{hashlib.sha256(product_id.encode()).hexdigest()[:8]}"


def write(path: Path, tables: Iterable[pl.DataFrame], feed: Feed) -> int:
    """With commas, in UTF-8."""
    return write_delimited(path, tables, ",")


def notes(feed: Feed) -> list[str]:
    """What the file does not tell Shopify."""
    without = "without links to photos: --link-prefix https://cdn.shop.example/photos/ makes them of their keys"
    return [] if feed.linked else [without]


FORMAT = Format(about="Shopify's product CSV", table=table, write=write, check=check, lacks=lacks, notes=notes)
