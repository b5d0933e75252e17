"""products.parquet as the fold of history: a run is folded in and the table replaced by compare-and-swap."""

import random
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich import parquet
from enrich.errors import RunFailed
from enrich.gate import run_stats
from enrich.reviews import lay_over, read_reviews
from enrich.schema import (
    PRODUCTS_SCHEMA,
    ROW_ORDER,
    ROW_SCHEMA,
    SOURCE_SCHEMA,
    PublishedRun,
    RunInfo,
    RunRecord,
    RunStats,
)
from enrich.settings import GateSettings
from enrich.storage import Store

PRODUCTS_KEY = "products.parquet"
ATTEMPTS = 20  # every lost swap means that another publisher got through, so 20 publishers at once may pass
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.05, 5.0
_READERS = 8  # shards read at once: about 30 ms each on S3, and a first run has thousands


@dataclass(frozen=True, order=True)
class RunMark:
    """A run's place in the order of runs, whenever they are published."""

    created_at: datetime
    run_id: str


@dataclass(frozen=True)
class LastRuns:
    """What products.parquet keeps of the runs published so far, beside their rows."""

    source: RunMark | None = None  # the one created last: its listing decides in_source
    compared: RunMark | None = None  # the one created last that was large enough for the gate to compare with
    stats: RunStats | None = None  # of `compared`


@dataclass(frozen=True)
class Products:
    """products.parquet as it was read, or as it will be written. The defaults are an output that has none yet."""

    table: pl.DataFrame = field(default_factory=lambda: parquet.empty(PRODUCTS_SCHEMA))  # by ROW_ORDER
    runs: Mapping[str, PublishedRun] = field(default_factory=dict)  # every run that last_run_id names
    last: LastRuns = LastRuns()
    writer_id: str | None = None
    etag: str | None = None

    @property
    def last_stats(self) -> RunStats | None:
        """What the gate compares the next run with."""
        return self.last.stats


@dataclass(frozen=True)
class Published:
    """What a publish did."""

    rows: int  # of products.parquet
    changed: bool  # False: it already said everything, and was not written
    attempts: int


_RUNS = TypeAdapter(dict[str, PublishedRun])
_LAST_RUNS = TypeAdapter(LastRuns)
_LAST_COLUMNS = {  # where a newest outcome comes from
    "last_etag": "image_etag",
    "last_status": "status",
    "last_error_kind": "error_kind",
    "last_attempt": "attempt",
    "last_run_id": "run_id",
}


def publish(output: Store, run: RunInfo, gate: GateSettings | None = None) -> Published:
    """Fold what a run committed into products.parquet. In any order, any number of times, by any number at once.

    A table that would stay as it is is not written, so nor is the listing it agrees with: after a held run is released
    late, in_source may follow the listing before that one until the next run.

    Args:
        gate: a run of at least its min_rows images is what the next runs are compared with.

    Raises:
        RunFailed: other publishers were faster ATTEMPTS times, or a file is missing or not ours.
    """
    rows = read_shards(output, run)
    stats = run_stats(rows) if rows.height >= (gate or GateSettings()).min_rows else None
    return _swap(
        output,
        lambda products: fold(products, run, rows, listed_keys(output, products, run), stats),
        f"history has the run's rows: repeat with `enrich run --publish {run.run_id}`",
    )


def publish_reviews(output: Store) -> Published:
    """Lay what people decided over products.parquet. RunFailed as `publish`."""
    return _swap(output, lambda products: products, "reviews/ has the decisions: apply the file again")


def _swap(output: Store, change: Callable[[Products], Products], then: str) -> Published:
    """Replace products.parquet by what `change` makes of it, with the decisions of people laid over it."""
    writer_id = uuid.uuid4().hex
    for attempt in range(1, ATTEMPTS + 1):
        products = read_products(output)
        if products.writer_id == writer_id:  # the last swap went through and its response was lost
            return Published(products.table.height, changed=True, attempts=attempt - 1)
        changed = change(products)
        changed = replace(changed, table=lay_over(changed.table, read_reviews(output)).sort(ROW_ORDER, nulls_last=True))
        if products.etag is not None and changed.table.equals(products.table):
            return Published(products.table.height, changed=False, attempts=attempt)
        if output.replace(PRODUCTS_KEY, _encode(changed, writer_id), products.etag):
            return Published(changed.table.height, changed=True, attempts=attempt)
        time.sleep(random.uniform(0, min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2**attempt)))
    raise RunFailed(
        f"{output.uri_of(PRODUCTS_KEY)} was replaced by others {ATTEMPTS} times in a row; {then}, and if nobody else "
        "publishes, see `enrich doctor`"
    )


