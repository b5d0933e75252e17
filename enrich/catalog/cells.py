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


def first_value(names: list[str]) -> pl.Expr:
    """The first of several columns' values that is not empty, else ""."""
    values = [value(name) for name in names]
    return pl.coalesce(*(pl.when(one == "").then(None).otherwise(one) for one in values), pl.lit(""))
