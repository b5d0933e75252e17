"""The phases of a start, and when each began and ended. They may overlap."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Phase:
    """A phase of a start. Times are seconds after the start began."""

    name: str
    began: float
    ended: float
    parts: Mapping[str, float] = field(default_factory=dict)  # what it says of itself, in seconds

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True)
class Start:
    """The time until the first answer or the first training step, and its phases."""

    seconds: float
    phases: tuple[Phase, ...]


class Phases:
    """Records the phases of a start while they happen.

    Args:
        before: seconds that the start had already taken when this was created.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._began = time.monotonic() - before
        self._ended: list[Phase] = []
        if before:
            self._ended.append(Phase("imports", 0.0, before))

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, float]]:
        """The block is the phase `name`; yields a mapping to put its parts into."""
        parts: dict[str, float] = {}
        ended = self.begin(name, parts)
        yield parts
        ended()

    def begin(self, name: str, parts: Mapping[str, float] = MappingProxyType({})) -> Callable[[], None]:
        """Begin the phase `name`; calling the result ends it, from any thread."""
        began = self._now()
        return lambda: self._ended.append(Phase(name, began, self._now(), dict(parts)))

    def __contains__(self, name: str) -> bool:
        """Whether the phase `name` has ended."""
        return any(phase.name == name for phase in self._ended)

    def end(self) -> Start:
        """End the start."""
        return Start(self._now(), tuple(sorted(self._ended, key=lambda phase: (phase.began, phase.ended))))

    def _now(self) -> float:
        return time.monotonic() - self._began


def describe_start(start: Start) -> str:
    """`38 s: merge 12, engine 20 (weights 4, graphs 6), parity 6`; phases that took no second are left out."""
    told = []
    for phase in start.phases:
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in phase.parts.items() if seconds >= 0.5)
        if phase.seconds >= 0.5:
            told.append(f"{phase.name} {phase.seconds:.0f}{f' ({parts})' if parts else ''}")
    return f"{start.seconds:.0f} s{': ' if told else ''}{', '.join(told)}"
