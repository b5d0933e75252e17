"""History: the files of a run's rows. Each shard has its own file until a finished run's shards are packed together.

Each file is created once, atomically, and never replaced. The shards in a pack are deleted hours after the pack is
created, so that readers can still read the files they listed. In between a row is in two files; readers identify
duplicates by (run_id, product_id), because a product has one row per run.
"""

import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import polars as pl

from enrich.errors import PermanentFailure, RunFailed
from enrich.output import parquet
from enrich.output.run_record import RunInfo
from enrich.output.schema import HISTORY_SCHEMA, ROW_ORDER, ROW_SCHEMA, Row
from enrich.storage import Store

_NAME = re.compile(r"shard-(\d{5,})\.parquet|shards-(\d{5,})-(\d{5,})\.parquet")
_OF_RUN = re.compile(r"history/run_date=[^/]+/run_id=([^/]+)/([^/]+)")
_READERS = 8  # files read in parallel: about 30 ms each on S3, and a first run has thousands


@dataclass(frozen=True)
class HistoryFile:
    """A file with the rows of the shards `first` to `last`."""

    key: str
    first: int
    last: int
    size: int  # bytes


def shard_key(run: RunInfo, shard: int) -> str:
    """The key of a shard's file, which depends only on the run and the shard's number."""
    return f"{run.history}shard-{shard:05d}.parquet"


def pack_key(run: RunInfo, first: int, last: int) -> str:
    """The key of the pack of the shards `first` to `last`."""
    return f"{run.history}shards-{first:05d}-{last:05d}.parquet"


def answer_again(run: RunInfo) -> str:
    """Advice for the user if rows of a run are lost."""
    return f"answer its products again: `enrich run --run-id {run.run_id}` with the photos and the adapter of that run"


def _shards_in(name: str) -> tuple[int, int] | None:
    """The first and the last shard in the file of this name, or None if it is not the name of one."""
    match = _NAME.fullmatch(name)
    numbers = [int(group) for group in match.groups() if group] if match else []
    return (numbers[0], numbers[-1]) if numbers else None


def committed_shards(output: Store, run: RunInfo) -> set[int]:
    """The committed shards of a run, from one listing."""
    return {shard for file in all_files(output, run) for shard in range(file.first, file.last + 1)}


def all_files(output: Store, run: RunInfo) -> list[HistoryFile]:
    """Every file of a run, including shards that are in a pack; RunFailed for any other Parquet file."""
    found = []
    for info in output.list(run.history):
        name = info.key.removeprefix(run.history)
        if shards := _shards_in(name):
            found.append(HistoryFile(info.key, *shards, info.size))
        elif name.endswith(".parquet"):
            raise _foreign(output, run, info.key)
    return found


def _foreign(output: Store, run: RunInfo, key: str) -> RunFailed:
    return PermanentFailure(f"{output.uri_of(key)} is not a shard of run {run.run_id}; move it away and publish again")


def files_in_force(files: Sequence[HistoryFile]) -> list[HistoryFile]:
    """The files that together hold every row once, by shard: a pack replaces the shards in it."""
    kept: list[HistoryFile] = []
    for file in sorted(files, key=lambda file: (file.first, -file.last)):
        if not kept or file.first > kept[-1].last:
            kept.append(file)
    return kept


def read_frames(output: Store, run: RunInfo) -> Iterator[pl.DataFrame]:
    """Every committed row of a run (ROW_SCHEMA), one file at a time; RunFailed if one belongs to another run."""

    def rows_of(file: HistoryFile) -> pl.DataFrame:
        found = parquet.read(output, file.key, ROW_SCHEMA, f"move it away, and {answer_again(run)}")
        if found is None or found.metadata.get(parquet.RUN_ID_KEY) != run.run_id:
            raise _foreign(output, run, file.key)
        return found.table

    files = iter(files_in_force(all_files(output, run)))
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(files, 2 * _READERS)):  # at most these in memory
            yield from pool.map(rows_of, some)


