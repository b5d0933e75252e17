"""Strict parser of the model's answer: a line for each field or nothing. The text is untrusted."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from enrich.answers.fields import spells_control_token
from enrich.answers.prompt import Prompt

MAX_TITLE = 200  # characters, also in catalogs; the longest title of the tutorial's data set has 71
# Control, format, surrogate and private characters, line and paragraph separators: a field is one visible line.
CONTROL = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Joiners between letters beyond ASCII are part of the word (Persian, Hindi, emoji); elsewhere they only hide text.
JOINERS = "\u200c\u200d"
_JOINER = re.compile(f"(?<=[^\\x00-\\x7f\\s{JOINERS}])[{JOINERS}](?=[^\\x00-\\x7f\\s{JOINERS}])")
UNDECODED = "\ufffd"  # what stands in decoded text for bytes that are not UTF-8


class AnswerMalformed(ValueError):
    """The text is not an answer; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the model answered; None where it wrote its word for unknown."""

    title: str
    category: str
    price: int | None
    attributes: Mapping[str, str | None] = field(default_factory=dict, hash=False)  # of the other fields, by name


def parse_answer(text: str, prompt: Prompt) -> Answer:
    """The answer in `text` (without the closing `<|end|>`) to `prompt`, in NFC as catalogs are.

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
        if one.kind == "number":
            continue  # digits or the word for unknown
        if not value:
            raise AnswerMalformed(f"{one.name} is empty in {excerpt(text)!r}")
        if one.kind == "text" and len(value) > MAX_TITLE:
            raise AnswerMalformed(f"{one.name} has {len(value)} characters, more than {MAX_TITLE}")
        if holds_control_characters(value):
            raise AnswerMalformed(f"{one.name} holds control characters in {excerpt(text)!r}")
        if UNDECODED in value:
            raise AnswerMalformed(f"{one.name} holds bytes that are not UTF-8 in {excerpt(text)!r}")
        if spells_control_token(value):
            raise AnswerMalformed(f"{one.name} spells a control token of the model in {excerpt(text)!r}")
    price = values.pop("price")
    return Answer(
        title=values.pop("title") or "",
        category=values.pop("category") or "",
        price=None if price is None else int(price),
        attributes=values,
    )


def holds_control_characters(text: str) -> bool:
    """Whether `text` contains control or format characters, apart from joiners inside words."""
    return any(unicodedata.category(character) in CONTROL for character in _JOINER.sub("", text))


def excerpt(text: str, length: int = 80) -> str:
    """The first `length` characters, for messages."""
    return text if len(text) <= length else text[: length - 1] + "…"
