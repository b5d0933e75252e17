"""The engine interface: photos in, completions out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from enrich.answers.completion import Completion


@dataclass(frozen=True)
class Request:
    """The photos of one prompt. A page is uint8 RGB (height, width, 3), as `photos.decode.prepare` makes it."""

    id: str
    pages: tuple[np.ndarray, ...]  # at least one: the main photo, then the others
    sha256s: tuple[str, ...] = ()  # of the photos' bytes, where known: by them an engine recognises photos

    def check(self, most: int) -> None:
        """ValueError if it has more photos than the adapter's prompts show, `most`."""
        if len(self.pages) > most:
            raise ValueError(f"{len(self.pages)} photos, and the adapter's prompts show {most} at most")


@dataclass
class EngineClock:
    """Seconds that an engine has spent so far, by activity. Otherwise it was idle with no caller waiting."""

    render: float = 0.0  # turning pages into model input, possibly while it was busy
    busy: float = 0.0  # had photos to answer
    starved: float = 0.0  # had none because the stream had not delivered the next one yet
    start: dict[str, float] = field(default_factory=dict)  # parts of its start, where it measured them


class Engine(Protocol):
    """Takes photos, yields completions as they finish, in any order, one for each request."""

    name: str
    clock: EngineClock

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        """Answer every request, pulling no more of them than fit in flight.

        None among the requests says that the next one depends on a completion that is still to come: the engine pulls
        again after it. There is none where nothing is left to be answered.

        With `grammar`, only the three-line answer with a category of the taxonomy can be written.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
