"""products.parquet as the fold of history: a run is folded in and the table replaced by compare-and-swap.

Rows go by pieces of PIECE_ROWS (`enrich.spill`): the fold of each piece is in memory, the tables are not.
"""

import itertools
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from enrich import parquet
from enrich.errors import RunFailed
from enrich.gate import run_stats
from enrich.history import fetch_rows
from enrich.products import (
    PRODUCTS_KEY,
    Products,
    StoredProducts,
    fetch_products,
    fold,
    last_runs,
    write_products,
)
from enrich.reviews import lay_over, read_reviews
from enrich.run_record import PublishedRun, RunInfo, RunRecord, RunStats
from enrich.schema import PRODUCTS_SCHEMA, ROW_ORDER, ROW_SCHEMA, SOURCE_SCHEMA
from enrich.settings import GateSettings
from enrich.spill import Pieces, cut, in_order, sampled, scratch
from enrich.storage import Store

ATTEMPTS = 20  # every lost swap means that another publisher got through, so 20 publishers at once may pass
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
    stats: RunStats | None  # None: too small to be compared with

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Its rows, some at a time."""
        return parquet.frames(self.path, ROW_SCHEMA, columns)


@dataclass(frozen=True)
class Folded:
    """The next table on the local disk."""

    path: Path
    rows: int
    changed: bool


def publish(output: Store, run: RunInfo, gate: GateSettings | None = None) -> Published:
    """Fold what a run committed into products.parquet. In any order, any number of times, by any number at once.

    A table that would stay as it is is not written, so nor is the listing it agrees with: after a held run is released
    late, in_source may follow the listing before that one until the next run.

    Args:
        gate: a run of at least its min_rows images is what the next runs are compared with.

    Raises:
        RunFailed: other publishers were faster ATTEMPTS times, or a file is missing or not ours.
    """
    with scratch() as folder:
        rows = fetch_run(output, run, folder, gate or GateSettings())

        def make(products: StoredProducts, work: Path, writer_id: str) -> Folded:
            return fold_runs(output, products, [rows], work, writer_id)

        return _swap(output, folder, make, _again(f"enrich run --publish {run.run_id}"))


def publish_reviews(output: Store) -> Published:
    """Lay what people decided over products.parquet. RunFailed as `publish`."""
    with scratch() as folder:

        def make(products: StoredProducts, work: Path, writer_id: str) -> Folded:
            return fold_runs(output, products, [], work, writer_id)

        return _swap(output, folder, make, "reviews/ has the decisions: apply the file again")


def rollback(output: Store, runs: Sequence[RunInfo], gate: GateSettings | None = None) -> Published:
    """Replace products.parquet by the fold of `runs` alone: those published up to some run, all that they committed.

    Raises:
        RunFailed: as `publish`.
    """
    with scratch() as folder:
        rows = [fetch_run(output, run, folder, gate or GateSettings()) for run in runs]

        def make(products: StoredProducts, work: Path, writer_id: str) -> Folded:
            folded = fold_runs(output, StoredProducts.none(), rows, work, writer_id)
            return Folded(folded.path, folded.rows, changed=True)

        return _swap(output, folder, make, _again(f"enrich run --rollback {runs[-1].run_id}"))


def _again(command: str) -> str:
    return f"history has the run's rows: repeat with `{command}`"


def fetch_run(output: Store, run: RunInfo, folder: Path, gate: GateSettings) -> RunRows:
    """What a run committed, copied to `folder`."""
    path = folder / f"rows-{run.run_id}.parquet"
    count = fetch_rows(output, run, path)
    stats = run_stats(pl.scan_parquet(path)) if count >= gate.min_rows else None
    return RunRows(run, path, count, stats)


def _swap(output: Store, folder: Path, make: Callable[[StoredProducts, Path, str], Folded], then: str) -> Published:
    """Replace products.parquet by what `make` makes of it, again and again until nobody was faster."""
    writer_id = uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        work = folder / f"attempt-{attempt}"
        work.mkdir()
        products = fetch_products(output, work)
        if products.writer_id == writer_id:  # the last swap went through and its response was lost
            return Published(products.rows, changed=True, attempts=attempt - 1)
        folded = make(products, work, writer_id)
        if products.etag is not None and not folded.changed:
            return Published(products.rows, changed=False, attempts=attempt)
        if output.replace(PRODUCTS_KEY, folded.path, products.etag):
            return Published(folded.rows, changed=True, attempts=attempt)
        shutil.rmtree(work)
        time.sleep(random.uniform(0, min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2**attempt)))
    raise RunFailed(
        f"{output.uri_of(PRODUCTS_KEY)} was replaced by others {ATTEMPTS} times in a row; {then}, and if nobody else "
        "publishes, see `enrich doctor`"
    )


def fold_runs(output: Store, products: StoredProducts, runs: Sequence[RunRows], folder: Path, writer_id: str) -> Folded:
    """`products` with the rows of `runs` taken in, as a new file in `folder`.

    What people decided is laid over each piece of it: a row folded in has lost that.
    """
    reviews = read_reviews(output)
    last, named, changed = products.last, dict[str, PublishedRun](), False
    taken = [rows.run for rows in runs]
    for rows in runs:
        last = last_runs(last, rows.run, rows.stats)
    # Of the run created last, of those published and those being published: it decides in_source.
    source = fetch_listing(output, last.source.run_id, folder) if runs and last.source else None
    total = products.rows + sum(rows.count for rows in runs)
    tables = (products.frames(ROW_ORDER), *(rows.frames(ROW_ORDER) for rows in runs))
    sample = sampled(itertools.chain.from_iterable(tables), ROW_ORDER)
    by_key = cut(sample, ["image_key"], total)

    def folded() -> Iterator[pl.DataFrame]:
        nonlocal changed
        before = _spread(products.frames(), by_key, folder / "before")
        news = _spread(itertools.chain.from_iterable(rows.frames() for rows in runs), by_key, folder / "news")
        for number in range(len(before)):
            table = before.read(number)
            piece = Products(parquet.empty(PRODUCTS_SCHEMA) if table is None else table, products.runs, products.last)
            present = pl.Series(dtype=pl.String) if source is None else _present(source, by_key, number)
            new = news.read(number)
            after = piece
            if runs:
                after = fold(piece, taken, parquet.empty(ROW_SCHEMA) if new is None else new, present)
            shown = lay_over(after.table, reviews).sort(ROW_ORDER, nulls_last=True)
            changed = changed or not shown.equals(piece.table)
            named.update(after.runs)
            yield shown

    path = folder / "next.parquet"
    ordered = in_order(folded(), cut(sample, ROW_ORDER, total), folder / "folded")
    count = write_products(path, ordered, lambda: (dict(sorted(named.items())), last), writer_id)
    return Folded(path, count, changed)


def _spread(frames: Iterable[pl.DataFrame], cuts: pl.DataFrame, folder: Path) -> Pieces:
    pieces = Pieces(folder, cuts)
    pieces.add(frames)
    pieces.close()
    return pieces


def fetch_listing(output: Store, run_id: str, folder: Path) -> Path:
    """A copy of what a run saw in the source (SOURCE_SCHEMA); RunFailed if it is missing."""
    key = f"runs/{run_id}/source.parquet"
    file = parquet.fetch(output, key, SOURCE_SCHEMA, folder / "source.parquet")
    if file is None:
        raise RunFailed(f"{output.uri_of(key)} is missing: which photos are still there is unknown; start a new run")
    return file.path


def _present(source: Path, cuts: pl.DataFrame, number: int) -> pl.Series:
    """The listed keys that belong to a piece."""
    keys, bounds = pl.scan_parquet(source).select("key"), cuts["image_key"]
    if number > 0:
        keys = keys.filter(pl.col("key") >= bounds[number - 1])
    if number < len(bounds):
        keys = keys.filter(pl.col("key") < bounds[number])
    return keys.collect()["key"]


def write_run_record(output: Store, record: RunRecord) -> None:
    """Write run.json: the last file of a run. A held run that is released later gets a new one."""
    output.put(f"{record.run.folder}run.json", record.model_dump_json(indent=2).encode())


def read_run_record(output: Store, run: RunInfo) -> RunRecord | None:
    """How a run ended, or None if it has not; RunFailed if its run.json is not one of ours."""
    key = f"{run.folder}run.json"
    if output.head(key) is None:
        return None
    try:
        return RunRecord.model_validate_json(output.get(key)[0])
    except ValidationError as error:
        raise RunFailed(f"{output.uri_of(key)} is no record of a run; move it away and start the run again") from error


def read_records(output: Store) -> Iterator[RunRecord]:
    """The records of all finished runs, those created last first."""
    finished = [info.key for info in output.list("runs") if info.key.endswith("/run.json")]
    records = [RunRecord.model_validate_json(output.get(key)[0]) for key in finished]
    yield from sorted(records, key=lambda record: record.run.mark, reverse=True)


def find_record(output: Store, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
    """The finished run that was created last, of those that are `wanted`."""
    return next((record for record in read_records(output) if wanted(record)), None)
