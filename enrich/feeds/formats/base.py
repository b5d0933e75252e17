"""What a format of exports has to know. Each format is a module of this package, with a `FORMAT`."""

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
    """A format that takes any rows."""


def nothing_lacks(settings: ExportSettings) -> Mapping[str, pl.Expr]:
    """A format that has a place for every usable row."""
    return {}


def says_nothing(feed: Feed) -> list[str]:
    """A format about which there is nothing to say."""
    return []


@dataclass(frozen=True)
class Format:
    """How usable rows become cells, and cells a file.

    table: from some rows (`enrich.feeds.rows.usable`) to their cells; the columns are the same for all rows of a feed.
    write: from the path of a local file and the cells of all rows, some at a time, to that file; returns how many cells
        got an apostrophe before them, since a spreadsheet would run them.
    check: raises UsageError for what no row of this format can do without.
    lacks: rows that have no place in this format, by the reason in words.
    notes: what a person should know about a file that was written, a line each.
    """

    about: str  # for people, a line
    table: Callable[[pl.DataFrame, Feed], pl.DataFrame]
    write: Callable[[Path, Iterable[pl.DataFrame], Feed], int]
    check: Callable[[Feed], None] = anything
    lacks: Callable[[ExportSettings], Mapping[str, pl.Expr]] = nothing_lacks
    notes: Callable[[Feed], list[str]] = says_nothing
