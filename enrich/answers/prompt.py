"""The wording of prompts and answers. Training and serving both render them here, so they cannot differ."""

import re
import unicodedata
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from enrich.answers.amount import is_currency
from enrich.errors import UsageError

PROMPT_VERSION = "1"
PROMPT_FILE = "prompt.json"
END = "<|end|>"  # the token that really ends a turn; config.json's eos (2) never occurs in a chat
UNKNOWN_PRICE = "unknown"
ANSWER_TEMPLATE = "Product: {title}\nCategory: {category}\nFull Price: {price}"
# How chat models write their control tokens: <|end|>, <|image_1|>, <s>, </s>, <unk>.
_CONTROL_TOKEN = re.compile(r"<\s*\|[^<>\n]{0,60}\|\s*>|<\s*/?\s*(?:s|unk|pad|bos|eos|mask|cls|sep)\s*>", re.IGNORECASE)


class Prompt(BaseModel):
    """What the model is asked and how it answers; written to an adapter's prompt.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = PROMPT_VERSION
    instruction: str
    answer_template: str = ANSWER_TEMPLATE
    categories: tuple[str, ...]
    currency: str | None = None

    @field_validator("answer_template")
    @classmethod
    def _answer_can_be_parsed(cls, template: str) -> str:
        if template != ANSWER_TEMPLATE:
            raise ValueError(f"prompt version {PROMPT_VERSION} answers as {ANSWER_TEMPLATE!r}")
        return template

    @field_validator("currency")
    @classmethod
    def _currency_is_a_code(cls, currency: str | None) -> str | None:
        if currency is not None and not is_currency(currency):
            raise ValueError(f"{currency[:40]!r} is not a currency code of three capital letters")
        return currency

    @field_validator("instruction", "categories")
    @classmethod
    def _text_is_only_text(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (value,) if isinstance(value, str) else value:
            if spells_control_token(text):
                raise ValueError(f"{text[:40]!r} spells a control token of the model")
            if text.splitlines() != [text] or text != text.strip():
                raise ValueError(f"{text[:40]!r} is not one line of text")
        return value

    @classmethod
    def read(cls, path: Path) -> Self:
        """The prompt stored at `path`; UsageError if it is missing or not in our format."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; name an adapter made by `enrich finetune`") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "prompt"
            raise UsageError(f"{path}: {where}: {first['msg']}; fine-tune again with this version") from error


def spells_control_token(text: str) -> bool:
    """Whether `text` contains a control token of a chat model, also in full-width characters."""
    visible = "".join(one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf")
    return _CONTROL_TOKEN.search(visible) is not None


def make_prompt(categories: tuple[str, ...], currency: str | None) -> Prompt:
    """The prompt for a catalog with these categories; prices are in units of `currency`."""
    price = f"full price in {currency}" if currency else "full price"
    return Prompt(
        instruction=f"What product is this? Give its title, category and {price}.",
        categories=tuple(sorted(categories)),
        currency=currency,
    )


def render_prompt(prompt: Prompt, photos: int = 1) -> str:
    """The user's turn, which shows `photos` photos, and the start of the assistant's, as Phi-3-vision's model card."""
    images = "".join(f"<|image_{number}|>\n" for number in range(1, photos + 1))
    return f"<|user|>\n{images}{prompt.instruction}<|end|>\n<|assistant|>\n"


def render_answer(prompt: Prompt, title: str, category: str, price: float | None) -> str:
    """The answer without its closing `<|end|>`. The price is a bare integer: digits are single tokens.

    Title and category must be single lines; a price below 0.5 is written as 1, because 0 is not a valid price.
    """
    written = UNKNOWN_PRICE if price is None else str(max(1, round(price)))
    return prompt.answer_template.format(title=title, category=category, price=written)
