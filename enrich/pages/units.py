"""Numbers for people."""

import math


def duration(seconds: float) -> str:
    """`seconds` to three digits: 0.72 ms, 11.4 ms, 240 ms, 4.46 s."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
