"""A local folder as a bucket."""

import errno
import fcntl
import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from enrich.errors import UsageError
from enrich.storage.staged import remove_abandoned, staged_file
from enrich.storage.store import OWN_PREFIX, Body, ObjectInfo, Problem, StorageError, check_size, is_relative

logger = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes copied at a time


class LocalStore:
    """Objects are files. Nothing outside the folder is read or written, whatever keys and links say.

    Links to files inside the folder are followed. Listings leave out, and log, everything else that is not a readable
    file: links to directories, out of the folder, in a loop or to a missing file, special files, and directories
    without permission. An etag is made of mtime (ns), size and inode.
    """

    def __init__(self, root: str | Path) -> None:
        self.uri = os.path.abspath(root)
        self._root = os.path.realpath(root)

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.strip("/")
        start = self._path(folder) if folder else self._root
        left_out = _LeftOut()
        with os_errors(start):
            stack = [_scan(start, f"{folder}/" if folder else "")]  # not recursive: folders may be 2,000 deep
            while stack:
                key, entry = next(stack[-1], ("", None))
                if entry is None:
                    stack.pop()
                    continue
                found = self._look(entry)
                if isinstance(found, str):
                    left_out.add(entry.path, found)
                elif entry.is_dir(follow_symlinks=False):
                    try:
                        stack.append(_scan(entry.path, f"{key}/"))
                    except OSError as error:
                        if error.errno not in _OF_THE_ENTRY:
                            with os_errors(entry.path):
                                raise
                        left_out.add(entry.path, str(error.strerror))
                elif found:
                    yield _info(key, found)
        left_out.close()

    def head(self, key: str) -> ObjectInfo | None:
        with os_errors(self.uri_of(key)):
            try:
                found = os.stat(self._path(key))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _info(key, found) if stat.S_ISREG(found.st_mode) else None

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        with self._reading(key) as (file, info):
            check_size(self.uri_of(key), info.size, max_bytes)
            data = file.read(info.size)
            if len(data) != info.size:
                raise _changed(self.uri_of(key))
        return data, info.etag

    def download(self, key: str, path: Path) -> ObjectInfo:
        with self._reading(key) as (file, info), open(path, "wb") as copy:
            shutil.copyfileobj(file, copy, _PIECE)
        if path.stat().st_size != info.size:
            raise _changed(self.uri_of(key))
        return info

    def create(self, key: str, data: Body) -> bool:
        path = self._path(key)
        with os_errors(self.uri_of(key)), staged_file(path, data) as staged:
            try:
                os.link(staged, path)
            except FileExistsError:
                if os.path.isdir(path):  # it stays there, however often the caller tries again
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                with _locked(path):  # a file system without hard links, such as exFAT
                    if os.path.lexists(path):
                        return False
                    os.rename(staged, path)
        return True

    def replace(self, key: str, data: Body, if_match: str | None) -> bool:
        if if_match is None:
            return self.create(key, data)
        path = self._path(key)
        with os_errors(self.uri_of(key)), staged_file(path, data) as staged, _locked(path):
            current = self.head(key)
            if current is None or current.etag != if_match:
                return False
            os.replace(staged, path)
        return True

    def put(self, key: str, data: Body) -> None:
        path = self._path(key)
        with os_errors(self.uri_of(key)), staged_file(path, data) as staged:
            os.replace(staged, path)

    def delete(self, key: str) -> None:
        with os_errors(self.uri_of(key)), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))

    def check_conditional_writes(self) -> None:
        """Nothing to check: links, renames and locks are the operating system's."""

    def remove_abandoned(self) -> int:
        return remove_abandoned(self._root)

    @contextmanager
    def _reading(self, key: str) -> Iterator[tuple[BinaryIO, ObjectInfo]]:
        """The open file; StorageError on exit if it changed in the meantime."""
        uri = self.uri_of(key)
        with os_errors(uri):
            # O_NONBLOCK: opening a FIFO must not hang; it changes nothing for a regular file.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(Problem.NOT_FOUND, f"{uri}: not a regular file")
                info = _info(key, found)
                yield file, info
                if info != _info(key, os.fstat(descriptor)):
                    raise _changed(uri)

    def _path(self, key: str) -> str:
        path = os.path.join(self._root, key)
        if not is_relative(key) or not self._holds(path):
            raise StorageError(Problem.ACCESS_DENIED, f"{self.uri}: the key {key!r} leads out of the folder")
        return path

    def _holds(self, path: str) -> bool:
        return os.path.commonpath([self._root, os.path.realpath(path)]) == self._root

    def _look(self, entry: os.DirEntry[str]) -> os.stat_result | str | None:
        """The state of a file or directory; why an entry is neither; or None if it has just disappeared."""
        if os.fsencode(entry.name) != entry.name.encode("utf-8", "replace"):
            return "its name is not UTF-8"
        try:
            found = entry.stat()
        except FileNotFoundError:
            return "a broken link" if entry.is_symlink() else None
        except OSError as error:
            if error.errno not in _OF_THE_ENTRY:
                raise
            return "a loop of links" if error.errno == errno.ELOOP else str(error.strerror)
        if entry.is_symlink() and not self._holds(entry.path):
            return "a link that leads out of the folder"
        if stat.S_ISDIR(found.st_mode):
            return "a link to a directory" if entry.is_symlink() else found
        return found if stat.S_ISREG(found.st_mode) else "not a regular file"


