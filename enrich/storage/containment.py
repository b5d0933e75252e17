"""Whether one location is inside another, however their URIs are written."""

import os
from itertools import chain
from pathlib import Path

from enrich.storage.store import is_s3


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` is the folder `outer` or a folder below it. Neither needs to exist.

    Local paths are compared as what they resolve to: `..`, links, bind mounts and other spellings of a name make no
    difference. Some S3 endpoints resolve `..` and repeated slashes and others do not, so either reading counts.
    """
    if is_s3(outer) != is_s3(inner):
        return False
    if not is_s3(outer):
        return _contains_path(_real(outer), _real(inner))
    return any(below[: len(above)] == above for above, below in zip(_readings(outer), _readings(inner), strict=True))


def overlap(one: str, other: str) -> bool:
    """Whether either location is inside the other."""
    return contains(one, other) or contains(other, one)


def _real(uri: str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(uri)))


def _contains_path(outer: Path, inner: Path) -> bool:
    if inner.is_relative_to(outer):
        return True
    try:
        found = outer.stat()
    except OSError:
        return False
    for folder in chain([inner], inner.parents):
        try:
            if os.path.samestat(found, folder.stat()):
                return True
        except OSError:  # not made yet
            continue
    return False


def _readings(uri: str) -> tuple[list[str], list[str]]:
    """Bucket and parts of the prefix: as written, and as an endpoint that resolves `.` and `..` reads them."""
    bucket, *parts = [part for part in uri.removeprefix("s3://").split("/") if part]
    resolved: list[str] = []
    for part in parts:
        if part == "..":
            del resolved[-1:]
        elif part != ".":
            resolved.append(part)
    return [bucket, *parts], [bucket, *resolved]
