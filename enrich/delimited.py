"""Tables as text: encoding and separator are detected from the bytes, and uncertain guesses are reported."""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from charset_normalizer import CharsetMatch, from_bytes

from enrich.errors import UsageError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Tried where the bytes are not UTF-8, in this order where several fit equally well, with the names that are shown.
ENCODINGS = {
    "cp1252": "windows-1252", "cp932": "shift_jis", "gb18030": "gb18030", "euc_jp": "euc-jp", "cp949": "euc-kr",
    "big5": "big5", "cp1250": "windows-1250", "cp1251": "windows-1251", "cp1253": "windows-1253",
    "cp1254": "windows-1254", "cp1255": "windows-1255",
}  # fmt: skip
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_NO_TEXTS = {  # what files begin with whose names end otherwise
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\x03\x04": "a zip file or an Excel workbook; unpack it, or name it .xlsx",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of before 2007; save it as .xlsx or CSV",
    b"PAR1": "Parquet; name it .parquet",
    b"%PDF-": "a PDF; export the table as CSV",
}
_SAMPLE_BYTES = 1 << 18  # of the lines that are not ASCII, for the encoding
_PIECE = 1 << 20  # bytes read at a time
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 1 << 20, 100  # for the separator
_CLOSE = 0.2  # of coherence, from 0 to 1: an encoding that fits so much worse than the best is ruled out
_TOLD_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")  # Excel's own way to say it
_MOST_BROKEN = 0.5  # share of the rows: with more the table is not what it was taken for
csv.field_size_limit(64 << 20)  # a cell may hold a photo as data: URI; the default is 128 KiB


@dataclass(frozen=True)
class Rows:
    """The cells of a table's text. `broken`: by row, which counts from 1, why it cannot be read."""

    header: list[str]
    rows: list[list[str]]
    separator: str
    notes: list[str] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)


def decoded(data: bytes, asked: str | None, where: str) -> tuple[str, str, list[str]]:
    """The text, the name of its encoding, and messages for the user.

    Raises:
        UsageError: it is in none of the encodings that are known, not in the one that was asked for, or not a text.
    """
    if asked is not None:
        try:
            return data.decode("cp932" if codecs.lookup(asked).name == "shift_jis" else asked), asked, []
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{where}: {_line(data, error.start)} is not in the encoding {asked} (columns.encoding); name another "
                "one, or leave the setting out"
            ) from error
    for start, kind in _NO_TEXTS.items():
        if data.startswith(start):
            raise UsageError(f"{where}: is not a text but {kind}")
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name), name, []
            except UnicodeDecodeError as error:
                raise UsageError(f"{where}: begins as {name} and is not; save it as UTF-8") from error
    if wide := _utf16(data):
        return data.decode(wide), wide, []
    try:
        return data.decode("utf-8"), "utf-8", []
    except UnicodeDecodeError as error:
        _refuse_mixed(data, error, where)
    return _legacy(data, where)


def make_utf8(path: Path, where: str) -> str:
    """Rewrite the file as UTF-8 where it is in another encoding, whose name is returned. Only then it is held in
    memory, as a whole.

    Raises:
        UsageError: it is in none of the encodings that are known.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while piece := file.read(_PIECE):
                if b"\0" in piece:  # UTF-16 of plain letters is valid UTF-8
                    break
                decoder.decode(piece)
            else:
                decoder.decode(b"", final=True)
                return "utf-8"
        except UnicodeDecodeError:
            pass
    text, encoding, _ = decoded(path.read_bytes(), None, where)
    path.write_bytes(text.encode())
    return encoding


def opening(path: Path, wanted: Collection[str]) -> tuple[str, int]:
    """The separator of a CSV in UTF-8, and how many lines stand before its header; arguments as for `split_rows`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read(_SAMPLE_CHARACTERS)
    if told := _TOLD_SEPARATOR.match(text):
        return told[1], 1
    return _separator(text, wanted)[0], 0


def _utf16(data: bytes) -> str:
    """UTF-16 without a mark: every other byte of separators, digits and line ends is zero."""
    sample = data[: 1 << 16]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if len(data) % 2 or max(even, odd) * 10 < len(sample) // 2 or min(even, odd) * 10 > max(even, odd):
        return ""
    name = "utf-16-le" if odd > even else "utf-16-be"
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return ""
    return name


