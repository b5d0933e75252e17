"""A catalog's table with some rows changed, added and removed, and everything else unchanged.

A CSV keeps its other lines byte for byte, a Parquet file its types. Edits that do not fit, or would not be read back as
intended, are refused, and the caller's file is unchanged.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.answers.amount import AmountError, parse_amount
from enrich.catalog.records import BETWEEN_PHOTOS
from enrich.catalog.table import read_table
from enrich.errors import UsageError

Cell = str | float | None  # a text or a price
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Edit:
    """The changes. Rows are identified by the paths of their photos, as a table joins them with BETWEEN_PHOTOS; cells
    that are not named keep their value, or are empty in new rows."""

    key: str  # the column of paths
    changed: Mapping[str, Mapping[str, Cell]]  # path -> column -> cell
    added: Sequence[Mapping[str, Cell]]
    removed: Set[str]  # paths


def read_bytes(data: bytes, name: str, where: str, photos: str) -> pl.DataFrame:
    """The table in `data` as fine-tuning reads it: text, "" for null; `photos` is the column of paths.

    UsageError, naming `where`.
    """
    return read_table(Path(name), data, where, lists={photos: BETWEEN_PHOTOS})


def edited(data: bytes, name: str, edit: Edit, where: str) -> bytes:
    """The table in `data`, a file called `name`, after `edit`; the same bytes if that changes nothing.

    Raises:
        UsageError: the table cannot be read, or what was to be written does not fit its columns.
    """
    before = read_bytes(data, name, where, edit.key)
    edit = _real(edit, before)
    if not (edit.changed or edit.added or edit.removed):
        return data
    after = _edit_csv(data, edit, where) if name.endswith(".csv") else _edit_parquet(data, edit, where)
    _check_read_back(before, read_bytes(after, name, where, edit.key), edit, where)
    return after


def hidden_columns(data: bytes, name: str, table: pl.DataFrame) -> set[str]:
    """Columns of the file whose values have no text form, so that `table`, which was read from it, lacks them."""
    return set() if name.endswith(".csv") else set(pq.read_schema(io.BytesIO(data)).names) - set(table.columns)


def holds_numbers(data: bytes, name: str, column: str) -> bool:
    """Whether a column of the table in `data` has a type of numbers."""
    if name.endswith(".csv"):
        return False
    return _is_number(pq.read_schema(io.BytesIO(data)).field(column).type)


def _real(edit: Edit, table: pl.DataFrame) -> Edit:
    """`edit` without what the table already says."""
    standing = {row[edit.key]: row for row in table.to_dicts()}
    changed = {
        path: cells
        for path, cells in edit.changed.items()
        if not all(_same(standing[path][name], cell) for name, cell in cells.items())
    }
    return Edit(edit.key, changed, edit.added, edit.removed & set(standing))


def _same(text: str, cell: Cell) -> bool:
    """Whether a cell reads back as intended; prices up to rounding in float32."""
    if not isinstance(cell, float):
        return " ".join(text.split()) == (cell or "")
    try:
        return math.isclose(parse_amount(text).value, cell, rel_tol=1e-6)
    except AmountError:
        return False


def _check_read_back(before: pl.DataFrame, after: pl.DataFrame, edit: Edit, where: str) -> None:
    meant = {**edit.changed, **{str(row[edit.key]): row for row in edit.added}}
    touched = [*meant, *edit.removed]
    rest = ~pl.col(edit.key).is_in(touched)
    if before.columns != after.columns or not before.filter(rest).equals(after.filter(rest)):
        raise UsageError(f"{where}: its other rows would change; save it as a plain CSV in UTF-8, or as Parquet")
    rows = after.filter(~rest).to_dicts()
    if sorted(row[edit.key] for row in rows) != sorted(meant):
        raise UsageError(f"{where}: column {edit.key!r} cannot contain photo paths; make it text")
    for row in rows:
        for name, cell in meant[row[edit.key]].items():
            if not _same(row[name], cell):
                raise UsageError(f"{where}: {cell!r} does not fit column {name!r}; change the column's type or values")


def _edit_csv(data: bytes, edit: Edit, where: str) -> bytes:
    try:
        text = data.decode("utf-8")
        lines = list(io.StringIO(text.removeprefix("\ufeff"), newline=""))
        delimiter = next((one for one in _DELIMITERS if edit.key in next(csv.reader(lines, delimiter=one), [])), ",")
        records = _records(lines, delimiter)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{where}: {error}; save it as a plain CSV in UTF-8, or as Parquet") from error
    header = records[0][1]
    place = {" ".join(name.split()): number for number, name in enumerate(header)}
    end = "\r\n" if records[0][0].endswith("\r\n") else "\n"
    quoting: Literal[0, 1] = csv.QUOTE_ALL if records[0][0].startswith('"') else csv.QUOTE_MINIMAL
    comma = _decimal_comma([cells[place[name]] for _, cells in records[1:] for name in _priced(edit)
                            if name in place and len(cells) > place[name]])  # fmt: skip

    def line(cells: Sequence[str]) -> str:
        sink = io.StringIO()
        csv.writer(sink, delimiter=delimiter, lineterminator=end, quoting=quoting).writerow(cells)
        return sink.getvalue()

    def filled(cells: Sequence[str], values: Mapping[str, Cell]) -> list[str]:
        padded = [*cells, *[""] * (len(header) - len(cells))]
        for name, value in values.items():
            padded[place[name]] = price_text(value, comma) if isinstance(value, float) else value or ""
        return padded

    written = [records[0][0]]
    for raw, cells in records[1:]:
        path = cells[place[edit.key]].strip() if len(cells) > place[edit.key] else ""
        if path in edit.changed:
            written.append(line(filled(cells, edit.changed[path])))
        elif path not in edit.removed or not path:
            written.append(raw)
    if not written[-1].endswith(("\n", "\r")):
        written[-1] += end
    written += [line(filled([], row)) for row in edit.added]
    return ("\ufeff" * text.startswith("\ufeff") + "".join(written)).encode()


def _records(lines: Sequence[str], delimiter: str) -> list[tuple[str, list[str]]]:
    """The text of every record, and its cells."""
    reader = csv.reader(lines, delimiter=delimiter)
    records, start = [], 0
    for cells in reader:
        records.append(("".join(lines[start : reader.line_num]), cells))
        start = reader.line_num
    return records


def _priced(edit: Edit) -> set[str]:
    rows = [*edit.changed.values(), *edit.added]
    return {name for row in rows for name, cell in row.items() if isinstance(cell, float)}


def _decimal_comma(texts: Sequence[str]) -> bool:
    """Whether a column of prices is written with decimal commas."""
    marks = [match[1] for text in texts if (match := re.search(r"\d([.,])\d{1,2}(?!\d)", text))]
    return bool(marks) and marks.count(",") * 2 > len(marks)


def price_text(price: float, comma: bool = False) -> str:
    """A price as a text that has one meaning only: never a mark before exactly three digits."""
    whole, _, part = f"{Decimal(repr(price)):f}".partition(".")
    if not part.strip("0"):
        return whole
    part = part.ljust(2, "0") if len(part) != 3 else f"{part}0"
    return whole + ("," if comma else ".") + part


def _edit_parquet(data: bytes, edit: Edit, where: str) -> bytes:
    file = pq.ParquetFile(io.BytesIO(data))
    table = file.read()
    paths = [_joined(cell).strip() for cell in table[edit.key].to_pylist()]
    comma = any(
        _decimal_comma([text for text in table[name].to_pylist() if text])
        for name in _priced(edit)
        if _is_text(table.schema.field(name).type)
    )
    for name in {name for cells in edit.changed.values() for name in cells}:
        number = table.schema.get_field_index(name)
        cells = {row: edit.changed[path][name] for row, path in enumerate(paths) if name in edit.changed.get(path, {})}
        new = _array(list(cells.values()), table.schema.field(number), comma, where)
        taken = dict(zip(cells, range(len(table), len(table) + len(cells)), strict=True))  # row -> its place in `new`
        column = pa.chunked_array([*table[number].chunks, new]).take([taken.get(row, row) for row in range(len(table))])
        table = table.set_column(number, table.schema.field(number), column)
    table = table.filter(pa.array([path not in edit.removed for path in paths], pa.bool_()))
    if edit.added:
        columns = [_array([row.get(field.name) for row in edit.added], field, comma, where) for field in table.schema]
        table = pa.concat_tables([table, pa.Table.from_arrays(columns, schema=table.schema)])
    codec = file.metadata.row_group(0).column(0).compression if file.metadata.num_row_groups else "ZSTD"
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="NONE" if codec == "UNCOMPRESSED" else codec)
    return sink.getvalue()


def _joined(cell: str | list[str | None] | None) -> str:
    return BETWEEN_PHOTOS.join(part or "" for part in cell) if isinstance(cell, list) else cell or ""


def _array(cells: Sequence[Cell], field: pa.Field, comma: bool, where: str) -> pa.Array:
    """Cells of an Edit as values of a column."""
    try:
        return pa.array([_typed(cell, field, comma) for cell in cells], field.type)
    except (pa.ArrowException, ArithmeticError, ValueError, TypeError) as error:
        raise UsageError(
            f"{where}: {cells[0]!r} does not fit column {field.name!r} ({field.type}); "
            "change the column's type, or add these products by hand"
        ) from error


def _typed(value: Cell, field: pa.Field, comma: bool) -> object:
    """A cell of an Edit as a value of a column; ValueError if it does not fit."""
    kind = field.type
    if value is None:
        if not field.nullable and not _is_text(kind):
            raise ValueError("must not be null")
        return None if field.nullable else ""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return str(value).split(BETWEEN_PHOTOS)
    if _is_text(kind):
        text = price_text(value, comma) if isinstance(value, float) else value
        known = _enum_values(field)
        if known and text not in known:
            raise ValueError("not a value of the column's Enum")
        return text
    if _is_number(kind):
        number = Decimal(str(value))
        if pa.types.is_decimal(kind):
            return number
        if pa.types.is_floating(kind):
            return float(number)
        if number == int(number):
            return int(number)
    raise ValueError("does not fit")


def _enum_values(field: pa.Field) -> list[str]:
    """The values of a Polars Enum, which it keeps in the field's metadata as `5;Coats4;Hats`; [] for other columns."""
    left, values = (field.metadata or {}).get(b"_PL_ENUM_VALUES2", b""), []
    while left:
        length, _, rest = left.partition(b";")
        values.append(rest[: int(length)].decode())
        left = rest[int(length) :]
    return values


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    while pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
