"""A text: one line of free text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from enrich.answers.automata import Part, line
from enrich.answers.kinds.base import Kind, Values
from enrich.answers.text_tokens import text_edges

if TYPE_CHECKING:
    from enrich.answers.fields import Field
    from enrich.answers.token_evidence import AnswerTokens


def read(name: str, cells: Sequence[str | None]) -> tuple[Values, list[str]]:
    """The cells as they are."""
    return list(cells), []


def parts(tokens: AnswerTokens, field: Field, most: int) -> list[Part]:
    """Any text of at most that many tokens."""
    return [line(tokens.prefixes[field.name]), Part(*text_edges(tokens.words), most)]


def room(tokens: AnswerTokens, field: Field) -> int:
    """Tokens before the text."""
    return len(tokens.prefixes[field.name])


KIND = Kind(about="free text of one line", read=read, pattern=r"[^\n]+", parts=parts, room=room)
