"""The interface of all stores."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from enrich.errors import EnrichError

OWN_PREFIX = ".enrich-"  # of the names of files that the package keeps for itself

Body = bytes | Path  # data to write: bytes, or a local file, which is read in pieces


class Problem(StrEnum):
    """Why an object could not be read or written."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    TOO_LARGE = "too_large"
    FAILED = "failed"  # the network, the endpoint or the disk


class StorageError(EnrichError):
    """An object could not be read or written. `problem` says why."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(problem, message)  # both arguments, so that pickling works
        self.problem = problem


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str  # path below the store's URI, "/" between its parts
    size: int  # bytes
    etag: str  # opaque; differs when the bytes may have changed


class Store(Protocol):
    """A folder of objects. Safe to use from several threads. Every method may raise StorageError."""

    uri: str  # without a trailing slash

    def uri_of(self, key: str) -> str:
        """The full URI of an object."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, as a stream, in the UTF-8 byte order of the keys."""

    def head(self, key: str) -> ObjectInfo | None:
        """What a listing would say about this object; None where there is none."""

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        """The bytes, and the etag of just these bytes. More than `max_bytes` are refused unread (TOO_LARGE)."""

    def download(self, key: str, path: Path) -> ObjectInfo:
        """Writes the object to the local file `path`, a piece at a time, and says which state of it that is."""

    def create(self, key: str, data: Body) -> bool:
        """Writes the object only if there is none. False where there is one already.

        On S3 False also reaches the writer that won, if the response to its first attempt was lost: compare a
        writer id in the data before taking it for another's.
        """

    def replace(self, key: str, data: Body, if_match: str | None) -> bool:
        """Writes the object only if its etag still is `if_match` (None: only if absent). False if it is not."""

    def put(self, key: str, data: Body) -> None:
        """Writes the object unconditionally. Readers see the old bytes or the new ones, never a mixture."""

    def delete(self, key: str) -> None:
        """Deletes the object; a missing object is not an error."""

    def check_conditional_writes(self) -> None:
        """Tries create and replace on a throw-away object.

        Raises:
            UsageError: the endpoint ignores the conditions, so two writers could overwrite each other.
        """

    def remove_abandoned(self) -> int:
        """Removes what killed writers of this package left: staged files, probes, incomplete uploads.

        Returns the number of removed files. Skips, without raising, those that it has no permission for.
        """


def is_s3(uri: str) -> bool:
    """Whether a URI names S3 rather than a local path."""
    return uri.startswith("s3://")


def real_place(uri: str) -> str:
    """A location as it can be named from anywhere on this machine: an absolute path, or s3://bucket/prefix."""
    return uri.rstrip("/") if is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raises StorageError (TOO_LARGE) for more than `max_bytes`."""
    if max_bytes is not None and size > max_bytes:
        raise StorageError(Problem.TOO_LARGE, f"{uri}: {size:,} bytes, more than the limit of {max_bytes:,}")


def is_relative(key: str) -> bool:
    """Whether a key is a plain path below its folder: no empty part, no "." or "..", no NUL."""
    return "\0" not in key and not any(part in ("", ".", "..") for part in key.split("/"))
