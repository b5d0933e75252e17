"""Actions on finished runs: release a held one, go back to an earlier one, rebuild the table from history."""

import polars as pl

from enrich.errors import UsageError, shell
from enrich.output.history import fetch_rows
from enrich.output.publish import publish, refold
from enrich.output.run_record import Finding, RunRecord, read_records, write_run_record
from enrich.output.run_rows import published_runs
from enrich.output.sinks import follow
from enrich.pipeline.run.records import REPORT_ROWS, ROLLED_BACK, read_record, write_report
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from enrich.storage.scratch import scratch

_SETTINGS = RunSettings()


def publish_held(output: str, run_id: str, settings: RunSettings = _SETTINGS) -> RunRecord:
    """Publish a run that the gate or a rollback holds back, and write its record and report again.

    Of one that is published already, the sink gets what it lacks.
    """
    target = open_store(output, must_exist=True, s3=settings.s3)
    record = read_record(target, run_id)
    if record.state != "held" and follow(target, run_id, "publish"):
        return record  # the process that published it was killed before it committed
    if record.state != "held":
        raise UsageError(f"run {run_id}: already {record.state.replace('_', ' ')}; only a held run can be released")
    _refuse_retired(record)
    publish(target, record.run)
    follow(target, run_id, "publish")
    kept = tuple(finding for finding in record.findings if finding.limit != ROLLED_BACK)
    released = record.model_copy(update={"state": "published", "findings": kept})
    _rewrite_report(target, released, settings)
    write_run_record(target, released)
    return released


def roll_back(output: str, run_id: str, settings: RunSettings = _SETTINGS) -> list[RunRecord]:
    """Make products.parquet what it was when `run_id` was the last run published, and return the later runs' records.

    Those are held back: history keeps their rows, and `enrich publish` releases each again. Unless that is done first,
    the next run answers their products again.

    Raises:
        UsageError: the run was not published, or rows of that time were deleted (`enrich tidy`).
    """
    target = open_store(output, must_exist=True, s3=settings.s3)
    target.check_conditional_writes()
    record = read_record(target, run_id)
    if record.state == "held":
        raise UsageError(f"run {run_id}: it was not published, so there is no state to go back to")
    published = [found for found in read_records(target) if found.state != "held"]
    kept = [found for found in reversed(published) if found.run.mark <= record.run.mark]
    for found in kept:
        _refuse_retired(found)
    command = f"enrich rollback --output {shell(target.uri)} --run-id {run_id}"
    refold(target, [found.run for found in kept], settings.gate, again=command)
    finding = Finding(ROLLED_BACK, 1.0, 0.0, f"rolled back to run {run_id}")
    held = [
        found.model_copy(update={"state": "held", "findings": (*found.findings, finding)})
        for found in published
        if found.run.mark > record.run.mark
    ]
    for found in held:
        write_run_record(target, found)
    follow(target, run_id, "rollback")
    return held


def rebuild(output: str, settings: RunSettings = _SETTINGS) -> tuple[int, int]:
    """Rebuild products.parquet from history, whatever its state. Returns how many rows it has, of how many runs.

    Raises:
        UsageError: nothing was published there. RunFailed: history lacks rows that a published run had.
    """
    target = open_store(output, must_exist=True, s3=settings.s3)
    target.check_conditional_writes()
    runs = published_runs(target, read_records(target))
    if not runs:
        raise UsageError(f"output {target.uri}: no published run to make products.parquet from")
    done = refold(target, runs, settings.gate, again=f"enrich rebuild --output {shell(target.uri)}")
    follow(target, None, "rebuild")
    return done.rows, len(runs)


def _refuse_retired(record: RunRecord) -> None:
    if record.retired:
        raise UsageError(f"run {record.run.run_id}: its rows were deleted when it was retired; nothing was changed")


def rewrite_report(output: str, run_id: str | None = None) -> tuple[RunRecord, str]:
    """Render the report of a finished run (the last one by default) again. Returns its record and the report's URI."""
    target = open_store(output, must_exist=True)
    record = read_record(target, run_id)
    return record, _rewrite_report(target, record, RunSettings())


def _rewrite_report(target: Store, record: RunRecord, settings: RunSettings) -> str:
    with scratch() as folder:
        fetch_rows(target, record.run, folder / "rows.parquet")
        rows = pl.read_parquet(folder / "rows.parquet", n_rows=REPORT_ROWS)
    return write_report(target, open_store(record.run.images_uri, s3=settings.s3), record, rows, settings)
