"""Progress callbacks for long-running work."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what is going on, done, total (0: not known)


def silent(what: str, done: int, total: int) -> None:
    """For nobody."""


def logged(log: Callable[[str], object], every_seconds: float = 15.0) -> Progress:
    """For a log: a line when a kind of work begins and ends, and every so often between."""
    last: dict[str, tuple[int, float]] = {}  # by kind, the words before a comma: those after it change at every step

    def tell(what: str, done: int, total: int) -> None:
        kind, now = what.partition(",")[0], time.monotonic()
        said, when = last.get(kind, (-1, 0.0))
        if done != said and (said < 0 or done == total or now - when >= every_seconds):
            last[kind] = done, now
            log(f"{what}: {done} of {total}" if total else f"{what}: {done}")

    return tell
