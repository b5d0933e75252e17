"""The images that a run has to process: the listing of the bucket minus those already in products.parquet."""

import json
import re
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from enrich.errors import RunFailed, UsageError
from enrich.output import parquet
from enrich.output.products import StoredProducts
from enrich.output.run_record import PublishedRun, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_SCHEMA
from enrich.output.spill import MAX_PARTITIONS, PARTITION_ROWS, RangePartitions, detached
from enrich.settings.run import RunSettings
from enrich.storage import Store
from enrich.storage.scratch import Scratch
from enrich.vocabulary import TRANSIENT, ManifestItem, Reason

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LINES = TypeAdapter(tuple[str, ...])


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Manifest:
    """A run and its images, in a local file (MANIFEST_SCHEMA, by key) that exists as long as this object.

    Created once, before any work; a restarted run reads it back.
    """

    run: RunInfo
    path: Path
    rows: int
    warnings: tuple[str, ...] = ()  # from planning, for the user; one line each

    @property
    def shards(self) -> range:
        """Every shard number, ascending."""
        return range(-(-self.rows // self.run.shard_size))

    def by_reason(self) -> dict[str, int]:
        """The number of images by reason."""
        counts = pl.scan_parquet(self.path).group_by("reason").len().sort("reason").collect(engine="streaming")
        return dict(counts.iter_rows())

    def rows_in(self, shards: Sequence[int]) -> int:
        """The number of images in `shards`."""
        size = self.run.shard_size
        return sum(max(0, min(size, self.rows - shard * size)) for shard in shards)


def new_run_id(now: datetime) -> str:
    """A run id that sorts by time, such as 20261122T020000Z-1f3a9c."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """Return `run_id`; UsageError if it is not a valid folder name on every system."""
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"run id {run_id!r} is not valid: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )
    return run_id


def check_new_run_id(run_id: str) -> None:
    """UsageError for a run id of digits only: readers of history would parse the folder run_id=42 as a number."""
    if run_id.isdecimal():
        raise UsageError(
            f"run id {run_id}: pandas and others would read the folder run_id={run_id} as a number; add a letter, "
            f"such as run-{run_id}"
        )


def write_plan(
    path: Path,
    source: Path,
    products: StoredProducts,
    run: RunInfo,
    settings: RunSettings,
    folder: Path,
    limit: int | None = None,
    warnings: Sequence[str] = (),
) -> int:
    """Write the images that a run has to process (MANIFEST_SCHEMA, by key); returns their number.

    At most PARTITION_ROWS rows of the listing and of the table are in memory at a time.

    Args:
        source: the current listing (SOURCE_SCHEMA, by key).
        limit: the maximum number of images.
        warnings: stored with the manifest, see `Manifest`.
    """

    def parts() -> Iterator[pl.DataFrame]:
        done = 0
        for listed, known in _by_key(pl.scan_parquet(source), products.frames(_KNOWN), _KNOWN, folder / "known"):
            # The few rows of each part are kept in memory until they fill a row group.
            todo = detached(_todo(listed, known, products.runs, run, settings))
            todo = todo if limit is None else todo.head(max(0, limit - done))
            shard = (pl.int_range(pl.len()) + done) // run.shard_size
            yield todo.with_columns(shard=shard.cast(pl.Int32))
            done += todo.height

    metadata = {parquet.RUN_KEY: run.to_json(), parquet.WARNINGS_KEY: json.dumps(warnings)}
    return parquet.write(path, parts(), MANIFEST_SCHEMA, metadata, sorted_by=["key"])


def _by_key(
    listed: pl.LazyFrame, frames: Iterable[pl.DataFrame], columns: Sequence[str], folder: Path
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield the rows of `listed` by key, PARTITION_ROWS at a time, each part with the rows of `frames` in the same
    range of image_key.

    Args:
        columns: the columns of `frames`, which are rows of PRODUCTS_SCHEMA in any order.
    """
    rows = listed.select(pl.len()).collect().item()
    size = max(PARTITION_ROWS, -(-rows // MAX_PARTITIONS))
    keys = listed.select(image_key="key")
    bounds = [detached(keys.slice(place, 1).collect()) for place in range(size, rows, size)]
    schema = pa.schema([PRODUCTS_SCHEMA.field(name) for name in columns])
    known = RangePartitions(pl.concat([keys.limit(0).collect(), *bounds]), folder, schema).add(frames)
    for number, part in enumerate(known):
        yield listed.slice(number * size, size).collect(), part


def write_answers(path: Path, plan: Path, products: StoredProducts, run: RunInfo, folder: Path) -> int:
    """Write the answers (ROW_SCHEMA, by key) that images of a plan keep if their bytes turn out to be the same, since
    a new etag does not prove new bytes. Returns their number. Reviewed rows are left out.

    Args:
        plan: the file from `write_plan`.
    """
    may_stay = (
        (pl.col("status") == "ok")
        & (pl.col("fingerprint") == run.fingerprint)
        & pl.col("image_sha256").is_not_null()
        & pl.col("reviewed_by").is_null()
    )
    wanted = pl.scan_parquet(plan).filter(pl.col("reason") != Reason.NEW).select("key")
    few = wanted.head(PARTITION_ROWS + 1).collect()
    frames = (frame.filter(may_stay) for frame in products.frames()) if few.height else iter(())
    if few.height <= PARTITION_ROWS:  # a single range, which is loaded into memory: leave out the rest of the table
        frames = (frame.join(few, left_on="image_key", right_on="key", how="semi") for frame in frames)
    kept = (
        detached(known.join(keys, left_on="image_key", right_on="key", how="semi").sort("image_key"))
        for keys, known in _by_key(wanted, frames, PRODUCTS_SCHEMA.names, folder / "kept")
    )
    return parquet.write(path, kept, ROW_SCHEMA, {parquet.RUN_KEY: run.to_json()}, sorted_by=["image_key"])


def fetch_answers(output: Store, run: RunInfo, folder: Path) -> Path | None:
    """A local copy of the file that `write_answers` wrote for a run, or None if the run has none."""
    file = parquet.fetch(output, run.answers, ROW_SCHEMA, folder / "answers.parquet", "use another run id")
    return file.path if file else None


def known_answers(answers: Path, items: Sequence[ManifestItem]) -> dict[str, dict[str, Any]]:
    """The rows of such a file for consecutive images of the manifest, by key."""
    if not items:
        return {}
    between = pl.col("image_key").is_between(pl.lit(items[0].key), pl.lit(items[-1].key))
    rows = pl.scan_parquet(answers).filter(between).collect()
    return {row["image_key"]: row for row in rows.iter_rows(named=True)}


def _todo(
    source: pl.DataFrame,
    products: pl.DataFrame,
    runs: Mapping[str, PublishedRun],
    run: RunInfo,
    settings: RunSettings,
) -> pl.DataFrame:
    """The images of a listing that a run has to process, with reason and attempt, by key in UTF-8 order.

    A failure that is not TRANSIENT is not retried under the same circumstances, because it would fail again.

    Args:
        source: the current listing (SOURCE_SCHEMA).
        products: the current table's rows for these keys, columns _KNOWN.
        runs: the runs in its last_run_id.
    """
    of_runs = pl.DataFrame(
        [(name, before.fingerprint, before.circumstances == run.circumstances) for name, before in runs.items()],
        schema={"last_run_id": pl.String, "last_fingerprint": pl.String, "same_circumstances": pl.Boolean},
        orient="row",
    )
    known = products.join(of_runs, on="last_run_id", how="left")
    images = source.join(known, left_on="key", right_on="image_key", how="left")
    counts_on = (pl.col("reason") == Reason.RETRY) & pl.col("same_circumstances")
    again = pl.when(counts_on).then(pl.col("last_attempt") + 1).otherwise(1)
    return (
        images.with_columns(reason=_reason(run.fingerprint, settings.max_attempts))
        .filter(pl.col("reason").is_not_null())
        .sort("key")
        .select("key", "size", "etag", "reason", again.cast(pl.Int16).alias("attempt"))
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
    """Why an image has to be processed, or null. `fingerprint` is this run's; last_fingerprint is the newest outcome's.

    The newest outcome decides. If it is good, the row shown must also have the same bytes and fingerprint: tables from
    before sequences were introduced show what was processed last, even with older bytes or an older adapter.
    """
    answered = pl.col("last_status") == "ok"
    other_bytes = (pl.col("last_etag") != pl.col("etag")) | (answered & (pl.col("image_etag") != pl.col("etag")))
    other_model = pl.col("last_fingerprint").ne_missing(fingerprint) | (
        answered & (pl.col("fingerprint") != fingerprint)
    )
    attempts_left = pl.col("last_error_kind").is_in(sorted(TRANSIENT)) & (pl.col("last_attempt") < max_attempts)
    may_pass = (pl.col("last_status") == "failed") & (attempts_left | ~pl.col("same_circumstances"))
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


def create_manifest(output: Store, run: RunInfo, source: Path, manifest: Path, answers: Path | None = None) -> Manifest:
    """Write the listing and the answers that may be kept, then the manifest, which creates the run. Returns the
    manifest in force.

    If another process started the same run first, its manifest is in force and this one is dropped. Listing and
    answers are overwritten: those left by a process that died before it wrote its manifest are older.
    """
    output.put(f"{run.folder}source.parquet", source)
    if answers is not None:
        output.put(run.answers, answers)
    output.create(f"{run.folder}manifest.parquet", manifest)
    standing = read_manifest(output, run.run_id)
    if standing is None:
        where = output.uri_of(f"{run.folder}manifest.parquet")
        raise RunFailed(f"{where} could be neither created nor read; start the run again")
    return standing


def read_manifest(output: Store, run_id: str) -> Manifest | None:
    """The manifest of a run that was started, copied to the local disk, else None; RunFailed if it is invalid."""
    key, folder = f"runs/{check_run_id(run_id)}/manifest.parquet", Scratch()
    with ExitStack() as failed:
        failed.callback(folder.remove)
        file = parquet.fetch(output, key, MANIFEST_SCHEMA, folder.path / "manifest.parquet", "use another run id")
        if file is None:
            return None
        try:
            run = RunInfo.from_json(file.metadata.get(parquet.RUN_KEY, ""))
            warnings = _LINES.validate_json(file.metadata.get(parquet.WARNINGS_KEY, "[]"))
        except ValidationError as error:
            raise RunFailed(f"{output.uri_of(key)} does not say which run it belongs to; use another run id") from error
        manifest = Manifest(run, file.path, file.rows, warnings)
        weakref.finalize(manifest, failed.pop_all().close)
    return manifest


def check_same_run(manifest: Manifest, run: RunInfo) -> None:
    """UsageError if `run` would resume a run id that was started with other images or that would get other answers."""
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
    if begun.circumstances and begun.circumstances != run.circumstances:
        raise UsageError(
            f"run {run.run_id} was begun with other limits on photos or answers, another engine or version of Pillow; "
            "set them as they were, or use another run id"
        )


def items(manifest: Manifest, shard: int) -> list[ManifestItem]:
    """The images of one shard, by key."""
    size = manifest.run.shard_size
    rows = pl.scan_parquet(manifest.path).slice(shard * size, size).collect()
    return [ManifestItem(**{**row, "reason": Reason(row["reason"])}) for row in rows.iter_rows(named=True)]
