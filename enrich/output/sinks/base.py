"""What a sink must define. Each kind is a module of this package, with a `SINK`."""

from collections.abc import Callable
from dataclasses import dataclass

from enrich.storage import Store


@dataclass(frozen=True)
class Place:
    """The table that follows an output."""

    catalog: str  # by the name that its own configuration has
    table: str


@dataclass(frozen=True)
class Commit:
    """The description of a commit."""

    run_id: str | None
    action: str


@dataclass(frozen=True)
class Sink:
    """How to make an external table equal to products.parquet.

    check: raises UsageError if the table of the output cannot be used from here; writes nothing to it.
    commit: makes it equal, in one commit, and returns False if it was. A state of products.parquet is told by its
        writer id. If others publish at the same time, the newest state must win.
    """

    about: str  # for people, a line
    check: Callable[[Store, Place], None]
    commit: Callable[[Store, Place, Commit], bool]
