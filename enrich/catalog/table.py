"""Read CSV and Parquet tables with every cell as a string."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.errors import UsageError, first_line

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
            table = _read_parquet(path)
        else:
            table = pl.read_csv(path, infer_schema=False, glob=False)
    except (OSError, UnicodeDecodeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)[:200]
        raise UsageError(f"table {path} cannot be read: {reason}; correct or replace the file") from error
    return as_text(table)


def _read_parquet(path: Path) -> pl.DataFrame:
    """Every column that can be read as text. Of the others not even the types may be shown to Polars: it panics."""
    with pq.ParquetFile(path) as file:
        wanted = [field.name for field in file.schema_arrow if not _is_binary(field.type)]
        table = file.read(wanted)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            if pa.types.is_temporal(column.type) or pa.types.is_decimal256(column.type):
                column = column.cast(pa.string())
            columns[name] = pl.from_arrow(column)
        except (pa.ArrowException, ValueError, pl.exceptions.PolarsError):
            continue
    return pl.DataFrame(columns)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or any(
        test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


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
