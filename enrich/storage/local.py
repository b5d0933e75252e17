"""A local folder as a bucket."""

import errno
import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from enrich.errors import UsageError
from enrich.schema import ErrorKind
from enrich.storage.store import OWN_PREFIX, Body, ObjectInfo, StorageError, check_size, is_relative

logger = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes copied at a time


class LocalStore:
    """Objects are files. Nothing outside the folder is read or written, whatever keys and links say.

    Links to files inside the folder are followed; links to directories, links that lead out, and special files are
    left out of listings. An etag is made of mtime (ns), size and inode.
    """

    def __init__(self, root: str | Path) -> None:
        self.uri = os.path.abspath(root)
        self._root = os.path.realpath(root)

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.strip("/")
        start = self._path(folder) if folder else self._root
        with os_errors(start):
            stack = [self._scan(start, f"{folder}/" if folder else "")]
            while stack:
                key, entry = next(stack[-1], ("", None))
                if entry is None:
                    stack.pop()
                elif entry.is_dir(follow_symlinks=False):
                    stack.append(self._scan(entry.path, f"{key}/"))
                else:
                    try:
                        found = entry.stat()
                    except FileNotFoundError:  # gone since its directory was read
                        continue
                    yield _info(key, found)

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
        with os_errors(self.uri_of(key)), _staged(path, data) as staged:
            try:
                os.link(staged, path)
            except FileExistsError:
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
        with os_errors(self.uri_of(key)), _staged(path, data) as staged, _locked(path):
            current = self.head(key)
            if current is None or current.etag != if_match:
                return False
            os.replace(staged, path)
        return True

    def put(self, key: str, data: Body) -> None:
        path = self._path(key)
        with os_errors(self.uri_of(key)), _staged(path, data) as staged:
            os.replace(staged, path)

    def delete(self, key: str) -> None:
        with os_errors(self.uri_of(key)), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))

    def check_conditional_writes(self) -> None:
        """Nothing to try: links, renames and locks are the operating system's."""

    @contextmanager
    def _reading(self, key: str) -> Iterator[tuple[BinaryIO, ObjectInfo]]:
        """The open file; StorageError on leaving where it changed in the meantime."""
        uri = self.uri_of(key)
        with os_errors(uri):
            # O_NONBLOCK: opening a FIFO must not hang; it changes nothing for a regular file.
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(ErrorKind.NOT_FOUND, f"{uri}: no regular file")
                info = _info(key, found)
                yield file, info
                if info != _info(key, os.fstat(descriptor)):
                    raise _changed(uri)

    def _path(self, key: str) -> str:
        path = os.path.join(self._root, key)
        if not is_relative(key) or not self._holds(path):
            raise StorageError(ErrorKind.ACCESS_DENIED, f"{self.uri}: the key {key!r} leads out of the folder")
        return path

    def _holds(self, path: str) -> bool:
        return os.path.commonpath([self._root, os.path.realpath(path)]) == self._root

    def _scan(self, directory: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """One directory's keys and entries. A directory sorts as its name with "/": that is the order of whole keys."""
        with os_errors(directory):
            try:
                with os.scandir(directory) as entries:
                    found = {e.name + "/" * e.is_dir(follow_symlinks=False): e for e in entries}
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in sorted(found, key=os.fsencode):
            entry = found[name]
            if name.startswith(OWN_PREFIX):
                continue
            if os.fsencode(name) != name.encode("utf-8", "replace"):
                logger.warning("%r left out: its name is not UTF-8", entry.path)
            elif entry.is_symlink() and not self._holds(entry.path):
                logger.warning("%r left out: a link that leads out of the folder", entry.path)
            elif name.endswith("/") or entry.is_file():
                yield prefix + entry.name, entry


def open_local(uri: str, *, must_exist: bool, create: bool) -> LocalStore:
    """The store in a local directory. Raises UsageError as `open_store` says."""
    path = Path(os.path.expanduser(uri))
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"{uri}: is a file; name a directory")
        if create:
            path.mkdir(parents=True, exist_ok=True)
        elif must_exist and not path.exists():
            raise UsageError(f"{uri}: no such directory; check the path")
    except OSError as error:
        raise UsageError(f"{uri}: {error.strerror}; name a directory that can be used") from error
    if path.exists() and not os.access(path, os.R_OK | os.X_OK | (os.W_OK if create else 0)):
        raise UsageError(f"{uri}: permission denied; grant read{' and write' if create else ''} access to it")
    return LocalStore(path)


@contextmanager
def os_errors(name: str) -> Iterator[None]:
    """Turns what the operating system says about `name` into StorageError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            kind, advice = ErrorKind.NOT_FOUND, "check the path"
        elif isinstance(error, PermissionError):
            kind, advice = ErrorKind.ACCESS_DENIED, "check the permissions"
        else:
            kind, advice = ErrorKind.DOWNLOAD_FAILED, "check the disk"
        raise StorageError(kind, f"{name}: {error.strerror or error}; {advice}") from error


@contextmanager
def _staged(path: str, data: Body) -> Iterator[str]:
    """A complete, synced file beside `path`, to be linked or renamed; removed on leaving where it still is."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    staged = os.path.join(directory, f"{OWN_PREFIX}{uuid4().hex}")
    with open(staged, "xb") as file:
        try:
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
def _locked(path: str) -> Iterator[None]:
    """One process at a time may replace a file of this directory. The lock file stays: removing it would race."""
    with open(os.path.join(os.path.dirname(path), f"{OWN_PREFIX}lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released on close, also when the process dies
        yield


def sync_directory(directory: str | Path) -> None:
    """Makes names written in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed(uri: str) -> StorageError:
    return StorageError(ErrorKind.DOWNLOAD_FAILED, f"{uri}: changed while it was read; run again")


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")
