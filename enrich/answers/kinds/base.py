"""What a kind of field must define. Each kind is a module of this package, with a `KIND`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enrich.answers.automata import Part

if TYPE_CHECKING:  # they need the kinds
    from enrich.answers.fields import Field
    from enrich.answers.token_evidence import AnswerTokens

Values = list[str | None]


@dataclass(frozen=True)
class Kind:
    """How values of one kind of field are read from a catalog, written in an answer, and permitted in the second pass.

    read: from the field's name and a catalog's cells (one for each product, None if empty) to the values as they are
        taught, and messages for the user.
    pattern: a regular expression for a value in an answer; the word for unknown is added to it. It must mean the same
        in JavaScript, because the review page checks typed values against it too.
    parts: the line of a field as automata over tokens, starting with the text before its value, without the newline
        unless its values are closed. The last argument is how many tokens an otherwise unbounded value may take.
    room: the most tokens that this line takes, without such a value.
    closed: a value is one of those that the catalog has.
    begins: text that a value may begin with, if the tokenizer does not join it to the space before it.
    """

    about: str  # for people, a line
    read: Callable[[str, Sequence[str | None]], tuple[Values, list[str]]]
    pattern: str
    parts: Callable[[AnswerTokens, Field, int], list[Part]]
    room: Callable[[AnswerTokens, Field], int]
    closed: bool = False
    begins: str = ""