def fold(
    products: Products, run: RunInfo, rows: pl.DataFrame, present: pl.Series, stats: RunStats | None = None
) -> Products:
    """`products` with one run's rows taken in. Pure; neither the order of the runs nor a repetition makes a difference.

    The row shown is the newest ok row by (processed_at, run_id), else the newest failed one; decisions of people are
    laid over it afterwards, so a row folded in has lost them. last_* is the outcome of
    the run created last, by (created_at, run_id). Both are the greatest of a total order: folding is taking a maximum.

    Args:
        rows: what the run committed (ROW_SCHEMA).
        present: the keys that the run created last saw (`listed_keys`).
        stats: the run's statistics, kept for the gate if no later run's are there.
    """
    runs = {**products.runs, run.run_id: PublishedRun(run.created_at, run.fingerprint)}
    touched = products.table.join(rows, on="image_key", how="semi")
    untouched = products.table.join(rows, on="image_key", how="anti")
    outcomes = pl.concat([touched, _as_products(rows)])
    shown = _greatest(outcomes, pl.col("status") == "ok", pl.col("processed_at"), pl.col("run_id"))
    created_at = pl.col("last_run_id").replace_strict(
        list(runs),
        [published.created_at for published in runs.values()],
        default=None,
        return_dtype=pl.Datetime("us", "UTC"),
    )
    last = _greatest(outcomes, created_at, pl.col("last_run_id"))
    current = shown.select(ROW_SCHEMA.names).join(last.select("image_key", *_LAST_COLUMNS), on="image_key", how="left")
    table = (
        pl.concat([untouched.drop("in_source"), current], how="diagonal")
        .with_columns(in_source=pl.col("image_key").is_in(present.implode()))
        .select(PRODUCTS_SCHEMA.names)
        .sort(ROW_ORDER, nulls_last=True)
    )
    named = table["last_run_id"].unique().sort()
    return replace(products, table=table, runs={name: runs[name] for name in named}, last=_last(products, run, stats))


def _as_products(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as products that have no other outcome than themselves."""
    last = [pl.col(column).alias(name) for name, column in _LAST_COLUMNS.items()]
    nobody = pl.lit(None, pl.String).alias("reviewed_by"), pl.lit(None, pl.Datetime("us", "UTC")).alias("reviewed_at")
    return rows.with_columns(*last, *nobody, in_source=True).select(PRODUCTS_SCHEMA.names)


def _greatest(outcomes: pl.DataFrame, *order: pl.Expr) -> pl.DataFrame:
    """For each image the one outcome that is greatest in `order`."""
    ranked = outcomes.sort(*order, descending=True, nulls_last=True)
    return ranked.unique("image_key", keep="first", maintain_order=True)


def _last(products: Products, run: RunInfo, stats: RunStats | None) -> LastRuns:
    last, mark = products.last, RunMark(run.created_at, run.run_id)
    if stats is not None and (last.compared is None or mark >= last.compared):
        last = replace(last, compared=mark, stats=stats)
    return replace(last, source=max(last.source or mark, mark))


def listed_keys(output: Store, products: Products, run: RunInfo) -> pl.Series:
    """The keys in the listing of the run created last, of `run` and those that are in `products`."""
    last = _last(products, run, None).source
    assert last is not None
    return listing(output, replace(run, run_id=last.run_id))


def listing(output: Store, run: RunInfo) -> pl.Series:
    """The keys that a run saw in the source."""
    key = f"{run.folder}source.parquet"
    file = parquet.read(output, key, SOURCE_SCHEMA)
    if file is None:
        raise RunFailed(f"{output.uri_of(key)} is missing: which photos are still there is unknown; start a new run")
    return file.table["key"]


def read_shards(output: Store, run: RunInfo) -> pl.DataFrame:
    """Every committed row of a run (ROW_SCHEMA); RunFailed if its folder holds a Parquet file that is not its own."""

    def rows_of(key: str) -> pl.DataFrame:
        file = parquet.read(output, key, ROW_SCHEMA)
        if file is None or file.metadata.get(parquet.RUN_ID_KEY) != run.run_id:
            raise RunFailed(f"{output.uri_of(key)} is no shard of run {run.run_id}; move it away and publish again")
        return file.table

    keys = sorted(info.key for info in output.list(run.history) if info.key.endswith(".parquet"))
    with ThreadPoolExecutor(_READERS) as pool:
        return pl.concat([parquet.empty(ROW_SCHEMA), *pool.map(rows_of, keys)])


def read_products(output: Store) -> Products:
    """The current table, empty where there is none yet; RunFailed if the file is not one of ours."""
    file = parquet.read(output, PRODUCTS_KEY, PRODUCTS_SCHEMA)
    if file is None:
        return Products()
    try:
        runs = _RUNS.validate_json(file.metadata["enrich.runs"])
        last = _LAST_RUNS.validate_json(file.metadata["enrich.last_run"])
        writer_id = file.metadata[parquet.WRITER_KEY]
    except (KeyError, ValidationError) as error:
        raise RunFailed(
            f"{output.uri_of(PRODUCTS_KEY)} was not written by enrich; move it away, then publish the runs again"
        ) from error
    return Products(file.table, runs, last, writer_id, file.etag)


def _encode(products: Products, writer_id: str) -> bytes:
    metadata = {
        "enrich.runs": _RUNS.dump_json(dict(products.runs)).decode(),
        "enrich.last_run": _LAST_RUNS.dump_json(products.last).decode(),
        parquet.WRITER_KEY: writer_id,
    }
    return parquet.encode(products.table, PRODUCTS_SCHEMA, metadata, sorted_by=ROW_ORDER)


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
