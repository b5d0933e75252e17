"""Automata over tokens that describe permitted answers; the grammar of the second pass is made from them."""

from collections.abc import Mapping
from dataclasses import dataclass

Line = tuple[int, ...]  # tokens
Edges = Mapping[int, list[tuple[frozenset[int], int]]]  # state -> tokens that lead to another state


@dataclass(frozen=True)
class Part:
    """A part of an answer as an automaton from state 0 to one of `ends`.

    After `most` tokens it ends, or as soon after that as a text may end: not inside a character.
    """

    edges: Edges
    ends: frozenset[int]
    most: int | None = None


def line(tokens: Line) -> Part:
    """Exactly these tokens."""
    return Part(chain(tokens), frozenset({len(tokens)}))


def chain(tokens: Line) -> dict[int, list[tuple[frozenset[int], int]]]:
    """The edges of exactly these tokens, from state 0 to the state of their number."""
    return {at: [(frozenset({token}), at + 1)] for at, token in enumerate(tokens)}
