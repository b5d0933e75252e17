"""Format numbers, locations and commands for people."""

import math
from collections.abc import Mapping
from typing import Any
from unicodedata import east_asian_width

from enrich.answers.amount import decimals
from enrich.output.run_record import TOO_SHORT


def amount(value: float, currency: str | None = None, like: float | None = None) -> str:
    """A price with the decimals of its currency: 1,290.50, or 1,290 if it is whole or in yen.

    Args:
        like: the price that it is shown with, whose decimals it gets.
    """
    whole = float(value if like is None else like).is_integer()
    return f"{value:,.{0 if whole else decimals(currency)}f}"


def wrapped(text: str, columns: int) -> list[str]:
    """`text` in lines of at most that many columns (Han, kana and Hangul take two); longer words are split."""
    lines, room = [""], columns
    for word in text.split():
        if lines[-1] and room <= width(word) <= columns:
            lines, room = [*lines, ""], columns
        for letter in f" {word}" if lines[-1] else word:
            if width(letter) > room:
                lines, room = [*lines, ""], columns
            lines[-1] += letter
            room -= width(letter)
    return lines


def width(text: str) -> int:
    """Columns that a text takes."""
    return sum(1 + (east_asian_width(letter) in "WF") for letter in text)


def describe_bottleneck(stages: Mapping[str, Any]) -> str:
    """`decode (busy 98%): raise decode_processes from 4 to 8`, of a run's stages in run.json."""
    if stages["advice"] == TOO_SHORT:
        return TOO_SHORT
    busy = next((use["busy"] for use in stages["uses"] if use["stage"] == stages["bottleneck"]), None)
    return f"{stages['bottleneck']}{'' if busy is None else f' (busy {busy:.0%})'}: {stages['advice']}"


def duration(seconds: float) -> str:
    """`seconds` to three digits: 0.72 ms, 11.4 ms, 240 ms, 4.46 s."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
