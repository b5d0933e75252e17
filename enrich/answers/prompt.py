"""The wording of prompts and answers. Training and serving both render them here, so they cannot differ."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic import Field as Setting

from enrich.answers.amount import is_currency
from enrich.answers.fields import Field
from enrich.answers.plain_text import PlainLine
from enrich.answers.wording import WORDINGS
from enrich.errors import UsageError
from enrich.settings.fields import WordingSettings
from enrich.vocabulary import Language, PriceUnit, Product, same_design

PROMPT_FILE = "prompt.json"
# The fields that have columns of their own in every table, where they stand in an answer, and whether it must have one.
_FIXED = ((0, "title", "text", True), (1, "category", "choice", True), (-1, "price", "number", False))
SHORTEST_BUDGET = 64  # tokens; the tutorial's longest answer takes about 50


class Prompt(BaseModel):
    """The question and the form of the answer; written to an adapter's prompt.json.

    The answer has a line for each field, in order: title and category first, price last. `max_new_tokens` is how
    many tokens an answer may take, including the closing one. A `terse` answer leaves out the labels, as in
    `{title}\\n{category}\\n{price}`. Prices are written as whole numbers: of units of the currency, or of cents
    (`price_unit`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["2"] = "2"
    language: Language = "en"  # of titles and labels: which lexicon judges them
    instruction: PlainLine
    fields: tuple[Field, ...]
    unknown: PlainLine = WORDINGS["en"].unknown
    currency: str | None = None
    price_unit: PriceUnit = "whole"
    max_new_tokens: int = Setting(default=SHORTEST_BUDGET, ge=8, le=4096)
    category_path: bool = False  # a category is a path such as WOMAN > SHOES > PUMPS, else a leaf whatever it holds
    category_ids: Mapping[str, str] = {}  # category -> its id in a standard's table, where one was named
    terse: bool = False

    @field_validator("currency")
    @classmethod
    def _currency_is_a_code(cls, currency: str | None) -> str | None:
        if currency is not None and not is_currency(currency):
            raise ValueError(f"{currency[:40]!r} is not a currency code of three capital letters")
        return currency

    @field_validator("unknown")
    @classmethod
    def _unknown_is_no_number(cls, unknown: str) -> str:
        if re.fullmatch(r"[\d.,]*\d[\d.,]*", unknown):
            raise ValueError(f"{unknown[:40]!r} would be read as a number; choose a word")
        return unknown

    @field_validator("fields")
    @classmethod
    def _fields_are_in_order(cls, fields: tuple[Field, ...]) -> tuple[Field, ...]:
        for place, name, kind, required in _FIXED:
            if len(fields) < len(_FIXED) or (fields[place].name, fields[place].kind) != (name, kind):
                raise ValueError("title (text) and category (choice) come first, price (number) last")
            if fields[place].required != required or (name == "price" and fields[place].decimals):
                raise ValueError("title and category are required, price is not, and has no decimals")
        for what in ("name", "label"):
            found = [same_design(getattr(field, what)) for field in fields]
            if twice := next((field for field, one in zip(fields, found, strict=True) if found.count(one) > 1), None):
                raise ValueError(f"two fields have the {what} {getattr(twice, what)!r}")
        return fields

    @classmethod
    def read(cls, path: Path) -> Self:
        """The prompt stored at `path`; UsageError if it is missing or not in our format."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; name an adapter made by `enrich finetune`") from error
        except ValidationError as error:
            first = error.errors()[0]
            where, why = ".".join(map(str, first["loc"])) or "prompt", first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{path}: {where}: {why}; fine-tune again with this version") from error

    @property
    def categories(self) -> tuple[str, ...]:
        """The taxonomy: the values of the field category."""
        return self.fields[1].values

    @property
    def further(self) -> tuple[Field, ...]:
        """The declared fields beyond title, category and price."""
        return self.fields[2:-1]

    @property
    def price_step(self) -> float:
        """The value of a price of 1 in an answer, in units of the currency."""
        return 0.01 if self.price_unit == "cents" else 1.0

    def opening(self, field: Field) -> str:
        """The text before the value of a field in an answer."""
        return "" if self.terse else f"{field.label}: "

    @cached_property
    def answer_form(self) -> re.Pattern[str]:
        """An answer, with a group for the value of each field."""
        unknown = re.escape(self.unknown)
        return re.compile(
            r"\n".join(
                rf"{re.escape(self.opening(one).rstrip())}[ ]?(?P<{one.name}>{one.form}|{unknown})"
                for one in self.fields
            )
        )


def make_prompt(
    categories: Sequence[str],
    currency: str | None,
    *,
    language: Language = "en",
    others: Sequence[Field] = (),
    max_new_tokens: int = SHORTEST_BUDGET,
    category_path: bool = False,
    category_ids: Mapping[str, str] = {},
    terse: bool = False,
    price_unit: PriceUnit = "whole",
    wording: WordingSettings | None = None,
) -> Prompt:
    """The prompt for a catalog with these categories; prices are in `currency`.

    Args:
        others: further fields, between category and price.
        max_new_tokens, category_path, terse, price_unit: see `Prompt`.
        category_ids: those of other categories are left out.
        wording: words instead of the language's.

    Raises:
        ValidationError: two fields have the same word, or a word spells a control token or is more than one line.
    """
    usual, words = WORDINGS[language], wording or WordingSettings()
    asked = usual.instruction([field.label for field in others], currency, cents=price_unit == "cents")
    return Prompt(
        language=language,
        instruction=words.instruction or asked,
        fields=(
            Field(name="title", kind="text", label=words.title or usual.title, column="title", required=True),
            Field(
                name="category", kind="choice", label=words.category or usual.category, column="category",
                required=True, values=tuple(sorted(categories)),
            ),
            *others,
            Field(name="price", kind="number", label=words.price or usual.price, column="price"),
        ),
        unknown=words.unknown or usual.unknown,
        currency=currency,
        price_unit=price_unit,
        max_new_tokens=max_new_tokens,
        category_path=category_path,
        category_ids={name: category_ids[name] for name in sorted(categories) if name in category_ids},
        terse=terse,
    )  # fmt: skip


def render_answer(
    prompt: Prompt, title: str, category: str, price: float | None, attributes: Mapping[str, str | None] | None = None
) -> str:
    """The answer without the token that ends it. The price is a bare integer: digits are single tokens.

    Values must be single lines. A price that rounds to 0 is written as 1, because 0 is not a valid price.

    Args:
        attributes: values of the other fields by name; one that is missing or None is written as unknown.
    """
    written = None if price is None else str(in_steps(price, prompt.price_step))
    values = {**(attributes or {}), "title": title, "category": category, "price": written}
    return "\n".join(f"{prompt.opening(field)}{values.get(field.name) or prompt.unknown}" for field in prompt.fields)


def in_steps(price: float, step: float) -> int:
    """A positive price as the whole number of steps that an answer writes, at least 1."""
    return max(1, round(price / step))


def of_steps(steps: int, step: float) -> float:
    """The price of that many steps, in units of the currency."""
    return round(steps * step, 2)


def taught_answer(prompt: Prompt, product: Product) -> str:
    """The answer that a labelled product teaches, without the token that ends it; see `render_answer`."""
    return render_answer(prompt, product.title, product.category, product.price, product.attributes)
