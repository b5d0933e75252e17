"""What a run has to do: the listing or the inventory compared with products.parquet, on the local disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import polars as pl

from enrich.errors import UsageError
from enrich.output.listing import write_inventory, write_listing
from enrich.output.manifest import Manifest, create_manifest, write_answers, write_plan
from enrich.output.product_ids import find_shared
from enrich.output.products import StoredProducts
from enrich.output.publish import current_products
from enrich.output.restate import Rules
from enrich.output.run_record import RunInfo, RunRecord, claim_sequence, find_record
from enrich.photos.sidecars import Skipped
from enrich.pipeline.progress import Progress
from enrich.pipeline.run.request import RunRequest
from enrich.storage import ObjectInfo, Store
from enrich.storage.inventory import open_inventory
from enrich.storage.scratch import scratch
from enrich.vocabulary import Reason


@dataclass(frozen=True)
class Forecast:
    """What a run would do: `enrich run --dry-run`."""

    listed: int  # photos in the bucket
    todo: int
    bytes: int  # of those
    by_reason: dict[str, int]
    shards: int
    rate: float | None  # photos a second of the last run; None: there was none
    last_run: str | None
    price_per_hour: float | None  # of the machine
    warnings: tuple[str, ...]  # one line each

    @property
    def seconds(self) -> float | None:
        """What the photos would take at the last run's rate."""
        return None if self.rate is None else self.todo / self.rate

    def lines(self) -> list[str]:
        """As text: counts, reasons, time, cost and warnings."""
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.by_reason.items()) or "none"
        size = f"{self.bytes / 1e9:.2f} GB, {self.shards:,} shards"
        most = "at most " if self.by_reason.get(Reason.CHANGED) else ""  # the bytes may turn out to be the same
        lines = [f"{most}{self.todo:,} of {self.listed:,} photos to do ({why}), {size}"]
        warnings = [f"warning: {warning}" for warning in self.warnings]
        if self.seconds is None:
            return [*lines, "expected time: unknown, because no run has finished there yet", *warnings]
        length = timedelta(seconds=round(self.seconds))
        lines.append(f"expected time: {length}, at the {self.rate:.1f} photos a second of run {self.last_run}")
        if self.price_per_hour is not None:
            cost = self.seconds / 3600 * self.price_per_hour
            lines.append(f"expected cost: {cost:.2f}, at {self.price_per_hour:g} an hour")
        return [*lines, *warnings]


def plan_run(source: Store, output: Store, run: RunInfo, request: RunRequest, progress: Progress) -> Manifest:
    """List, compare, and write the manifest of a new run. UsageError if there are no photos."""
    with scratch() as folder:
        products = current_products(output, folder, request.settings.gate)
        seen = Skipped(request.settings.skip)
        if not request.inventory and next(seen.photos(source.list()), None) is None:
            raise _no_photos(run, seen)  # before anything is written
        run = replace(run, sequence=claim_sequence(output, run.run_id, products.highest_sequence))
        listing, plan, _ = _plan(source, products, run, request, progress, folder)
        answers = folder / "answers.parquet"
        kept = write_answers(answers, plan, products, run, folder)
        return create_manifest(output, run, listing, plan, answers if kept else None)


def forecast(source: Store, output: Store | None, run: RunInfo, request: RunRequest, progress: Progress) -> Forecast:
    """What `plan_run` would find. Writes nothing; `output` is None where there is none yet."""
    settings = request.settings
    with scratch() as folder:
        products = current_products(output, folder, settings.gate) if output else StoredProducts.none()
        listing, plan, warnings = _plan(source, products, run, request, progress, folder)
        todo = pl.scan_parquet(plan)
        reasons = todo.group_by("reason").len().sort("reason").collect(engine="streaming")
        count, size = todo.select(pl.len(), pl.col("size").sum()).collect(engine="streaming").row(0)
        last = _last_record(output) if output else None
        return Forecast(
            listed=pl.scan_parquet(listing).select(pl.len()).collect().item(),
            todo=count,
            bytes=size,
            by_reason=dict(reasons.iter_rows()),
            shards=-(-count // run.shard_size),
            rate=last.images_per_second if last else None,
            last_run=last.run.run_id if last else None,
            price_per_hour=settings.machine_price_per_hour,
            warnings=warnings,
        )


def _plan(
    source: Store,
    products: StoredProducts,
    run: RunInfo,
    request: RunRequest,
    progress: Progress,
    folder: Path,
) -> tuple[Path, Path, tuple[str, ...]]:
    """The files of the listing and of the plan, and warnings about them."""
    settings, listing, plan = request.settings, folder / "source.parquet", folder / "manifest.parquet"
    rules = Rules.of(settings)
    skipped = Skipped(settings.skip)
    if request.inventory:
        opened = open_inventory(request.inventory, run.images_uri, settings.s3)
        count = write_inventory(listing, lambda: skipped.photos_of(opened.frames(folder)), run, folder, rules)
    else:
        count = write_listing(listing, skipped.photos(_watched(source.list, progress)), run, rules)
    if not count:
        raise _no_photos(run, skipped)
    shared = find_shared(listing, settings.product_id_pattern, folder)
    warnings = tuple(filter(None, (shared.warning if shared else None, skipped.warning)))
    write_plan(plan, listing, products, run, settings, folder, request.limit, warnings)
    return listing, plan, warnings


def _no_photos(run: RunInfo, skipped: Skipped) -> UsageError:
    but = f" ({skipped.warning})" if skipped.warning else ""
    return UsageError(f"images {run.images_uri}: no photos there{but}; check the bucket and the prefix")


def _watched(objects: Callable[[], Iterator[ObjectInfo]], progress: Progress) -> Iterator[ObjectInfo]:
    for count, found in enumerate(objects(), start=1):
        if count % 1000 == 0:
            progress("listing", count, 0)
        yield found


def _last_record(output: Store) -> RunRecord | None:
    """The finished run with photos that was created last."""
    return find_record(output, lambda record: record.images_per_second > 0)
