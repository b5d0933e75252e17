"""External tables that follow products.parquet, one module for each kind, with a `SINK`.

The Parquet file is the source of truth: a publish replaces products.parquet first, and then commits it to the sink. An
output names its sink in sink.json, so that every publisher commits to it, whatever its settings.
"""

from importlib import import_module
from pkgutil import iter_modules

from pydantic import BaseModel, ConfigDict, ValidationError

from enrich.errors import PermanentFailure, RunFailed, UsageError
from enrich.output.sinks.base import Commit, Place, Sink
from enrich.settings.run import NO_SINK, RunSettings
from enrich.storage import Store

SINKS: dict[str, Sink] = {
    name: import_module(f"{__name__}.{name}").SINK for _, name, _ in iter_modules(__path__) if name != "base"
}
SINK_KEY = "sink.json"

__all__ = ["SINKS", "Commit", "Place", "Sink", "appoint", "follow"]


class _Appointed(BaseModel):
    """The content of sink.json."""

    model_config = ConfigDict(extra="forbid")

    sink: str
    catalog: str
    table: str


def appoint(output: Store, settings: RunSettings) -> None:
    """Set the output's sink to the one in the settings, which may be none; without a setting it is unchanged.

    Raises:
        UsageError: it cannot be used from here.
    """
    if settings.sink is None:
        return
    if settings.sink == NO_SINK:
        output.delete(SINK_KEY)
        return
    wanted = _Appointed(sink=settings.sink, catalog=settings.sink_catalog, table=settings.sink_table)
    SINKS[wanted.sink].check(output, Place(wanted.catalog, wanted.table))
    if _appointed(output) != wanted:
        output.put(SINK_KEY, wanted.model_dump_json(indent=1).encode() + b"\n")


def follow(output: Store, run_id: str | None, action: str) -> bool:
    """Commit products.parquet to the output's sink, if it has one and that does not have this state yet.

    Idempotent, also with several callers at once; what a killed process did not commit, the next call does.

    Args:
        run_id: the run that was published or rolled back to; None: the newest one that products.parquet knows.
        action: what was done to products.parquet: publish, rollback, rebuild or review.

    Returns:
        Whether there was something to commit.

    Raises:
        RunFailed: products.parquet is correct, but the sink could not be written.
    """
    appointed = _appointed(output)
    if appointed is None:
        return False
    place = Place(appointed.catalog, appointed.table)
    try:
        return SINKS[appointed.sink].commit(output, place, Commit(run_id, action))
    except UsageError as error:  # of this machine: it cannot reach the table
        raise RunFailed(f"products.parquet is published, but its sink is behind: {error}") from error


def _appointed(output: Store) -> _Appointed | None:
    if output.head(SINK_KEY) is None:
        return None
    data, _ = output.get(SINK_KEY)
    try:
        appointed = _Appointed.model_validate_json(data)
    except ValidationError as error:
        where = output.uri_of(SINK_KEY)
        raise PermanentFailure(f"{where} does not name a table; run with the setting sink again") from error
    if appointed.sink not in SINKS:
        raise PermanentFailure(
            f"{output.uri_of(SINK_KEY)}: no sink {appointed.sink!r}; use the version of enrich that has it"
        )
    return appointed
