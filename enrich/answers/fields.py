"""The fields of an answer. Template, parser, grammar and token evidence derive from their list in prompt.json."""

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Setting

from enrich.answers.kinds import KINDS, Kind
from enrich.answers.kinds.number import MAX_DECIMALS
from enrich.answers.plain_text import PlainLine


class Field(BaseModel):
    """One line of an answer: `{label}: {value}`.

    Its kind (`enrich.answers.kinds`) says what a value may be; for a closed kind, one of `values`. A number has at most
    `decimals` digits after the decimal point. A field that is not `required` may also be answered with the prompt's
    word for unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Setting(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    kind: str
    label: PlainLine  # the word in the answer
    column: str = Setting(min_length=1)  # of the catalog, as its table spells it
    values: tuple[PlainLine, ...] = ()
    decimals: int = Setting(default=0, ge=0, le=MAX_DECIMALS)
    required: bool = False

    @model_validator(mode="after")
    def _suits_its_kind(self) -> "Field":
        if self.kind not in KINDS:
            raise ValueError(f"field {self.name}: {self.kind!r} is not a kind of field; choose from {', '.join(KINDS)}")
        if self.values and not self.how.closed:
            raise ValueError(f"field {self.name} is a {self.kind}; only a choice has values")
        if self.decimals and self.kind != "number":
            raise ValueError(f"field {self.name} is a {self.kind}; only a number has decimals")
        return self

    @property
    def form(self) -> str:
        """A regular expression of a value in an answer, for Python and JavaScript."""
        return self.how.pattern + (rf"(?:\.[0-9]{{1,{self.decimals}}})?" if self.decimals else "")

    @property
    def about(self) -> str:
        """What a value is, for people."""
        return (
            f"a number with {('one decimal', 'two decimals')[self.decimals - 1]} at most"
            if self.decimals
            else self.how.about
        )

    @property
    def how(self) -> Kind:
        """The kind, which defines how values are read, written and permitted."""
        return KINDS[self.kind]
