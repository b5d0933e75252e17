"""Compare-and-swap on an endpoint that honours If-None-Match but not If-Match: a lock made of numbered objects.

`.enrich-lock-N` is created only if absent, so of all who want to be N one is. The greatest N holds the lock until it
says that it is done or LEASE_SECONDS have passed by the server's clock; then N + 1 may be created. The greatest is
never deleted, so one who comes late with an old N finds it taken or finds a greater one.

What it cannot do is stop a holder that slept through its lease and then writes: it looks at its clock before it writes,
so that takes a stop of minutes between two lines. Where If-Match is honoured it is used, and this is not.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from enrich.storage.client import s3_errors
from enrich.storage.store import OWN_PREFIX, StorageError
from enrich.vocabulary import ErrorKind

if TYPE_CHECKING:
    from enrich.storage.s3 import S3Store

LEASE_SECONDS = 300.0  # a products.parquet of some GB is written in it
_WAIT_SECONDS = 2 * LEASE_SECONDS
NAME = f"{OWN_PREFIX}lock-"
_DONE = b"done"


@contextmanager
def locked(store: "S3Store") -> Iterator[float]:
    """Holds the lock of a store. Yields the time.monotonic() until which it surely is held.

    Raises:
        StorageError: others held it for _WAIT_SECONDS.
    """
    number, until = _acquire(store)
    try:
        yield until
    finally:
        store.put(_key(number), _DONE)


def excludes(store: "S3Store") -> bool:
    """Whether the lock, while it is held, cannot be taken, and can be afterwards; tried on the store itself."""
    with locked(store):
        number, free = _greatest(store)
        if free or number == 0 or store.create(_key(number), _DONE):
            return False
    after, free = _greatest(store)
    return free or after > number


def _acquire(store: "S3Store") -> tuple[int, float]:
    give_up = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < give_up:
        number, free = _greatest(store)
        if free:
            asked_at = time.monotonic()
            if _create(store, number + 1) and _greatest(store)[0] == number + 1:
                for old in range(max(1, number - 4), number + 1):
                    store.delete(_key(old))
                return number + 1, asked_at + LEASE_SECONDS
        time.sleep(random.uniform(0.01, 0.25))
    raise StorageError(
        ErrorKind.DOWNLOAD_FAILED,
        f"{store.uri}: others held its lock for {_WAIT_SECONDS:g} s; run again when they are done",
    )


def _create(store: "S3Store", number: int) -> bool:
    mine = f"held by {uuid4().hex}".encode()
    if store.create(_key(number), mine):
        return True
    try:
        return store.get(_key(number))[0] == mine  # the response to our own creation was lost
    except StorageError:  # deleted since, as there are greater ones
        return False


def _greatest(store: "S3Store") -> tuple[int, bool]:
    """The greatest number there is, 0 for none, and whether it may be followed by the next."""
    with s3_errors(store.uri):
        page = store.client.list_objects_v2(Bucket=store.bucket, Prefix=f"{store.base}{NAME}")
    found = max(page.get("Contents", []), key=lambda item: item["Key"], default=None)
    if found is None:
        return 0, True
    number = int(found["Key"].rpartition("-")[2])
    now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    if (now - found["LastModified"]).total_seconds() > LEASE_SECONDS:
        return number, True
    return number, store.get(_key(number))[0] == _DONE


def _key(number: int) -> str:
    return f"{NAME}{number:012d}"
