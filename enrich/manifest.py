"""What one run has to do: the listing of the bucket minus what products.parquet already has."""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice

import polars as pl
from pydantic import ValidationError

from enrich import parquet
from enrich.errors import RunFailed, UsageError
from enrich.schema import (
    MANIFEST_SCHEMA,
    SOURCE_SCHEMA,
    TRANSIENT,
    ManifestItem,
    PublishedRun,
    Reason,
    RunInfo,
)
from enrich.settings import RunSettings
from enrich.storage import ObjectInfo, Store

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LISTING_CHUNK = 100_000  # objects, some 50 MB while they become columns


@dataclass(frozen=True)
class Manifest:
    """A run and its images (MANIFEST_SCHEMA, by key). Made once, before any work; a restarted run reads it back."""

    run: RunInfo
    table: pl.DataFrame

    @property
    def shards(self) -> tuple[int, ...]:
        """Every shard number, ascending."""
        return tuple(self.table["shard"].unique().sort().to_list())


def new_run_id(now: datetime) -> str:
    """A run id that sorts by time, such as 20261122T020000Z-1f3a9c."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """`run_id` itself, or UsageError if it could not name a folder everywhere."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run id {run_id!r} is not valid: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return run_id


def source_table(objects: Iterable[ObjectInfo]) -> pl.DataFrame:
    """A listing as SOURCE_SCHEMA columns, by key: some 100 bytes an image, never all of them as Python objects."""

    def chunks() -> Iterator[pl.DataFrame]:
        rest = iter(objects)
        while chunk := list(islice(rest, _LISTING_CHUNK)):
            yield parquet.from_records([asdict(info) for info in chunk], SOURCE_SCHEMA)

    return pl.concat([parquet.empty(SOURCE_SCHEMA), *chunks()]).sort("key")


def plan(
    source: pl.DataFrame,
    products: pl.DataFrame | None,
    runs: Mapping[str, PublishedRun],
    fingerprint: str,
    settings: RunSettings,
    limit: int | None = None,
) -> pl.DataFrame:
    """The images that a run has to do (MANIFEST_SCHEMA), by key in UTF-8 order.

    A failure that is not TRANSIENT is not tried again: the same bytes and fingerprint would only fail again.
    Needs memory for the keys and etags of both tables, about 200 bytes an image.

    Args:
        source: the listing now (SOURCE_SCHEMA).
        products: the current table (PRODUCTS_SCHEMA), None if there is none yet.
        runs: the runs that its last_run_id names.
        limit: only the first so many.
    """
    if products is None:
        products = pl.DataFrame(schema=dict.fromkeys(_KNOWN, pl.String)).cast({"last_attempt": pl.Int16})
    fingerprints = pl.DataFrame(
        {"last_run_id": list(runs), "last_fingerprint": [run.fingerprint for run in runs.values()]},
        schema={"last_run_id": pl.String, "last_fingerprint": pl.String},
    )
    known = products.select(_KNOWN).join(fingerprints, on="last_run_id", how="left")
    images = source.join(known, left_on="key", right_on="image_key", how="left")
    return (
        images.with_columns(reason=_reason(fingerprint, settings.max_attempts))
        .filter(pl.col("reason").is_not_null())
        .sort("key")
        .head(limit if limit is not None else len(images))
        .with_row_index("row")
        .select(
            "key",
            "size",
            "etag",
            "reason",
            pl.when(pl.col("reason") == Reason.RETRY)
            .then(pl.col("last_attempt") + 1)
            .otherwise(1)
            .cast(pl.Int16)
            .alias("attempt"),
            (pl.col("row") // settings.shard_size).cast(pl.Int32).alias("shard"),
        )
    )


_KNOWN = (
    "image_key",
    "image_etag",
    "fingerprint",
    "last_etag",
    "last_status",
    "last_error_kind",
    "last_attempt",
    "last_run_id",
)


def _reason(fingerprint: str, max_attempts: int) -> pl.Expr:
    """Why an image is to be done, or null. `fingerprint` is this run's; last_fingerprint is the newest outcome's.

    The newest outcome decides. Where it is good, the row shown must be of the same bytes and fingerprint too: a run
    that was resumed after a newer one may have processed an image later but with older bytes or an older adapter.
    """
    answered = pl.col("last_status") == "ok"
    other_bytes = (pl.col("last_etag") != pl.col("etag")) | (answered & (pl.col("image_etag") != pl.col("etag")))
    other_model = pl.col("last_fingerprint").ne_missing(fingerprint) | (
        answered & (pl.col("fingerprint") != fingerprint)
    )
    may_pass = (
        (pl.col("last_status") == "failed")
        & pl.col("last_error_kind").is_in(sorted(TRANSIENT))
        & (pl.col("last_attempt") < max_attempts)
    )
    return (
        pl.when(pl.col("last_run_id").is_null())
        .then(pl.lit(Reason.NEW))
        .when(other_bytes)
        .then(pl.lit(Reason.CHANGED))
        .when(other_model)
        .then(pl.lit(Reason.MODEL))
        .when(may_pass)
        .then(pl.lit(Reason.RETRY))
    )


def create_manifest(output: Store, run: RunInfo, source: pl.DataFrame, manifest: pl.DataFrame) -> Manifest:
    """Write the listing, then the manifest, which makes the run exist. Returns the manifest that stands.

    Where another process began the same run first, its manifest stands and this one's is dropped. The listing is
    written without a condition: one left by a process that died before its manifest is older than this one.
    """
    pairs = {parquet.RUN_KEY: run.to_json()}
    output.put(f"{run.folder}source.parquet", parquet.encode(source, SOURCE_SCHEMA, pairs, sorted_by=["key"]))
    key = f"{run.folder}manifest.parquet"
    if output.create(key, parquet.encode(manifest, MANIFEST_SCHEMA, pairs, sorted_by=["key"])):
        return Manifest(run, manifest)
    standing = read_manifest(output, run.run_id)
    if standing is None:
        raise RunFailed(f"{output.uri_of(key)} could be neither created nor read; start the run again")
    return standing


def read_manifest(output: Store, run_id: str) -> Manifest | None:
    """The manifest of a run that was begun, else None; RunFailed if the file is not a manifest."""
    key = f"runs/{check_run_id(run_id)}/manifest.parquet"
    file = parquet.read(output, key, MANIFEST_SCHEMA)
    if file is None:
        return None
    try:
        return Manifest(RunInfo.from_json(file.metadata.get(parquet.RUN_KEY, "")), file.table)
    except ValidationError as error:
        raise RunFailed(f"{output.uri_of(key)} does not say which run it belongs to; use another run id") from error


def check_same_run(manifest: Manifest, run: RunInfo) -> None:
    """UsageError if `run` would go on with a run id that was begun on other images or with another fingerprint."""
    begun = manifest.run
    if begun.images_uri != run.images_uri:
        raise UsageError(
            f"run {run.run_id} was begun on images {begun.images_uri}, not {run.images_uri}; use another run id"
        )
    if begun.fingerprint != run.fingerprint:
        raise UsageError(
            f"run {run.run_id} was begun with fingerprint {begun.fingerprint} (adapter {begun.adapter}), not "
            f"{run.fingerprint} (adapter {run.adapter}); use another run id"
        )


def items(manifest: Manifest, shard: int) -> list[ManifestItem]:
    """The images of one shard, by key."""
    rows = manifest.table.filter(pl.col("shard") == shard)
    return [ManifestItem(**{**row, "reason": Reason(row["reason"])}) for row in rows.iter_rows(named=True)]
