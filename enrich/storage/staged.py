"""Write files and folders next to their target and rename them into place; remove those that killed writers left.

A writer keeps its staged file locked. The lock ends with the process, so a free lock tells every process under the same
kernel that the file is abandoned. Other machines that share the disk may not see the lock and go by the age.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from enrich.storage.store import OWN_PREFIX, Body

YOUNG_SECONDS = 60.0  # what is staged is locked a moment after it is made
FOREIGN_SECONDS = 24 * 3600.0  # without a byte written, for what another machine staged
# As `_new_name` makes them, and earlier versions without the kernel. Nothing else is ever removed.
_NAME = re.compile(rf"{re.escape(OWN_PREFIX)}(?:([0-9a-f]{{8}})-)?[0-9a-f]{{32}}")
# In a staged folder: what is to take a place, and, under its name, what had it before.
NEW, OLD = f"{OWN_PREFIX}new", f"{OWN_PREFIX}old"
_PIECE = 1 << 20  # bytes copied at a time


@contextmanager
def staged_file(path: str, data: Body) -> Iterator[str]:
    """A complete, synced file next to `path`, to be linked or renamed; removed on leaving where it still is."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    staged = os.path.join(directory, _new_name())
    with open(staged, "xb") as file:
        try:
            hold(file.fileno())
            if isinstance(data, Path):
                with open(data, "rb") as source:
                    shutil.copyfileobj(source, file, _PIECE)
            else:
                file.write(data)
            file.flush()
            # The kernel's own mtime moves in steps of about 4 ms: with a reused inode two writes could share an etag.
            now = time.time_ns()
            os.utime(file.fileno(), ns=(now, now))
            os.fsync(file.fileno())
            yield staged
            sync_directory(directory)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)


@contextmanager
def staged_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, to be filled and renamed; removed on leaving where it still is.

    Folders there that killed processes left are removed first.
    """
    remove_abandoned(parent, below=False)
    folder = parent / _new_name()
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(root: str | Path, *, below: bool = True) -> int:
    """Remove what killed writers left in `root`, and in every folder below it where asked. Returns how many there were.

    What cannot be looked at or removed stays.
    """
    removed, now = 0, time.time()
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            if not name.startswith(OWN_PREFIX):
                continue
            path = os.path.join(directory, name)
            with suppress(OSError):
                if is_abandoned(path, now):
                    _remove(Path(path))
                    removed += 1
        folders[:] = [name for name in folders if below and not name.startswith(OWN_PREFIX)]
    return removed


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    if (path / NEW).is_dir() and (path / OLD).is_dir():  # killed between the two renames of a swap
        for lost in (path / OLD).iterdir():
            if not (path.parent / lost.name).exists():
                lost.rename(path.parent / lost.name)
    shutil.rmtree(path)


def is_abandoned(path: str, now: float) -> bool:
    """Whether a killed process of this user staged what is at `path`. OSError where it cannot be looked at."""
    match, found = _NAME.fullmatch(os.path.basename(path)), os.lstat(path)
    if not match or os.path.islink(path) or found.st_uid != os.geteuid():
        return False
    age = now - found.st_mtime
    if match[1] != _kernel():
        return age > FOREIGN_SECONDS
    return age > YOUNG_SECONDS and _is_free(path, age)


def _is_free(path: str, age: float) -> bool:
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks
        return age > FOREIGN_SECONDS
    finally:
        os.close(descriptor)
    return True


def hold(descriptor: int) -> None:
    """Lock an open file or folder until it is closed, or the process ends."""
    with suppress(OSError):  # a file system without such locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _new_name() -> str:
    return f"{OWN_PREFIX}{_kernel()}-{uuid4().hex}"


@cache
def _kernel() -> str:
    """The running kernel, which containers of a machine share, in 8 hex digits; another one after a restart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def sync_directory(directory: str | Path) -> None:
    """Makes names written in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
