"""Finished runs: release one that was held back, render its report anew."""

import json

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich.engines.parity import ParityRecord
from enrich.errors import HeldBack, RunFailed, UsageError
from enrich.output import parquet
from enrich.output.history import fetch_rows, read_frames
from enrich.output.manifest import read_manifest
from enrich.output.publish import (
    find_record,
    publish,
    published_runs,
    read_records,
    read_run_record,
    refold,
    write_run_record,
)
from enrich.output.run_record import Finding, RunInfo, RunRecord
from enrich.output.schema import ROW_SCHEMA, SCORE_SCHEMA
from enrich.pages.report import render_report, render_sheet
from enrich.pipeline.run.bottleneck import Measured
from enrich.scores.assess import SCORES_FILE, VERDICTS_KEY
from enrich.settings import RunSettings
from enrich.storage import Store, open_store
from enrich.storage.scratch import scratch

ROLLED_BACK = "rolled_back"  # the limit that a finding of `roll_back` names
REPORT_ROWS = 500_000  # rows that a report looks at, some 300 MB; run.json counts all

_MEASURED = TypeAdapter(Measured)
_SETTINGS = RunSettings()


def publish_held(output: str, run_id: str, settings: RunSettings = _SETTINGS) -> RunRecord:
    """Release a run that the gate or a roll-back holds back, and say so in its record and report."""
    target = open_store(output, must_exist=True, s3=settings.s3)
    record = read_record(target, run_id)
    if record.state != "held":
        raise UsageError(f"run {run_id}: it is {record.state.replace('_', ' ')} already; only a held run is released")
    _refuse_retired(record)
    publish(target, record.run)
    kept = tuple(finding for finding in record.findings if finding.limit != ROLLED_BACK)
    released = record.model_copy(update={"state": "published", "findings": kept})
    _write_report_anew(target, released, settings)
    write_run_record(target, released)
    return released


def roll_back(output: str, run_id: str, settings: RunSettings = _SETTINGS) -> list[RunRecord]:
    """Make products.parquet what it was when `run_id` was the last run published; later ones are held back.

    History keeps their rows, and `--publish ID` releases each again. Returns the records of the runs held back. What
    was published by them only is done again by the next run, unless they are released first.

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
    command = f"enrich run --output {target.uri} --rollback {run_id}"
    refold(target, [found.run for found in kept], settings.gate, again=command)
    message = f"rolled back to run {run_id}"
    later = [found for found in published if found.run.mark > record.run.mark]
    held = [
        found.model_copy(
            update={"state": "held", "findings": (*found.findings, Finding(ROLLED_BACK, 1.0, 0.0, message))}
        )
        for found in later
    ]
    for found in held:
        write_run_record(target, found)
    return held


def rebuild(output: str, settings: RunSettings = _SETTINGS) -> tuple[int, int]:
    """Make products.parquet anew from history, whatever became of it. Returns how many rows it has, of how many runs.

    Raises:
        UsageError: nothing was published there. RunFailed: history lacks rows that a published run had.
    """
    target = open_store(output, must_exist=True, s3=settings.s3)
    target.check_conditional_writes()
    runs = published_runs(target)
    if not runs:
        raise UsageError(f"output {target.uri}: no published run there to make products.parquet from")
    done = refold(target, runs, settings.gate, again=f"enrich run --output {target.uri} --rebuild")
    return done.rows, len(runs)


def _refuse_retired(record: RunRecord) -> None:
    if record.retired:
        raise UsageError(f"run {record.run.run_id}: its rows were deleted when it was retired; nothing was changed")


def held_back(record: RunRecord, output: str) -> HeldBack:
    """What to tell of a run that the gate held back: why, and the way out."""
    return HeldBack(
        f"run {record.run.run_id} is held back: {record.findings[0].message}; look at its report, then release it "
        f"with `enrich run --output {output} --publish {record.run.run_id}`"
    )


def rewrite_report(output: str, run_id: str | None = None) -> tuple[RunRecord, str]:
    """Render the report of a finished run (the last one by default) anew. Returns its record and the report's URI."""
    target = open_store(output, must_exist=True)
    record = read_record(target, run_id or last_run_id(target))
    return record, _write_report_anew(target, record, RunSettings())


def _write_report_anew(target: Store, record: RunRecord, settings: RunSettings) -> str:
    with scratch() as folder:
        fetch_rows(target, record.run, folder / "rows.parquet")
        rows = pl.read_parquet(folder / "rows.parquet", n_rows=REPORT_ROWS)
    return write_report(target, open_store(record.run.images_uri, s3=settings.s3), record, rows, settings)


def read_record(output: Store, run_id: str) -> RunRecord:
    """The record of a finished run; UsageError if there is none."""
    begun = read_manifest(output, run_id)
    if begun is None:
        raise UsageError(f"run {run_id}: not in {output.uri}; `enrich report --output {output.uri}` shows the last one")
    record = read_run_record(output, begun.run)
    if record is None:
        raise UsageError(f"run {run_id}: it is not finished; go on with `enrich run --run-id {run_id}`")
    return record


def last_run_id(output: Store) -> str:
    """The finished run that was created last."""
    last = find_record(output, lambda record: True)
    if last is None:
        raise UsageError(f"output {output.uri}: no finished run there; make one with `enrich run`")
    return last.run.run_id


def write_report(output: Store, images: Store, record: RunRecord, rows: pl.DataFrame, settings: RunSettings) -> str:
    scores = parquet.read(output, f"{record.run.folder}{SCORES_FILE}", SCORE_SCHEMA)
    parity_key = f"{record.run.folder}parity.json"
    parity = None
    if output.head(parity_key) is not None:
        compared = ParityRecord.model_validate_json(output.get(parity_key)[0])
        parity = {"ok": compared.ok, "summary": compared.summary}
    page = render_report(
        record.model_dump(mode="json"),
        rows,
        images,
        settings.limits,
        scores=scores.table if scores else None,
        verdicts=json.loads(scores.metadata[VERDICTS_KEY]) if scores else (),
        parity=parity,
    )
    key = f"{record.run.folder}report.html"
    output.put(key, page.encode())
    return output.uri_of(key)


def contact_sheet(output: str, record: RunRecord, settings: RunSettings, most: int = 12) -> str:
    """Photos of a finished run with what was said of them, as Markdown; a thumbnail is some 7 kB of it."""
    frames = read_frames(open_store(output, s3=settings.s3), record.run)
    rows = next(frames, parquet.empty(ROW_SCHEMA))  # its first shard has more than enough
    return render_sheet(rows, open_store(record.run.images_uri, s3=settings.s3), settings.limits, most)


def write_measured(output: Store, run: RunInfo, session: str, measured: Measured) -> None:
    """Keep what a session measured, in place of what it had written before."""
    output.put(f"{_sessions(run)}/{session}.json", _MEASURED.dump_json(measured, indent=1))


def read_measured(output: Store, run: RunInfo) -> list[Measured]:
    """What all sessions of a run measured; RunFailed if a file there is not ours."""
    found = []
    for info in output.list(_sessions(run)):
        try:
            found.append(_MEASURED.validate_json(output.get(info.key)[0]))
        except ValidationError as error:
            raise RunFailed(
                f"{output.uri_of(info.key)} is no measurement of a run; remove it and start the run again"
            ) from error
    return found


def _sessions(run: RunInfo) -> str:
    return f"{run.folder}sessions"
