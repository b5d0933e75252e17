"""CSV: one row for each product, for people and for other programs."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from enrich.feeds.files import write_delimited
from enrich.feeds.formats.base import Feed, Format
from enrich.feeds.rows import confidence, money, value

AMOUNTS = ("price", "price_low", "price_high")
_BETWEEN_PHOTOS = "|"  # as in catalogs


def columns(feed: Feed) -> dict[str, pl.Expr]:
    """The columns, and their cells as numbers and texts."""
    photos = pl.col("photos").list.eval(pl.element().struct.field("uri"))
    links = pl.when(pl.col("links").list.len() > 0).then("links").otherwise(photos)
    made = pl.when(~pl.col("written")).then("digital_source_type")
    found = {
        "product_id": pl.col("product_id"),
        "title": pl.col("title"),
        "category": pl.col("category"),
        "category_path": pl.col("path"),
        "category_id": pl.col("category_id"),
        "category_confidence": _rounded(pl.col("category_confidence")),
        **{name: pl.col(name) for name in AMOUNTS},
        "currency": pl.col("currency"),
    }
    last = {
        "photos": links.list.join(_BETWEEN_PHOTOS),
        "digital_source_type": made,
        "reviewed_by": pl.col("reviewed_by"),
        "run_id": pl.col("run_id"),
    }
    for field in feed.fields:
        for name, cell in _of_field(field).items():
            while name in found or name in last:  # a field may be called photos, or colour_confidence
                name = f"field_{name}"
            found[name] = cell
    return found | last


def table(rows: pl.DataFrame, feed: Feed) -> pl.DataFrame:
    """The cells; amounts with the decimals of their currency."""
    texts = {name: money(name, feed.currencies) for name in AMOUNTS}
    return rows.select(**{**columns(feed), **texts})


def _of_field(field: str) -> dict[str, pl.Expr]:
    return {field: value(field), f"{field}_confidence": _rounded(confidence(field))}


def _rounded(share: pl.Expr) -> pl.Expr:
    return share.cast(pl.Float64).round(4)


def write(path: Path, tables: Iterable[pl.DataFrame], feed: Feed) -> int:
    """With commas, in UTF-8."""
    return write_delimited(path, tables, ",")


FORMAT = Format(about="CSV with all columns that describe a product", table=table, write=write)
