"""products.parquet as the fold of history: a run is folded in and the table replaced by compare-and-swap.

Tables are never in memory as a whole: the fold takes one range of keys at a time (`enrich.output.spill`).
"""

import logging
import random
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, pairwise
from pathlib import Path

import polars as pl

from enrich.errors import RunFailed
from enrich.output import parquet
from enrich.output.gate import run_stats
from enrich.output.history import answer_again, committed_shards, fetch_rows, runs_with_rows, shard_key
from enrich.output.listing import Listing, described_run, fetch_listing
from enrich.output.products import (
    PRODUCTS_KEY,
    LastRuns,
    Products,
    StoredProducts,
    fetch_products,
    fold,
    last_runs,
    write_products,
)
from enrich.output.restate import restated, with_ids, with_uris
from enrich.output.reviews import apply_reviews, read_reviews
from enrich.output.run_record import PublishedRun, RunInfo, RunMark, RunRecord, RunStats, read_records, read_run_record
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_ORDER, ROW_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.settings.run import GateSettings
from enrich.storage import Store
from enrich.storage.scratch import scratch

logger = logging.getLogger(__name__)

_BEFORE_ALL = RunMark(sequence=-1, created_at=datetime.min.replace(tzinfo=UTC), run_id="")
ATTEMPTS = 20  # every lost swap means that another publisher succeeded, so 20 publishers at once may pass
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.05, 5.0


@dataclass(frozen=True)
class Published:
    """What a publish did."""

    rows: int  # of products.parquet
    changed: bool  # False: it already said everything, and was not written
    attempts: int


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


@dataclass(frozen=True)
class FoldResult:
    """The next table on the local disk."""

    path: Path
    rows: int
    runs: Mapping[str, PublishedRun]  # that its rows name
    last: LastRuns
    changed: bool  # False: its rows are those of the table before


def publish(
    output: Store,
    run: RunInfo,
    gate: GateSettings | None = None,
    *,
    rows: RunRows | None = None,
    products: StoredProducts | None = None,
) -> Published:
    """Fold what a run committed into products.parquet. In any order, any number of times, by any number at once.

    A table that would stay as it is is not written, and neither is the listing that it agrees with: after a held run is
    released late, in_source may follow the listing before that one until the next run.

    Args:
        gate: a run of at least its min_rows images is what the next runs are compared with.
        rows: all that the run committed (`fetch_run`), so that it is not downloaded again.
        products: the table as `current_products` returned it, likewise. If another publisher has replaced it since,
            the new table is downloaded.

    Raises:
        RunFailed: other publishers were faster ATTEMPTS times, or a file is missing or not ours.
    """
    again = f"history has the run's rows: repeat with `enrich publish --output {output.uri} --run-id {run.run_id}`"
    with scratch() as folder:
        return _swap(output, [rows or fetch_run(output, run, folder)], folder, gate, again, first=products)


def publish_reviews(output: Store) -> Published:
    """Apply what people decided to products.parquet. RunFailed as `publish`."""
    with scratch() as folder:
        return _swap(output, [], folder, None, "reviews/ has the decisions: apply the file again")


def refold(output: Store, runs: Sequence[RunInfo], gate: GateSettings | None = None, *, again: str) -> Published:
    """Replace products.parquet, damaged or not, by the fold of `runs` alone, all that they committed.

    Args:
        again: the command that does the same.

    Raises:
        RunFailed: as `publish`, or rows that a finished run had are missing.
    """
    with scratch() as folder:
        rows = [fetch_run(output, run, folder) for run in runs]
        return _swap(output, rows, folder, gate, f"history has the run's rows: repeat with `{again}`", anew=True)


def current_products(output: Store, folder: Path, gate: GateSettings | None = None) -> StoredProducts:
    """The current table, copied to `folder`. One that was lost is folded anew there, and not written.

    Raises:
        RunFailed: it is damaged or another output's, or lost like rows that it had.
    """
    products = fetch_products(output, folder)
    _check_own(output, products)
    if products.path is not None:
        return products
    work = folder / "refolded"
    work.mkdir()
    lost = _lost_runs(output, work)
    if not lost:
        return products
    folded = fold_runs(output, products, lost, work, uuid.uuid4().hex, gate, listed=False)
    return StoredProducts(folded.path, folded.rows, folded.runs, folded.last, None, None)


