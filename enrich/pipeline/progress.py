"""Progress callbacks for long-running work."""

import time
from collections.abc import Callable

# The current activity, steps done, total steps (0: unknown). Words after a comma may change at every step.
Progress = Callable[[str, int, int], None]
OnMessage = Callable[[str], object]  # one line about what was chosen or found


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that is dropped."""


def unheard(line: str) -> None:
    """An `OnMessage` that is dropped."""


def logged(log: OnMessage, every_seconds: float = 15.0) -> Progress:
    """A `Progress` for a log: a line when a kind of work starts and ends, and every `every_seconds` between."""
    last: dict[str, tuple[int, float]] = {}  # by kind

    def on_progress(what: str, done: int, total: int) -> None:
        kind, now = what.partition(",")[0], time.monotonic()
        said, when = last.get(kind, (-1, 0.0))
        if done != said and (said < 0 or done == total or now - when >= every_seconds):
            last[kind] = done, now
            log(describe_progress(what, done, total))

    return on_progress


def describe_progress(what: str, done: int, total: int, rate: float = 0.0) -> str:
    """`photos: 1,024 of 7,500, 33.1/s, 3 min 16 s left`; `rate` in steps per second, 0 if unknown."""
    if not done and not total:
        return what
    parts = [f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}"]
    if rate > 0:
        parts.append(f"{rate:,.1f}/s")
        if total > done:
            parts.append(f"{describe_duration((total - done) / rate)} left")
    return ", ".join(parts)


def describe_duration(seconds: float) -> str:
    """`41 s`, `3 min 16 s` or `5 h 12 min`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {second} s" if minutes else f"{second} s"
