"""Work that one process of a machine does for all of them: it locks a file, and the others wait for its result.

The lock is released when its process ends, for whatever reason; the next one in line then does the work itself.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def exclusively(file: Path, what: str) -> Iterator[None]:
    """Lock `file` for the block; waits for the process that holds it. `what` describes the work for the log."""
    with _opened(file) as descriptor:
        if not _lock(descriptor, fcntl.LOCK_NB):
            owner = os.pread(descriptor, 20, 0).decode(errors="replace") or "another one"
            log.info("%s: waiting for process %s, which is doing it", what, owner)
            _lock(descriptor)
        _sign(descriptor)
        yield


@contextmanager
def if_first(file: Path) -> Iterator[bool]:
    """Lock `file` for the block, unless another process holds it; yields whether it is locked here."""
    with _opened(file) as descriptor:
        first = _lock(descriptor, fcntl.LOCK_NB)
        if first:
            _sign(descriptor)
        yield first


@contextmanager
def once(marker: Path, what: str) -> Iterator[None]:
    """A block that one process runs before the others; once it is done, which `marker` records, they run it together.

    For work that is short the second time, because the first time filled a cache.
    """
    with ExitStack() as alone:
        if not marker.exists():
            alone.enter_context(exclusively(marker.with_name(f"{marker.name}.lock"), what))
            if marker.exists():
                alone.close()
        yield
        marker.touch()


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, flag: int = 0) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flag)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks: each process does the work for itself
        return True
    return True


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
