"""Numbers for people."""

import math


def amount(value: float, like: float | None = None) -> str:
    """A price: 1,290, or 0.79 where it is not whole; with the decimals of the price `like` beside which it stands."""
    return f"{value:,.{0 if float(value if like is None else like).is_integer() else 2}f}"


def duration(seconds: float) -> str:
    """`seconds` to three digits: 0.72 ms, 11.4 ms, 240 ms, 4.46 s."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
