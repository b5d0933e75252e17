"""Seconds that the stages of a run take, measured from one committed shard to the next."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from enrich.engines.base import EngineClock
from enrich.phases import Start
from enrich.photos.fetch import Fetched
from enrich.photos.workers import Workers


@dataclass(frozen=True)
class Measured:
    """What one session measured over the shards that it committed, in seconds: sums, except `wall` and `start`."""

    photos: int
    wall: float  # from the first photo requested to the shard written
    workers: Workers
    cores: int
    download: float
    decode: float  # with crops
    queue: float  # decoded, and waiting for room in the engine
    render: float  # into the engine's input
    engine: float  # it had something to answer
    write: float
    waited: float  # there was room in the engine and no photo to fill it
    starved: float  # of that, nothing was left in the engine either
    start: Start | None = None  # of the session, until its first answer


def add(first: Measured, second: Measured) -> Measured:
    """Two stretches of one session as one."""
    sums = {name: value + getattr(first, name) for name, value in vars(second).items() if name not in _CONSTANT}
    return replace(second, **sums)


_CONSTANT = ("workers", "cores", "start")


class StageTimer:
    """Measures one stretch at a time: from its creation, or from the last `lap`, to the next `lap`."""

    def __init__(self, clock: EngineClock) -> None:
        self._clock = clock
        self._start_lap()

    def _start_lap(self) -> None:
        self._started, self._clock_before = time.monotonic(), replace(self._clock)
        self._download = self._decode = self._queue = self._waited = 0.0

    def photos(self, fetched: Iterator[Fetched]) -> Iterator[Fetched]:
        """`fetched` itself, with the time that the consumer waits for each photo measured."""
        while True:
            requested_at = time.monotonic()
            photo = next(fetched, None)
            if photo is None:
                return
            now = time.monotonic()
            self._waited += now - requested_at
            self._download += photo.download_seconds
            self._decode += photo.decode_seconds
            self._queue += now - photo.ready_at
            yield photo

    @contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Work within a request for the next photo that does not count as waiting for it."""
        start = time.monotonic()
        yield
        self._waited -= time.monotonic() - start

    def lap(self, photos: int, workers: Workers, cores: int, answered_at: float) -> Measured:
        """The stretch that ends as a shard of so many `photos` is committed, whose last one was answered at
        `answered_at` (time.monotonic). The next stretch starts now."""
        now, clock, before = time.monotonic(), self._clock, self._clock_before
        measured = Measured(
            photos=photos,
            wall=now - self._started,
            workers=workers,
            cores=cores,
            download=self._download,
            decode=self._decode,
            queue=self._queue,
            render=clock.render - before.render,
            engine=clock.busy - before.busy,
            write=now - answered_at,
            waited=self._waited,
            starved=clock.starved - before.starved,
        )
        self._start_lap()
        return measured
