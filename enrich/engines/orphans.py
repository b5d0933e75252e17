"""Engine processes that outlived their killed parent: found and stopped before the next engine starts.

A killed parent cannot stop its vLLM engine, which then keeps the GPU's memory forever. So each engine has a file in the
cache directory that lists its processes and its parent, each with its start time, because the system reuses the ids of
ended processes. Processes are stopped one by one, not by group: a Prefect worker, its flow runs and their engines are
one group.
"""

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil

from enrich.storage.cache import cache_directory

log = logging.getLogger(__name__)

END_SECONDS = 30.0  # for killed processes to be gone; with 140 GB on a GPU it takes some seconds
_LOOK_SECONDS = 0.5  # between looks at which processes a starting engine has


@dataclass(frozen=True)
class Known:
    """A process, identified by what no other process on this machine ever shares."""

    pid: int
    started: int  # clock ticks after the machine's start
    boot: str  # the machine, since it was last started

    @classmethod
    def of(cls, pid: int) -> "Known | None":
        """The process that has this id now; None if none has, or it only waits for its parent to notice its end."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), this_boot())

    def alive(self) -> bool:
        """Whether it is still running."""
        return Known.of(self.pid) == self


@cache
def this_boot() -> str:
    """The id that Linux gave this machine when it started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def engines_folder() -> Path:
    """The folder of the engines' files. Several machines may share it."""
    folder = cache_directory() / "engines"
    folder.mkdir(exist_ok=True)
    return folder


class EngineRecord:
    """The file of one engine of this process. If it is left behind, the next engine's start removes it."""

    def __init__(self) -> None:
        self._file = engines_folder() / f"{uuid4().hex}.json"
        self._pids: list[int] = []

    def write(self, pids: Iterable[int]) -> None:
        """Record the engine's processes and those that they started."""
        everyone = [pid for engine in pids for pid in (engine, *_descendants(engine))]
        if everyone == self._pids:
            return
        known = {"parent": Known.of(os.getpid()), "engine": [Known.of(pid) for pid in everyone]}
        staged = self._file.with_suffix(".new")
        try:
            staged.write_text(json.dumps(known, default=asdict))
            staged.replace(self._file)
        except OSError as error:
            log.warning("%s: %s; if this process is killed, its engine cannot be found", self._file, error.strerror)
        self._pids = everyone

    def remove(self) -> None:
        """The engine has ended."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Record the processes of an engine while it starts, a minute in which its parent may be killed."""
        before = {process.pid for process in multiprocessing.active_children()}
        started = threading.Event()

        def look() -> None:
            while not started.wait(_LOOK_SECONDS):
                new = [process for process in multiprocessing.active_children() if process.pid not in before]
                self.write([process.pid for process in new if process.pid and process.name.startswith("EngineCore")])

        thread = threading.Thread(target=look, daemon=True, name="enrich-engine-record")
        thread.start()
        try:
            yield
        finally:
            started.set()
            thread.join()


def end_orphans() -> list[int]:
    """Stop this user's engines whose parent is gone, and wait until they end. Returns the ids of their processes.

    Nothing else is touched: neither engines whose parent is alive, nor a process that has since reused an id.
    """
    ended: list[psutil.Process] = []
    for file in engines_folder().glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # another process removed it, or it is not ours
            noted = json.loads(file.read_text())
            parent, engine = Known(**noted["parent"]), [Known(**one) for one in noted["engine"] if one]
            if parent.boot == this_boot() and not parent.alive():
                ended += [process for one in engine for process in _kill(one)]
                file.unlink(missing_ok=True)
    gone, left = psutil.wait_procs(ended, timeout=END_SECONDS)
    if ended:
        pids = sorted({process.pid for process in ended})
        log.warning("stopped an engine that had outlived its killed parent: processes %s", ", ".join(map(str, pids)))
    for process in left:
        log.warning("process %d of that engine still exists %.0f s after it was killed", process.pid, END_SECONDS)
    return sorted(process.pid for process in gone)


def _kill(known: Known) -> list[psutil.Process]:
    """Kill one process and what it started, the latter first noted: without their parent they cannot be found."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(known.pid)  # remembers when it started, and kills no other that gets its id
        if known.alive():
            family = [*process.children(recursive=True), process]
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            return family
    return []


def _descendants(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []
