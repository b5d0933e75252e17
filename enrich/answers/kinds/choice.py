"""A choice: one of the catalog's values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from enrich.answers.automata import Part
from enrich.answers.kinds.base import Kind, Values
from enrich.answers.spelling import one_spelling

if TYPE_CHECKING:
    from enrich.answers.fields import Field
    from enrich.answers.token_evidence import AnswerTokens

_MOST_VALUES = 0.5  # different ones, as a share of the products with a value, from which on they look like free text
_ENOUGH = 20  # products with a value; fewer say nothing about that


def read(name: str, cells: Sequence[str | None]) -> tuple[Values, list[str]]:
    """The cells, each value in its most frequent spelling."""
    spelled, notes = one_spelling([(cell,) for cell in cells if cell], f"values of {name}")
    rest = iter(spelled)
    values = [next(rest)[0] if cell else None for cell in cells]
    known = Counter(value for value in values if value)
    if known.total() >= _ENOUGH and len(known) > _MOST_VALUES * known.total():
        notes = [
            *notes,
            f"{name} is a choice with {len(known):,} values in {known.total():,} products; "
            f"`{name}: {{kind: text}}` may be meant",
        ]
    return values, notes


def parts(tokens: AnswerTokens, field: Field, most: int) -> list[Part]:
    """One of the lines, including its newline, as a tree."""
    after = tokens.choices[field.name].after
    edges = {node: [(frozenset({token}), to) for token, to in found.items()] for node, found in enumerate(after)}
    return [Part(edges, frozenset(node for node, found in enumerate(after) if not found))]


def room(tokens: AnswerTokens, field: Field) -> int:
    """Tokens of the longest line."""
    return tokens.choices[field.name].longest


KIND = Kind(about="one of the catalog's values", read=read, pattern=r"[^\n]+", parts=parts, room=room, closed=True)
