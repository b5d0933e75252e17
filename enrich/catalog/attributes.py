"""The values of declared fields beyond title, category and price, as they are taught."""

from collections.abc import Mapping, Sequence

from enrich.answers.kinds import KINDS
from enrich.answers.plain_text import MAX_TITLE
from enrich.settings.fields import FieldSettings
from enrich.vocabulary import same_design


def read_attributes(
    rows: Sequence[Mapping[str, str]], fields: Mapping[str, FieldSettings], unknown: str
) -> tuple[list[dict[str, str | None]], list[str]]:
    """For each row the values of the fields, None if it has none; and messages for the user, one line each.

    A cell that holds the word `unknown` has no value. The rest is up to the field's kind.

    Args:
        rows: the cells by field name, "" where there is nothing.
    """
    found: list[dict[str, str | None]] = [{} for _ in rows]
    notes: list[str] = []
    nothing = {"", same_design(unknown)}
    for name, field in fields.items():
        cells = [row[name][:MAX_TITLE].strip() for row in rows]
        if cut := sum(len(row[name]) > MAX_TITLE for row in rows):
            notes.append(f"values of {name} cut to {MAX_TITLE} characters: {cut:,}")
        known = [None if same_design(cell) in nothing else cell for cell in cells]
        values, told = KINDS[field.kind].read(name, known)
        for row, value in zip(found, values, strict=True):
            row[name] = value
        notes += told
        if not any(values):
            notes.append(f"{name} has no values (column {field.column_of(name)!r}): it is taught as {unknown!r}")
    return found, notes
