"""products.parquet: the current table, and the fold that makes the next one from it and a run's rows."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich.errors import PermanentFailure, shell
from enrich.output import parquet
from enrich.output.photos_etag import photos_etags
from enrich.output.run_record import PublishedRun, RunInfo, RunMark, RunStats
from enrich.output.schema import PRODUCTS_SCHEMA, ROW_ORDER, ROW_SCHEMA
from enrich.storage import Store

PRODUCTS_KEY = "products.parquet"


@dataclass(frozen=True)
class LastRuns:
    """What products.parquet stores about the runs published so far, in addition to their rows."""

    source: RunMark | None = None  # the one created last: its listing decides in_source
    compared: RunMark | None = None  # the one created last that was large enough for the gate to compare with
    stats: RunStats | None = None  # of `compared`
    rules: str | None = None  # digest of those that the rows are stated under, the rules of `source`


@dataclass(frozen=True)
class Products:
    """products.parquet in memory, or a part of it. The defaults are those of an output without one."""

    table: pl.DataFrame = field(default_factory=lambda: parquet.empty(PRODUCTS_SCHEMA))  # by ROW_ORDER
    runs: Mapping[str, PublishedRun] = field(default_factory=dict)  # every run that run_id or last_run_id names
    last: LastRuns = LastRuns()
    writer_id: str | None = None
    etag: str | None = None


@dataclass(frozen=True)
class StoredProducts:
    """products.parquet on the local disk. The defaults are those of an output without one."""

    path: Path | None = None
    rows: int = 0
    runs: Mapping[str, PublishedRun] = field(default_factory=dict)
    last: LastRuns = LastRuns()
    writer_id: str | None = None
    etag: str | None = None

    @property
    def highest_sequence(self) -> int:
        """Of the runs that it knows; 0 if none has a sequence."""
        marks = [mark.sequence for mark in (self.last.source, self.last.compared) if mark]
        return max([*(run.sequence for run in self.runs.values()), *marks], default=0)

    def frames(self, columns: Sequence[str] | None = None) -> Iterable[pl.DataFrame]:
        """Its rows, some at a time."""
        return () if self.path is None else parquet.frames(self.path, PRODUCTS_SCHEMA, columns)


_RUNS = TypeAdapter(dict[str, PublishedRun])
_LAST_RUNS = TypeAdapter(LastRuns)
_LAST_COLUMNS = {  # where a newest outcome comes from
    "last_photos_etag": "photos_etag",
    "last_status": "status",
    "last_error_kind": "error_kind",
    "last_attempt": "attempt",
    "last_run_id": "run_id",
}


def fold(products: Products, runs: Sequence[RunInfo], rows: pl.DataFrame, present: pl.Series | None) -> Products:
    """`products` with the rows of runs folded in. Pure; neither order nor repetition makes a difference.

    The row shown is the good one of the run created last, else the failed one of the run created last; what people
    decided is applied to it afterwards. last_* is the outcome of the run created last, good or not. Runs are ordered by
    their marks, so both are the greatest of a total order: folding is taking a maximum. `last` does not change.

    Args:
        runs: in any order.
        rows: what they committed (ROW_SCHEMA).
        present: the ids that the run created last saw; None: all of them.
    """
    known = {**products.runs, **{run.run_id: PublishedRun.of(run) for run in runs}}
    table = _once(products.table, known)
    touched = table.join(rows, on="product_id", how="semi")
    untouched = table.join(rows, on="product_id", how="anti")
    outcomes = pl.concat([touched, _as_products(rows)])
    shown = _greatest(outcomes, pl.col("status") == "ok", *_order("run_id", known))
    last = _greatest(outcomes, *_order("last_run_id", known))
    current = shown.select(ROW_SCHEMA.names).join(
        last.select("product_id", *_LAST_COLUMNS), on="product_id", how="left"
    )
    table = (
        pl.concat([untouched.drop("in_source"), current], how="diagonal")
        .with_columns(in_source=pl.lit(True) if present is None else pl.col("product_id").is_in(present.implode()))
        .select(PRODUCTS_SCHEMA.names)
        .sort(ROW_ORDER, nulls_last=True)
    )
    named = pl.concat([table["run_id"], table["last_run_id"]]).unique().sort()
    return replace(products, table=table, runs={name: known[name] for name in named if name in known})


def _once(table: pl.DataFrame, runs: Mapping[str, PublishedRun]) -> pl.DataFrame:
    """`table` with one row for each product: where version 2 had x.jpg and x.png, both are product x by now."""
    doubled = table["product_id"].is_duplicated()
    return _greatest(table, pl.col("status") == "ok", *_order("run_id", runs)) if doubled.any() else table


def _order(column: str, runs: Mapping[str, PublishedRun]) -> tuple[pl.Expr, ...]:
    """The mark of the run that `column` names.

    A table from before there were sequences does not name all of its runs; the row's time is used instead of theirs.
    """
    return (
        of_run(column, {name: run.sequence for name, run in runs.items()}, pl.Int64(), 0),
        of_run(
            column,
            {name: run.created_at for name, run in runs.items()},
            pl.Datetime("us", "UTC"),
            pl.col("processed_at"),
        ),
        pl.col(column),
        pl.col("last_photos_etag"),  # a run of version 2 may have two rows of what is one product by now
    )


def of_run(
    column: str, values: Mapping[str, object], kind: pl.DataType, default: pl.Expr | int | None = None
) -> pl.Expr:
    """The value of the run that `column` names, `default` for runs that are not among `values`."""
    return pl.col(column).replace_strict(list(values), list(values.values()), default=default, return_dtype=kind)


def _as_products(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as products that have no other outcome than themselves."""
    rows = rows.with_columns(photos_etag=photos_etags(rows["photos"]))
    last = [pl.col(column).alias(name) for name, column in _LAST_COLUMNS.items()]
    nobody = pl.lit(None, pl.String).alias("reviewed_by"), pl.lit(None, pl.Datetime("us", "UTC")).alias("reviewed_at")
    return rows.with_columns(*last, *nobody, in_source=True).select(PRODUCTS_SCHEMA.names)


