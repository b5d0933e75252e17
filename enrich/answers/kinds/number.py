"""A number without separators: whole, or with a decimal point if the catalog has decimals."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from enrich.answers.amount import LARGEST, AmountError, parse_amount
from enrich.answers.automata import Part, chain
from enrich.answers.kinds.base import Kind, Values

if TYPE_CHECKING:
    from enrich.answers.fields import Field
    from enrich.answers.token_evidence import AnswerTokens

MAX_DIGITS = 9  # before the decimal point: those of amount.LARGEST, which rupiahs need
MAX_DECIMALS = 2  # that are taught


def read(name: str, cells: Sequence[str | None]) -> tuple[Values, list[str]]:
    """The cells in the fewest digits, to MAX_DECIMALS behind the point: 6.5 for `6,50`. What groups digits, and what is
    unclear, is as in prices: `1 234` is a number, and 1,234 may be either of two."""
    values = [_number(cell) if cell else None for cell in cells]
    odd = [cell for cell, value in zip(cells, values, strict=True) if cell and value is None]
    if not odd:
        return values, []
    told = f"such as {odd[0]!r}, are not a number from 0 to {LARGEST:,.0f} and taught as unknown"
    return values, [f"{name}: {len(odd):,} values, {told}"]


def _number(cell: str) -> str | None:
    """The number in a cell, None if it is none or could be two."""
    if re.fullmatch(r"\d+(?:[.,]\d+)?", cell) and not float(cell.replace(",", ".")):
        return "0"  # no amount of money is
    try:
        amount = parse_amount(cell)
    except AmountError:
        return None
    return None if amount.currency else f"{amount.value:.{MAX_DECIMALS}f}".rstrip("0").rstrip(".")


def decimals(values: Iterable[str]) -> int:
    """The most digits after the point of any value."""
    return max((len(value.partition(".")[2]) for value in values), default=0)


def parts(tokens: AnswerTokens, field: Field, most: int) -> list[Part]:
    """A number of 1 to MAX_DIGITS digits, each token of one or several of them, with the field's decimals; or the word
    for unknown."""
    prefix = tokens.prefixes[field.name]
    edges = chain(prefix)
    first = len(prefix)
    states = range(first + 1, first + 1 + MAX_DIGITS)  # after so many digits, less one
    leading = {token for token in tokens.leading if tokens.digits[token][0] != "0"}
    for state in (first, *states):
        edges[state] = _digits(tokens, leading if state == first else tokens.inner, state, MAX_DIGITS - (state - first))
    ends = set(states)
    last = states[-1]
    zero = frozenset(token for token in tokens.leading if tokens.digits[token] == "0")
    if zero and field.name != "price":  # which is never 0
        last += 1
        edges[first].append((zero, last))
        ends.add(last)
    if field.decimals and tokens.point is not None:
        last = _add_decimals(edges, ends, tokens, field.decimals, last)
    if unknown := tokens.unknown.get(field.name):
        at = 0
        for token in unknown:
            last += 1
            edges[at] = [*edges.get(at, []), (frozenset({token}), last)]
            at = last
        ends.add(at)
    return [Part(edges, frozenset(ends))]


def _digits(tokens: AnswerTokens, which: Collection[int], state: int, most: int) -> list[tuple[frozenset[int], int]]:
    """The edges from `state` over those tokens that write at most `most` digits, to the state so many digits on."""
    options: dict[int, set[int]] = {}
    for token, digits in tokens.digits.items():
        if token in which and len(digits) <= most:
            options.setdefault(state + len(digits), set()).add(token)
    return [(frozenset(found), after) for after, found in options.items()]


def _add_decimals(
    edges: dict[int, list[tuple[frozenset[int], int]]], ends: set[int], tokens: AnswerTokens, most: int, last: int
) -> int:
    """Lead on from all `ends` over the point to 1 to `most` digits, in states after `last`; the new last state."""
    point = last + 1
    for state in ends:
        edges[state] = [*edges.get(state, []), (frozenset({tokens.point or 0}), point)]
    for written in range(most):
        edges[point + written] = _digits(tokens, tokens.inner, point + written, most - written)
    ends |= set(range(point + 1, point + most + 1))
    return point + most


def room(tokens: AnswerTokens, field: Field) -> int:
    """Tokens before the number and of its digits, with the point."""
    return len(tokens.prefixes[field.name]) + MAX_DIGITS + (1 + field.decimals if field.decimals else 0)


KIND = Kind(about="a whole number", read=read, pattern=rf"[0-9]{{1,{MAX_DIGITS}}}", parts=parts, room=room, begins="1")
