"""Whole directories, such as adapters and catalogs: copied to the local disk, and written atomically."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from enrich.errors import UsageError
from enrich.storage.cache import cache_directory
from enrich.storage.local import LocalStore, open_local, os_errors
from enrich.storage.scratch import scratch
from enrich.storage.staged import NEW, OLD, staged_folder, sync_directory
from enrich.storage.store import ObjectInfo, Store, is_relative, is_s3

_THREADS = 16
_LARGEST = 1 << 40  # bytes of a file without bytes; file systems have limits


def read_tree(uri: str, into: Path) -> Path:
    """A directory on the local disk: a local one itself, one from S3 downloaded into `into`.

    Raises:
        UsageError: nothing is there, or a key would leave `into`.
        StorageError: a file could not be read.
    """
    if not is_s3(uri):
        return Path(open_local(uri, must_exist=True, create=False).uri)
    from enrich.storage.s3 import open_s3

    store = open_s3(uri)
    objects = list(store.list())
    if not objects:
        raise UsageError(f"{uri}: no files there; check the prefix")
    for info in objects:
        if not is_relative(info.key):
            raise UsageError(f"{uri}: the key {info.key!r} is not a path below it; rename or delete that object")
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda info: _fetch(store, info.key, into / info.key), objects))
    return into


def read_outline(uri: str, into: Path, wanted: Callable[[str], bool]) -> tuple[Store, dict[str, ObjectInfo]]:
    """A directory on S3 in `into`, of which only the keys that are `wanted` are downloaded. The others become files of
    their size without bytes, which take no room on the disk; the store and its listing say where the bytes are.

    Raises:
        UsageError, StorageError: as `read_tree`.
    """
    from enrich.storage.s3 import open_s3

    store = open_s3(uri)
    listed = {info.key: info for info in store.list()}
    if not listed:
        raise UsageError(f"{uri}: no files there; check the prefix")
    for key, info in listed.items():
        if not is_relative(key):
            raise UsageError(f"{uri}: the key {key!r} is not a path below it; rename or delete that object")
        if not wanted(key):
            with os_errors(str(into / key)):
                (into / key).parent.mkdir(parents=True, exist_ok=True)
                with open(into / key, "xb") as file:
                    file.truncate(min(info.size, _LARGEST))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda key: _fetch(store, key, into / key), filter(wanted, listed)))
    return store, listed


def _fetch(store: Store, key: str, path: Path) -> None:
    with os_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(key, path)


@contextmanager
def local_tree(uri: str) -> Iterator[Path]:
    """A directory at `uri` as local files; what comes from S3 is gone afterwards."""
    with scratch() as folder:
        yield read_tree(uri, folder)


@contextmanager
def local_tree_or_file(uri: str) -> Iterator[Path]:
    """As `local_tree`, or the local file that `uri` names."""
    file = Path(uri).expanduser()
    if not is_s3(uri) and file.is_file():
        yield file
        return
    with local_tree(uri) as folder:
        yield folder


def work_directory(uri: str, purpose: str) -> Path:
    """Where unfinished work for `uri` keeps its state, the same in every attempt: next to it, or for S3 in the cache.

    Raises:
        UsageError: `uri` is a file, or there is no place for a cache.
    """
    if is_s3(uri):
        return cache_directory() / f"{purpose}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
    target = Path(uri).absolute()
    if target.is_file():
        raise UsageError(f"out {uri}: is a file; name a directory")
    return target.with_name(f".{target.name}.{purpose}")


def check_target(uri: str, *, last: str) -> None:
    """Find out before long work that its result could not be written to `uri` by `write_tree`.

    On S3 only the bucket is looked at: what a killed upload left there cannot be told from files of others yet.

    Raises:
        UsageError: no such bucket, or the target is a file, contains other files, or could not be made.
    """
    if is_s3(uri):
        from enrich.storage.s3 import open_s3

        open_s3(uri)
        return
    _replaceable(open_local(uri, must_exist=False, create=False), [], last)


def write_tree(local: Path, uri: str, *, last: str) -> None:
    """Copies a whole directory to `uri`, or nothing. Only files and their bytes: no permissions, no empty directories.

    A local target is staged next to it and renamed into place. On S3 the file named `last` goes last: readers take its
    presence to mean that the tree is complete. A tree of the same kind that is there already is replaced.

    Raises:
        UsageError: the target is a file, contains other files, or is inside `local`.
        StorageError: a file could not be written.
    """
    names = [info.key for info in LocalStore(local).list()]
    if last not in names:
        raise ValueError(f"{local} holds no {last}")
    if is_s3(uri):
        _upload(local, uri, names, last)
    else:
        _swap_in(local, open_local(uri, must_exist=False, create=False), names, last)


def _upload(local: Path, uri: str, names: list[str], last: str) -> None:
    from enrich.storage.s3 import open_s3

    store = open_s3(uri)
    present = _replaceable(store, names, last)
    if last in present:
        store.delete(last)  # from here to the last upload readers see no tree
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(store.delete, present.difference(names, [last])))
        list(pool.map(lambda name: store.put(name, local / name), (name for name in names if name != last)))
    store.put(last, local / last)


def _swap_in(local: Path, store: LocalStore, names: list[str], last: str) -> None:
    target = Path(os.path.realpath(store.uri))
    if target.is_relative_to(os.path.realpath(local)):
        raise UsageError(f"{target}: is inside {local}, which is to be copied there; name another location")
    _replaceable(store, names, last)
    with os_errors(str(target)), staged_folder(target.parent) as folder:
        staged, old = folder / NEW, folder / OLD / target.name
        _copy(local, staged, names)
        old.parent.mkdir()
        if target.exists():
            target.rename(old)
        try:
            staged.rename(target)
        except OSError:
            old.rename(target)
            raise
        sync_directory(target.parent)


def _copy(local: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open(local / name, "rb") as source, open(target / name, "xb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())


def _replaceable(store: Store, names: list[str], last: str) -> set[str]:
    """What is at the target: nothing, an older tree (it has `last`), or a part of this one. All else is refused."""
    present = {info.key for info in store.list()}
    foreign = sorted(present.difference(names))
    if foreign and last not in present:
        raise UsageError(f"{store.uri}: contains other files ({foreign[0]}) and no {last}; name an empty location")
    return present
