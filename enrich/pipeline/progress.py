"""Progress callbacks for long-running work."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what is going on, done, total (0: not known)
OnMessage = Callable[[str], object]  # one line about what was chosen or found


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that is dropped."""


def unheard(line: str) -> None:
    """An `OnMessage` that is dropped."""


def logged(log: OnMessage, every_seconds: float = 15.0) -> Progress:
    """A `Progress` for a log: a line when a kind of work starts and ends, and every `every_seconds` between."""
    last: dict[str, tuple[int, float]] = {}  # by kind, the words before a comma: those after it change at every step

    def on_progress(what: str, done: int, total: int) -> None:
        kind, now = what.partition(",")[0], time.monotonic()
        said, when = last.get(kind, (-1, 0.0))
        if done != said and (said < 0 or done == total or now - when >= every_seconds):
            last[kind] = done, now
            log(f"{what}: {done} of {total}" if total else f"{what}: {done}")

    return on_progress
