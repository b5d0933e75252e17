"""The values of declared fields beyond title, category and price, as they are taught."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from unicodedata import normalize

from enrich.answers.parse import MAX_TITLE
from enrich.catalog.spelling import one_spelling
from enrich.settings.fields import FieldSettings
from enrich.vocabulary import same_design

_NUMBER = re.compile(r"[0-9]{1,9}(?:[.,][0-9]+)?")
MOST_VALUES = 0.5  # different values of a choice, as a share of the products with one, from which on it looks like text
_ENOUGH = 20  # products with a value; fewer say nothing about that


def read_attributes(
    rows: Sequence[Mapping[str, str]], fields: Mapping[str, FieldSettings], unknown: str
) -> tuple[list[dict[str, str | None]], list[str]]:
    """For each row the values of the fields, None where it has none; and what a person should know, a line each.

    Values of a choice that differ in case or spacing only are one, in their most frequent spelling. A cell that holds
    the word `unknown` has no value. Numbers are rounded to whole ones.

    Args:
        rows: the cells by field name, "" where there is nothing.
    """
    found: list[dict[str, str | None]] = [{} for _ in rows]
    notes: list[str] = []
    for name, field in fields.items():
        cells = [row[name][:MAX_TITLE].strip() for row in rows]
        values = [None if same_design(cell) in ("", same_design(unknown)) else cell for cell in cells]
        match field.kind:
            case "choice":
                spelled, told = one_spelling([(value,) for value in values if value], f"values of {name}")
                rest = iter(spelled)
                values = [next(rest)[0] if value else None for value in values]
                notes += [*told, *_looks_like_text(name, values)]
            case "number":
                values, told = _whole_numbers(name, values)
                notes += told
        for row, value in zip(found, values, strict=True):
            row[name] = value
        if not any(values):
            notes.append(f"{name} has no values (column {field.column_of(name)!r}): it is taught as {unknown!r}")
    return found, notes


def _looks_like_text(name: str, values: Sequence[str | None]) -> list[str]:
    known = Counter(value for value in values if value)
    if known.total() < _ENOUGH or len(known) <= MOST_VALUES * known.total():
        return []
    return [
        f"{name} is a choice with {len(known):,} values in {known.total():,} products; "
        f"`{name}: {{kind: text}}` may be meant"
    ]


def _whole_numbers(name: str, values: Sequence[str | None]) -> tuple[list[str | None], list[str]]:
    numbers: list[str | None] = []
    odd: list[str] = []
    for value in values:
        plain = normalize("NFKC", value) if value else ""
        if _NUMBER.fullmatch(plain):
            numbers.append(str(round(float(plain.replace(",", ".")))))
            continue
        odd += [value] if value else []
        numbers.append(None)
    told = f"{name}: {len(odd):,} values are not numbers, such as {odd[0]!r}, and taught as unknown" if odd else ""
    return numbers, [told] if told else []
