"""The plan of a run: which products it must answer, why, and in which order.

First come products without an answer for their current photos: new, changed and failed ones, by product_id. Then those
that an older adapter answered, the least certain and most valuable first: they can wait, and a run may do only some.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.output import parquet
from enrich.output.photos_etag import photos_etags
from enrich.output.products import StoredProducts
from enrich.output.run_record import PublishedRun, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, SOURCE_SCHEMA
from enrich.output.spill import SAMPLE_EVERY, RangePartitions, detached, partition_bounds, ranges_of
from enrich.settings.run import RunSettings
from enrich.vocabulary import TRANSIENT, Reason

# How much refreshing a product is worth, ascending: how sure its category is, null as -1; and minus its price.
_WORTH = {"certainty": pl.Float32(), "cheapness": pl.Float64()}
_TODO = pa.schema([field for field in MANIFEST_SCHEMA if field.name != "shard"])
_RANKED = pa.schema([*_TODO, pa.field("certainty", pa.float32()), pa.field("cheapness", pa.float64())])
_ORDER = [*_WORTH, "product_id"]


@dataclass(frozen=True)
class Planned:
    """The content of a plan."""

    todo: int
    older: int  # products that an older adapter answered, left for later runs


@dataclass
class _Older:
    """Products that an older adapter answered, in a local file."""

    path: Path
    rows: int = 0
    samples: list[pl.DataFrame] = field(default_factory=lambda: [parquet.empty(_RANKED).select(_ORDER)])


def write_plan(
    path: Path,
    source: Path,
    products: StoredProducts,
    run: RunInfo,
    settings: RunSettings,
    folder: Path,
    limit: int | None = None,
    warnings: Sequence[str] = (),
) -> Planned:
    """Write the products that a run has to process (MANIFEST_SCHEMA, in the order of work), at most `limit`.

    `source` is what there is (SOURCE_SCHEMA, by product_id). At most PARTITION_ROWS rows of it and of the table are in
    memory at a time.
    """
    urgent, older = folder / "urgent.parquet", _Older(folder / "older.parquet")
    first = parquet.write(urgent, _split(source, products, run, settings, folder, older), _TODO, {})
    room = None if limit is None else max(0, limit - first)
    refreshed = min([older.rows, *(most for most in (room, settings.refresh) if most is not None)])
    taken = first if limit is None else min(first, limit)

    def rows() -> Iterator[pl.DataFrame]:
        yield from _head(parquet.frames(urgent, _TODO), taken)
        if refreshed:
            yield from _head(_by_worth(older, folder), refreshed)

    def numbered() -> Iterator[pl.DataFrame]:
        done = 0
        for frame in rows():
            shard = (pl.int_range(pl.len()) + done) // run.shard_size
            yield frame.with_columns(shard=shard.cast(pl.Int32))
            done += frame.height

    left = older.rows - refreshed
    metadata = {
        parquet.RUN_KEY: run.to_json(),
        parquet.WARNINGS_KEY: json.dumps(warnings),
        parquet.OLDER_KEY: str(left),
    }
    return Planned(parquet.write(path, numbered(), MANIFEST_SCHEMA, metadata), left)


def _split(
    source: Path, products: StoredProducts, run: RunInfo, settings: RunSettings, folder: Path, older: _Older
) -> Iterator[pl.DataFrame]:
    """The products to be answered first, by product_id, in ranges; the others are written to `older`."""
    with pq.ParquetWriter(older.path, _RANKED, compression="zstd") as writer:
        frames = map(_known, products.frames(_STORED))
        for listed, known in ranges_of(pl.scan_parquet(source), "product_id", frames, _KNOWN, folder / "known"):
            todo = _todo(listed, known, products.runs, run, settings)
            can_wait = pl.col("reason") == Reason.MODEL
            waiting = todo.filter(can_wait)
            if waiting.height:
                writer.write_table(waiting.select(_RANKED.names).to_arrow().cast(_RANKED))
                older.rows += waiting.height
                older.samples.append(detached(waiting.select(_ORDER).gather_every(SAMPLE_EVERY)))
            # The few rows of each part are kept in memory until they fill a row group.
            yield detached(todo.filter(~can_wait).select(_TODO.names))


def _by_worth(older: _Older, folder: Path) -> Iterator[pl.DataFrame]:
    """All products of `older`, those most worth refreshing first."""
    bounds = partition_bounds(pl.concat(older.samples), _ORDER, older.rows)
    parts = RangePartitions(bounds, folder / "older", _RANKED).add(parquet.frames(older.path, _RANKED))
    return parts.in_order()


def _head(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The first `rows` rows."""
    for frame in frames:
        if rows <= 0:
            return
        yield frame.head(rows).select(_TODO.names)
        rows -= frame.height


