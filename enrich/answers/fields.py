"""The fields of an answer. Template, parser, grammar and token evidence follow from their list in prompt.json."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic import Field as Setting

from enrich.answers.kinds import KINDS, Kind
from enrich.answers.plain_text import PlainLine, composed_line, plain_line


class Field(BaseModel):
    """One line of an answer: `{label}: {value}`.

    Its kind (`enrich.answers.kinds`) says what a value may be; one of `values`, where these are all that it may be. A
    field that is not `required` may also be answered with the prompt's word for unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Setting(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    kind: str
    label: PlainLine  # the word in the answer
    column: Annotated[str, AfterValidator(plain_line)]  # of the catalog, as its table spells it
    values: Annotated[tuple[str, ...], AfterValidator(lambda values: tuple(map(composed_line, values)))] = ()
    required: bool = False

    @model_validator(mode="after")
    def _suits_its_kind(self) -> "Field":
        if self.kind not in KINDS:
            raise ValueError(f"field {self.name}: {self.kind!r} is not a kind of field; choose from {', '.join(KINDS)}")
        if self.values and not self.how.closed:
            raise ValueError(f"field {self.name} is a {self.kind}; only a choice has values")
        return self

    @property
    def how(self) -> Kind:
        """What its kind knows: how values are read, written and permitted."""
        return KINDS[self.kind]
