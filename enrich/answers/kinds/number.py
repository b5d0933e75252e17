"""A number: whole, without separators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

from enrich.answers.automata import Part, chain
from enrich.answers.kinds.base import Kind, Values

if TYPE_CHECKING:
    from enrich.answers.fields import Field
    from enrich.answers.token_evidence import AnswerTokens

MAX_DIGITS = 7  # that the second pass permits
_CELL = re.compile(r"[0-9]{1,9}(?:[.,][0-9]+)?")


def read(name: str, cells: Sequence[str | None]) -> tuple[Values, list[str]]:
    """The cells rounded to whole numbers."""
    plain = [normalize("NFKC", cell) if cell else "" for cell in cells]
    values = [str(round(float(one.replace(",", ".")))) if _CELL.fullmatch(one) else None for one in plain]
    odd = [cell for cell, value in zip(cells, values, strict=True) if cell and value is None]
    told = f"{name}: {len(odd):,} values are not numbers, such as {odd[0]!r}, and taught as unknown" if odd else ""
    return values, [told] if told else []


def parts(tokens: AnswerTokens, field: Field, most: int) -> list[Part]:
    """A whole number of 1 to MAX_DIGITS digits, each token of one or several of them; or the word for unknown."""
    prefix = tokens.prefixes[field.name]
    edges = chain(prefix)
    first = len(prefix)
    states = range(first + 1, first + 1 + MAX_DIGITS)  # after so many digits, less one
    for state in (first, *states):
        written = state - first
        options: dict[int, set[int]] = {}
        for token, digits in tokens.digits.items():
            leads = token in tokens.leading if written == 0 else token in tokens.inner
            if leads and written + len(digits) <= MAX_DIGITS and (written or digits[0] != "0"):
                options.setdefault(state + len(digits), set()).add(token)
        edges[state] = [(frozenset(found), after) for after, found in options.items()]
    ends = set(states)
    last = states[-1]
    zero = frozenset(token for token in tokens.leading if tokens.digits[token] == "0")
    if zero and field.name != "price":  # which is never 0
        last += 1
        edges[first].append((zero, last))
        ends.add(last)
    if unknown := tokens.unknown.get(field.name):
        at = 0
        for token in unknown:
            last += 1
            edges[at] = [*edges.get(at, []), (frozenset({token}), last)]
            at = last
        ends.add(at)
    return [Part(edges, frozenset(ends))]


def room(tokens: AnswerTokens, field: Field) -> int:
    """Tokens before the number and of its digits."""
    return len(tokens.prefixes[field.name]) + MAX_DIGITS


KIND = Kind(about="a whole number", read=read, pattern=r"[0-9]{1,9}", parts=parts, room=room, begins="1")