def runs_with_rows(output: Store) -> dict[str, str]:
    """The id of every run that has rows in history, with the key of one of its files."""
    matches = (_OF_RUN.fullmatch(info.key) for info in output.list("history"))
    return {match[1]: match[0] for match in matches if match and _shards_in(match[2])}


def read_shards(output: Store, run: RunInfo) -> pl.DataFrame:
    """Every committed row of a run, in memory."""
    return pl.concat([parquet.empty(ROW_SCHEMA), *read_frames(output, run)])


def fetch_rows(output: Store, run: RunInfo, path: Path) -> int:
    """Copy every committed row of a run to one local file; returns the number of rows."""
    return parquet.write(path, read_frames(output, run), ROW_SCHEMA, {parquet.RUN_ID_KEY: run.run_id})


def commit_shard(output: Store, run: RunInfo, shard: int, rows: Sequence[Row], expected_ids: Collection[str]) -> bool:
    """Create a shard's file from its rows, one for each of `expected_ids`.

    An existing file is kept. Returns whether the file is from this call (possibly after a lost response), not from
    another writer for the same products.

    Raises:
        RunFailed: the rows, or those of the existing file, are not this shard's.
    """
    _check_rows(run, shard, rows, expected_ids)
    key, writer_id = shard_key(run, shard), uuid.uuid4().hex
    table = parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA).sort(ROW_ORDER, nulls_last=True)
    metadata = {
        parquet.RUN_KEY: run.to_json(),
        parquet.RUN_ID_KEY: run.run_id,
        parquet.WRITER_KEY: writer_id,
        "enrich.shard": str(shard),
        "enrich.created_at": datetime.now(UTC).isoformat(),
    }
    if output.create(key, parquet.encode(table, HISTORY_SCHEMA, metadata, sorted_by=ROW_ORDER)):
        return True
    return _standing_writer(output, key, run, shard, expected_ids) == writer_id


def _check_rows(run: RunInfo, shard: int, rows: Sequence[Row], expected_ids: Collection[str]) -> None:
    """Check that each product of a shard has exactly one row, of this run; anything else is a bug and is not stored."""
    ids, expected = [row.product_id for row in rows], set(expected_ids)
    place = f"run {run.run_id}, shard {shard}"
    if len(ids) != len(expected) or set(ids) != expected:
        odd = sorted(expected.symmetric_difference(ids)) or sorted(one for one in ids if ids.count(one) > 1)
        raise PermanentFailure(
            f"{place}: {len(ids)} rows for {len(expected)} products, {odd[0]!r} is missing, duplicated or from "
            "another shard; nothing was written, please report this as a bug"
        )
    for row in rows:
        if (row.run_id, row.shard, row.fingerprint) != (run.run_id, shard, run.fingerprint):
            raise PermanentFailure(
                f"{place}: the row of {row.product_id!r} says run {row.run_id}, shard {row.shard}, fingerprint "
                f"{row.fingerprint}; nothing was written, please report this as a bug"
            )


def _standing_writer(output: Store, key: str, run: RunInfo, shard: int, expected_ids: Collection[str]) -> str | None:
    """The writer of the existing file; RunFailed if its rows are not this shard's."""
    file = parquet.read(output, key, ROW_SCHEMA)
    if file is None:
        raise RunFailed(f"{output.uri_of(key)} could be neither created nor read; start the run again")
    same_place = (file.metadata.get(parquet.RUN_ID_KEY), file.metadata.get("enrich.shard")) == (run.run_id, str(shard))
    if not same_place or file.table["product_id"].sort().to_list() != sorted(set(expected_ids)):
        raise PermanentFailure(
            f"{output.uri_of(key)} holds other rows than shard {shard} of run {run.run_id}; "
            "move it away and start the run again"
        )
    return file.metadata.get(parquet.WRITER_KEY)
