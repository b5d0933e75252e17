"""What an export format must define. Each format is a module of this package, with a `FORMAT`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from enrich.settings.export import ExportSettings


@dataclass(frozen=True)
class Feed:
    """One export: its settings, and what the usable rows have in common."""

    name: str  # of the file
    settings: ExportSettings
    fields: tuple[str, ...] = ()  # declared fields beyond title, category and price, in alphabetical order
    currencies: tuple[str, ...] = ()
    linked: bool = False  # whether any row has a link to a photo


def anything(feed: Feed) -> None:
    """For formats that accept any rows."""


def nothing_lacks(settings: ExportSettings) -> Mapping[str, pl.Expr]:
    """For formats that can represent every usable row."""
    return {}


def says_nothing(feed: Feed) -> list[str]:
    """For formats without notes."""
    return []


@dataclass(frozen=True)
class Format:
    """How usable rows become cells, and cells become a file.

    table: from some rows (`enrich.feeds.rows.usable`) to their cells; the columns are the same for all rows of a feed.
    write: from the path of a local file and the cells of all rows, some at a time, to that file; returns how many cells
        got an apostrophe before them, since a spreadsheet would run them.
    check: raises UsageError if something is missing that every row of this format needs.
    lacks: rows that this format cannot represent, by the reason in words.
    notes: messages about a written file for the user, one line each.
    """

    about: str  # for people, a line
    table: Callable[[pl.DataFrame, Feed], pl.DataFrame]
    write: Callable[[Path, Iterable[pl.DataFrame], Feed], int]
    check: Callable[[Feed], None] = anything
    lacks: Callable[[ExportSettings], Mapping[str, pl.Expr]] = nothing_lacks
    notes: Callable[[Feed], list[str]] = says_nothing