def _check_own(output: Store, products: StoredProducts) -> None:
    newest = products.last.source
    names = ("manifest.parquet", "run.json")
    if newest and all(output.head(f"runs/{newest.run_id}/{name}") is None for name in names):
        raise RunFailed(
            f"{output.uri_of(PRODUCTS_KEY)} is the table of another output, for run {newest.run_id} is not in runs/; "
            f"make it anew from history with `enrich rebuild --output {output.uri}`"
        )


def _lost_runs(output: Store, folder: Path, but: Sequence[str] = ()) -> list[RunRows]:
    """The rows of all runs that were published, where products.parquet is missing; none if none ever was."""
    records = read_records(output)
    if all(record.state == "held" for record in records):
        return []
    runs = published_runs(output, records)
    logger.warning("%s is missing: made anew from %d runs of history", output.uri_of(PRODUCTS_KEY), len(runs))
    return [fetch_run(output, run, folder) for run in runs if run.run_id not in but]


def published_runs(output: Store, records: Sequence[RunRecord]) -> list[RunInfo]:
    """The runs whose rows belong into products.parquet, the one created last at the end.

    A run that was held back or retired has a record that says so. A lost record must not cost rows: a run without one
    counts as published if history has all of its rows and a run created later was finished. Otherwise it was
    interrupted, maybe before it was judged, and its run id continues it.

    Args:
        records: of all finished runs.
    """
    finished = {record.run.run_id for record in records}
    newest = max((record.run.mark for record in records), default=_BEFORE_ALL)
    found = [record.run for record in records if record.state != "held" and not record.retired]
    for run_id, file in runs_with_rows(output):
        if run_id in finished:
            continue
        manifest = parquet.read(output, f"runs/{run_id}/manifest.parquet", MANIFEST_SCHEMA)
        described = manifest or parquet.read(output, file.key, ROW_SCHEMA)
        if described is None:
            raise RunFailed(f"{output.uri_of(file.key)} was there a moment ago; start again")
        run = described_run(described.metadata, output.uri_of(file.key))
        whole = manifest is None or set(manifest.table["shard"]) <= committed_shards(output, run)
        if whole and (manifest is None or run.mark < newest):
            found.append(run)
            logger.warning("run=%s has no run.json; history has its rows, which count as published", run_id)
        else:
            logger.warning(
                "run=%s was not finished, and is left out: go on with enrich run --run-id %s", run_id, run_id
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
            raise RunFailed(
                f"{output.uri_of(shard_key(run, lost[0]))} is missing{others}: run {run.run_id} has {record.shards} "
                f"shards; restore it, or {answer_again(run)}"
            )
    count = fetch_rows(output, run, path)
    if record is not None and (count < record.counts["rows"] or (count != record.counts["rows"] and whole)):
        raise RunFailed(
            f"{output.uri_of(run.history)}: {count:,} rows where run.json says {record.counts['rows']:,}; restore "
            "the files of that run"
        )
    return RunRows(run, path, count, run_stats(pl.scan_parquet(path)))


def _swap(
    output: Store,
    runs: Sequence[RunRows],
    folder: Path,
    gate: GateSettings | None,
    then: str,
    *,
    first: StoredProducts | None = None,
    anew: bool = False,
) -> Published:
    """Replace products.parquet by its fold with `runs`, again and again until no other publisher was faster.

    Args:
        then: what to do about it if others always are.
        first: the table for the first attempt, where it was downloaded before.
        anew: fold `runs` alone; the table may be damaged or another output's.
    """
    writer_id = uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        work = folder / f"attempt-{attempt}"
        work.mkdir()
        products = first or (_to_be_replaced(output, work) if anew else fetch_products(output, work))
        if products.writer_id == writer_id:  # the last swap went through and its response was lost
            return Published(products.rows, changed=True, attempts=attempt - 1)
        lost, base = list[RunRows](), StoredProducts.none()
        if not anew:
            _check_own(output, products)
            base = products
            if products.path is None:
                lost = _lost_runs(output, work, but=[rows.run.run_id for rows in runs])
        folded = fold_runs(output, base, [*lost, *runs], work, writer_id, gate)
        if products.etag is not None and not folded.changed and not anew:
            return Published(products.rows, changed=False, attempts=attempt)
        if output.replace(PRODUCTS_KEY, folded.path, products.etag):
            return Published(folded.rows, changed=True, attempts=attempt)
        shutil.rmtree(work)
        first = None
        time.sleep(random.uniform(0, min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2**attempt)))
    raise RunFailed(
        f"{output.uri_of(PRODUCTS_KEY)} was replaced by others {ATTEMPTS} times in a row; {then}, and if nobody else "
        "publishes, see `enrich doctor`"
    )


