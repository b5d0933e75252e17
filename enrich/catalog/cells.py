"""Cells of a catalog as text: one line, no HTML, nothing invisible, and empty instead of placeholders."""

import html
import re
from collections.abc import Collection

import polars as pl

# Placeholders for empty cells that shops and programs write, in lower case.
PLACEHOLDERS = (
    "", "n.a.", "n/a", "n.a", "na", "#n/a", "<na>", "none", "null", "(null)", "nil", "nan", "-", "--", "\u2013",
    "\u2014",
)  # fmt: skip
# Zero-width spaces, soft hyphens, byte order marks, marks and embeddings of direction: they show nothing and come from
# web pages.
_INVISIBLE = "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
# Of HTML in shops' texts. `<s>` is not among them: a model has a token of that name (`spells_control_token`).
_BLOCKS = r"(?i)<(?:br|/?(?:p|div|li|ul|ol|h[1-6]|tr|td|th|table|hr))(?:\s[^<>]*)?/?>"
_INLINE = r"(?i)</?(?:b|i|u|em|strong|span|small|big|sup|sub|font|a|mark|del|ins|img|tbody|thead|label)(?:\s[^<>]*)?/?>"
_FORMULA = r'^\s*="([^"]*)"\s*$'  # how exports keep Excel from reading 00101 as a number
_ESCAPED = r"^'([=+\-@\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}])"  # how exports keep spreadsheets from executing a text
# Merchant Center's title of a model: trained_algorithmic_media:"Coat: Navy"
_DECLARED = r"^(?:default|trained_algorithmic_media)?\s*:\s*"
_COMMENT = r"(?s)<!--.*?-->"
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]+);")
_ROOTS = ("Default Category", "Root Catalog")  # of Magento: every path begins so
_JOINERS = "[\u200c\u200d]+"  # between letters beyond ASCII, as in Persian, they belong to the word


def clean(name: str | pl.Expr) -> pl.Expr:
    """A column as one line of NFC text: runs of white space and control characters become one space. HTML is read."""
    column = pl.col(name) if isinstance(name, str) else name
    plain = column.map_batches(_without_entities, return_dtype=pl.String)
    plain = (
        plain.str.replace(_FORMULA, "${1}")
        .str.replace(_ESCAPED, "${1}")
        .str.replace_all(_COMMENT, "")
        .str.replace_all(_BLOCKS, " ")
        .str.replace_all(_INLINE, "")
    )
    visible = plain.str.normalize("NFC").str.replace_all(_INVISIBLE, "")
    line = visible.str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()
    for pattern, kept in ((rf"(^|[\x00-\x7f]){_JOINERS}", "${1}"), (rf"{_JOINERS}([\x00-\x7f]|$)", "${1}")):
        line = line.str.replace_all(pattern, kept)
    return line.str.strip_chars()


def code(name: str) -> pl.Expr:
    """Product codes, `value` in plain digits and letters: those that are all whole floats lose their `.0`."""
    text = value(name).str.normalize("NFKC").str.replace(r"^'([0-9])", "${1}").str.strip_chars()
    floats = (text.str.contains(r"^[0-9]+\.0+$") | (text == "")).all()
    return pl.when(floats).then(text.str.replace(r"\.0+$", "")).otherwise(text)


def value(name: str | pl.Expr) -> pl.Expr:
    """`clean`, with "" for a placeholder."""
    text = clean(name)
    return pl.when(text.str.to_lowercase().is_in(PLACEHOLDERS)).then(pl.lit("")).otherwise(text)


def title(name: str, there: Collection[str]) -> pl.Expr:
    """Titles, `value`. Where they are empty, the content of Merchant Center's structured_title if that is `there`."""
    declared = next(
        (one for one in there if re.sub(r"[\s_]+", "_", one.strip().casefold()) == "structured_title"), None
    )
    if declared is None:
        return value(name)
    content = pl.col(declared).str.strip_chars().str.replace(_DECLARED, "")
    quoted = content.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    content = value(pl.when(content.str.starts_with('"')).then(quoted).otherwise(content))
    return content if name == declared else pl.when(value(name) != "").then(value(name)).otherwise(content)


def levels(names: list[str], *, paths: bool, between: str = ">", several: str | None = None) -> pl.Expr:
    """The values of several columns from the last to the first, as a list without empty ones.

    A value that the next one repeats, ignoring case, is left out. With `paths`, a value may be several: `A > B`.

    Args:
        between: the separator between levels in the cells, instead of `>`.
        several: the separator between several categories in a cell, of which the first with the most levels is taken.
    """
    cells = pl.concat_list(_one_path(name, between, several) for name in reversed(names))
    if paths:
        cells = cells.list.join(">").str.split(">").list.eval(pl.element().str.strip_chars())
    lower = pl.element().str.to_lowercase()
    filled = cells.list.eval(pl.element().filter(~lower.is_in(PLACEHOLDERS)))
    return filled.list.eval(pl.element().filter(lower.ne_missing(lower.shift(-1))))


def _one_path(name: str, between: str, several: str | None) -> pl.Expr:
    cell = value(name)
    if several is None and between == ">":
        return cell

    def chosen(text: str) -> str:
        paths = [[level.strip() for level in one.split(between) if level.strip()] for one in
                 (text.split(several) if several else [text])]  # fmt: skip
        longest = max(paths, key=len)
        return " > ".join(longest[1:] if len(longest) > 1 and longest[0] in _ROOTS else longest)

    return cell.map_elements(chosen, return_dtype=pl.String)


def _without_entities(cells: pl.Series) -> pl.Series:
    """Twice, since shops export `&amp;amp;` too."""
    if not cells.str.contains("&", literal=True).any():
        return cells
    return pl.Series(cells.name, [_plain(cell) if cell and "&" in cell else cell for cell in cells], dtype=pl.String)


def _plain(cell: str) -> str:
    for _ in range(2):
        cell = _ENTITY.sub(lambda match: html.unescape(match[0]), cell)
    return cell