def _scan(directory: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """One directory's keys and entries. A directory sorts as its name with "/": that is the order of whole keys."""
    try:
        with os.scandir(directory) as entries:
            found = {e.name + "/" * e.is_dir(follow_symlinks=False): e for e in entries}
    except (FileNotFoundError, NotADirectoryError):  # gone since its parent was read
        found = {}
    ordered = (found[name] for name in sorted(found, key=os.fsencode) if not name.startswith(OWN_PREFIX))
    return ((prefix + entry.name, entry) for entry in ordered)


# Errors about a single entry, not about a failing disk or network.
_OF_THE_ENTRY = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
_TOLD = 20  # so many entries that a listing leaves out are logged one by one


class _LeftOut:
    """Entries that a listing leaves out: the first ones are logged one by one, the others counted."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, path: str, reason: str) -> None:
        self._counts[reason] += 1
        if self._counts.total() <= _TOLD:
            logger.warning("%r left out: %s", path, reason)

    def close(self) -> None:
        """Log how many there were, if not all have been logged."""
        if self._counts.total() > _TOLD:
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in self._counts.most_common())
            logger.warning("%d entries left out in all: %s", self._counts.total(), reasons)


def open_local(uri: str, *, must_exist: bool, create: bool) -> LocalStore:
    """The store in a local directory. Raises UsageError as `open_store` says."""
    path = Path(os.path.expanduser(uri))
    try:
        there = next(one for one in (path, *path.parents) if one.exists())
        if not there.is_dir():
            raise UsageError(f"{uri if there == path else there}: is a file; name a directory")
        if create:
            path.mkdir(parents=True, exist_ok=True)
        elif must_exist and not path.exists():
            raise UsageError(f"{uri}: no such directory; check the path")
    except OSError as error:
        raise UsageError(f"{uri}: {error.strerror}; name another directory") from error
    if path.exists() and not os.access(path, os.R_OK | os.X_OK | (os.W_OK if create else 0)):
        raise UsageError(f"{uri}: permission denied; grant read{' and write' if create else ''} access to it")
    return LocalStore(path)


@contextmanager
def os_errors(name: str) -> Iterator[None]:
    """Turn errors of the operating system about `name` into StorageError."""
    try:
        yield
    except OSError as error:
        of_path = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if of_path or error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            kind, advice = Problem.NOT_FOUND, "check the path"
        elif isinstance(error, PermissionError):
            kind, advice = Problem.ACCESS_DENIED, "check the permissions"
        else:
            kind, advice = Problem.FAILED, "check the disk"
        raise StorageError(kind, f"{name}: {error.strerror or error}; {advice}") from error


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """One process at a time may replace a file of this directory. The lock file stays: removing it would race."""
    with open(os.path.join(os.path.dirname(path), f"{OWN_PREFIX}lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released on close, also when the process dies
        yield


def _changed(uri: str) -> StorageError:
    return StorageError(Problem.FAILED, f"{uri}: changed while being read; run again")


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")
