"""What a run has to do: the products of a listing or a table compared with products.parquet, on the local disk."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import polars as pl

from enrich.errors import UsageError
from enrich.output.grouping import Grouped, check_matches, write_source
from enrich.output.listing import described, write_inventory, write_listing
from enrich.output.manifest import Manifest, create_manifest, write_answers
from enrich.output.plan import Planned, write_plan
from enrich.output.products import StoredProducts
from enrich.output.products_table import ProductsTable, open_products, write_listed
from enrich.output.publish import current_products
from enrich.output.restate import Rules
from enrich.output.run_record import RunInfo, RunRecord, claim_sequence, find_record, release_sequence
from enrich.phases import Start, describe_start
from enrich.photos.sidecars import Skipped
from enrich.pipeline.progress import Progress
from enrich.pipeline.run.request import RunRequest
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo, Store
from enrich.storage.inventory import open_inventory
from enrich.storage.scratch import scratch
from enrich.vocabulary import Reason

RECORDS_LOOKED_AT = 20  # of the newest runs, for how long a start takes


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run: `enrich run --dry-run`."""

    photos: int  # in the bucket
    listed: int  # products of them
    todo: int  # products
    bytes: int  # of their photos
    older: int  # products that an older adapter answered, left for later runs
    by_reason: dict[str, int]
    shards: int
    rate: float | None  # products a second of the last run; None: there was none
    last_run: str | None
    price_per_hour: float | None  # of the machine
    warnings: tuple[str, ...]  # one line each
    currency: str | None = None  # of that price
    start: str = "unknown, because no run with this model has finished in this output yet"  # how long it may take

    @property
    def seconds(self) -> float | None:
        """The time for the products at the last run's rate."""
        return None if self.rate is None else self.todo / self.rate

    def lines(self) -> list[str]:
        """As text: counts, reasons, time, cost and warnings."""
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.by_reason.items()) or "none"
        size = f"{self.bytes / 1e9:.2f} GB, {self.shards:,} shards"
        most = "at most " if self.by_reason.get(Reason.CHANGED) else ""  # the bytes may turn out to be the same
        lines = [f"{most}{self.todo:,} of {self.listed:,} products to do ({why}), {size}, from {self.photos:,} photos"]
        if self.older:
            lines.append(f"{self.older:,} products keep an older adapter's answer for now (refresh, limit)")
        lines += self._times()
        if self.todo:
            lines.append(f"expected start: {self.start}")
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]

    def _times(self) -> list[str]:
        if self.seconds is None:
            return ["expected time: unknown, because no run has finished in this output yet"]
        length = timedelta(seconds=round(self.seconds))
        of_last = f"{self.rate:.1f} products per second of run {self.last_run}, including its start"
        lines = [f"expected time: {length}, at the {of_last}"]
        if self.price_per_hour is not None:
            cost = self.seconds / 3600 * self.price_per_hour
            of = f" {self.currency}" if self.currency else ""
            lines.append(f"expected cost: {cost:.2f}{of}, at {self.price_per_hour:g}{of} an hour")
        return lines


def plan_run(source: Store, output: Store, run: RunInfo, request: RunRequest, progress: Progress) -> Manifest:
    """List, compare, and write the manifest of a new run. UsageError if there are no photos."""
    with scratch() as folder:
        products = current_products(output, folder, request.settings.gate)
        seen = Skipped(request.settings.skip)
        if not request.inventory and next(seen.photos(source.list()), None) is None:
            raise _no_photos(run, seen)  # before anything is written
        _check_grouping(source, request)
        table = _table(request, folder)
        run = replace(run, sequence=claim_sequence(output, run.run_id, products.highest_sequence))
        try:
            made = _plan(source, products, run, request, table, progress, folder)
        except UsageError:
            release_sequence(output, run)
            raise
        answers = folder / "answers.parquet"
        kept = write_answers(answers, made.plan, products, run, folder)
        return create_manifest(output, run, made.source, made.plan, answers if kept else None)


