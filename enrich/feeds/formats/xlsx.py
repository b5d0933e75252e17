"""Excel: the columns of `csv`, with numbers that are numbers."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import polars as pl

from enrich.feeds.files import write_workbook
from enrich.feeds.formats.base import Feed, Format
from enrich.feeds.formats.csv import AMOUNTS, columns
from enrich.feeds.rows import by_decimals, rounded


def table(rows: pl.DataFrame, feed: Feed) -> pl.DataFrame:
    """The cells; amounts are rounded to the decimals of their currency."""
    amounts = {name: by_decimals(partial(rounded, name), feed.currencies) for name in AMOUNTS}
    return rows.select(**{**columns(feed), **amounts})


def write(path: Path, tables: Iterable[pl.DataFrame], feed: Feed) -> int:
    """One sheet; a text is never a formula, so no cell is changed."""
    write_workbook(path, tables, AMOUNTS)
    return 0


FORMAT = Format(about="the same as an Excel workbook", table=table, write=write)
