"""Measure how an engine that runs in parallel with its caller spends its time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from enrich.engines.base import EngineClock


class BusyTimer:
    """Keeps an EngineClock.

    Args:
        outstanding: how many requests the engine has that were not handed over yet.
        finished: how many of these it has finished, and when (time.monotonic) the last one.
    """

    def __init__(self, outstanding: Callable[[], int], finished: Callable[[], tuple[int, float]]) -> None:
        self.clock = EngineClock()
        self._outstanding = outstanding
        self._finished = finished
        self._last = time.monotonic()

    def tick(self) -> float:
        """Count the time since the last tick as busy if the engine has requests. Returns the time now.

        Call it before `outstanding` changes.
        """
        before, self._last = self._last, time.monotonic()
        if self._outstanding():
            self.clock.busy += self._last - before
        return self._last

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Time the rendering of a prompt."""
        start = self.tick()
        yield
        self.clock.render += time.monotonic() - start

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Time the wait for the next photo: meanwhile the engine works, and starves once it has finished everything."""
        start = self.tick()
        yield
        end = self.tick()
        finished, last = self._finished()
        if self._outstanding() <= finished:
            idle = end - max(start, last)
            self.clock.starved += idle
            self.clock.busy -= idle if self._outstanding() else 0.0
