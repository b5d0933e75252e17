"""A bucket that is enriched by a fake engine."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from enrich.answers.calibration import Calibration
from enrich.answers.parse import Answer
from enrich.answers.postprocess import Prediction
from enrich.answers.prompt import make_prompt
from enrich.engines.adapter import Adapter
from enrich.engines.base import EngineClock
from enrich.engines.predictor import Shown
from enrich.photos.decode import Photo, Preparation
from enrich.photos.fetch import Fetched, FetchedPhoto
from enrich.pipeline.run.session import Session
from enrich.pipeline.run.state import Run
from enrich.vocabulary import ErrorKind, ManifestItem, PhotoIssue


@dataclass
class FakeWorld:
    """A bucket, an adapter and an output on the local disk; `faults` are what befalls the engine, photo by photo."""

    root: Path
    faults: list[BaseException | None] = field(default_factory=list)
    sessions: int = 0
    asked: list[str] = field(default_factory=list)  # products that reached the engine
    clock: EngineClock = field(default_factory=EngineClock)

    @property
    def places(self) -> dict[str, Any]:
        """What a flow is called with."""
        return {
            "photos": str(self.root / "images"),
            "adapter": str(self.root / "adapter"),
            "output": str(self.root / "output"),
        }

    def add_photos(self, *names: str) -> None:
        for name in names:
            (self.root / "images" / name).write_bytes(name.encode())

    @contextmanager
    def open_session(self, run: Run, *_: object) -> Iterator[Session]:
        self.sessions += 1
        yield Session(run, "fake", self, _fetch, self.clock, f"session-{self.sessions}")  # type: ignore[arg-type]

    def answer(self, images: Iterable[Shown]) -> Iterator[tuple[str, Prediction]]:
        for image in images:
            if self.faults and (fault := self.faults.pop(0)):
                raise fault
            self.asked.append(image.key)
            self.clock.busy += 1.0
            yield image.key, Prediction(answer=Answer(f"Title of {image.key}", "Coats", 100), confidence=0.9)


def _fetch(items: Iterable[ManifestItem]) -> Iterator[Fetched]:
    """Main photos without decoding, each in a second; what has `bad` in its name is none."""
    for item in items:
        first, *others = item.photos
        read = FetchedPhoto(first, first.etag, hashlib.sha256(first.key.encode()).hexdigest())
        if "bad" in first.key:
            read = replace(read, error_kind=ErrorKind.NOT_AN_IMAGE, error_message="not an image")
        else:
            read = replace(read, photo=Photo(np.zeros((8, 8, 3), np.uint8), 8, 8, issues=(PhotoIssue.TINY,)))
        rest = (FetchedPhoto(other, other.etag) for other in others)
        yield Fetched(item, (read, *rest), 0.0, 1.0, time.monotonic())


def fake_adapter(path: Path) -> Adapter:
    prompt = make_prompt(("Coats",), "EUR")
    return Adapter(path, "a1", "tiny", None, Preparation(4, 8), (), prompt, Calibration.uncalibrated())
