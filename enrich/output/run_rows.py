"""The rows that runs committed, and which runs' rows belong in products.parquet."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from enrich.errors import PermanentFailure, RunFailed
from enrich.output import parquet
from enrich.output.gate import run_stats
from enrich.output.history import answer_again, committed_shards, fetch_rows, runs_with_rows, shard_key
from enrich.output.listing import described_run
from enrich.output.run_record import RunInfo, RunMark, RunRecord, RunStats, read_run_record
from enrich.output.schema import MANIFEST_SCHEMA, ROW_SCHEMA
from enrich.storage import Store

logger = logging.getLogger(__name__)

_BEFORE_ALL = RunMark(sequence=-1, created_at=datetime.min.replace(tzinfo=UTC), run_id="")


@dataclass(frozen=True)
class RunRows:
    """A run and a local file of the rows that it committed."""

    run: RunInfo
    path: Path
    count: int
    stats: RunStats

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Its rows, some at a time."""
        return parquet.frames(self.path, ROW_SCHEMA, columns)


def published_runs(output: Store, records: Sequence[RunRecord]) -> list[RunInfo]:
    """The runs whose rows belong in products.parquet, the one created last at the end.

    A run that was held back or retired has a record that says so. A lost record must not cost rows: a run without one
    counts as published if history has all of its rows and a run created later was finished. Otherwise it was
    interrupted, maybe before it was judged, and its run id continues it.

    Args:
        records: of all finished runs.
    """
    finished = {record.run.run_id for record in records}
    newest = max((record.run.mark for record in records), default=_BEFORE_ALL)
    found = [record.run for record in records if record.state != "held" and not record.retired]
    for run_id, key in runs_with_rows(output).items():
        if run_id in finished:
            continue
        manifest = parquet.read(output, f"runs/{run_id}/manifest.parquet", MANIFEST_SCHEMA)
        described = manifest or parquet.read(output, key, ROW_SCHEMA)
        if described is None:
            raise RunFailed(f"{output.uri_of(key)} has just been deleted; run again")
        run = described_run(described.metadata, output.uri_of(key))
        whole = manifest is None or set(manifest.table["shard"]) <= committed_shards(output, run)
        if whole and (manifest is None or run.mark < newest):
            found.append(run)
            logger.warning("run=%s has no run.json; history has its rows, which count as published", run_id)
        else:
            logger.warning(
                "run=%s was not finished and is left out; continue it with enrich run --run-id %s", run_id, run_id
            )
    return sorted(found, key=lambda run: run.mark)


def fetch_run(output: Store, run: RunInfo, folder: Path) -> RunRows:
    """What a run committed, copied to `folder`; RunFailed if a finished run has fewer rows than it had."""
    path = folder / f"rows-{run.run_id}.parquet"
    record = read_run_record(output, run)
    whole = record is not None and not record.missing_shards
    if record is not None and whole:
        lost = sorted(set(range(record.shards)) - committed_shards(output, run))
        if lost:
            others = f", like {len(lost) - 1} others" if len(lost) > 1 else ""
            raise PermanentFailure(
                f"{output.uri_of(shard_key(run, lost[0]))} is missing{others}: run {run.run_id} has {record.shards} "
                f"shards; restore it, or {answer_again(run)}"
            )
    count = fetch_rows(output, run, path)
    if record is not None and (count < record.counts["rows"] or (count != record.counts["rows"] and whole)):
        raise PermanentFailure(
            f"{output.uri_of(run.history)}: {count:,} rows where run.json says {record.counts['rows']:,}; restore "
            "the files of that run"
        )
    return RunRows(run, path, count, run_stats(pl.scan_parquet(path)))
