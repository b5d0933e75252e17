"""Compare-and-swap on an endpoint that honours If-None-Match but not If-Match: a lock made of numbered objects.

`.enrich-lock-N` is created only if absent, so exactly one of the writers that want number N gets it. The greatest N
holds the lock until it writes `done` or LEASE_SECONDS have passed by the server's clock; then N + 1 may be created. The
greatest is never deleted, so a writer with an outdated N finds it taken, or finds a greater one.

The lock cannot stop a holder that sleeps through its lease and then writes. The holder reads its clock just before it
writes, so this takes a pause of minutes between two lines. The lock is used only where If-Match is not honoured.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from uuid import uuid4

from enrich.errors import RunFailed
from enrich.storage.store import OWN_PREFIX, StorageError, Store

LEASE_SECONDS = 300.0  # enough to write a products.parquet of some GB
_WAIT_SECONDS = 2 * LEASE_SECONDS
NAME = f"{OWN_PREFIX}lock-"
_DONE = b"done"


class Lockable(Store, Protocol):
    """A store that knows the ages of its objects."""

    def ages(self, prefix: str) -> dict[str, float]:
        """Keys that begin with `prefix`, with their ages in seconds by the server's clock."""


@contextmanager
def locked(store: Lockable) -> Iterator[float]:
    """Hold the lock of a store. Yields the time.monotonic() until which it is certain to be held.

    Raises:
        RunFailed: others held it for _WAIT_SECONDS.
    """
    number, until = _acquire(store)
    try:
        yield until
    finally:
        store.put(_key(number), _DONE)


def excludes(store: Lockable) -> bool:
    """Whether the lock cannot be taken while it is held, and can be taken afterwards; tried on the store itself."""
    with locked(store):
        number, free = _greatest(store)
        if free or number == 0 or store.create(_key(number), _DONE):
            return False
    after, free = _greatest(store)
    return free or after > number


def _acquire(store: Lockable) -> tuple[int, float]:
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
    raise RunFailed(f"{store.uri}: others held its lock for {_WAIT_SECONDS:g} s; run again when they are done")


def _create(store: Lockable, number: int) -> bool:
    mine = f"held by {uuid4().hex}".encode()
    if store.create(_key(number), mine):
        return True
    try:
        return store.get(_key(number))[0] == mine  # the response to our own request was lost
    except StorageError:  # deleted in the meantime, so there are greater ones
        return False


def _greatest(store: Lockable) -> tuple[int, bool]:
    """The greatest number that exists, 0 if none does, and whether the next number may be created."""
    key, age = max(store.ages(NAME).items(), default=("", 0.0))
    if not key:
        return 0, True
    return int(key.removeprefix(NAME)), age > LEASE_SECONDS or store.get(key)[0] == _DONE


def _key(number: int) -> str:
    return f"{NAME}{number:012d}"
