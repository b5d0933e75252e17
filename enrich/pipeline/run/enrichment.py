"""One pass over a bucket: plan, fetch, answer and commit shard by shard, publish, report."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl

from enrich.errors import RunFailed
from enrich.output.changes import compare, newest_outcomes
from enrich.output.gate import judge_gone, judge_run
from enrich.output.manifest import fetch_answers
from enrich.output.publish import current_products, fetch_listing, fetch_run, publish, read_run_record, write_run_record
from enrich.output.run_record import Cost, RunRecord
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.bottleneck import judge_stages
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.opening import open_run
from enrich.pipeline.run.records import REPORT_ROWS, ROLLED_BACK, read_measured, write_report
from enrich.pipeline.run.runner import open_runner
from enrich.pipeline.run.state import Run
from enrich.scores.assess import SCORES_FILE
from enrich.settings.run import RunSettings
from enrich.storage.scratch import scratch


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
        for line in run.warnings:
            announce(f"warning: {line}")
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
        committed = fetch_run(run.output, run.info, folder)
        count, stats = committed.count, committed.stats
        same = _same_bytes(run, committed.path, folder)
        rows = pl.read_parquet(committed.path, n_rows=REPORT_ROWS)
        if not missing and count != run.manifest.rows:
            raise RunFailed(
                f"{run.output.uri_of(run.info.history)}: {count:,} rows where the manifest has {run.manifest.rows:,} "
                "photos; move the shard that is not whole away and start the run again"
            )
        before, changes = current_products(run.output, folder, run.settings.gate), None
        answered, failed = None, dict[str, int]()
        if before.path is not None:
            listing = fetch_listing(run.output, run.info.run_id, folder).path
            tables = (pl.scan_parquet(table) for table in (before.path, run.manifest.path, listing))
            changes = compare(rows, *tables)
            if not run.manifest.rows:
                answered, failed = newest_outcomes(pl.scan_parquet(before.path))
        worth = run.worth
        findings = judge_run(stats, before.last.stats, run.settings.gate, worth)
        if changes is not None:
            findings += judge_gone(changes, run.settings.gate)
        changed = False
        if not findings:
            changed = publish(run.output, run.info, run.settings.gate, rows=committed, products=before).changed
    finished_at = datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    engine = rows["engine"][0] if count else run.settings.engine
    record = RunRecord(
        run=run.info,
        state="held" if findings else "published" if count or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=run.manifest.by_reason(),
        by_error_kind=stats.failed_by_kind,
        same_bytes=same,
        answered_before=answered,
        failed_before=failed,
        findings=findings,
        warnings=run.manifest.warnings if findings or worth.state == "beats" else (*run.manifest.warnings, worth.text),
        stats=stats,
        shards=len(run.manifest.shards),
        missing_shards=len(missing),
        started_at=run.started_at,
        finished_at=finished_at,
        seconds=seconds,
        images_per_second=(count - same) / seconds,
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


def _same_bytes(run: Run, rows: Path, folder: Path) -> int:
    """How many rows of a run kept the answer of before."""
    answers = fetch_answers(run.output, run.info, folder)
    if answers is None:
        return 0
    photo = ["image_key", "image_sha256"]
    good = pl.scan_parquet(rows).filter(pl.col("status") == "ok").select(photo)
    kept = good.join(pl.scan_parquet(answers).select(photo), on=photo, how="semi").select(pl.len())
    return int(kept.collect(engine="streaming").item())


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
