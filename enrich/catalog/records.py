"""Tables of records: JSON, JSON Lines, conversations in ShareGPT's format, and Excel sheets."""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from functools import reduce
from pathlib import PurePosixPath
from typing import Any

from enrich.answers.wording import WORDINGS
from enrich.errors import UsageError, first_line

BETWEEN_PHOTOS = "|"  # in a cell that names several
_LISTS = ("data", "products", "items", "rows", "records", "annotations")  # keys that wrap the records of a file
_MOST_UNPACKED = 1 << 30  # bytes of a workbook; a zip file of 1 MB may unpack to 1 GB
_MOST_CELLS = 64_000_000  # of a sheet, empty ones between others included; each takes 32 bytes
_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_CELL, _LONGEST_CELL = re.compile(rb'<(?:\w+:)?c\s[^<>]*?\br="([A-Z]{1,3})([0-9]{1,7})"'), 200
_TURNS = ("conversations", "messages")
_ANSWERS = frozenset({"gpt", "assistant", "model", "bot"})
_PHOTO_KEYS = ("path", "url", "src", "file_name", "image")  # of a record that stands for a photo
# Labels of an answer in any language, as the columns that they are.
_LABELS = {getattr(one, role): role for one in WORDINGS.values() for role in ("title", "category", "price")} | {
    "Title": "title", "Name": "title", "Price": "price",
}  # fmt: skip
_LABELLED = re.compile(r"\s*(?P<label>[^:\uff1a\n]{1,40}?)\s*[:\uff1a]\s*(?P<value>.*)")


def holds_conversations(records: Sequence[Any]) -> bool:
    """Whether the records are conversations about photos."""
    return any(isinstance(one, dict) and any(isinstance(one.get(key), list) for key in _TURNS) for one in records[:100])


def read_json(
    text: str, where: str, lists: Mapping[str, str] = {}
) -> tuple[list[dict[str, str]], dict[int, str], bool]:
    """The records of a JSON list or of JSON Lines as texts, by row why a line cannot be read, and whether they are
    conversations, of which the answers become columns: title, category, price and others by their labels.

    Args:
        lists: keys whose lists of texts are joined with something other than BETWEEN_PHOTOS.

    Raises:
        UsageError: it is neither.
    """
    broken: dict[int, str] = {}
    try:
        whole = json.loads(text)
        found = whole if isinstance(whole, list) else next((whole[k] for k in _LISTS if _is_list(whole, k)), [whole])
    except (ValueError, RecursionError):
        found = list(_lines(text, broken))
        if not found or len(broken) > len(found) / 2:
            raise UsageError(
                f"{where} cannot be read: it is neither a JSON list nor one JSON record a line "
                f"({next(iter(broken.values()), 'it is empty')}); correct or replace the file"
            ) from None
    try:
        rows = [_flat(_answered(one), lists) if isinstance(one, dict) else {} for one in found]
    except RecursionError:
        raise UsageError(f"{where} cannot be read: its records are nested too deeply; flatten them") from None
    return rows, broken, holds_conversations(found)


def read_workbook(data: bytes, where: str) -> tuple[list[list[str]], list[str]]:
    """The rows of the first non-empty sheet of an Excel file, and messages for the user.

    Raises:
        UsageError: it is not such a file, or too large unpacked.
    """
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := sum(one.file_size for one in archive.infolist())) > _MOST_UNPACKED:
                raise UsageError(
                    f"{where}: holds {size:,} bytes uncompressed, more than {_MOST_UNPACKED:,}; save it as CSV"
                )
            _check_areas(archive, where)
        workbook = CalamineWorkbook.from_filelike(io.BytesIO(data))
        names = workbook.sheet_names
        for name in names:
            rows = [[as_text(cell) for cell in row] for row in workbook.get_sheet_by_name(name).to_python()]
            if rows := [row for row in rows if any(row)]:
                told = [f"sheet {name!r} is read, the first of {len(names)}"] if len(names) > 1 else []
                return rows, told
    except (CalamineError, zipfile.BadZipFile, ValueError) as error:
        reason = first_line(error)[:200]
        raise UsageError(f"{where} cannot be read: {reason}; correct or replace the file") from error
    raise UsageError(f"{where} cannot be read: it has no rows; correct or replace the file")


