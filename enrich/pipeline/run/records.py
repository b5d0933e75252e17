"""Records and reports of finished runs, and what their sessions measured."""

import json

import polars as pl
from pydantic import TypeAdapter, ValidationError

from enrich.engines.parity import ParityRecord
from enrich.errors import HeldBack, PermanentFailure, UsageError, shell
from enrich.output import parquet
from enrich.output.history import read_frames
from enrich.output.manifest import read_manifest
from enrich.output.run_record import RunInfo, RunRecord, find_record, read_run_record
from enrich.output.schema import ROW_SCHEMA, SCORE_SCHEMA
from enrich.pages.report import render_report, render_sheet
from enrich.pipeline.run.measured import Measured
from enrich.scores.assess import SCORES_FILE, VERDICTS_KEY
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store, real_place

ROLLED_BACK = "rolled_back"  # the limit that a finding of `roll_back` names
SHEET_PRODUCTS = 12  # of a contact sheet
REPORT_ROWS = 500_000  # rows that a report looks at, some 300 MB; run.json counts all

_MEASURED = TypeAdapter(Measured)


def held_back(record: RunRecord, output: str) -> HeldBack:
    """The error for a run that the gate held back: why, and how to release it."""
    return HeldBack(
        f"run {record.run.run_id} is held back: {record.findings[0].message}; look at its report, then release it "
        f"with `enrich publish --output {shell(real_place(output))} --run-id {record.run.run_id}`"
    )


def read_record(output: Store, run_id: str | None) -> RunRecord:
    """The record of a finished run, None: of the one created last; UsageError if there is none."""
    if run_id is None:
        last = find_record(output, lambda record: True)
        if last is None:
            raise UsageError(f"output {output.uri}: no finished run; make one with `enrich run`")
        return last
    manifest = read_manifest(output, run_id)
    if manifest is None:
        raise UsageError(
            f"run {run_id}: not in {output.uri}; `enrich report --output {shell(output.uri)}` shows the last one"
        )
    record = read_run_record(output, manifest.run)
    if record is None:
        raise UsageError(f"run {run_id}: it is not finished; continue it with `enrich run --run-id {run_id}`")
    return record


def write_report(output: Store, images: Store, record: RunRecord, rows: pl.DataFrame, settings: RunSettings) -> str:
    scores = parquet.read(output, f"{record.run.folder}{SCORES_FILE}", SCORE_SCHEMA)
    parity_key = f"{record.run.folder}parity.json"
    parity = None
    if output.head(parity_key) is not None:
        compared = ParityRecord.model_validate_json(output.get(parity_key)[0])
        parity = {"ok": compared.ok, "summary": compared.summary}
    table, verdicts = (scores.table, json.loads(scores.metadata[VERDICTS_KEY])) if scores else (None, ())
    page = render_report(
        record.model_dump(mode="json"), rows, images, settings.limits, output=output.uri, scores=table,
        verdicts=verdicts, parity=parity,
    )  # fmt: skip
    key = f"{record.run.folder}report.html"
    output.put(key, page.encode())
    return output.uri_of(key)


def contact_sheet(output: str, record: RunRecord, settings: RunSettings) -> str:
    """Photos of a finished run with their answers, as Markdown with thumbnails of some 7 kB each."""
    frames = read_frames(open_store(output, s3=settings.s3), record.run)
    rows = next(frames, parquet.empty(ROW_SCHEMA))  # its first shard has more than enough
    return render_sheet(rows, open_store(record.run.images_uri, s3=settings.s3), settings.limits, SHEET_PRODUCTS)


def write_measured(output: Store, run: RunInfo, session: str, measured: Measured) -> None:
    """Write what a session measured so far, replacing what it wrote before."""
    output.put(f"{run.folder}sessions/{session}.json", _MEASURED.dump_json(measured, indent=1))


def read_measured(output: Store, run: RunInfo) -> list[Measured]:
    """What all sessions of a run measured; RunFailed if a file there is something else."""
    found = []
    for info in output.list(f"{run.folder}sessions"):
        try:
            found.append(_MEASURED.validate_json(output.get(info.key)[0]))
        except ValidationError as error:
            raise PermanentFailure(
                f"{output.uri_of(info.key)} is not a measurement of a run; remove it and start the run again"
            ) from error
    return found
