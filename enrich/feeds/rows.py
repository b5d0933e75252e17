"""Rows of products.parquet that are ready for use, and helpers for formats to convert their columns."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from urllib.parse import quote

import polars as pl

from enrich.answers.amount import decimals
from enrich.answers.path import SEPARATOR
from enrich.settings.export import ExportSettings


def written_titles(reviews: pl.DataFrame) -> pl.DataFrame:
    """Titles that a person wrote, not merely accepted (REVIEW_SCHEMA), and whose they are."""
    own = pl.col("title").is_not_null() & pl.col("title").ne_missing(pl.col("suggested_title"))
    return reviews.filter(own).select("product_id", "title", "reviewed_by", "reviewed_at", written=True).unique()


def prepared(rows: pl.DataFrame, written: pl.DataFrame, settings: ExportSettings) -> pl.DataFrame:
    """Rows (PRODUCTS_SCHEMA) with three more columns: `written`, whether a person wrote the title; `links` to the
    photos that could be read; and `path`, the category with the levels above it."""
    whose = ("product_id", "title", "reviewed_by", "reviewed_at")
    joined = rows.join(written, on=whose, how="left", maintain_order="left")
    return joined.with_columns(
        pl.col("written").fill_null(False),
        links=_links(settings.link_prefix),
        path=pl.coalesce(pl.col("category_path").list.join(SEPARATOR), "category"),
    )


def why_not(settings: ExportSettings, lacks: Mapping[str, pl.Expr]) -> pl.Expr:
    """Why a row is left out, null for the usable ones.

    Args:
        lacks: rows that the format cannot represent, by the reason.
    """
    sure = pl.col("category_confidence").fill_null(0) >= settings.min_confidence
    reasons = {
        "no longer in the source": ~pl.col("in_source"),
        "failed": pl.col("status") != "ok",
        "rejected by a person": pl.col("title").is_null(),
        "waiting for review": pl.col("needs_review"),
        f"below min_confidence {settings.min_confidence:g}": ~sure,
        **lacks,
    }
    return pl.coalesce(pl.when(found.fill_null(False)).then(pl.lit(reason)) for reason, found in reasons.items())


def money(column: str, currencies: Collection[str]) -> pl.Expr:
    """An amount as text, with the decimals of its currency.

    Args:
        currencies: all that occur.
    """

    def fixed(places: int) -> pl.Expr:
        return rounded(column, places).cast(pl.Decimal(38, places)).cast(pl.String)

    return by_decimals(fixed, currencies)


def rounded(column: str, places: int) -> pl.Expr:
    """An amount with that many decimals."""
    return pl.col(column).round(places, mode="half_away_from_zero")


def by_decimals(cell: Callable[[int], pl.Expr], currencies: Collection[str]) -> pl.Expr:
    """`cell` applied to the number of decimals of each row's currency."""
    with_few, with_many = ([one for one in currencies if decimals(one) == places] for places in (0, 3))
    return (
        pl.when(pl.col("currency").is_in(with_few)).then(cell(0))
        .when(pl.col("currency").is_in(with_many)).then(cell(3))
        .otherwise(cell(2))
    )  # fmt: skip


def value(field: str, least: float = 0.0) -> pl.Expr:
    """The value of a further field, null if its confidence is below `least`."""
    found = pl.col("attributes").map.get(field).struct
    return pl.when(found.field("confidence").fill_null(0) >= least).then(found.field("value"))


def confidence(field: str) -> pl.Expr:
    """The confidence of a further field."""
    return pl.col("attributes").map.get(field).struct.field("confidence")


def one_line(text: pl.Expr) -> pl.Expr:
    """Text without control characters, runs of white space as one space."""
    return text.str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()


def cut(text: pl.Expr, most: int) -> pl.Expr:
    """Text of at most that many characters, cut between words if possible."""
    short = text.str.head(most)
    whole = short.str.replace(r"\s+\S*$", "")
    return pl.when(text.str.len_chars() <= most).then(text).when(whole != "").then(whole).otherwise(short)


def where(text: pl.Expr, pattern: str, change: Callable[[str], str]) -> pl.Expr:
    """Text in which the few values that match `pattern` are changed by a Python function."""

    def changed(texts: pl.Series) -> pl.Series:
        odd = texts.str.contains(pattern).fill_null(False)
        if not odd.any():
            return texts
        pairs = zip(texts, odd, strict=True)
        return pl.Series(texts.name, [change(text) if found else text for text, found in pairs], dtype=pl.String)

    return text.map_batches(changed, return_dtype=pl.String, is_elementwise=True)


def _links(prefix: str | None) -> pl.Expr:
    """Links to photos in the product's order. Keys are escaped, including commas, which separate links in feeds."""
    photo = pl.element().struct
    good = pl.col("photos").list.eval(pl.element().filter(photo.field("error_kind").is_null()))
    if prefix is None:
        uri = photo.field("uri")
        return good.list.eval(uri.filter(uri.str.contains("^https?://"))).fill_null([])
    escaped = where(photo.field("key"), "[^A-Za-z0-9_.~/-]", partial(quote, safe="/"))
    return good.list.eval(pl.lit(prefix.rstrip("/") + "/") + escaped).fill_null([])
