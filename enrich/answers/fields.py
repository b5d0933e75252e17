"""The fields of an answer. Template, parser, grammar and token evidence follow from their list in prompt.json."""

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic import Field as Setting

# How chat models write their control tokens: <|end|>, <|image_1|>, <s>, </s>, <unk>.
_CONTROL_TOKEN = re.compile(r"<\s*\|[^<>\n]{0,60}\|\s*>|<\s*/?\s*(?:s|unk|pad|bos|eos|mask|cls|sep)\s*>", re.IGNORECASE)


def spells_control_token(text: str) -> bool:
    """Whether `text` contains a control token of a chat model, also in full-width characters."""
    visible = "".join(one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf")
    return _CONTROL_TOKEN.search(visible) is not None


def _plain_line(text: str) -> str:
    if spells_control_token(text):
        raise ValueError(f"{text[:40]!r} spells a control token of the model")
    if text.splitlines() != [text] or text != text.strip():
        raise ValueError(f"{text[:40]!r} is not one line of text")
    return text


def _taught(text: str) -> str:
    return unicodedata.normalize("NFC", _plain_line(text))


# Text that spells no control token and is one line without outer spaces, in NFC as catalogs and answers are.
PlainLine = Annotated[str, AfterValidator(_taught)]


class Field(BaseModel):
    """One line of an answer: `{label}: {value}`.

    text: free text of one line. choice: one of `values`. number: a whole number without separators. A field that is
    not `required` may also be answered with the prompt's word for unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Setting(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    kind: Literal["text", "choice", "number"]
    label: PlainLine  # the word in the answer
    column: Annotated[str, AfterValidator(_plain_line)]  # of the catalog, as its table spells it
    values: Annotated[tuple[str, ...], AfterValidator(lambda values: tuple(map(_taught, values)))] = ()
    required: bool = False

    @model_validator(mode="after")
    def _only_a_choice_has_values(self) -> "Field":
        if self.values and self.kind != "choice":
            raise ValueError(f"field {self.name} is a {self.kind}; only a choice has values")
        return self
