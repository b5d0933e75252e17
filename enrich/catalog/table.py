"""Read tables with every cell as a string: CSV, Parquet, Excel, JSON, and catalogs that have no table."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePath

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.catalog.embedded import Embedded
from enrich.catalog.folders import read_archives, read_folders
from enrich.catalog.records import as_text, frame_columns, read_json, read_workbook
from enrich.delimited import decoded, split_rows
from enrich.errors import UsageError, first_line

FORMATS = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl", ".ndjson", ".json")  # of catalogs
_MOST_BYTES = 4 << 30  # of a table that is read as a whole
_BATCH_ROWS = 256  # of photos inside of a table


@dataclass(frozen=True)
class Wanted:
    """The request: which columns identify the separator, contain lists to join (and how), or contain photos."""

    columns: Collection[str] = ()
    lists: Mapping[str, str] = field(default_factory=dict)
    photos: Collection[str] = ()
    encoding: str | None = None
    separator: str | None = None


@dataclass(frozen=True)
class Table:
    """All rows and columns as strings, "" for null, and what was found about the file."""

    frame: pl.DataFrame
    encoding: str | None = None  # of text
    separator: str | None = None  # of a CSV
    notes: Sequence[str] = ()  # messages for the user, one line each
    broken: Mapping[int, str] = field(default_factory=dict)  # row, from 1 -> why it cannot be read
    embedded: Embedded = field(default_factory=Embedded)  # photos inside of it
    fixed: bool = False  # whether the format names the columns: see `read.FIXED`


def read_table(
    path: PurePath, data: bytes | None = None, where: str = "", lists: Mapping[str, str] = {}
) -> pl.DataFrame:
    """The rows of `open_table`, none of which may be broken.

    Args:
        data: the table's bytes, if `path` is only its name; errors then say `where` it is.
        lists: columns that may hold lists of texts, and what to join these with.
    """
    table = open_table(path, Wanted(lists=lists), data, where)
    refuse_broken(table, where or path)
    return table.frame


def refuse_broken(table: Table, where: object) -> None:
    """UsageError for the first row of a table that cannot be read."""
    if table.broken:
        row, reason = next(iter(table.broken.items()))
        raise UsageError(f"table {where} cannot be read: row {row}: {reason}; correct or replace the file")


def open_table(path: PurePath, wanted: Wanted, data: bytes | None = None, where: str = "") -> Table:
    """All rows and columns of a file, or of a directory of photos or archives.

    Codes keep their leading zeros, whole floats lose their ".0". Numbers with three decimals get a fourth, so that the
    point is seen to be the decimal mark. Columns that have no text form (nested or binary ones that hold no photos) are
    left out.

    Raises:
        UsageError: no such file, none of FORMATS, or not readable as what its name says.
    """
    suffix, named = path.suffix.lower(), f"table {where or path}"
    if data is None and Path(path).is_dir():
        return _read_directory(Path(path))
    if suffix == ".tar" and data is None:
        return _read_archives([Path(path)])
    if suffix not in FORMATS:
        raise UsageError(f"{named}: none of {', '.join(FORMATS)}; convert it to one of these")
    try:
        if suffix == ".parquet":
            return _read_parquet(Path(path) if data is None else BytesIO(data), wanted)
        data = _bytes(Path(path), named) if data is None else data
    except (OSError, UnicodeDecodeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)[:200]
        raise UsageError(f"{named} cannot be read: {reason}; correct or replace the file") from error
    if suffix == ".xlsx":
        rows, notes = read_workbook(data, named)
        return Table(_frame(rows[0], rows[1:]), notes=notes)
    text, encoding, notes = decoded(data, wanted.encoding, named)
    if suffix in (".csv", ".tsv"):
        found = split_rows(text, wanted.columns, wanted.separator, named)
        frame = _frame(found.header, found.rows)
        return Table(frame, encoding, found.separator, [*notes, *found.notes], found.broken)
    records, broken, fixed = read_json(text, named, wanted.lists)
    return Table(_of_records(records), encoding, notes=notes, broken=broken, fixed=fixed)


def may_be_table(key: str) -> bool:
    """Whether a file of a catalog's directory may be its table, or an archive, by its name."""
    return "/" not in key and key.lower().endswith((*FORMATS, ".tar"))


