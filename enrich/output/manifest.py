"""A run's work: the manifest, which is written once, before any processing, and read by all later steps."""

import re
import secrets
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich.errors import PermanentFailure, RunFailed, UsageError
from enrich.output import parquet
from enrich.output.plan import by_product
from enrich.output.products import StoredProducts
from enrich.output.run_record import RUN_ID, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_SCHEMA
from enrich.output.spill import PARTITION_ROWS, detached
from enrich.storage import Store
from enrich.storage.scratch import Scratch
from enrich.vocabulary import ListedPhoto, ManifestItem, Reason

_MAY_KEEP = (Reason.CHANGED, Reason.RETRY)  # products whose answer may turn out to be right still
_LINES = TypeAdapter(tuple[str, ...])


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Manifest:
    """A run and its products, in a local file (MANIFEST_SCHEMA, in the order of work) that this object keeps.

    Created once, before any work; a restarted run reads it back.
    """

    run: RunInfo
    path: Path
    rows: int
    warnings: tuple[str, ...] = ()  # from planning, for the user; one line each
    older: int = 0  # products that an older adapter answered and that were left for later runs

    @property
    def shards(self) -> range:
        """Every shard number, ascending."""
        return range(-(-self.rows // self.run.shard_size))

    def by_reason(self) -> dict[str, int]:
        """The number of products by reason."""
        counts = pl.scan_parquet(self.path).group_by("reason").len().sort("reason").collect(engine="streaming")
        return dict(counts.iter_rows())

    def older_in(self, shards: Sequence[int]) -> int:
        """The number of products in `shards` that an older adapter answered."""
        older = pl.scan_parquet(self.path).filter(pl.col("reason") == Reason.MODEL, pl.col("shard").is_in(list(shards)))
        return int(older.select(pl.len()).collect(engine="streaming").item())

    def rows_in(self, shards: Sequence[int]) -> int:
        """The number of products in `shards`."""
        size = self.run.shard_size
        return sum(max(0, min(size, self.rows - shard * size)) for shard in shards)


def new_run_id(now: datetime) -> str:
    """A run id that sorts by time, such as 20261122T020000Z-1f3a9c."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """Return `run_id`; UsageError if it is not a valid folder name on every system."""
    if not re.fullmatch(RUN_ID, run_id):
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


def write_answers(path: Path, plan: Path, products: StoredProducts, run: RunInfo, folder: Path) -> int:
    """Write the answers (ROW_SCHEMA, by product_id) that products of a plan keep if their photos' bytes turn out to be
    the same, since a new etag does not prove new bytes. Returns their number. Reviewed rows are left out.
    """
    may_stay = (
        (pl.col("status") == "ok")
        & (pl.col("fingerprint") == run.fingerprint)
        & (pl.col("photos_answered") > 0)
        & pl.col("reviewed_by").is_null()
    )
    wanted = pl.scan_parquet(plan).filter(pl.col("reason").is_in(_MAY_KEEP)).select("product_id")
    few = wanted.head(PARTITION_ROWS + 1).collect()
    frames = (frame.filter(may_stay) for frame in products.frames()) if few.height else iter(())
    if few.height <= PARTITION_ROWS:  # a single range, which is loaded into memory: leave out the rest of the table
        frames = (frame.join(few, on="product_id", how="semi") for frame in frames)
    kept = (
        detached(known.join(ids, on="product_id", how="semi").sort("product_id"))
        for ids, known in by_product(wanted, frames, PRODUCTS_SCHEMA.names, folder / "kept")
    )
    return parquet.write(path, kept, ROW_SCHEMA, {parquet.RUN_KEY: run.to_json()}, sorted_by=["product_id"])


def fetch_answers(output: Store, run: RunInfo, folder: Path) -> Path | None:
    """A local copy of the file that `write_answers` wrote for a run, or None if the run has none."""
    file = parquet.fetch(output, run.answers, ROW_SCHEMA, folder / "answers.parquet", "use another run id")
    return file.path if file else None


def known_answers(answers: Path, items: Sequence[ManifestItem]) -> dict[str, dict[str, Any]]:
    """The rows of such a file for consecutive products of the manifest, by product_id."""
    ids = [item.product_id for item in items if item.reason in _MAY_KEEP]  # in the manifest these are sorted
    if not ids:
        return {}
    rows = pl.scan_parquet(answers).filter(pl.col("product_id").is_between(pl.lit(ids[0]), pl.lit(ids[-1]))).collect()
    return {row["product_id"]: row for row in rows.iter_rows(named=True)}


def create_manifest(output: Store, run: RunInfo, source: Path, manifest: Path, answers: Path | None = None) -> Manifest:
    """Write the source and the answers that may be kept, then the manifest, which creates the run.

    Returns the manifest in force: that of another process, if it started the same run first. Source and answers are
    overwritten: those left by a process that died before it wrote its manifest are older.
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
            raise PermanentFailure(
                f"{output.uri_of(key)} does not say which run it belongs to; use another run id"
            ) from error
        manifest = Manifest(run, file.path, file.rows, warnings, int(file.metadata.get(parquet.OLDER_KEY, 0)))
        weakref.finalize(manifest, failed.pop_all().close)
    return manifest


def check_same_run(manifest: Manifest, run: RunInfo) -> None:
    """UsageError if `run` would resume a run id that was started with other photos or that would get other answers."""
    started = manifest.run
    if started.images_uri != run.images_uri:
        raise UsageError(
            f"run {run.run_id} was started on images {started.images_uri}, not {run.images_uri}; use another run id"
        )
    if started.fingerprint != run.fingerprint:
        raise UsageError(
            f"run {run.run_id} was started with fingerprint {started.fingerprint} (adapter {started.adapter}), not "
            f"{run.fingerprint} (adapter {run.adapter}); use another run id"
        )
    if started.circumstances and started.circumstances != run.circumstances:
        raise UsageError(
            f"run {run.run_id} was started with other limits on photos or answers, another engine or version of "
            "Pillow; set them as they were, or use another run id"
        )


def items(manifest: Manifest, shard: int) -> list[ManifestItem]:
    """The products of one shard, in the order of work."""
    size = manifest.run.shard_size
    rows = pl.scan_parquet(manifest.path).slice(shard * size, size).collect()
    return [item_of(row) for row in rows.iter_rows(named=True)]


def item_of(row: Mapping[str, Any]) -> ManifestItem:
    """A row of MANIFEST_SCHEMA as an object."""
    photos = tuple(ListedPhoto(**photo) for photo in row["photos"])
    return ManifestItem(**{**row, "photos": photos, "reason": Reason(row["reason"])})
