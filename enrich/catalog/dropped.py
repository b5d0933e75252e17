"""Rows of a catalog that are left out, or used without their price: counted by reason, and listed in a file."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST = 0.1  # share of the rows that may be left out without confirmation
_SHOWN = 80  # characters of a detail in a message


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be used, or whose price cannot. `row` counts from 1, the first below the header."""

    row: int
    product_code: str
    reason: str  # one of a few fixed texts
    detail: str = ""  # the value in this row


def too_many(dropped: Iterable[Dropped], rows: int) -> bool:
    """Whether more than a tenth of the table's rows is left out."""
    return len({one.row for one in dropped}) > MOST * rows


def describe(dropped: Sequence[Dropped]) -> str:
    """Counts by reason, the most frequent first, each with its first row."""
    groups: dict[str, list[Dropped]] = {}
    for one in sorted(dropped, key=lambda one: one.row):
        groups.setdefault(one.reason, []).append(one)
    told = sorted(groups.values(), key=lambda group: -len(group))
    return "; ".join(f"{len(group):,} {group[0].reason} ({_example(group[0])})" for group in told)


def encode(dropped: Sequence[Dropped]) -> bytes:
    """The file's bytes: row, product_code, reason, detail. A cell that a spreadsheet would compute gets a `'`."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("row", "product_code", "reason", "detail"))
    for one in sorted(dropped, key=lambda one: one.row):
        writer.writerow((one.row, *map(_plain, (one.product_code, one.reason, one.detail))))
    return sink.getvalue().encode()


def _example(one: Dropped) -> str:
    detail = one.detail if len(one.detail) <= _SHOWN else one.detail[: _SHOWN - 1] + "…"
    product = f", product {one.product_code[:_SHOWN]}" if one.product_code else ""
    return f"row {one.row}{product}{': ' if detail else ''}{detail}"


def _plain(cell: str) -> str:
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
