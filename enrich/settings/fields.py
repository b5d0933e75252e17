"""Settings of further fields, beyond title, category and price, and of the words in question and answer."""

from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from enrich.settings.base import Settings

# Each is a module, which this package does not import.
_KINDS = [name for _, name, _ in iter_modules([str(Path(__file__).parents[1] / "answers" / "kinds")]) if name != "base"]


def _known(kind: str) -> str:
    if kind not in _KINDS:
        raise ValueError(f"Input should be one of {', '.join(_KINDS)}")
    return kind


FIELD_NAME = r"^[a-z][a-z0-9_]{0,39}$"
FieldName = Annotated[str, StringConstraints(pattern=FIELD_NAME)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class FieldSettings(Settings):
    """A further field: `colour: {kind: choice}`."""

    kind: Annotated[str, AfterValidator(_known)] = Field(
        json_schema_extra={"enum": list[Any](_KINDS)},
        description="choice: one of the catalog's values; text: one line of free text; number: up to two decimals",
    )
    column: Words | None = Field(default=None, description="Column of the catalog; null: the field's name")
    label: Words | None = Field(default=None, description="The word for it in an answer; null: the field's name")

    def column_of(self, name: str) -> str:
        """The column that holds the field `name`."""
        return self.column or name

    def label_of(self, name: str) -> str:
        """The word for the field `name` in an answer."""
        return self.label or name.replace("_", " ").capitalize()


class WordingSettings(Settings):
    """Words that replace those of `language`."""

    instruction: Words | None = Field(default=None, description="The question")
    title: Words | None = Field(default=None, description="The word for the title in an answer")
    category: Words | None = Field(default=None, description="The word for the category in an answer")
    price: Words | None = Field(default=None, description="The word for the price in an answer")
    unknown: Words | None = Field(default=None, description="The answer if a value is not known")
