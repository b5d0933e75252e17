"""products.parquet as the fold of history: a run is folded in and the table replaced by compare-and-swap.

Rows go by pieces of PIECE_ROWS (`enrich.output.spill`): the fold of each piece is in memory, the tables are not.
"""

import itertools
import logging
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from enrich.errors import RunFailed
from enrich.output import parquet
from enrich.output.gate import run_stats
from enrich.output.history import answer_again, committed_shards, fetch_rows, runs_with_rows, shard_key
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
from enrich.output.restate import RULES_KEY, Rules, restated, with_ids, with_uris
from enrich.output.reviews import lay_over, read_reviews
from enrich.output.run_record import PublishedRun, RunInfo, RunMark, RunRecord, RunStats
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_ORDER, ROW_SCHEMA, SOURCE_SCHEMA
from enrich.output.spill import Pieces, cut, in_order, sampled
from enrich.settings.run import GateSettings
from enrich.storage import Store
from enrich.storage.scratch import scratch

logger = logging.getLogger(__name__)

_BEFORE_ALL = RunMark(sequence=-1, created_at=datetime.min.replace(tzinfo=UTC), run_id="")
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
    stats: RunStats

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Its rows, some at a time."""
        return parquet.frames(self.path, ROW_SCHEMA, columns)


@dataclass(frozen=True)
class Folded:
    """The next table on the local disk."""

    path: Path
    rows: int
    runs: Mapping[str, PublishedRun]
    last: LastRuns
    changed: bool


def publish(
    output: Store,
    run: RunInfo,
    gate: GateSettings | None = None,
    *,
    rows: RunRows | None = None,
    products: StoredProducts | None = None,
) -> Published:
    """Fold what a run committed into products.parquet. In any order, any number of times, by any number at once.

    A table that would stay as it is is not written, so nor is the listing it agrees with: after a held run is released
    late, in_source may follow the listing before that one until the next run.

    Args:
        gate: a run of at least its min_rows images is what the next runs are compared with.
        rows: all that the run committed (`fetch_run`), so that it is not downloaded again.
        products: the table as `current_products` returned it, likewise. If another publisher has replaced it since,
            the new table is downloaded.

    Raises:
        RunFailed: other publishers were faster ATTEMPTS times, or a file is missing or not ours.
    """
    limits = gate or GateSettings()
    with scratch() as folder:
        news = rows or fetch_run(output, run, folder)

        def make(table: StoredProducts, work: Path, writer_id: str) -> Folded:
            lost = [] if table.path else _lost_runs(output, work, but=run.run_id)
            return fold_runs(output, table, [*lost, news], work, writer_id, limits)

        again = _again(f"enrich publish --output {output.uri} --run-id {run.run_id}")
        return _swap(output, folder, make, again, first=products)


def publish_reviews(output: Store) -> Published:
    """Lay what people decided over products.parquet. RunFailed as `publish`."""
    with scratch() as folder:

        def make(products: StoredProducts, work: Path, writer_id: str) -> Folded:
            return fold_runs(output, products, [], work, writer_id, GateSettings())

        return _swap(output, folder, make, "reviews/ has the decisions: apply the file again")


def refold(output: Store, runs: Sequence[RunInfo], gate: GateSettings | None = None, *, again: str) -> Published:
    """Replace products.parquet, damaged or not, by the fold of `runs` alone, all that they committed.

    Args:
        again: the command that does the same.

    Raises:
        RunFailed: as `publish`, or rows that a finished run had are missing.
    """
    limits = gate or GateSettings()
    with scratch() as folder:
        rows = [fetch_run(output, run, folder) for run in runs]

        def make(products: StoredProducts, work: Path, writer_id: str) -> Folded:
            return replace(fold_runs(output, StoredProducts.none(), rows, work, writer_id, limits), changed=True)

        return _swap(output, folder, make, _again(again), anew=True)


def _again(command: str) -> str:
    return f"history has the run's rows: repeat with `{command}`"


def current_products(output: Store, folder: Path, gate: GateSettings | None = None) -> StoredProducts:
    """The current table, copied to `folder`. One that was lost is folded anew there, and not written.

    Raises:
        RunFailed: it is damaged or another output's, or lost like rows that it had.
    """
    products = fetch_products(output, folder)
    _check_own(output, products)
    if products.etag is not None:
        return products
    work = folder / "refolded"
    work.mkdir()
    lost = _lost_runs(output, work)
    if not lost:
        return products
    folded = fold_runs(output, products, lost, work, uuid.uuid4().hex, gate or GateSettings(), listed=False)
    return StoredProducts(folded.path, folded.rows, folded.runs, folded.last, None, None)


def _check_own(output: Store, products: StoredProducts) -> None:
    newest = products.last.source
    names = ("manifest.parquet", "run.json")
    if newest and all(output.head(f"runs/{newest.run_id}/{name}") is None for name in names):
        raise RunFailed(
            f"{output.uri_of(PRODUCTS_KEY)} is the table of another output, for run {newest.run_id} is not in runs/; "
            f"make it anew from history with `enrich rebuild --output {output.uri}`"
        )


def _lost_runs(output: Store, folder: Path, but: str | None = None) -> list[RunRows]:
    """The rows of all runs that were published, where products.parquet is missing; none if none ever was."""
    if find_record(output, lambda record: record.state != "held") is None:
        return []
    runs = published_runs(output)
    logger.warning("%s is missing: made anew from %d runs of history", output.uri_of(PRODUCTS_KEY), len(runs))
    return [fetch_run(output, run, folder) for run in runs if run.run_id != but]


def published_runs(output: Store) -> list[RunInfo]:
    """The runs whose rows belong into products.parquet, the one created last at the end.

    A run that was held back or retired has a record that says so. A lost record must not cost rows: a run without one
    counts as published if history has all of its rows and a run created later was finished. Else it was interrupted,
    maybe before it was judged, and its run id goes on with it.
    """
    records = {record.run.run_id: record for record in read_records(output)}
    newest = max((record.run.mark for record in records.values()), default=_BEFORE_ALL)
    found = [record.run for record in records.values() if record.state != "held" and not record.retired]
    for run_id, file in runs_with_rows(output):
        if run_id in records:
            continue
        manifest = parquet.read(output, f"runs/{run_id}/manifest.parquet", MANIFEST_SCHEMA)
        described = manifest or parquet.read(output, file.key, ROW_SCHEMA)
        if described is None:
            raise RunFailed(f"{output.uri_of(file.key)} was there a moment ago; start again")
        run = _described_run(described.metadata, output.uri_of(file.key))
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
    folder: Path,
    make: Callable[[StoredProducts, Path, str], Folded],
    then: str,
    *,
    first: StoredProducts | None = None,
    anew: bool = False,
) -> Published:
    """Replace products.parquet by what `make` makes of it, again and again until nobody was faster.

    Args:
        first: the table for the first attempt, where it was downloaded and checked before.
        anew: `make` does not look at the table, which may be damaged or another output's.
    """
    writer_id = uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        work = folder / f"attempt-{attempt}"
        work.mkdir()
        if first is not None and attempt == 1:
            products = first
        elif anew:
            products = _to_be_replaced(output, work)
        else:
            products = fetch_products(output, work)
            _check_own(output, products)
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
    gate: GateSettings,
    *,
    listed: bool = True,
) -> Folded:
    """`products` with the rows of `runs` taken in, as a new file in `folder`.

    What people decided is laid over each piece of it: a row folded in has lost that.

    Args:
        listed: False where it matters little which photos are still there: without a listing all are.
    """
    reviews = read_reviews(output)
    last, named, changed = products.last, dict[str, PublishedRun](), False
    taken = [rows.run for rows in runs]
    for rows in runs:
        last = last_runs(last, rows.run, rows.stats if rows.count >= gate.min_rows else None)
    # Of the run created last, of those published and those being published: it decides in_source.
    source = None
    if runs and last.source:
        try:
            source = fetch_listing(output, last.source.run_id, folder)
        except RunFailed:
            if listed:
                raise
    rules = Rules.read(source.metadata[RULES_KEY]) if source and RULES_KEY in source.metadata else None
    if source is not None:
        where = output.uri_of(f"runs/{last.source.run_id}/source.parquet") if last.source else output.uri
        images_uri = _described_run(source.metadata, where).images_uri
        last = replace(last, rules=rules.digest if rules else None)
    # Rows of the table are under the rules that it names; those of a run may be under any.
    only = [run.run_id for run in taken] if rules and rules.digest == products.last.rules else None
    total = products.rows + sum(rows.count for rows in runs)
    tables = (products.frames(ROW_ORDER), *(rows.frames(ROW_ORDER) for rows in runs))
    sample = sampled(itertools.chain.from_iterable(tables), ROW_ORDER)
    if rules:
        sample = with_ids(sample, rules)
    by_key = cut(sample, ["image_key"], total)

    def folded() -> Iterator[pl.DataFrame]:
        nonlocal changed
        before = _spread(products.frames(), by_key, folder / "before")
        news = _spread(itertools.chain.from_iterable(rows.frames() for rows in runs), by_key, folder / "news")
        for number in range(len(before)):
            table = before.read(number)
            piece = Products(parquet.empty(PRODUCTS_SCHEMA) if table is None else table, products.runs, products.last)
            present = None if source is None else _present(source.path, by_key, number)
            new = news.read(number)
            after = piece
            if runs:
                after = fold(piece, taken, parquet.empty(ROW_SCHEMA) if new is None else new, present)
            shown = after.table
            if rules:
                shown = restated(shown, rules, after.runs, only)
            if source is not None:
                shown = with_uris(shown, after.runs, images_uri)
            shown = lay_over(shown, reviews).sort(ROW_ORDER, nulls_last=True)
            changed = changed or not shown.equals(piece.table)
            named.update(after.runs)
            yield shown

    path = folder / "next.parquet"
    ordered = in_order(folded(), cut(sample, ROW_ORDER, total), folder / "folded")
    count = write_products(path, ordered, lambda: (dict(sorted(named.items())), last), writer_id)
    return Folded(path, count, named, last, changed)


def _spread(frames: Iterable[pl.DataFrame], cuts: pl.DataFrame, folder: Path) -> Pieces:
    pieces = Pieces(folder, cuts)
    pieces.add(frames)
    pieces.close()
    return pieces


def fetch_listing(output: Store, run_id: str, folder: Path) -> parquet.LocalFile:
    """A copy of what a run saw in the source (SOURCE_SCHEMA, RULES_KEY); RunFailed if it is missing."""
    key = f"runs/{run_id}/source.parquet"
    file = parquet.fetch(output, key, SOURCE_SCHEMA, folder / "source.parquet", "start a new run")
    if file is None:
        raise RunFailed(f"{output.uri_of(key)} is missing: which photos are still there is unknown; start a new run")
    return file


def _present(source: Path, cuts: pl.DataFrame, number: int) -> pl.Series:
    """The listed keys that belong to a piece."""
    keys, bounds = pl.scan_parquet(source).select("key"), cuts["image_key"]
    if number > 0:
        keys = keys.filter(pl.col("key") >= bounds[number - 1])
    if number < len(bounds):
        keys = keys.filter(pl.col("key") < bounds[number])
    return keys.collect()["key"]


def _described_run(metadata: Mapping[str, str], where: str) -> RunInfo:
    """The run that a file says it belongs to."""
    try:
        return RunInfo.from_json(metadata.get(parquet.RUN_KEY, ""))
    except ValidationError as error:
        raise RunFailed(f"{where} does not say which run it belongs to; {parquet.AGAIN}") from error


def write_run_record(output: Store, record: RunRecord) -> None:
    """Write run.json: the last file of a run. A held run that is released later gets a new one."""
    output.put(f"{record.run.folder}run.json", record.model_dump_json(indent=2).encode())


def read_run_record(output: Store, run: RunInfo) -> RunRecord | None:
    """How a run ended, or None if it has not; RunFailed if its run.json is not one of ours."""
    key = f"{run.folder}run.json"
    if output.head(key) is None:
        return None
    return _read_record(output, key)


def _read_record(output: Store, key: str) -> RunRecord:
    try:
        return RunRecord.model_validate_json(output.get(key)[0])
    except ValidationError as error:
        raise RunFailed(
            f"{output.uri_of(key)} is not a record of a run; move it away and start the run again"
        ) from error


def read_records(output: Store) -> Iterator[RunRecord]:
    """The records of all finished runs, those created last first."""
    finished = [info.key for info in output.list("runs") if info.key.endswith("/run.json")]
    records = [_read_record(output, key) for key in finished]
    yield from sorted(records, key=lambda record: record.run.mark, reverse=True)


def find_record(output: Store, wanted: Callable[[RunRecord], bool]) -> RunRecord | None:
    """The finished run that was created last, of those that are `wanted`."""
    return next((record for record in read_records(output) if wanted(record)), None)
