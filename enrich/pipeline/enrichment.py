"""One pass over a bucket: plan, fetch, answer and commit shard by shard, publish, report."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl

from enrich.changes import compare
from enrich.errors import RunFailed, UsageError
from enrich.gate import judge_run, run_stats
from enrich.history import fetch_rows
from enrich.infer.adapter import Adapter, check_base, read_adapter
from enrich.infer.start import choose_engine
from enrich.infer.transformers_engine import find_base
from enrich.manifest import (
    check_run_id,
    check_same_run,
    new_run_id,
    read_manifest,
)
from enrich.pipeline.catalogs import local_tree
from enrich.pipeline.deadline import Deadline
from enrich.pipeline.planning import Forecast, forecast, plan_run
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.records import REPORT_ROWS, ROLLED_BACK, read_measured, write_report
from enrich.pipeline.run import Run
from enrich.pipeline.runner import check_runner, open_runner
from enrich.products import fetch_products
from enrich.publish import fetch_listing, publish, read_run_record, write_run_record
from enrich.schema import SCHEMA_VERSION, Cost, RunInfo, RunRecord
from enrich.scores import SCORES_FILE
from enrich.settings import RunSettings
from enrich.spill import scratch
from enrich.stages import judge_stages
from enrich.storage import Store, open_store


def run_enrichment(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    deadline: float | None = None,
    inventory: str | None = None,
    progress: Progress = silent,
    announce: Callable[[str], object] = lambda line: None,
) -> RunRecord:
    """One whole run: plan, every missing shard, publish, report.

    `announce` gets lines about what was chosen and found before the first photo is answered.

    Args:
        deadline: seconds from now, see `Deadline`; what is committed by then is published, and the same run id or the
            next run does the rest.
        inventory: see `open_run`.

    Raises:
        UsageError: nothing was started. RunFailed, StorageError: it broke off; the same run id goes on.
    """
    until = Deadline.after(deadline)
    with open_run(
        images, adapter, output, settings, run_id=run_id, limit=limit, inventory=inventory, progress=progress
    ) as run:
        shards = run.missing_shards()
        if shards:
            with open_runner(run, progress, announce) as runner:
                total = run.manifest.rows
                before = done = total - run.manifest.rows_in(shards)
                for answered in runner.answer(shards, until):
                    done = before + answered
                    progress("photos", done, total)
                if done < total:
                    announce(f"stopped at its deadline: {total - done:,} of {total:,} photos are left")
        return finish_run(run, partly=until.set)


@contextmanager
def open_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    inventory: str | None = None,
    progress: Progress = silent,
) -> Iterator[Run]:
    """Begin a run, or take up the one that `run_id` names. Yields it while the adapter's files are at hand.

    Args:
        inventory: manifest.json of an S3 Inventory of the images, to be read instead of listing them.
    """
    started_at = datetime.now(UTC)
    if run_id is not None:
        check_run_id(run_id)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: a run takes at least 1 photo; leave the limit out to take all")
    choose_engine(settings.engine, settings.device)
    check_runner(settings)
    source = open_store(images, must_exist=True, s3=settings.s3)
    _refuse_overlap(source.uri, output)
    with ExitStack() as stack:
        loaded = read_adapter(stack.enter_context(local_tree(adapter)))
        check_base(loaded, find_base(loaded.base, loaded.revision))
        target = open_store(output, create=True, s3=settings.s3)
        target.check_conditional_writes()
        info = _describe(source, loaded, settings, run_id, started_at)
        begun = read_manifest(target, info.run_id) if run_id else None
        if begun is None:
            if run_id and target.head(f"{info.folder}run.json") is not None:
                raise UsageError(f"run {run_id}: it was finished and its rows were deleted; use another run id")
            begun = plan_run(source, target, info, settings, limit, inventory, progress)
        check_same_run(begun, info)
        yield Run(source, target, loaded, adapter, settings, begun, started_at)


@contextmanager
def join_run(images: str, adapter: str, output: str, settings: RunSettings, run_id: str) -> Iterator[Run]:
    """The run that another process began, to answer some of its shards. Yields it as `open_run` does.

    Raises:
        UsageError: it is not to be seen from here, or would be answered otherwise here.
    """
    started_at = datetime.now(UTC)
    source = open_store(images, must_exist=True, s3=settings.s3)
    target = open_store(output, must_exist=True, s3=settings.s3)
    with local_tree(adapter) as directory:
        loaded = read_adapter(directory)
        check_base(loaded, find_base(loaded.base, loaded.revision))
        begun = read_manifest(target, run_id)
        if begun is None:
            raise UsageError(f"output {target.uri}: run {run_id} is not there; name a place that all machines share")
        check_same_run(begun, _describe(source, loaded, settings, run_id, started_at))
        yield Run(source, target, loaded, adapter, settings, begun, started_at)


def foresee_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    limit: int | None = None,
    inventory: str | None = None,
    progress: Progress = silent,
) -> Forecast:
    """What `run_enrichment` would do, and how long it may take, going by the last run. Nothing is written."""
    source = open_store(images, must_exist=True, s3=settings.s3)
    _refuse_overlap(source.uri, output)
    with local_tree(adapter) as directory:
        info = _describe(source, read_adapter(directory), settings, None, datetime.now(UTC))
    target = open_store(output, s3=settings.s3)
    return forecast(source, target, info, settings, limit, inventory, progress)


def _describe(
    source: Store, adapter: Adapter, settings: RunSettings, run_id: str | None, started_at: datetime
) -> RunInfo:
    return RunInfo(
        run_id=run_id or new_run_id(started_at),
        created_at=started_at,
        images_uri=source.uri,
        fingerprint=fingerprint(adapter, settings),
        model=adapter.base,
        adapter=adapter.id,
        prompt_version=adapter.prompt.version,
        shard_size=settings.shard_size,
    )


def fingerprint(adapter: Adapter, settings: RunSettings) -> str:
    """Hash of what would change an answer: model, revision, adapter, prompt, crops, schema version, and the precision
    where vLLM serves in a lower one; 16 hex digits."""
    parts: list[object] = [
        adapter.base, adapter.revision, adapter.id, adapter.prompt.model_dump(mode="json"),
        asdict(adapter.preparation), SCHEMA_VERSION,
    ]  # fmt: skip
    precision = [settings.quantization, settings.kv_cache_dtype]
    if precision != ["none", "auto"] and choose_engine(settings.engine, settings.device) == "vllm":
        parts.append(precision)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def finish_run(run: Run, *, partly: bool = False) -> RunRecord:
    """Judge, publish unless held back, report, and write run.json last. Every shard must be committed, or `partly` set.

    A run that was finished before stays as it was: its record is returned.
    """
    standing = read_run_record(run.output, run.info)
    if standing is not None and not _goes_on(standing):
        return standing
    missing = run.missing_shards()
    if missing and not partly:
        raise RunFailed(f"run {run.info.run_id}: {len(missing)} shards are missing; start it again with its run id")
    with scratch() as folder:
        path = folder / "rows.parquet"
        count = fetch_rows(run.output, run.info, path)
        stats = run_stats(pl.scan_parquet(path))
        rows = pl.read_parquet(path, n_rows=REPORT_ROWS)
        before, changes = fetch_products(run.output, folder), None
        if before.path is not None:
            listing = fetch_listing(run.output, run.info.run_id, folder)
            tables = (pl.scan_parquet(table) for table in (before.path, run.manifest.path, listing))
            changes = compare(rows, *tables)
    findings = judge_run(stats, before.last.stats, run.settings.gate)
    changed = False if findings else publish(run.output, run.info, run.settings.gate).changed
    finished_at = datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    engine = rows["engine"][0] if count else run.settings.engine
    record = RunRecord(
        run=run.info,
        state="held" if findings else "published" if count or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=run.manifest.by_reason(),
        by_error_kind=stats.failed_by_kind,
        findings=findings,
        stats=stats,
        shards=len(run.manifest.shards),
        missing_shards=len(missing),
        started_at=run.started_at,
        finished_at=finished_at,
        seconds=seconds,
        images_per_second=count / seconds,
        engine=engine,
        host=platform.node(),
        stages=judge_stages(read_measured(run.output, run.info), run.settings, engine),
        changes=changes,
        previous=before.last.stats,
        cost=cost(run.settings, seconds, count),
        versions={name: version(name) for name in ("enrich", "torch", "transformers", "peft", "polars")},
    )
    scores = run.adapter.path / SCORES_FILE
    if scores.is_file():  # the report shows how far to trust the adapter, also where that is gone later
        run.output.put(f"{run.info.folder}{SCORES_FILE}", scores.read_bytes())
    write_report(run.output, run.images, record, rows, run.settings)
    write_run_record(run.output, record)
    return record


def _goes_on(record: RunRecord) -> bool:
    """Whether a run that was finished may be finished anew: held back by the gate, or stopped at its deadline."""
    if record.state == "held":
        return all(finding.limit != ROLLED_BACK for finding in record.findings)
    return record.missing_shards > 0


def cost(settings: RunSettings, seconds: float, photos: int) -> Cost | None:
    """What 1,000 photos cost at the machine's price, the start of the engine shared among them."""
    if settings.machine_price_per_hour is None or not photos:
        return None
    price = settings.machine_price_per_hour
    return Cost(price, price * seconds / 3600 / photos * 1000, settings.machine_currency)


def _refuse_overlap(images: str, output: str) -> None:
    """An output below the images would be enriched the next night; images below the output could be overwritten."""
    here, there = (f"{uri if '://' in uri else Path(uri).absolute()}/" for uri in (images, output.rstrip("/")))
    if here.startswith(there) or there.startswith(here):
        raise UsageError(f"output {output} and images {images} overlap; keep them apart")