def forecast(source: Store, output: Store | None, run: RunInfo, request: RunRequest, progress: Progress) -> Forecast:
    """What `plan_run` would find. Writes nothing; `output` is None where there is none yet."""
    settings = request.settings
    with scratch() as folder:
        products = current_products(output, folder, settings.gate) if output else StoredProducts()
        made = _plan(source, products, run, request, _table(request, folder), progress, folder)
        todo = pl.scan_parquet(made.plan)
        reasons = todo.group_by("reason").len().sort("reason").collect(engine="streaming")
        sizes = pl.col("photos").list.eval(pl.element().struct.field("size")).list.sum()
        size = todo.select(sizes.sum()).collect(engine="streaming").item()
        count = made.planned.todo
        last = find_record(output, lambda record: record.images_per_second > 0) if output else None
        return Forecast(
            photos=made.photos,
            listed=made.products,
            todo=count,
            bytes=size,
            older=made.planned.older,
            by_reason=dict(reasons.iter_rows()),
            shards=-(-count // run.shard_size),
            rate=last.images_per_second if last else None,
            last_run=last.run.run_id if last else None,
            price_per_hour=settings.machine_price_per_hour,
            currency=settings.machine_currency,
            warnings=made.warnings,
            **({"start": started} if output and (started := _expected_start(output, run)) else {}),
        )


def _expected_start(output: Store, run: RunInfo) -> str | None:
    """As a run of the same adapter started, else one that met another adapter of the model for the first time."""
    looked_at = itertools.count()

    def alike(record: RunRecord) -> bool:
        if next(looked_at) == RECORDS_LOOKED_AT:
            return True
        same = record.run.fingerprint == run.fingerprint
        return record.start is not None and (same or (record.run.model == run.model and _compared(record.start)))

    found = find_record(output, alike)
    if found is None or found.start is None:
        return None
    less = " or less" if found.run.fingerprint == run.fingerprint and _compared(found.start) else ""
    return f"{describe_start(found.start)}{less}, as run {found.run.run_id} took"


def _compared(start: Start) -> bool:
    """Whether engines were compared in it, as in an adapter's first start."""
    return any(phase.name == "transformers" for phase in start.phases)


@dataclass(frozen=True)
class _Made:
    """What planning wrote to the local disk, and found on the way."""

    source: Path
    plan: Path
    planned: Planned
    photos: int
    products: int
    warnings: tuple[str, ...]


def _table(request: RunRequest, folder: Path) -> ProductsTable | None:
    settings = request.settings
    return open_products(request.products, settings.products, folder, settings.s3) if request.products else None


def _plan(
    source: Store,
    products: StoredProducts,
    run: RunInfo,
    request: RunRequest,
    table: ProductsTable | None,
    progress: Progress,
    folder: Path,
) -> _Made:
    """The files of the source and of the plan. UsageError where photos do not make products as was asked for."""
    settings = request.settings
    listing, listed, plan = (folder / f"{name}.parquet" for name in ("listing", "source", "manifest"))
    skipped = Skipped(settings.skip)
    if request.inventory:
        opened = open_inventory(request.inventory, run.images_uri, settings.s3)
        count = write_inventory(listing, lambda: skipped.photos_of(opened.frames(folder)), folder)
    else:
        count = write_listing(listing, skipped.photos(_watched(source.list(), progress)), run.images_uri)
    if not count:
        raise _no_photos(run, skipped)
    grouped = _group(listed, listing, table, run, settings, folder)
    warnings = tuple(filter(None, (table.warning if table else None, grouped.warning, skipped.warning)))
    planned = write_plan(plan, listed, products, run, settings, folder, request.limit, warnings)
    return _Made(listed, plan, planned, count, grouped.products, warnings)


def _group(
    path: Path, listing: Path, table: ProductsTable | None, run: RunInfo, settings: RunSettings, folder: Path
) -> Grouped:
    """Write the products of the listing, or those of the table."""
    metadata = described(run, Rules.of(settings))
    if table is None:
        return write_source(path, listing, settings.group_by, metadata, folder)
    return write_listed(path, listing, table, metadata, folder)


def _check_grouping(source: Store, request: RunRequest) -> None:
    """What `_plan` would raise, before anything is written: an expression that matches no photo."""
    if not request.products and not request.inventory:
        photos = Skipped(request.settings.skip).photos(source.list())
        check_matches((photo.key for photo in photos), request.settings.group_by)


def _no_photos(run: RunInfo, skipped: Skipped) -> UsageError:
    but = f" ({skipped.warning})" if skipped.warning else ""
    return UsageError(f"images {run.images_uri}: no photos there{but}; check the bucket and the prefix")


def _watched(objects: Iterator[ObjectInfo], progress: Progress) -> Iterator[ObjectInfo]:
    for count, found in enumerate(objects, start=1):
        if count % 1000 == 0:
            progress("listing", count, 0)
        yield found
