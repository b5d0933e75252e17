"""The photos that a run saw, and runs/ID/source.parquet: its products, and the settings that restate existing rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from enrich.errors import PermanentFailure
from enrich.output import parquet
from enrich.output.restate import RULES_KEY, Rules
from enrich.output.run_record import RunInfo
from enrich.output.schema import LISTING_SCHEMA, SOURCE_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.storage import ObjectInfo, Store

_CHUNK = 100_000  # objects, some 50 MB while they become columns


@dataclass(frozen=True)
class Listing:
    """A local copy of a run's listing: SOURCE_SCHEMA, sorted by product_id."""

    path: Path
    run: RunInfo  # the run that made it
    rules: Rules | None  # what the table is to be stated under while this listing is the newest; None in older runs

    def ids(self, lower: str | None, upper: str | None) -> pl.Series:
        """The product ids from `lower` up to but not including `upper`; None: no bound."""
        ids = pl.scan_parquet(self.path).select("product_id")
        if lower is not None:
            ids = ids.filter(pl.col("product_id") >= lower)
        if upper is not None:
            ids = ids.filter(pl.col("product_id") < upper)
        return ids.collect()["product_id"]


def write_listing(path: Path, objects: Iterable[ObjectInfo], images_uri: str) -> int:
    """Write a listing, which comes by key, as a file of LISTING_SCHEMA; returns how many objects there are.

    Raises:
        RunFailed: it does not come in order, as from S3 Express buckets.
    """

    def chunks() -> Iterator[pl.DataFrame]:
        rest, last = iter(objects), ""
        while chunk := list(islice(rest, _CHUNK)):
            table = parquet.from_records([asdict(info) for info in chunk], LISTING_SCHEMA)
            if not table["key"].is_sorted() or (last and table["key"][0].encode() <= last.encode()):
                raise PermanentFailure(f"{images_uri}: its listing is not in key order; use an inventory")
            last = table["key"][-1]
            yield table

    return parquet.write(path, chunks(), LISTING_SCHEMA, {}, sorted_by=["key"])


def write_inventory(path: Path, frames: Callable[[], Iterable[pl.DataFrame]], folder: Path) -> int:
    """Write an inventory, which may be in any order, as `write_listing` does. Repeated keys count once.

    `frames` gives rows of LISTING_SCHEMA, and is called twice. `folder` is for what does not fit into memory.
    """
    rows, samples = 0, [parquet.empty(LISTING_SCHEMA).select("key")]
    for frame in frames():
        rows += frame.height
        samples.append(sampled([frame], ["key"]))
    bounds = partition_bounds(pl.concat(samples), ["key"], rows)
    listed = RangePartitions(bounds, folder / "listing", LISTING_SCHEMA).add(frames())
    ordered = (part.unique("key", keep="first", maintain_order=True) for part in listed.in_order())
    return parquet.write(path, ordered, LISTING_SCHEMA, {}, sorted_by=["key"])


def described(run: RunInfo, rules: Rules | None) -> dict[str, str]:
    """The metadata of a run's source.parquet."""
    return {parquet.RUN_KEY: run.to_json()} | ({RULES_KEY: rules.model_dump_json()} if rules else {})


def fetch_listing(output: Store, run_id: str, folder: Path) -> Listing:
    """A copy of a run's listing in `folder`; RunFailed if it is missing or not one."""
    key = f"runs/{run_id}/source.parquet"
    file = parquet.fetch(output, key, SOURCE_SCHEMA, folder / "source.parquet", "start a new run")
    if file is None:
        raise PermanentFailure(
            f"{output.uri_of(key)} is missing, so which products still exist is unknown; start a new run"
        )
    rules = file.metadata.get(RULES_KEY)
    run = described_run(file.metadata, output.uri_of(key))
    return Listing(file.path, run, Rules.model_validate_json(rules) if rules else None)


def described_run(metadata: Mapping[str, str], where: str) -> RunInfo:
    """The run that the metadata of a file names; RunFailed if it names none."""
    try:
        return RunInfo.from_json(metadata.get(parquet.RUN_KEY, ""))
    except ValidationError as error:
        raise PermanentFailure(f"{where} does not say which run it belongs to; {parquet.AGAIN}") from error