def _to_be_replaced(output: Store, folder: Path) -> StoredProducts:
    found = output.head(PRODUCTS_KEY)
    try:
        return fetch_products(output, folder)
    except RunFailed:
        return replace(StoredProducts.none(), etag=found.etag if found else None)


def fold_runs(
    output: Store,
    products: StoredProducts,
    runs: Sequence[RunRows],
    folder: Path,
    writer_id: str,
    gate: GateSettings | None = None,
    *,
    listed: bool = True,
) -> FoldResult:
    """`products` with the rows of `runs` taken in, as a new file in `folder`.

    What people decided is applied to the result, since the rows of runs do not have it.

    Args:
        listed: False where it matters little which photos are still there: without a listing all are.
    """
    reviews, min_rows, last = read_reviews(output), (gate or GateSettings()).min_rows, products.last
    for rows in runs:
        last = last_runs(last, rows.run, rows.stats if rows.count >= min_rows else None)
    listing = _newest_listing(output, last, folder, listed) if runs else None
    if listing is not None:
        last = replace(last, rules=listing.rules.digest if listing.rules else None)
    # Rows of the table are under the rules that it names; those of a run may be under any.
    taken = [rows.run for rows in runs]
    only = [run.run_id for run in taken] if last.rules == products.last.rules else None
    by_key, by_order = _bounds(products, runs, listing)
    before = RangePartitions(by_key, folder / "before", PRODUCTS_SCHEMA).add(products.frames())
    news = RangePartitions(by_key, folder / "news", ROW_SCHEMA).add(chain.from_iterable(rows.frames() for rows in runs))
    after = RangePartitions(by_order, folder / "after", PRODUCTS_SCHEMA)
    named, changed = dict[str, PublishedRun](), False
    ranges = pairwise([None, *by_key["image_key"], None])
    for table, new, (lower, upper) in zip(before, news, ranges, strict=True):
        part = Products(table, products.runs)
        if runs:
            part = fold(part, taken, new, listing.keys(lower, upper) if listing else None)
        shown = part.table
        if listing and listing.rules:
            shown = restated(shown, listing.rules, part.runs, only)
        if listing:
            shown = with_uris(shown, part.runs, listing.run.images_uri)
        shown = apply_reviews(shown, reviews).sort(ROW_ORDER, nulls_last=True)
        after.add([shown])
        named.update(part.runs)
        changed = changed or not shown.equals(table)
    path = folder / "next.parquet"
    count = write_products(path, after.in_order(), dict(sorted(named.items())), last, writer_id)
    return FoldResult(path, count, named, last, changed)


def _newest_listing(output: Store, last: LastRuns, folder: Path, required: bool) -> Listing | None:
    """The listing of the run created last, of those published and those being published: it decides in_source."""
    if last.source is None:
        return None
    try:
        return fetch_listing(output, last.source.run_id, folder)
    except RunFailed:
        if required:
            raise
        return None


def _bounds(
    products: StoredProducts, runs: Sequence[RunRows], listing: Listing | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where to partition the tables by key, and the next table by ROW_ORDER."""
    tables = (products.frames(ROW_ORDER), *(rows.frames(ROW_ORDER) for rows in runs))
    sample = sampled(chain.from_iterable(tables), ROW_ORDER)
    if listing and listing.rules:
        sample = with_ids(sample, listing.rules)
    count = products.rows + sum(rows.count for rows in runs)
    return partition_bounds(sample, ["image_key"], count), partition_bounds(sample, ROW_ORDER, count)