def _check_areas(archive: zipfile.ZipFile, where: str) -> None:
    """UsageError for a sheet that has a cell far off: the reader holds all cells up to there in memory, and ends the
    process where they do not fit."""
    for name in filter(_SHEET.fullmatch, archive.namelist()):
        rows, columns, last = set[int](), set[bytes](), b""
        with archive.open(name) as file:
            while piece := file.read(1 << 20):
                found = _CELL.findall(last + piece)
                columns.update(column for column, _ in found)
                rows.update((min(numbers), max(numbers)) if (numbers := [int(row) for _, row in found]) else ())
                last = piece[-_LONGEST_CELL:]
        width = max(map(_place, columns), default=0) - min(map(_place, columns), default=0) + 1
        height = max(rows, default=0) - min(rows, default=0) + 1
        if width * height > _MOST_CELLS:
            raise UsageError(
                f"{where} cannot be read: {PurePosixPath(name).stem} has cells far off, {height:,} rows and {width:,} "
                "columns in all; delete what is beyond the table, or save it as CSV"
            )


def _place(column: bytes) -> int:
    """The number of a column by its letters: A is 1, XFD 16,384."""
    return reduce(lambda number, letter: number * 26 + letter - 64, column, 0)


def as_text(value: Any) -> str:
    """A value as the text of a cell. Numbers with three decimals get a fourth, see `table.read_table`."""
    if value is None or isinstance(value, bytes):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        return re.sub(r"(\.[0-9]{3})$", r"\g<1>0", text)
    if isinstance(value, datetime | date | time | timedelta):
        return str(value)
    if isinstance(value, Mapping):
        return next((as_text(value[key]) for key in _PHOTO_KEYS if value.get(key)), "")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return BETWEEN_PHOTOS.join(filter(None, map(as_text, value)))
    return str(value).encode("utf-8", "replace").decode()  # JSON can write halves of characters, `\\ud800`


def frame_columns(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys of all records, in the order in which they come up."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _is_list(whole: Any, key: str) -> bool:
    return isinstance(whole, dict) and isinstance(whole.get(key), list)


def _lines(text: str, broken: dict[int, str]) -> Iterator[Any]:
    row = 0
    for number, line in enumerate(text.splitlines() if "\r" in text else text.split("\n"), start=1):
        if not line.strip():
            continue
        row += 1
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            broken[row] = f"line {number} is not a JSON record"
            yield {}


def _flat(record: Mapping[str, Any], lists: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """The record with `price.amount` for what is within `price`; a record of a photo stays one cell."""
    cells: dict[str, str] = {}
    for key, value in record.items():
        name = as_text(f"{prefix}{key}")
        if isinstance(value, Mapping) and not any(isinstance(value.get(one), str) for one in _PHOTO_KEYS):
            cells |= _flat(value, lists, f"{name}.") if prefix.count(".") < 3 else {name: ""}
        elif isinstance(value, list):
            cells[name] = lists.get(name, BETWEEN_PHOTOS).join(filter(None, map(as_text, value)))
        else:
            cells[name] = as_text(value)
    return cells


def _answered(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A conversation about a photo with columns for what its last answer says; any other record as it is."""
    turns = next((record[key] for key in _TURNS if isinstance(record.get(key), list)), None)
    if turns is None:
        return record
    said = [turn for turn in turns if isinstance(turn, dict) and turn.get("from", turn.get("role")) in _ANSWERS]
    answer = _spoken(said[-1]) if said else ""
    rest = {key: value for key, value in record.items() if key not in _TURNS}
    if "image" not in rest and "images" in rest:
        rest["image"] = rest["images"]
    if "id" not in rest:
        rest["id"] = PurePosixPath(as_text(rest.get("image")).partition(BETWEEN_PHOTOS)[0]).stem
    return {**_fields(answer), **rest}


def _spoken(turn: Mapping[str, Any]) -> str:
    content = turn.get("value", turn.get("content", ""))
    if isinstance(content, list):  # parts, of which some are photos
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _fields(answer: str) -> dict[str, Any]:
    """What an answer says: the keys of a JSON record, or labelled lines, else its first line as the title."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        matches = [match for line in answer.splitlines() if (match := _LABELLED.fullmatch(line))]
        found = {match["label"]: match["value"].strip() for match in matches}
        if not found:
            return {"title": answer.strip().partition("\n")[0]}
    named = {_LABELS[label]: value for label, value in found.items() if label in _LABELS}
    return {**found, **named}
