"""Cells to files: delimited text and Excel workbooks, in which no cell is a formula."""

from collections.abc import Collection, Iterable
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Literal

import polars as pl

from enrich.errors import UsageError
from enrich.feeds.rows import decimals, one_line

# Spreadsheets execute a cell that starts with these, also in full-width form; some skip white space and invisible
# characters first. A number that starts with a sign is safe.
FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
_RUNS = r"^[\t\r\n]|^[\s\p{Cc}\p{Cf}]*[=+\-@\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}]"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # readers of text and Excel end at some of these, and refuse others
_NUMBER = r"^[+-]?[0-9]+([.,][0-9]+)?$"
MOST_ROWS, MOST_CHARACTERS = 1_048_576, 32_767  # of a sheet, its header included, and of a cell
_MADE = datetime(2000, 1, 1)  # of every workbook: the same rows make the same bytes


def is_formula(text: pl.Expr) -> pl.Expr:
    """Whether a spreadsheet would execute this text."""
    return text.str.contains(_RUNS) & ~text.str.contains(_NUMBER)


def printable(text: pl.Expr) -> pl.Expr:
    """Text with a replacement character for each control character; tabs and line breaks stay."""
    return text.str.replace_all(_CONTROL, "\ufffd")


def write_delimited(path: Path, tables: Iterable[pl.DataFrame], separator: str) -> int:
    """Write UTF-8 text with a header. Cells that a spreadsheet would execute get an apostrophe; returns how many.

    Between tabs a cell is one line, and as in Google's own examples quotation marks are plain characters, unless a cell
    begins with one.
    """
    changed = 0
    with path.open("wb") as file:
        for number, table in enumerate(tables):
            table = table.with_columns(printable(pl.col(pl.String)).name.keep())
            if separator == "\t":
                table = table.with_columns(one_line(pl.col(pl.String)).name.keep())
            changed += int(table.select(is_formula(pl.col(pl.String)).sum()).sum_horizontal().sum())
            table = table.with_columns(_safe(pl.col(pl.String)))
            if separator == "\t":
                table = table.with_columns(_between_tabs(pl.col(pl.String)))
            style: Literal["never", "necessary"] = "never" if separator == "\t" else "necessary"
            table.write_csv(file, separator=separator, include_header=number == 0, quote_style=style)
    return changed


def _safe(text: pl.Expr) -> pl.Expr:
    filled = pl.when(text != "").then(text)
    return pl.when(is_formula(text)).then(pl.lit("'") + text).otherwise(filled).name.keep()


def _between_tabs(line: pl.Expr) -> pl.Expr:
    quoted = pl.lit('"') + line.str.replace_all('"', '""', literal=True) + pl.lit('"')
    return pl.when(line.str.starts_with('"')).then(quoted).otherwise(line).name.keep()


def write_workbook(path: Path, tables: Iterable[pl.DataFrame], amounts: Collection[str]) -> None:
    """An Excel file with one sheet. Texts are text, whatever they begin with, and numbers are numbers.

    One row at a time is in memory.

    Args:
        amounts: columns that are shown with the decimals of the currency in the column `currency`.

    Raises:
        UsageError: more rows than a sheet can have.
    """
    from xlsxwriter import Workbook

    with Workbook(path, {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False}) as book:
        book.set_properties({"created": _MADE})
        sheet, bold = book.add_worksheet("Products"), book.add_format({"bold": True})
        quoted = book.add_format({"quote_prefix": True})  # editing the cell makes no formula of it either
        shown = {
            places: book.add_format({"num_format": code}) for places, code in ((0, "0"), (2, "0.00"), (3, "0.000"))
        }
        texts = (table.with_columns(printable(pl.col(pl.String)).name.keep()) for table in tables)
        rows = chain.from_iterable(table.iter_rows(named=True) for table in texts)
        for number, row in enumerate(rows, start=1):
            if number >= MOST_ROWS:
                raise UsageError(f"an Excel sheet has room for {MOST_ROWS - 1:,} products at most; export as csv")
            if number == 1:
                for column, name in enumerate(row):
                    sheet.write_string(0, column, name, bold)
            amount = shown[decimals(row["currency"])]
            for column, (name, cell) in enumerate(row.items()):
                if isinstance(cell, str):
                    runs = cell.startswith(tuple(FORMULA)) or cell.lstrip().startswith(tuple(FORMULA))
                    sheet.write_string(number, column, cell[:MOST_CHARACTERS], quoted if runs else None)
                elif cell is not None:
                    sheet.write_number(number, column, cell, amount if name in amounts else None)
        sheet.freeze_panes(1, 1)
