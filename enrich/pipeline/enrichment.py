"""One pass over a bucket: plan, fetch, answer and commit shard by shard, publish, report."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl

from enrich.changes import compare
from enrich.errors import RunFailed, UsageError
from enrich.gate import judge_run, run_stats
from enrich.infer.adapter import Adapter, check_base, read_adapter
from enrich.infer.engine import choose_engine
from enrich.infer.transformers_engine import find_base
from enrich.manifest import (
    Manifest,
    check_run_id,
    check_same_run,
    create_manifest,
    new_run_id,
    plan,
    read_manifest,
    source_table,
)
from enrich.pipeline.catalogs import local_tree
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.records import read_measured, write_report
from enrich.pipeline.run import Run
from enrich.pipeline.session import answer_shard, open_session
from enrich.publish import listing, publish, read_products, read_run_record, read_shards, write_run_record
from enrich.schema import SCHEMA_VERSION, Cost, RunInfo, RunRecord
from enrich.scores import SCORES_FILE
from enrich.settings import RunSettings
from enrich.stages import judge_stages
from enrich.storage import ObjectInfo, Store, open_store


def run_enrichment(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], object] = lambda line: None,
) -> RunRecord:
    """One whole run in this process: plan, every missing shard, publish, report.

    `announce` gets lines about what was chosen and found before the first photo is answered.

    Raises:
        UsageError: nothing was started. RunFailed, StorageError: it broke off; the same run id goes on.
    """
    with open_run(images, adapter, output, settings, run_id=run_id, limit=limit, progress=progress) as run:
        shards = run.missing_shards()
        if shards:
            with open_session(run, progress, announce) as session:
                done, total = run.manifest.table.height - rows_in(run.manifest, shards), run.manifest.table.height
                for shard in shards:
                    for answered in answer_shard(session, shard):
                        progress("photos", done + answered, total)
                    done += rows_in(run.manifest, [shard])
        return finish_run(run)


@contextmanager
def open_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> Iterator[Run]:
    """Begin a run, or take up the one that `run_id` names. Yields it while the adapter's files are at hand."""
    started_at = datetime.now(UTC)
    if run_id is not None:
        check_run_id(run_id)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: a run takes at least 1 photo; leave the limit out to take all")
    choose_engine(settings.engine, settings.device)
    source = open_store(images, must_exist=True)
    _refuse_overlap(source.uri, output)
    with ExitStack() as stack:
        loaded = read_adapter(stack.enter_context(local_tree(adapter)))
        check_base(loaded, find_base(loaded.base, loaded.revision))
        target = open_store(output, create=True)
        target.check_conditional_writes()
        info = RunInfo(
            run_id=run_id or new_run_id(started_at),
            created_at=started_at,
            images_uri=source.uri,
            fingerprint=fingerprint(loaded),
            model=loaded.base,
            adapter=loaded.id,
            prompt_version=loaded.prompt.version,
            shard_size=settings.shard_size,
        )
        begun = read_manifest(target, info.run_id) if run_id else None
        if begun is None:
            begun = _plan(source, target, info, settings, limit, progress)
        check_same_run(begun, info)
        yield Run(source, target, loaded, settings, begun, started_at)


def _plan(
    source: Store, target: Store, info: RunInfo, settings: RunSettings, limit: int | None, progress: Progress
) -> Manifest:
    def watched() -> Iterator[ObjectInfo]:
        for count, found in enumerate(source.list(), start=1):
            if count % 1000 == 0:
                progress("listing", count, 0)
            yield found

    listing = source_table(watched())
    if not listing.height:
        raise UsageError(f"images {source.uri}: no photos there; check the bucket and the prefix")
    products = read_products(target)
    table = plan(listing, products.table, products.runs, info.fingerprint, settings, limit)
    return create_manifest(target, info, listing, table)


def fingerprint(adapter: Adapter) -> str:
    """Hash of what would change an answer: model, revision, adapter, prompt, crops, schema version; 16 hex digits."""
    parts = [
        adapter.base, adapter.revision, adapter.id, adapter.prompt.model_dump(mode="json"),
        asdict(adapter.preparation), SCHEMA_VERSION,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def finish_run(run: Run) -> RunRecord:
    """Judge, publish unless held back, report, and write run.json last. Every shard must be committed.

    A run that was finished before stays as it was: its record is returned.
    """
    standing = read_run_record(run.output, run.info)
    if standing is not None and standing.state != "held":
        return standing
    if missing := run.missing_shards():
        raise RunFailed(f"run {run.info.run_id}: {len(missing)} shards are missing; start it again with its run id")
    rows = read_shards(run.output, run.info)
    stats = run_stats(rows)
    before = read_products(run.output)
    findings = judge_run(stats, before.last_stats, run.settings.gate)
    changes = compare(before.table, rows, run.manifest.table, listing(run.output, run.info)) if before.etag else None
    changed = False if findings else publish(run.output, run.info, run.settings.gate).changed
    finished_at = datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    engine = rows["engine"][0] if rows.height else run.settings.engine
    counts = run.manifest.table["reason"].value_counts().sort("reason")
    record = RunRecord(
        run=run.info,
        state="held" if findings else "published" if rows.height or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=dict(counts.iter_rows()),
        by_error_kind=stats.failed_by_kind,
        findings=findings,
        stats=stats,
        shards=len(run.manifest.shards),
        started_at=run.started_at,
        finished_at=finished_at,
        seconds=seconds,
        images_per_second=rows.height / seconds,
        engine=engine,
        host=platform.node(),
        stages=judge_stages(read_measured(run.output, run.info), run.settings, engine),
        changes=changes,
        previous=before.last_stats,
        cost=cost(run.settings, seconds, rows.height),
        versions={name: version(name) for name in ("enrich", "torch", "transformers", "peft", "polars")},
    )
    scores = run.adapter.path / SCORES_FILE
    if scores.is_file():  # the report shows how far to trust the adapter, also where that is gone later
        run.output.put(f"{run.info.folder}{SCORES_FILE}", scores.read_bytes())
    write_report(run.output, run.images, record, rows, run.settings)
    write_run_record(run.output, record)
    return record


def cost(settings: RunSettings, seconds: float, photos: int) -> Cost | None:
    """What 1,000 photos cost at the machine's price, the start of the engine shared among them."""
    if settings.machine_price_per_hour is None or not photos:
        return None
    price = settings.machine_price_per_hour
    return Cost(price, price * seconds / 3600 / photos * 1000, settings.machine_currency)


def rows_in(manifest: Manifest, shards: Sequence[int]) -> int:
    """Photos in these shards."""
    return manifest.table.filter(pl.col("shard").is_in(list(shards))).height


def _refuse_overlap(images: str, output: str) -> None:
    """An output below the images would be enriched the next night; images below the output could be overwritten."""
    here, there = (f"{uri if '://' in uri else Path(uri).absolute()}/" for uri in (images, output.rstrip("/")))
    if here.startswith(there) or there.startswith(here):
        raise UsageError(f"output {output} and images {images} overlap; keep them apart")