def find_table(path: Path) -> Path:
    """The file or directory that holds the catalog at `path`: its one table, itself if it has archives or photos.

    Raises:
        UsageError: nothing is there, no catalog, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"catalog {path}: no such file or directory; name a directory with catalog.csv in it")
    there = sorted(one for one in path.iterdir() if one.is_file() and one.suffix.lower() in FORMATS)
    named = [one for one in there if one.stem.lower() == "catalog"]
    usual = [one for one in there if one.stem.lower() in ("metadata", "products", "feed", "train", "data")]
    found = named or usual or there
    if len(found) > 1:
        listed = " and ".join(one.name for one in found[:3])
        raise UsageError(f"catalog {path}: holds both {listed}; delete one or name the file")
    if not found and not _has_photos(path):
        raise UsageError(f"catalog {path}: holds neither catalog.csv nor catalog.parquet; put one next to images/")
    return found[0] if found else path


def header_of(path: Path) -> tuple[list[str], dict[str, float]]:
    """The names of all columns, those that hold photos among them, and of those with texts the share that is filled."""
    table = open_table(path, Wanted())
    names = pq.read_schema(path).names if path.suffix.lower() == ".parquet" else table.frame.columns
    height = max(1, table.frame.height)
    return names, {one.name: float((one.str.strip_chars() != "").sum()) / height for one in table.frame}


def _has_photos(path: Path) -> bool:
    return any(path.glob("*.tar")) or bool(read_folders(path)[0])


def _read_directory(path: Path) -> Table:
    if archives := sorted(path.glob("*.tar")):
        return _read_archives(archives)
    rows, notes = read_folders(path)
    return Table(_of_records(rows), notes=notes, fixed=True)


def _read_archives(paths: Sequence[Path]) -> Table:
    embedded = Embedded()
    rows, notes = read_archives(paths, embedded)
    return Table(_of_records(rows), notes=notes, embedded=embedded, fixed=True)


def _bytes(path: Path, named: str) -> bytes:
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise UsageError(f"{named}: {size:,} bytes, more than {_MOST_BYTES:,}; convert it to Parquet")
    return path.read_bytes()


def _frame(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    names = [" ".join(name.split()) or f"column {number}" for number, name in enumerate(header, start=1)]
    columns: list[Sequence[str]] = list(zip(*rows, strict=True)) or [()] * len(names)
    return pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))


def _of_records(records: Sequence[Mapping[str, str]]) -> pl.DataFrame:
    names = frame_columns(records)
    return pl.DataFrame(
        {name: [one.get(name, "") for one in records] for name in names}, dict.fromkeys(names, pl.String)
    )


def _read_parquet(source: Path | BytesIO, wanted: Wanted) -> Table:
    """Every column that can be read as text. Of the others not even the types may be shown to Polars: it panics."""
    embedded = Embedded()
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        joined = {field.name for field in schema if field.name in wanted.lists and _is_list_of_texts(field.type)}
        photos = {field.name for field in schema if field.name in wanted.photos and _holds_photos(field.type)}
        plain = [field.name for field in schema if field.name in joined or not _is_binary(field.type)]
        table = file.read([name for name in plain if name not in photos])
        kept = {name: _photos(file, name, embedded) for name in photos}
    columns = {name: pl.Series(cells, dtype=pl.String) for name, cells in kept.items()}
    for name, column in zip(table.column_names, table.columns, strict=True):
        with suppress(pa.ArrowException, ValueError, pl.exceptions.PolarsError):
            if name in joined:
                columns[name] = pl.Series(pl.from_arrow(column)).list.join(wanted.lists[name]).fill_null("")
                continue
            if pa.types.is_temporal(column.type) or pa.types.is_decimal256(column.type):
                column = column.cast(pa.string())
            columns[name] = _as_text(pl.Series(pl.from_arrow(column)))
    order = [name for name in schema.names if name in columns]
    return Table(pl.DataFrame({name: columns[name] for name in order}), embedded=embedded)


def _photos(file: pq.ParquetFile, name: str, embedded: Embedded) -> list[str]:
    """The names of the photos in each cell, a few rows at a time: together they may be larger than memory."""
    batches = file.iter_batches(_BATCH_ROWS, columns=[name])
    return [_names(cell, embedded) for batch in batches for cell in batch.column(0).to_pylist()]


def _names(cell: object, embedded: Embedded) -> str:
    if isinstance(cell, bytes):
        return embedded.keep(cell)
    if isinstance(cell, dict):
        data = cell.get("bytes")
        return embedded.keep(data) if isinstance(data, bytes) and data else as_text(cell.get("path"))
    if isinstance(cell, list):
        return "|".join(filter(None, (_names(one, embedded) for one in cell)))
    return as_text(cell)


def _holds_photos(kind: pa.DataType) -> bool:
    """Bytes, a struct of bytes and path as Hugging Face's data sets have it, or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_photos(kind.value_type)
    if pa.types.is_struct(kind):
        return {"bytes", "path"} & {kind.field(number).name for number in range(kind.num_fields)} != set()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


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
