"""Shards of rows into history: each file is created once, whole or not at all, and never replaced."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from enrich.errors import RunFailed
from enrich.output import parquet
from enrich.output.history import shard_key
from enrich.output.run_record import RunInfo
from enrich.output.schema import HISTORY_SCHEMA, ROW_ORDER, ROW_SCHEMA, Row
from enrich.storage import Store


@dataclass(frozen=True)
class Commit:
    """A shard that stands in history."""

    key: str
    rows: int
    bytes: int
    ours: bool  # False: another writer was first and its rows stand


def commit_shard(
    output: Store, run: RunInfo, shard: int, rows: Sequence[Row], expected_keys: Collection[str]
) -> Commit:
    """Create a shard's file from its rows, one for each of `expected_keys`.

    One that is there already stands: our own after a lost response, else another writer's for the same images.

    Raises:
        RunFailed: the rows are not this shard's, or the file that is there is not this shard's.
    """
    _check_rows(run, shard, rows, expected_keys)
    key, writer_id = shard_key(run, shard), uuid.uuid4().hex
    table = parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA).sort(ROW_ORDER, nulls_last=True)
    metadata = {
        parquet.RUN_KEY: run.to_json(),
        parquet.RUN_ID_KEY: run.run_id,
        parquet.WRITER_KEY: writer_id,
        "enrich.shard": str(shard),
        "enrich.created_at": datetime.now(UTC).isoformat(),
    }
    data = parquet.encode(table, HISTORY_SCHEMA, metadata, sorted_by=ROW_ORDER)
    if output.create(key, data):
        return Commit(key, len(rows), len(data), ours=True)
    return _standing(output, key, run, shard, expected_keys, writer_id)


def _check_rows(run: RunInfo, shard: int, rows: Sequence[Row], expected_keys: Collection[str]) -> None:
    """Every image of a shard gets exactly one row, of this run; anything else is our own fault and is not stored."""
    keys, expected = [row.image_key for row in rows], set(expected_keys)
    place = f"run {run.run_id}, shard {shard}"
    if len(keys) != len(expected) or set(keys) != expected:
        odd = sorted(expected.symmetric_difference(keys)) or sorted(key for key in keys if keys.count(key) > 1)
        raise RunFailed(
            f"{place}: {len(keys)} rows for {len(expected)} images, {odd[0]!r} is missing, doubled or not of this "
            "shard; nothing was written, please report this as a bug"
        )
    for row in rows:
        if (row.run_id, row.shard, row.fingerprint) != (run.run_id, shard, run.fingerprint):
            raise RunFailed(
                f"{place}: the row of {row.image_key!r} says run {row.run_id}, shard {row.shard}, fingerprint "
                f"{row.fingerprint}; nothing was written, please report this as a bug"
            )


def _standing(
    output: Store, key: str, run: RunInfo, shard: int, expected_keys: Collection[str], writer_id: str
) -> Commit:
    """The commit that was there first. Its rows must be this shard's, whoever wrote them."""
    file = parquet.read(output, key, ROW_SCHEMA)
    if file is None:
        raise RunFailed(f"{output.uri_of(key)} could be neither created nor read; start the run again")
    same_place = (file.metadata.get(parquet.RUN_ID_KEY), file.metadata.get("enrich.shard")) == (run.run_id, str(shard))
    if not same_place or file.table["image_key"].sort().to_list() != sorted(set(expected_keys)):
        raise RunFailed(
            f"{output.uri_of(key)} holds other rows than shard {shard} of run {run.run_id}; "
            "move it away and start the run again"
        )
    return Commit(key, file.table.height, file.size, ours=file.metadata.get(parquet.WRITER_KEY) == writer_id)
