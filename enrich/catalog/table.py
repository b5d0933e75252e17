"""Tables of any origin as text: CSV and Parquet files, every cell a string."""

from pathlib import Path

import polars as pl

from enrich.errors import UsageError

FORMATS = (".csv", ".parquet")


def read_table(path: Path) -> pl.DataFrame:
    """All rows and columns as strings, "" for null. Codes keep their leading zeros, whole floats lose their ".0".

    Numbers with three decimals get a fourth, so that the point is seen to be the decimal mark. Columns that have no
    text form (nested or binary ones, such as photos inside the table) are left out.

    Raises:
        UsageError: no such file, neither CSV nor Parquet, or not readable as what its name says.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"table {path}: neither .csv nor .parquet; convert it to one of these")
    try:
        if path.suffix.lower() == ".parquet":
            with path.open("rb") as file:
                table = pl.read_parquet(file)
        else:
            table = pl.read_csv(path, infer_schema=False, glob=False)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"table {path} cannot be read: {_first_line(error)}; mend or replace the file") from error
    return as_text(table)


def as_text(table: pl.DataFrame) -> pl.DataFrame:
    """Every column that has a text form as strings, "" for null."""
    columns = []
    for name, kind in table.schema.items():
        column = pl.col(name)
        if kind.is_nested() or kind in (pl.Binary, pl.Object):
            continue
        text = column.cast(pl.String)
        if kind.is_float() or kind.is_decimal():
            # Integers that once had a gap among them; and 1.299 that as text could be 1,299.
            text = text.str.strip_suffix(".0").str.replace(r"(\.[0-9]{3})$", "${1}0")
        columns.append(text.fill_null(""))
    return table.select(columns)


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
