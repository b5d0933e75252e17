"""Scratch folders on the local disk (TMPDIR) for data that does not fit into memory.

Each contains a lock file that its process keeps locked. The lock ends with the process, however it ends; a folder whose
lock is free is abandoned, and the next process removes it.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from enrich.storage.staged import YOUNG_SECONDS, hold

_NAME = re.compile(r"enrich-scratch-[a-z0-9_]{8}")  # as mkdtemp makes them; nothing else is ever removed
_LOCK = ".enrich-owner"


class Scratch:
    """A folder that is kept until `remove`."""

    def __init__(self) -> None:
        _remove_once()
        self._folder = Path(tempfile.mkdtemp(prefix="enrich-scratch-"))
        self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        hold(self._lock)  # on a file system without locks, others cannot lock it either and leave it alone
        self.path = self._folder / "files"
        self.path.mkdir()

    def remove(self) -> None:
        """Delete the folder and what is in it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the local disk, gone afterwards."""
    made = Scratch()
    try:
        yield made.path
    finally:
        made.remove()


def remove_abandoned() -> int:
    """Remove the folders in TMPDIR whose processes were killed. Returns how many there were."""
    removed, now = 0, time.time()
    for folder in Path(tempfile.gettempdir()).glob("enrich-scratch-*"):
        with suppress(OSError):  # gone, or another user's
            found = folder.lstat()
            if not _NAME.fullmatch(folder.name) or not folder.is_dir() or folder.is_symlink():
                continue
            if found.st_uid == os.geteuid() and now - found.st_mtime > YOUNG_SECONDS:
                removed += _remove_unless_owned(folder)
    return removed


def _remove_unless_owned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its process was killed before it created the lock, so the folder is empty
        folder.rmdir()
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: somebody owns it
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return not folder.exists()


@cache
def _remove_once() -> None:
    """Remove what earlier processes left, once in each process."""
    remove_abandoned()
