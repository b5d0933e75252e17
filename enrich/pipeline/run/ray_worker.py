"""A worker of the Ray runner: a process on a node of the cluster, with an engine that outlives its shards.

Its shards are one stream of photos through the engine: it asks for the next shard when it has asked for the last photo
of the one before, whose answers are some hundred photos behind.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import ray
import ray.util

from enrich.errors import EnrichError, located, unforeseen
from enrich.photos.workers import choose_workers
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.session import Session, open_session
from enrich.pipeline.run.start import join_run

logger = logging.getLogger(__name__)

NEWS_SECONDS = 2.0  # between two messages of a worker about its shard

Line = tuple[int, str]  # of the log: level and text


@dataclass(frozen=True)
class Started:
    """A worker is ready to answer."""

    engine: str
    node: str  # its id
    address: str  # of the node
    lines: list[str]  # what was chosen and found


@dataclass(frozen=True)
class News:
    """What a worker has done since its last news."""

    committed: tuple[int, ...]  # shards
    products: int  # done, of shards that are not committed
    lines: list[Line]


class Worker:
    """Made and called by Ray, one call at a time."""

    def __init__(self) -> None:
        # Decoding processes import the main module again, which is Ray's here: a second and 60 MB for each of them.
        sys.modules["__main__"] = ModuleType("__main__")
        self._open, self._lines, self._address = ExitStack(), _Lines(), ray.util.get_node_ip_address()
        self._stream: _Stream | None = None
        log = logging.getLogger("enrich")
        log.setLevel(logging.INFO)
        log.addHandler(self._lines)

    def start(self, request: RunRequest, cpus: int) -> Started:
        """Join the run and start the engine. Credentials are the node's own; `cpus` cores at least are this worker's.

        Raises:
            UsageError: see `join_run`. ParityFailed: see `open_session`. Every message names the node.
        """
        settings, node = request.settings, ray.get_runtime_context().get_node_id()
        if settings.decode_processes is None:  # the node's other cores belong to other workers
            if ray.get_gpu_ids():
                cpus = share_of_cores(cpus, node, ray.nodes())
            settings = settings.model_copy(update={"decode_processes": choose_workers(settings, cpus).decode})
        with self._naming_the_node():
            run = self._open.enter_context(join_run(replace(request, settings=settings)))
            self._session = self._open.enter_context(open_session(run, on_message=self._lines.on_message))
        lines = [line for _, line in self._lines.take()]
        return Started(self._session.engine_name, node, self._address, lines)

    def answer(self, shards: Sequence[int], more: bool) -> Iterator[News]:
        """Continue the shards of earlier calls, and do `shards`; yields messages every NEWS_SECONDS and at the end.

        Args:
            more: end as soon as another shard can be started, and answer the rest in the next call. Otherwise end when
                all are committed.
        """
        stream, self._stream = self._stream or _Stream(self._session), None  # after an error it is not gone on with
        sent_at = time.monotonic()
        with self._naming_the_node():
            for _ in stream.go_on(shards):
                if more and stream.asked:
                    self._stream = stream
                    break
                if time.monotonic() - sent_at >= NEWS_SECONDS:
                    sent_at = time.monotonic()
                    yield stream.news(self._lines.take())
        yield stream.news(self._lines.take())

    @contextmanager
    def _naming_the_node(self) -> Iterator[None]:
        try:
            yield
        except EnrichError as error:
            raise located(error, f"Ray node {self._address}") from None
        except Exception as error:  # a disk that is full, say; what Ray makes of it is a page of traceback
            logger.exception("unforeseen")
            raise located(unforeseen(error), f"Ray node {self._address}") from None

    def stop(self) -> None:
        """Stop the engine and the decoders, and remove temporary files."""
        self._stream = None
        self._open.close()


def share_of_cores(cpus: int, node: str, nodes: Sequence[Mapping[str, Any]]) -> int:
    """The cores of `node` (of `ray.nodes()`) for each of its GPUs; `cpus` at least, which Ray keeps free for a worker.

    Decoding has to keep up with the GPU, and the cores are idle where each worker takes no more than Ray was asked for.
    """
    found: dict[str, float] = next((one["Resources"] for one in nodes if one["NodeID"] == node), {})
    return max(cpus, int(found.get("CPU", 0) // found.get("GPU", 1)))


class _Stream:
    """Runs shards through a session as they are handed out."""

    def __init__(self, session: Session) -> None:
        self.asked = False  # for a shard when none was left
        self._session, self._given = session, deque[int]()
        self._told = len(session.committed)
        self._done = self._committed = 0  # products; those of shards that were told as committed
        self._products = self._answer()

    def go_on(self, shards: Sequence[int]) -> Iterator[None]:
        """Answer those given before and `shards`; yields after every product."""
        self._given.extend(shards)
        self.asked = False
        for _ in self._products:  # which the caller may leave and resume: yield from would close it
            yield

    def news(self, lines: list[Line]) -> News:
        """What was done since the last news."""
        committed = self._session.committed[self._told :]
        self._told += len(committed)
        self._committed += self._session.run.manifest.rows_in(committed)
        return News(tuple(committed), self._done - self._committed, lines)

    def _answer(self) -> Iterator[None]:
        before = 0
        while self._given:  # at first, or again where they came after the last photo was fetched
            for done in self._session.answer(self._shards(), Deadline()):
                self._done = before + done
                yield
            before = self._done

    def _shards(self) -> Iterator[int | None]:
        while True:
            self.asked = self.asked or not self._given
            yield self._given.popleft() if self._given else None


class _Lines(logging.Handler):
    """Keeps the last 1,000 log lines until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[Line] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append((record.levelno, record.getMessage()))

    def on_message(self, line: str) -> None:
        self._kept.append((logging.INFO, line))

    def take(self) -> list[Line]:
        return [self._kept.popleft() for _ in range(len(self._kept))]