def by_product(
    listed: pl.LazyFrame, frames: Iterable[pl.DataFrame], columns: Sequence[str], folder: Path
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The rows of `listed` by product_id, some at a time, each part with the rows of `frames` in its range; these have
    some columns of PRODUCTS_SCHEMA, and rows in any order."""
    return ranges_of(listed, "product_id", frames, pa.schema(map(PRODUCTS_SCHEMA.field, columns)), folder)


def _todo(
    source: pl.DataFrame,
    products: pl.DataFrame,
    runs: Mapping[str, PublishedRun],
    run: RunInfo,
    settings: RunSettings,
) -> pl.DataFrame:
    """The products of a source (SOURCE_SCHEMA) that a run has to process, by product_id, with reason and worth.

    `products` are the current table's rows for these, columns _KNOWN, and `runs` those in its last_run_id.
    """
    of_runs = pl.DataFrame(
        [(name, before.fingerprint, before.circumstances == run.circumstances) for name, before in runs.items()],
        schema={"last_run_id": pl.String, "last_fingerprint": pl.String, "same_circumstances": pl.Boolean},
        orient="row",
    )
    known = products.unique("product_id", keep="first", maintain_order=True)  # version 2 may have had x.jpg and x.png
    known = known.join(of_runs, on="last_run_id", how="left")
    found = source.join(known, on="product_id", how="left")
    counts_on = (pl.col("reason") == Reason.RETRY) & pl.col("same_circumstances") & (
        pl.col("last_fingerprint") == run.fingerprint
    )  # fmt: skip
    again = pl.when(counts_on).then(pl.col("last_attempt") + 1).otherwise(1)
    return (
        found.with_columns(reason=_reason(run.fingerprint, settings.max_attempts))
        .filter(pl.col("reason").is_not_null())
        .sort("product_id")
        .select(
            *SOURCE_SCHEMA.names,
            "reason",
            again.cast(pl.Int16).alias("attempt"),
            pl.col("category_confidence").fill_null(-1.0).alias("certainty"),
            (-pl.col("price")).fill_null(float("inf")).alias("cheapness"),
        )
    )


_STORED = (
    "product_id", "photos", "status", "category_confidence", "price", "fingerprint", "last_photos_etag", "last_status",
    "last_error_kind", "last_attempt", "last_run_id",
)  # fmt: skip


# What a plan needs to know about a product: in place of its photos, which take most of the memory, their version.
_KNOWN = pa.schema(
    [
        *(PRODUCTS_SCHEMA.field(name) for name in _STORED if name != "photos"),
        pa.field("shown_etag", pa.string()),
        pa.field("partly", pa.bool_()),  # a photo of it could not be read, which may pass
    ]
)


def _known(stored: pl.DataFrame) -> pl.DataFrame:
    kinds = pl.element().struct.field("error_kind")
    partly = pl.col("photos").list.eval(kinds.is_in(sorted(TRANSIENT))).list.any()
    return stored.with_columns(shown_etag=photos_etags(stored["photos"]), partly=partly).select(_KNOWN.names)


def _reason(fingerprint: str, max_attempts: int) -> pl.Expr:
    """Why a product has to be processed, or null. `fingerprint` is the run's; last_fingerprint is the newest outcome's.

    A failure that is not TRANSIENT is not retried under the same circumstances and fingerprint, because it would fail
    again. A product that was answered without a photo whose failure may be temporary is retried like a failed one. The
    newest outcome decides. If it is good, the row shown must also have the same photos and fingerprint: tables from
    before sequences were introduced show what was processed last, even with older bytes or adapters.
    """
    answered = pl.col("last_status") == "ok"
    now = pl.col("photos_etag")
    other_photos = (pl.col("last_photos_etag") != now) | (answered & (pl.col("shown_etag") != now))
    other_model = pl.col("last_fingerprint").ne_missing(fingerprint) | (
        answered & (pl.col("fingerprint") != fingerprint)
    )
    attempts_left = pl.col("last_attempt") < max_attempts
    passing = pl.col("last_error_kind").is_in(sorted(TRANSIENT)) & attempts_left
    failed = pl.col("last_status") == "failed"
    may_pass = failed & (passing | ~pl.col("same_circumstances") | other_model)
    partly = answered & pl.col("partly") & attempts_left & ~other_model
    return (
        pl.when(pl.col("last_run_id").is_null())
        .then(pl.lit(Reason.NEW))
        .when(other_photos)
        .then(pl.lit(Reason.CHANGED))
        .when(may_pass | partly)
        .then(pl.lit(Reason.RETRY))
        .when(other_model)
        .then(pl.lit(Reason.MODEL))
    )
