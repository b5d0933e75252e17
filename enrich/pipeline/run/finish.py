"""The end of a run: its rows are judged, published unless they are held back, and reported."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from enrich.errors import RunFailed
from enrich.output.changes import compare, newest_outcomes
from enrich.output.gate import judge_gone, judge_run
from enrich.output.listing import fetch_listing
from enrich.output.manifest import fetch_answers
from enrich.output.products import StoredProducts
from enrich.output.publish import RunRows, current_products, fetch_run, publish
from enrich.output.run_record import (
    Changes,
    Cost,
    Finding,
    RunRecord,
    RunStats,
    read_run_record,
    write_run_record,
)
from enrich.pipeline.run.bottleneck import judge_stages
from enrich.pipeline.run.records import REPORT_ROWS, ROLLED_BACK, read_measured, write_report
from enrich.pipeline.run.state import Run
from enrich.pipeline.versions import VLLM, installed
from enrich.scores.assess import SCORES_FILE
from enrich.settings.run import RunSettings
from enrich.storage.scratch import scratch


@dataclass(frozen=True)
class _Results:
    """What a run committed, beside the table that it found."""

    stats: RunStats
    rows: pl.DataFrame  # the first REPORT_ROWS
    same_bytes: int  # rows that kept the answer of before
    missing: Sequence[int]  # shards
    previous: RunStats | None  # of the last published run that was large enough to compare with
    changes: Changes | None  # None: there was no table
    answered_before: int | None  # photos that keep their answer; counted only where there was nothing to do
    failed_before: dict[str, int]


def finish_run(run: Run) -> RunRecord:
    """Judge, publish unless held back, report, and write run.json last.

    Every shard must be committed, unless the run has a deadline. A run that was finished before stays as it was: its
    record is returned.
    """
    finished = read_run_record(run.output, run.info)
    if finished is not None and not _may_finish_again(finished):
        return finished
    missing = run.missing_shards()
    if missing and run.request.deadline is None:
        raise RunFailed(f"run {run.info.run_id}: {len(missing)} shards are missing; start it again with its run id")
    with scratch() as folder:
        committed = fetch_run(run.output, run.info, folder)
        table = current_products(run.output, folder, run.settings.gate)
        results = _compare(run, missing, committed, table, folder)
        findings = _judge(run, results)
        changed = False
        if not findings:
            changed = publish(run.output, run.info, run.settings.gate, rows=committed, products=table).changed
    record = _record(run, results, findings, changed)
    scores = run.adapter.path / SCORES_FILE
    if scores.is_file():  # the report shows how far to trust the adapter, also if that is deleted later
        run.output.put(f"{run.info.folder}{SCORES_FILE}", scores.read_bytes())
    write_report(run.output, run.images, record, results.rows, run.settings)
    write_run_record(run.output, record)
    return record


def _may_finish_again(record: RunRecord) -> bool:
    """Whether a finished run may be finished again: held back by the gate, or stopped at its deadline."""
    if record.state == "held":
        return all(finding.limit != ROLLED_BACK for finding in record.findings)
    return record.missing_shards > 0


def _compare(run: Run, missing: Sequence[int], committed: RunRows, table: StoredProducts, folder: Path) -> _Results:
    """What was committed beside the table; `folder` is for files that may go afterwards."""
    if not missing and committed.count != run.manifest.rows:
        raise RunFailed(
            f"{run.output.uri_of(run.info.history)}: {committed.count:,} rows where the manifest has "
            f"{run.manifest.rows:,} photos; move the incomplete shard away and start the run again"
        )
    rows = pl.read_parquet(committed.path, n_rows=REPORT_ROWS)
    changes, answered, failed = None, None, dict[str, int]()
    if table.path is not None:
        listing = fetch_listing(run.output, run.info.run_id, folder).path
        changes = compare(rows, *map(pl.scan_parquet, (table.path, run.manifest.path, listing)))
        if not run.manifest.rows:
            answered, failed = newest_outcomes(pl.scan_parquet(table.path))
    return _Results(
        stats=committed.stats,
        rows=rows,
        same_bytes=_count_same_bytes(run, committed.path, folder),
        missing=missing,
        previous=table.last.stats,
        changes=changes,
        answered_before=answered,
        failed_before=failed,
    )


def _count_same_bytes(run: Run, rows: Path, folder: Path) -> int:
    """How many rows of a run kept the answer of before."""
    answers = fetch_answers(run.output, run.info, folder)
    if answers is None:
        return 0
    photo = ["image_key", "image_sha256"]
    good = pl.scan_parquet(rows).filter(pl.col("status") == "ok").select(photo)
    kept = good.join(pl.scan_parquet(answers).select(photo), on=photo, how="semi").select(pl.len())
    return int(kept.collect(engine="streaming").item())


def _judge(run: Run, results: _Results) -> tuple[Finding, ...]:
    gate = run.settings.gate
    findings = judge_run(results.stats, results.previous, gate, run.worth)
    return findings if results.changes is None else findings + judge_gone(results.changes, gate)


def _record(run: Run, results: _Results, findings: tuple[Finding, ...], changed: bool) -> RunRecord:
    stats, worth, finished_at = results.stats, run.worth, datetime.now(UTC)
    seconds = (finished_at - run.started_at).total_seconds()
    engine = results.rows["engine"][0] if stats.rows else run.settings.engine
    return RunRecord(
        run=run.info,
        state="held" if findings else "published" if stats.rows or changed else "nothing_to_do",
        counts={"rows": stats.rows, "ok": stats.ok, "failed": stats.failed},
        by_reason=run.manifest.by_reason(),
        by_error_kind=stats.failed_by_kind,
        same_bytes=results.same_bytes,
        answered_before=results.answered_before,
        failed_before=results.failed_before,
        findings=findings,
        warnings=run.manifest.warnings if findings or worth.state == "beats" else (*run.manifest.warnings, worth.text),
        stats=stats,
        shards=len(run.manifest.shards),
        missing_shards=len(results.missing),
        started_at=run.started_at,
        finished_at=finished_at,
        seconds=seconds,
        images_per_second=(stats.rows - results.same_bytes) / seconds,
        engine=engine,
        host=platform.node(),
        stages=judge_stages(read_measured(run.output, run.info), run.settings, engine),
        changes=results.changes,
        previous=results.previous,
        cost=cost(run.settings, seconds, stats.rows),
        versions=_versions(engine),
    )


def _versions(engine: str) -> dict[str, str]:
    """Of the packages that an answer may depend on. A process that leads workers need not have vLLM itself."""
    packages: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("enrich", "torch", "transformers", "peft", "polars")
    }
    if engine == "vllm":
        packages["vllm"] = VLLM
    found = {name: installed(*candidates) for name, candidates in packages.items()}
    return {name: version for name, version in found.items() if version is not None}


def cost(settings: RunSettings, seconds: float, photos: int) -> Cost | None:
    """What 1,000 photos cost at the machine's price, the start of the engine shared among them."""
    if settings.machine_price_per_hour is None or not photos:
        return None
    price = settings.machine_price_per_hour
    return Cost(price, price * seconds / 3600 / photos * 1000)
