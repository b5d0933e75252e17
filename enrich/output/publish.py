"""products.parquet as the fold of history: a run is folded in and the table replaced by compare-and-swap.

Tables are never in memory as a whole: the fold takes one range of products at a time (`enrich.output.spill`).
"""

import logging
import random
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import polars as pl

from enrich.errors import PermanentFailure, RunFailed, shell
from enrich.output.listing import Listing, fetch_listing
from enrich.output.products import (
    PRODUCTS_KEY,
    LastRuns,
    Products,
    StoredProducts,
    fetch_products,
    fold,
    how_to_rebuild,
    last_runs,
    write_products,
)
from enrich.output.restate import restated, with_uris
from enrich.output.reviews import apply_reviews, read_reviews
from enrich.output.run_record import PublishedRun, RunInfo, read_records
from enrich.output.run_rows import RunRows, fetch_run, published_runs
from enrich.output.schema import PRODUCTS_SCHEMA, ROW_ORDER, ROW_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.settings.run import GateSettings
from enrich.storage import Store
from enrich.storage.scratch import scratch

logger = logging.getLogger(__name__)

ATTEMPTS = 20  # every lost swap means that another publisher succeeded, so 20 publishers at once may pass
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.05, 5.0


@dataclass(frozen=True)
class Published:
    """The result of a publish."""

    rows: int  # of products.parquet
    changed: bool  # False: it already said everything, and was not written
    attempts: int


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
    reviews: pl.DataFrame | None = None,
) -> Published:
    """Fold what a run committed into products.parquet. In any order, any number of times, by any number at once.

    A table that would not change is not written. After a held run is released late, in_source may therefore follow an
    earlier listing until the next run.

    Args:
        gate: a run of at least its min_rows images is what the next runs are compared with.
        rows: all that the run committed (`fetch_run`), so that it is not downloaded again.
        products: the table as `current_products` returned it, likewise. If another publisher has replaced it since,
            the new table is downloaded.
        reviews: every decision (`read_reviews`), likewise; read after `products`: a later decision replaces the table.

    Raises:
        RunFailed: other publishers were faster ATTEMPTS times, or a file is missing or not ours.
    """
    again = (
        f"history has the run's rows: repeat with `enrich publish --output {shell(output.uri)} --run-id {run.run_id}`"
    )
    with scratch() as folder:
        taken = [rows or fetch_run(output, run, folder)]
        return _swap(output, taken, folder, gate, again, first=products, reviews=reviews)


def publish_reviews(output: Store) -> Published:
    """Apply people's decisions to products.parquet. RunFailed as `publish`."""
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
        return _swap(output, rows, folder, gate, f"history has the run's rows: repeat with `{again}`", alone=True)


