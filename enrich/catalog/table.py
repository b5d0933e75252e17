"""Read CSV and Parquet tables with every cell as a string."""

from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePath

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.errors import UsageError, first_line

FORMATS = (".csv", ".parquet")  # of catalogs
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(
    path: PurePath, data: bytes | None = None, where: str = "", lists: Mapping[str, str] = {}
) -> pl.DataFrame:
    """All rows and columns of a CSV, TSV or Parquet file as strings, "" for null.

    Codes keep their leading zeros, whole floats lose their ".0". Numbers with three decimals get a fourth, so that the
    point is seen to be the decimal mark. Columns that have no text form (nested or binary ones, such as photos inside
    the table) are left out.

    Args:
        data: the table's bytes, if `path` is only its name; errors then say `where` it is.
        lists: columns that may hold lists of texts, and what to join these with.

    Raises:
        UsageError: no such file, none of the three, or not readable as what its name says.
    """
    suffix, source = path.suffix.lower(), Path(path) if data is None else BytesIO(data)
    if suffix != ".parquet" and suffix not in _SEPARATORS:
        raise UsageError(f"table {path}: neither .csv nor .parquet; convert it to one of these")
    try:
        if suffix == ".parquet":
            return _read_parquet(source, lists)
        return pl.read_csv(source, separator=_SEPARATORS[suffix], infer_schema=False, glob=False).fill_null("")
    except (OSError, UnicodeDecodeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)[:200]
        raise UsageError(f"table {where or path} cannot be read: {reason}; correct or replace the file") from error


def _read_parquet(source: Path | BytesIO, lists: Mapping[str, str]) -> pl.DataFrame:
    """Every column that can be read as text. Of the others not even the types may be shown to Polars: it panics."""
    with pq.ParquetFile(source) as file:
        joined = {field.name for field in file.schema_arrow if field.name in lists and _is_list_of_texts(field.type)}
        wanted = [field.name for field in file.schema_arrow if field.name in joined or not _is_binary(field.type)]
        table = file.read(wanted)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        with suppress(pa.ArrowException, ValueError, pl.exceptions.PolarsError):
            if name in joined:
                columns[name] = pl.Series(pl.from_arrow(column)).list.join(lists[name]).fill_null("")
                continue
            if pa.types.is_temporal(column.type) or pa.types.is_decimal256(column.type):
                column = column.cast(pa.string())
            columns[name] = _as_text(pl.Series(pl.from_arrow(column)))
    return pl.DataFrame(columns)


def _is_list_of_texts(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    texts = (pa.types.is_string, pa.types.is_large_string)
    return any(test(kind) for test in lists) and any(test(kind.value_type) for test in texts)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or any(
        test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


def _as_text(column: pl.Series) -> pl.Series:
    text = column.cast(pl.String)
    if column.dtype.is_float() or column.dtype.is_decimal():
        # Integers that once had a gap among them; and 1.299 that as text could be 1,299.
        text = text.str.strip_suffix(".0").str.replace(r"(\.[0-9]{3})$", "${1}0")
    return text.fill_null("")
