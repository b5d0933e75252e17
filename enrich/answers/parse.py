"""Strict parser of the model's answer: three lines or nothing. The text is untrusted."""

import re
import unicodedata
from dataclasses import dataclass

from enrich.answers.prompt import UNKNOWN_PRICE, spells_control_token

MAX_TITLE = 200  # characters, also in catalogs; the longest title of the tutorial's data set has 71
# Control, format, surrogate and private characters, line and paragraph separators: a field is one visible line.
_CONTROL = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Joiners between letters beyond ASCII are part of the word (Persian, Hindi, emoji); elsewhere they only hide text.
_JOINER = re.compile("(?<=[^\\x00-\\x7f\\s\u200c\u200d])[\u200c\u200d](?=[^\\x00-\\x7f\\s\u200c\u200d])")
_ANSWER = re.compile(
    r"Product:[ ]?(?P<title>[^\n]+)\n"
    r"Category:[ ]?(?P<category>[^\n]+)\n"
    rf"Full Price:[ ]?(?P<price>[0-9]{{1,9}}|{UNKNOWN_PRICE})"
)


class AnswerMalformed(ValueError):
    """The text is not an answer; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the model answered. `price` is None if it wrote `unknown`."""

    title: str
    category: str
    price: int | None


def parse_answer(text: str) -> Answer:
    """The answer in `text` (without the closing `<|end|>`).

    Raises:
        AnswerMalformed: the text is not three lines, or a field is empty, too long, or contains control characters or
            a control token of the model.
    """
    match = _ANSWER.fullmatch(text.strip())
    if match is None:
        raise AnswerMalformed(f"expected three lines Product, Category, Full Price, got {excerpt(text)!r}")
    title, category = match["title"].strip(), match["category"].strip()
    if not title or not category:
        raise AnswerMalformed(f"title or category is empty in {excerpt(text)!r}")
    if len(title) > MAX_TITLE:
        raise AnswerMalformed(f"title has {len(title)} characters, more than {MAX_TITLE}")
    if holds_control_characters(title + category):
        raise AnswerMalformed(f"title or category holds control characters in {excerpt(text)!r}")
    if spells_control_token(title) or spells_control_token(category):
        raise AnswerMalformed(f"title or category spells a control token of the model in {excerpt(text)!r}")
    price = None if match["price"] == UNKNOWN_PRICE else int(match["price"])
    return Answer(title, category, price)


def holds_control_characters(text: str) -> bool:
    """Whether `text` contains control or format characters, apart from joiners inside words."""
    return any(unicodedata.category(character) in _CONTROL for character in _JOINER.sub("", text))


def excerpt(text: str, length: int = 80) -> str:
    """The first `length` characters, for messages."""
    return text if len(text) <= length else text[: length - 1] + "…"