def _refuse_mixed(data: bytes, error: UnicodeDecodeError, where: str) -> None:
    """UsageError if most of what is not ASCII is UTF-8: another encoding would read all of that wrongly."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if len(text) - len(text.encode("ascii", "ignore")) - bad > 2 * bad:
        raise UsageError(
            f"{where}: {_line(data, error.start)} is not UTF-8, while other lines are; correct that line, or save the "
            "file as UTF-8 again"
        )


def _line(data: bytes, offset: int) -> str:
    return f"line {data.count(10, 0, offset) + 1:,}"


def _legacy(data: bytes, where: str) -> tuple[str, str, list[str]]:
    odd = (line for line in data.splitlines(keepends=True) if not line.isascii())
    sample, size = [], 0
    for line in odd:
        sample.append(line)
        if (size := size + len(line)) > _SAMPLE_BYTES:
            break
    matches = list(from_bytes(b"".join(sample), cp_isolation=list(ENCODINGS)))
    fitting = [match for match in matches if _fits(match, matches)]
    for name in sorted((_name(match) for match in fitting), key=list(ENCODINGS).index):
        try:
            text = data.decode(name)
        except UnicodeDecodeError:
            continue
        others = [ENCODINGS[other] for match in fitting if (other := _name(match)) != name]
        return text, ENCODINGS[name], _told(text, ENCODINGS[name], others)
    tried = ", ".join(["utf-8", "utf-16", *ENCODINGS.values()])
    raise UsageError(
        f"{where} cannot be read: its encoding is none of {tried}; save it as UTF-8 (iconv -f OLD -t UTF-8), or name "
        "its encoding in the settings under columns.encoding"
    )


def _fits(match: CharsetMatch, matches: Sequence[CharsetMatch]) -> bool:
    """Whether an encoding makes as good a text as the best one does."""
    chaos = min(one.chaos for one in matches)
    coherence = max(one.coherence for one in matches if one.chaos == chaos)
    return match.chaos <= chaos and match.coherence >= coherence - _CLOSE


def _name(match: CharsetMatch) -> str:
    """The first of the encodings that read the sample as the same text."""
    return next(name for name in ENCODINGS if name in match.could_be_from_charset)


def _told(text: str, name: str, others: Sequence[str]) -> list[str]:
    """A guess is always told: a text in an encoding that is not tried may look right in one that is."""
    shown = next((line.strip() for line in text.splitlines() if not line.isascii()), "")[:60]
    guessed = f"but {' or '.join(others)} would fit too" if others else "which fits best"
    return [f"encoding: read as {name}, {guessed}; if {shown!r} looks wrong, set columns.encoding"]


def split_rows(text: str, wanted: Collection[str], asked: str | None, where: str) -> Rows:
    """The rows of a CSV, its header apart.

    A quotation mark inside an unquoted cell is text, and so is an unclosed one. Short rows are padded.

    Args:
        wanted: names of columns that the table should have, which tell separators apart.
        asked: the separator, if it is known.

    Raises:
        UsageError: there is no header, or most rows do not fit it.
    """
    text = text.removeprefix("\ufeff")
    if told := _TOLD_SEPARATOR.match(text):
        text, asked = text[told.end() :], asked or told[1]
    separator, notes = (asked, []) if asked else _separator(text, wanted)
    lines = list(io.StringIO(text, newline=""))
    records = _records(lines, separator)
    _, header = next(records, (1, []))
    if not header:
        raise UsageError(f"{where} cannot be read: it is empty; correct or replace the file")
    rows: list[list[str]] = []
    broken: dict[int, str] = {}
    literal = 0
    for start, cells, end in _spans(records, len(lines)):
        literal_rows = _as_text(lines[start - 1 : end], separator, len(header)) if len(cells) != len(header) else None
        if literal_rows:
            literal += 1
            rows += literal_rows
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        rows.append((cells + [""] * (len(header) - len(cells)))[: len(header)])
        if len(cells) > len(header):
            broken[len(rows)] = f"line {start} has {len(cells)} cells, the header {len(header)}"
        elif len(cells) < len(header) and end > start:
            broken[len(rows)] = f"line {start} has an unclosed quotation mark"
    if len(broken) > _MOST_BROKEN * len(rows):
        raise UsageError(
            f"{where} cannot be read: {next(iter(broken.values()))}, and {len(broken):,} of {len(rows):,} rows are "
            f"such (separator: {_called(separator)}); quote cells that contain the separator, or set columns.separator"
        )
    if literal:
        notes.append(f"unclosed quotation marks are read as text: {literal:,}")
    return Rows(_named(header, notes), rows, separator, notes, broken)


def _records(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of each record that is not blank."""
    reader = csv.reader(lines, delimiter=separator)
    start = 1
    for cells in reader:
        if cells:
            yield start, cells
        start = reader.line_num + 1


def _spans(records: Iterator[tuple[int, list[str]]], lines: int) -> Iterator[tuple[int, list[str], int]]:
    """(first line, cells, last line)."""
    last = None
    for start, cells in records:
        if last:
            yield *last, start - 1
        last = (start, cells)
    if last:
        yield *last, lines


def _as_text(lines: Sequence[str], separator: str, width: int) -> list[list[str]] | None:
    """The cells of each line with quotation marks as text; None unless every line then has the header's cells."""
    if not any('"' in line for line in lines):
        return None
    cells = [row for row in csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE) if row]
    return cells if cells and all(len(row) == width for row in cells) else None


def _separator(text: str, wanted: Collection[str]) -> tuple[str, list[str]]:
    """The separator that gives the wanted columns, and then the most rows as long as the header."""
    sample = text[:_SAMPLE_CHARACTERS]
    scores = {}
    for separator in SEPARATORS:
        try:
            rows = list(
                islice(filter(None, csv.reader(io.StringIO(sample, newline=""), delimiter=separator)), _SAMPLE_ROWS)
            )
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            fitting = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
            known = len({name.strip() for name in rows[0]} & set(wanted))
            scores[separator] = (known, round(fitting, 1), len(rows[0]))
    if not scores:
        return ",", []
    best = max(scores, key=lambda one: scores[one])
    rivals = [_called(one) for one, (known, fitting, width) in scores.items()
              if one != best and known == scores[best][0] and fitting >= scores[best][1] and width > 1]  # fmt: skip
    told = (
        f"separator: read as {_called(best)}, but {' or '.join(rivals)} would fit too; if the columns look wrong, set "
    )
    return best, [f"{told}columns.separator"] if rivals else []


def _called(separator: str) -> str:
    return SEPARATORS.get(separator, repr(separator))


def _named(header: Sequence[str], notes: list[str]) -> list[str]:
    """Names of columns, each once: a repeated one gets its number, `image (2)`."""
    names: list[str] = []
    for number, cell in enumerate(header, start=1):
        name = " ".join(cell.split()) or f"column {number}"
        times = sum(one == name or one.startswith(f"{name} (") for one in names)
        names.append(f"{name} ({times + 1})" if times else name)
        if times:
            notes.append(f"column {name!r} exists more than once; the second one is called {names[-1]!r}")
    return names
