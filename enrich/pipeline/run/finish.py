"""The end of a run: check its rows against the gate, publish them unless they are held back, and report."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from enrich.answers.postprocess import least_confidence
from enrich.errors import PermanentFailure, redact
from enrich.output.asked import Asked, AskedField, write_asked
from enrich.output.changes import compare, newest_outcomes
from enrich.output.gate import judge_gone, judge_run
from enrich.output.listing import fetch_listing
from enrich.output.manifest import fetch_answers
from enrich.output.observed import observe
from enrich.output.publish import current_products, publish
from enrich.output.reviews import read_reviews
from enrich.output.run_record import Cost, RunRecord, read_run_record, write_run_record
from enrich.output.run_rows import fetch_run
from enrich.output.sinks import follow
from enrich.pipeline.run.bottleneck import judge_stages
from enrich.pipeline.run.records import REPORT_ROWS, ROLLED_BACK, read_measured, write_report
from enrich.pipeline.run.state import Run
from enrich.pipeline.versions import VLLM, installed
from enrich.scores.assess import SCORES_FILE
from enrich.settings.run import RunSettings
from enrich.storage import real_place
from enrich.storage.scratch import scratch


def finish_run(run: Run) -> RunRecord:
    """Judge, publish unless held back, report, and write run.json last.

    Every shard must be committed, unless the run has a deadline. A run that was finished before stays as it was: its
    record is returned.
    """
    finished = read_run_record(run.output, run.info)
    if finished is not None and not _may_finish_again(finished):
        return finished
    missing, gate, worth = run.missing_shards(), run.settings.gate, run.worth
    if missing and run.request.deadline is None:
        raise PermanentFailure(f"run {run.info.run_id}: {len(missing)} shards are missing; restart it with its run id")
    with scratch() as folder:
        committed = fetch_run(run.output, run.info, folder)
        if not missing and committed.count != run.manifest.rows:
            raise PermanentFailure(
                f"{run.output.uri_of(run.info.history)}: {committed.count:,} rows where the manifest has "
                f"{run.manifest.rows:,} products; move the incomplete shard away and start the run again"
            )
        table = current_products(run.output, folder, gate)
        reviews = read_reviews(run.output)
        stats, previous = committed.stats, table.last.stats
        rows = pl.read_parquet(committed.path, n_rows=REPORT_ROWS)
        same_bytes = _count_same_bytes(run, committed.path, folder)
        changes, answered, failed = None, None, dict[str, int]()
        if table.path is not None:
            listing = fetch_listing(run.output, run.info.run_id, folder).path
            changes = compare(rows, *map(pl.scan_parquet, (table.path, run.manifest.path, listing)))
            if not run.manifest.rows:
                answered, failed = newest_outcomes(pl.scan_parquet(table.path))
        findings = judge_run(stats, previous, gate, worth) + (judge_gone(changes, gate) if changes else ())
        changed = False
        if not findings:
            changed = publish(run.output, run.info, gate, rows=committed, products=table, reviews=reviews).changed
    if not findings:
        follow(run.output, run.info.run_id, "publish")
    record = RunRecord(
        run=run.info,
        state="held" if findings else "published" if stats.rows or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=run.manifest.by_reason(),
        by_error_kind=stats.failed_by_kind,
        same_bytes=same_bytes,
        answered_before=answered,
        failed_before=failed,
        older=run.manifest.older + run.manifest.older_in(missing),
        findings=findings,
        warnings=(*run.manifest.warnings, *([] if findings or worth.state == "beats" else [worth.text])),
        stats=stats,
        shards=len(run.manifest.shards),
        missing_shards=len(missing),
        changes=changes,
        previous=previous,
        observed=observe(reviews, run.info.adapter),
        adapter_uri=redact(real_place(run.request.adapter)),
        catalog=run.adapter.catalog_hash,
        catalog_uri=run.adapter.catalog,
        serve_url=run.settings.serve_url,
        **_performance(run, rows["engine"][0] if stats.rows else run.settings.engine, stats.rows, same_bytes),
    )
    _write(run, record, rows)
    return record


def _may_finish_again(record: RunRecord) -> bool:
    """Whether a finished run may be finished again: held back by the gate, or stopped at its deadline."""
    if record.state == "held":
        return all(finding.limit != ROLLED_BACK for finding in record.findings)
    return record.missing_shards > 0


def _count_same_bytes(run: Run, rows: Path, folder: Path) -> int:
    """How many rows of a run kept their earlier answer."""
    answers = fetch_answers(run.output, run.info, folder)
    if answers is None:
        return 0
    # The model was not asked: rows that keep an answer have no tokens.
    good = (
        pl.scan_parquet(rows).filter(pl.col("status") == "ok", pl.col("prompt_tokens").is_null()).select("product_id")
    )
    kept = good.join(pl.scan_parquet(answers).select("product_id"), on="product_id", how="semi").select(pl.len())
    return int(kept.collect(engine="streaming").item())


def _performance(run: Run, engine: str, products: int, same_bytes: int) -> dict[str, Any]:
    """The fields of a `RunRecord` on time, cost, machine and software."""
    finished_at = datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    sessions = read_measured(run.output, run.info)
    starts = [session.start for session in sessions if session.start]
    return {
        "started_at": run.started_at,
        "finished_at": finished_at,
        "seconds": seconds,
        "images_per_second": (products - same_bytes) / seconds,
        "engine": engine,
        "host": platform.node(),
        "stages": judge_stages(sessions, run.settings, engine),
        "start": max(starts, key=lambda start: start.seconds, default=None),
        "cost": cost(run.settings, seconds, products),
        "versions": _versions(engine),
    }


def _write(run: Run, record: RunRecord, rows: pl.DataFrame) -> None:
    scores = run.adapter.path / SCORES_FILE
    if scores.is_file():  # the report shows how far to trust the adapter, also if that is deleted later
        run.output.put(f"{run.info.folder}{SCORES_FILE}", scores.read_bytes())
    write_asked(run.output, run.info, _asked(run))
    write_report(run.output, run.images, record, rows, run.settings)
    write_run_record(run.output, record)


def _asked(run: Run) -> Asked:
    prompt, calibration, review = run.adapter.prompt, run.adapter.calibration, run.settings.review
    fields = (
        AskedField(**field.model_dump(), review_below=least_confidence(calibration, review, field.name))
        for field in prompt.further
    )
    return Asked(fields=tuple(fields), unknown=prompt.unknown, category_ids=prompt.category_ids)


def _versions(engine: str) -> dict[str, str]:
    """Of the packages that an answer may depend on. A process that leads workers need not have vLLM itself."""
    found = {name: installed(name) for name in ("enrich", "torch", "transformers", "peft", "polars")}
    if engine == "vllm":
        found["vllm"] = installed(*VLLM)
    return {name: version for name, version in found.items() if version is not None}


def cost(settings: RunSettings, seconds: float, products: int) -> Cost | None:
    """The cost of 1,000 products at the machine's price, including their share of the engine's start."""
    if settings.machine_price_per_hour is None or not products:
        return None
    price = settings.machine_price_per_hour
    total = price * seconds / 3600
    return Cost(price, total / products * 1000, total, settings.machine_currency)
