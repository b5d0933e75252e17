"""Fewer files and fewer old rows: shards of finished runs are packed together, old runs are retired."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl

from enrich.errors import PermanentFailure
from enrich.output import parquet
from enrich.output.history import HistoryFile, all_files, files_in_force, pack_key
from enrich.output.products import StoredProducts, fetch_products
from enrich.output.run_record import RunRecord, read_records, write_run_record
from enrich.output.schema import HISTORY_SCHEMA, ROW_ORDER, ROW_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from enrich.storage.scratch import remove_abandoned as remove_scratch
from enrich.storage.scratch import scratch

PACK_BYTES = 256 << 20  # of the shards in a pack, about a million rows
_CREATED_KEY = "enrich.created_at"


@dataclass(frozen=True)
class Tidied:
    """The result of `tidy`."""

    packed: int  # shards written into packs
    packs: int
    deleted: int  # files whose rows have been in a pack for long enough
    retired: int  # runs
    litter: int = field(default=0, compare=False)  # what killed processes left, on the local disk and in the output


def tidy(output: str, settings: RunSettings, *, grace: timedelta, keep: timedelta | None) -> Tidied:
    """Pack the shards of finished runs, delete those packed more than `grace` ago, retire runs older than `keep`.

    At every moment the files of a run hold each of its rows; while a pack and its shards both exist, some occur twice,
    and readers deduplicate by (run_id, product_id). Files that a reader listed stay for `grace`. A run is retired (its
    rows, listing and manifest are deleted) only if no row of products.parquet names it.
    """
    target, now = open_store(output, must_exist=True, s3=settings.s3), datetime.now(UTC)
    packed = packs = deleted = retired = 0
    litter = remove_scratch() + target.remove_abandoned()
    with scratch() as folder:
        named = _runs_in_use(fetch_products(target, folder))
    for record in read_records(target):
        if record.retired or record.missing_shards:
            continue
        old = keep is not None and now - record.finished_at > keep
        if old and record.run.run_id not in named and record.state != "held":
            _retire(target, record)
            retired += 1
            continue
        for group in _groups(files_in_force(all_files(target, record.run))):
            _pack(target, record, group)
            packed, packs = packed + len(group), packs + 1
        deleted += _delete_packed(target, record, now - grace)
    return Tidied(packed, packs, deleted, retired, litter)


def _runs_in_use(products: StoredProducts) -> set[str]:
    """Runs that a row of products.parquet names, whose listing decides in_source, or that the gate compares with."""
    marks = [mark.run_id for mark in (products.last.source, products.last.compared) if mark]
    named = {*products.runs, *marks}
    for frame in products.frames(["run_id"]):
        named.update(frame["run_id"].unique())
    return named


def _groups(files: list[HistoryFile]) -> Iterator[list[HistoryFile]]:
    """Shards that follow each other, PACK_BYTES together; packs are not packed again."""
    group: list[HistoryFile] = []
    for file in files:
        follows = group and file.first == group[-1].last + 1
        if file.last > file.first or not follows or sum(one.size for one in group) + file.size > PACK_BYTES:
            if len(group) > 1:
                yield group
            group = []
        if file.last == file.first:
            group.append(file)
    if len(group) > 1:
        yield group


def _pack(output: Store, record: RunRecord, group: list[HistoryFile]) -> None:
    """One file of the rows of some shards, created once; it is read back before anything may be deleted for it."""
    key = pack_key(record.run, group[0].first, group[-1].last)
    with scratch() as folder:
        paths, count = [], 0
        for number, file in enumerate(group):
            fetched = parquet.fetch(output, file.key, ROW_SCHEMA, folder / f"{number}.parquet")
            if fetched is None or fetched.metadata.get(parquet.RUN_ID_KEY) != record.run.run_id:
                raise PermanentFailure(
                    f"{output.uri_of(file.key)} is not a shard of run {record.run.run_id}; move it away"
                )
            paths.append(fetched.path)
            count += fetched.rows

        def frames() -> Iterator[pl.DataFrame]:
            for path in paths:
                yield from parquet.frames(path, ROW_SCHEMA)

        bounds = partition_bounds(sampled(frames(), ROW_ORDER), ROW_ORDER, count)
        rows = RangePartitions(bounds, folder / "order", ROW_SCHEMA).add(frames())
        metadata = {
            parquet.RUN_KEY: record.run.to_json(),
            parquet.RUN_ID_KEY: record.run.run_id,
            _CREATED_KEY: datetime.now(UTC).isoformat(),
        }
        whole = folder / "whole.parquet"
        parquet.write(whole, rows.in_order(), HISTORY_SCHEMA, metadata, sorted_by=ROW_ORDER)
        output.create(key, whole)  # an existing one has the same rows
        back = parquet.fetch(output, key, ROW_SCHEMA, folder / "back.parquet")
        if back is None or back.rows != count:
            raise PermanentFailure(
                f"{output.uri_of(key)} does not contain the {count:,} rows of its shards; move it away and tidy again"
            )


def _delete_packed(output: Store, record: RunRecord, before: datetime) -> int:
    """Delete the shards that a pack from before `before` holds."""
    files = all_files(output, record.run)
    deleted = 0
    for pack in files_in_force(files):
        inside = [file for file in files if file != pack and pack.first <= file.first and file.last <= pack.last]
        if not inside:
            continue
        with scratch() as folder:
            found = parquet.fetch(output, pack.key, ROW_SCHEMA, folder / "pack.parquet")
        if found is None or datetime.fromisoformat(found.metadata[_CREATED_KEY]) > before:
            continue
        for file in inside:
            output.delete(file.key)
            deleted += 1
    return deleted


def _retire(output: Store, record: RunRecord) -> None:
    """The record is written first: from then on a rollback that needs these rows is refused."""
    write_run_record(output, record.model_copy(update={"retired": True}))
    for file in all_files(output, record.run):
        output.delete(file.key)
    for name in ("manifest.parquet", "source.parquet", "answers.parquet"):
        output.delete(f"{record.run.folder}{name}")
