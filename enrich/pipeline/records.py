"""Finished runs: release one that was held back, render its report anew."""

import json

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich import parquet
from enrich.errors import HeldBack, RunFailed, UsageError
from enrich.infer.parity import ParityRecord
from enrich.manifest import read_manifest
from enrich.publish import publish, read_run_record, read_shards, write_run_record
from enrich.report import render_report
from enrich.schema import SCORE_SCHEMA, RunInfo, RunRecord
from enrich.scores import SCORES_FILE, VERDICTS_KEY
from enrich.settings import RunSettings
from enrich.stages import Measured
from enrich.storage import Store, open_store

_MEASURED = TypeAdapter(Measured)


def publish_held(output: str, run_id: str) -> RunRecord:
    """Release a run that the gate held back, and say so in its record and report."""
    target = open_store(output, must_exist=True)
    record = read_record(target, run_id)
    if record.state != "held":
        raise UsageError(f"run {run_id}: it is {record.state.replace('_', ' ')} already; only a held run is released")
    publish(target, record.run)
    released = record.model_copy(update={"state": "published"})
    write_report(target, open_store(record.run.images_uri), released, read_shards(target, record.run), RunSettings())
    write_run_record(target, released)
    return released


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
    rows = read_shards(target, record.run)
    uri = write_report(target, open_store(record.run.images_uri), record, rows, RunSettings())
    return record, uri


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
    finished = [info.key for info in output.list("runs") if info.key.endswith("/run.json")]
    records = [RunRecord.model_validate_json(output.get(key)[0]) for key in finished]
    if not records:
        raise UsageError(f"output {output.uri}: no finished run there; make one with `enrich run`")
    return max(records, key=lambda record: (record.run.created_at, record.run.run_id)).run.run_id


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