def _greatest(outcomes: pl.DataFrame, *order: pl.Expr) -> pl.DataFrame:
    """For each product the one outcome that is greatest in `order`."""
    ranked = outcomes.sort(*order, descending=True, nulls_last=True)
    return ranked.unique("product_id", keep="first", maintain_order=True)


def last_runs(last: LastRuns, run: RunInfo, stats: RunStats | None) -> LastRuns:
    """`last` with a run taken in, whose statistics are None if it is too small to be compared with."""
    if stats is not None and (last.compared is None or run.mark >= last.compared):
        last = replace(last, compared=run.mark, stats=stats)
    return replace(last, source=max(last.source or run.mark, run.mark))


def read_products(output: Store) -> Products:
    """The current table in memory, empty where there is none yet; RunFailed if the file is not one of ours."""
    file = parquet.read(output, PRODUCTS_KEY, PRODUCTS_SCHEMA, how_to_rebuild(output))
    if file is None:
        return Products()
    return Products(file.table, *_header(file.metadata, output), file.etag)


def fetch_products(output: Store, folder: Path) -> StoredProducts:
    """The current table copied to a file of its own in `folder`; RunFailed if it is not one of ours."""
    path = folder / f"products-{uuid.uuid4().hex}.parquet"
    file = parquet.fetch(output, PRODUCTS_KEY, PRODUCTS_SCHEMA, path, how_to_rebuild(output))
    if file is None:
        return StoredProducts()
    return StoredProducts(file.path, file.rows, *_header(file.metadata, output), file.etag)


def _header(metadata: Mapping[str, str], output: Store) -> tuple[Mapping[str, PublishedRun], LastRuns, str]:
    try:
        runs = _RUNS.validate_json(metadata["enrich.runs"])
        last = _LAST_RUNS.validate_json(metadata["enrich.last_run"])
        return runs, last, metadata[parquet.WRITER_KEY]
    except (KeyError, ValidationError) as error:
        raise PermanentFailure(
            f"{output.uri_of(PRODUCTS_KEY)} was not written by enrich; {how_to_rebuild(output)}"
        ) from error


def how_to_rebuild(output: Store) -> str:
    """Advice for the user about a table that cannot be used."""
    return f"rebuild it from history with `enrich rebuild --output {shell(output.uri)}`"


def write_products(
    path: Path, frames: Iterable[pl.DataFrame], runs: Mapping[str, PublishedRun], last: LastRuns, writer_id: str
) -> int:
    """The table as a local file, from rows by ROW_ORDER and the runs that they name; returns the number of rows."""
    metadata = {
        "enrich.runs": _RUNS.dump_json(dict(runs)).decode(),
        "enrich.last_run": _LAST_RUNS.dump_json(last).decode(),
        parquet.WRITER_KEY: writer_id,
    }
    return parquet.write(path, frames, PRODUCTS_SCHEMA, metadata, sorted_by=ROW_ORDER)
