"""Strict parser of the model's answer: a line for each field or nothing. The text is untrusted."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from enrich.answers.plain_text import MAX_TITLE, excerpt, fault_of
from enrich.answers.prompt import Prompt, of_steps


class AnswerMalformed(ValueError):
    """The text is not an answer; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the model answered; None if it wrote its word for unknown."""

    title: str
    category: str
    price: float | None  # units of the currency
    attributes: Mapping[str, str | None] = field(default_factory=dict, hash=False)  # of the other fields, by name


def parse_answer(text: str, prompt: Prompt) -> Answer:
    """The answer in `text` (without the token that ends it) to `prompt`, in NFC as catalogs are.

    Raises:
        AnswerMalformed: the text is not a line for each field, or a value is empty, too long, or contains control
            characters or a control token of the model.
    """
    match = prompt.answer_form.fullmatch(unicodedata.normalize("NFC", text.strip()))
    if match is None:
        labels = ", ".join(field.label for field in prompt.fields)
        what = "one line each for" if prompt.terse else "the lines"
        raise AnswerMalformed(f"expected {what} {labels}, got {excerpt(text)!r}")
    values: dict[str, str | None] = {}
    for one in prompt.fields:
        value = match[one.name].strip()
        values[one.name] = None if value == prompt.unknown and not one.required else value
        if len(value) > MAX_TITLE:
            raise AnswerMalformed(f"{one.name} has {len(value)} characters, more than {MAX_TITLE}")
        if fault := fault_of(value):
            raise AnswerMalformed(f"{one.name} {fault} in {excerpt(text)!r}")
    price = values.pop("price")
    return Answer(
        title=values.pop("title") or "",
        category=values.pop("category") or "",
        price=None if price is None else of_steps(int(price), prompt.price_step),
        attributes=values,
    )
