"""A worker of the runner ray: a process on some node of the cluster, with an engine that lives from shard to shard."""

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
from enrich.pipeline.run.session import open_session
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


class Worker:
    """Made and called by Ray, one call at a time."""

    def __init__(self) -> None:
        # Decoding processes import the main module again, which is Ray's here: a second and 60 MB for each of them.
        sys.modules["__main__"] = ModuleType("__main__")
        self._open, self._lines, self._address = ExitStack(), _Lines(), ray.util.get_node_ip_address()
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

    def answer(self, shard: int) -> Iterator[tuple[int, list[Line]]]:
        """Answer and commit a shard; yields its photos done and new log lines, every NEWS_SECONDS and at the end."""
        sent_at, answered = time.monotonic(), 0
        with self._naming_the_node():
            for answered in self._session.answer([shard], Deadline()):
                if time.monotonic() - sent_at >= NEWS_SECONDS:
                    sent_at = time.monotonic()
                    yield answered, self._lines.take()
        yield answered, self._lines.take()

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
        self._open.close()


def share_of_cores(cpus: int, node: str, nodes: Sequence[Mapping[str, Any]]) -> int:
    """The cores of `node` (of `ray.nodes()`) for each of its GPUs; `cpus` at least, which Ray keeps free for a worker.

    Decoding has to keep up with the GPU, and the cores are idle where each worker takes no more than Ray was asked for.
    """
    found: dict[str, float] = next((one["Resources"] for one in nodes if one["NodeID"] == node), {})
    return max(cpus, int(found.get("CPU", 0) // found.get("GPU", 1)))


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
