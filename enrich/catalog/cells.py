"""Cells of a catalog as text: one line, nothing invisible, and nothing where a placeholder stands."""

import polars as pl

# What shops and programs write where there is nothing, in lower case.
PLACEHOLDERS = (
    "", "n.a.", "n/a", "n.a", "na", "#n/a", "<na>", "none", "null", "(null)", "nil", "nan", "-", "--", "\u2013",
    "\u2014",
)  # fmt: skip
# Zero-width spaces, soft hyphens, byte order marks, marks of direction: they show nothing and come from web pages.
_INVISIBLE = "[\u00ad\u200b\u200e\u200f\u2060\ufeff]"
_JOINERS = "[\u200c\u200d]+"  # between letters beyond ASCII, as in Persian, they belong to the word


def clean(name: str) -> pl.Expr:
    """A column as one line of NFC text: runs of white space and control characters become one space."""
    visible = pl.col(name).str.normalize("NFC").str.replace_all(_INVISIBLE, "")
    line = visible.str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()
    for pattern, kept in ((rf"(^|[\x00-\x7f]){_JOINERS}", "${1}"), (rf"{_JOINERS}([\x00-\x7f]|$)", "${1}")):
        line = line.str.replace_all(pattern, kept)
    return line.str.strip_chars()


def value(name: str) -> pl.Expr:
    """`clean`, with "" for a placeholder."""
    text = clean(name)
    return pl.when(text.str.to_lowercase().is_in(PLACEHOLDERS)).then(pl.lit("")).otherwise(text)


def levels(names: list[str], *, paths: bool) -> pl.Expr:
    """The values of several columns from the last to the first, as a list without those that say nothing.

    A value that the next one repeats, but for case, is left out. With `paths`, a value may be several: `A > B`.
    """
    cells = pl.concat_list(value(name) for name in reversed(names))
    if paths:
        cells = cells.list.join(">").str.split(">").list.eval(pl.element().str.strip_chars())
    lower = pl.element().str.to_lowercase()
    filled = cells.list.eval(pl.element().filter(~lower.is_in(PLACEHOLDERS)))
    return filled.list.eval(pl.element().filter(lower.ne_missing(lower.shift(-1))))