def current_products(output: Store, folder: Path, gate: GateSettings | None = None) -> StoredProducts:
    """The current table, copied to `folder`. One that was lost is folded again there, and not written.

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
    folded = fold_runs(output, products, lost, read_reviews(output), work, uuid.uuid4().hex, gate, listed=False)
    return StoredProducts(folded.path, folded.rows, folded.runs, folded.last)


def _check_own(output: Store, products: StoredProducts) -> None:
    newest = products.last.source
    names = ("manifest.parquet", "run.json")
    if newest and all(output.head(f"runs/{newest.run_id}/{name}") is None for name in names):
        raise PermanentFailure(
            f"{output.uri_of(PRODUCTS_KEY)} belongs to another output, because run {newest.run_id} is not in runs/; "
            f"{how_to_rebuild(output)}"
        )


def _lost_runs(output: Store, folder: Path, but: Sequence[str] = ()) -> list[RunRows]:
    """The rows of all runs that were published, where products.parquet is missing; none if none ever was."""
    records = read_records(output)
    if all(record.state == "held" for record in records):
        return []
    runs = published_runs(output, records)
    logger.warning("%s is missing: rebuilt from %d runs of history", output.uri_of(PRODUCTS_KEY), len(runs))
    return [fetch_run(output, run, folder) for run in runs if run.run_id not in but]


def _swap(
    output: Store,
    runs: Sequence[RunRows],
    folder: Path,
    gate: GateSettings | None,
    then: str,
    *,
    first: StoredProducts | None = None,
    reviews: pl.DataFrame | None = None,
    alone: bool = False,
) -> Published:
    """Replace products.parquet by its fold with `runs`; repeated while other publishers are faster.

    Args:
        then: what to do about it if others always are.
        first, reviews: the table and the decisions for the first attempt, where they were downloaded before.
        alone: fold nothing but `runs`; the table may be damaged or another output's.
    """
    writer_id = uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        work = folder / f"attempt-{attempt}"
        work.mkdir()
        products = first or (_to_be_replaced(output, work) if alone else fetch_products(output, work))
        decided = read_reviews(output) if reviews is None else reviews
        if products.writer_id == writer_id:  # the last swap went through and its response was lost
            return Published(products.rows, changed=True, attempts=attempt - 1)
        lost, base = list[RunRows](), StoredProducts()
        if not alone:
            _check_own(output, products)
            base = products
            if products.path is None:
                lost = _lost_runs(output, work, but=[rows.run.run_id for rows in runs])
        folded = fold_runs(output, base, [*lost, *runs], decided, work, writer_id, gate)
        if products.etag is not None and not folded.changed and not alone:
            return Published(products.rows, changed=False, attempts=attempt)
        if output.replace(PRODUCTS_KEY, folded.path, products.etag):
            return Published(folded.rows, changed=True, attempts=attempt)
        shutil.rmtree(work)
        first = reviews = None
        time.sleep(random.uniform(0, min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2**attempt)))
    raise RunFailed(
        f"{output.uri_of(PRODUCTS_KEY)}: others replaced it {ATTEMPTS} times in a row; {then}, and if nobody else "
        "publishes, see `enrich doctor`"
    )


def _to_be_replaced(output: Store, folder: Path) -> StoredProducts:
    found = output.head(PRODUCTS_KEY)
    try:
        return fetch_products(output, folder)
    except RunFailed:
        return StoredProducts(etag=found.etag if found else None)


def fold_runs(
    output: Store,
    products: StoredProducts,
    runs: Sequence[RunRows],
    reviews: pl.DataFrame,
    folder: Path,
    writer_id: str,
    gate: GateSettings | None = None,
    *,
    listed: bool = True,
) -> FoldResult:
    """`products` with the rows of `runs` taken in, as a new file in `folder`.

    What people decided is applied to the result, since the rows of runs do not have it.

    Args:
        reviews: every decision (`read_reviews`).
        listed: False where it matters little which photos are still there: without a listing all are.
    """
    min_rows, last = (gate or GateSettings()).min_rows, products.last
    for rows in runs:
        last = last_runs(last, rows.run, rows.stats if rows.count >= min_rows else None)
    listing = _newest_listing(output, last, folder, listed) if runs else None
    if listing is not None:
        last = replace(last, rules=listing.rules.digest if listing.rules else None)
    # Rows of the table are under the rules that it names; those of a run may be under any.
    taken = [rows.run for rows in runs]
    only = [run.run_id for run in taken] if last.rules == products.last.rules else None
    by_id, by_order = _bounds(products, runs)
    before = RangePartitions(by_id, folder / "before", PRODUCTS_SCHEMA).add(products.frames())
    news = RangePartitions(by_id, folder / "news", ROW_SCHEMA).add(chain.from_iterable(rows.frames() for rows in runs))
    after = RangePartitions(by_order, folder / "after", PRODUCTS_SCHEMA)

    def fold_range(
        table: pl.DataFrame, new: pl.DataFrame, ids: tuple[str | None, str | None]
    ) -> tuple[Mapping[str, PublishedRun], bool]:
        """Add the next rows of one range of products to `after`; the runs that they name, and whether they changed."""
        part = Products(table, products.runs)
        if runs:
            part = fold(part, taken, new, listing.ids(*ids) if listing else None)
        shown = part.table
        if listing and listing.rules:
            shown = restated(shown, listing.rules, part.runs, only)
        if listing:
            shown = with_uris(shown, part.runs, listing.run.images_uri)
        shown = apply_reviews(shown, reviews).sort(ROW_ORDER, nulls_last=True)
        after.add([shown])
        return part.runs, not shown.equals(table)

    # A loop would keep its last range, 0.2 GB, in memory while the next table is written.
    folded = list(map(fold_range, before, news, pairwise([None, *by_id["product_id"], None])))
    named = {name: run for of_range, _ in folded for name, run in of_range.items()}
    path = folder / "next.parquet"
    count = write_products(path, after.in_order(), dict(sorted(named.items())), last, writer_id)
    return FoldResult(path, count, named, last, changed=any(changed for _, changed in folded))


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


def _bounds(products: StoredProducts, runs: Sequence[RunRows]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where to partition the tables by product, and the next table by ROW_ORDER."""
    tables = (products.frames(ROW_ORDER), *(rows.frames(ROW_ORDER) for rows in runs))
    sample = sampled(chain.from_iterable(tables), ROW_ORDER)
    count = products.rows + sum(rows.count for rows in runs)
    return partition_bounds(sample, ["product_id"], count), partition_bounds(sample, ROW_ORDER, count)
