"""What a run shows in Prefect's UI: progress while it runs, then numbers, photos and where the report lies.

What a model or a file name says is untrusted text: it is escaped before it becomes Markdown.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from enrich.output.run_record import RunRecord
from enrich.pages.report import render_summary, score_table
from enrich.pipeline.progress import Progress
from enrich.pipeline.run.records import contact_sheet
from enrich.settings.run import RunSettings
from enrich.storage import is_s3

EVERY_SECONDS = 5.0  # between updates of the progress


def show_progress(also: Callable[[str, int, int], object], every_seconds: float = EVERY_SECONDS) -> Progress:
    """A `Progress` that keeps the flow run's artifact `progress` up to date, beside `also`.

    Updates are sent from a thread and left out where the last one is still under way: a server that is slow or away
    holds nothing up and fails nothing.
    """
    sender = ThreadPoolExecutor(1, thread_name_prefix="progress")
    artifact, sent, sending = None, 0.0, None
    kind, began, first = "", 0.0, 0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal artifact, sent, sending, kind, began, first
        also(what, done, total)
        now = time.monotonic()
        if what.partition(",")[0] != kind:
            kind, began, first = what.partition(",")[0], now, done
        share = 100 * done / total if total else 0.0
        line = describe_progress(what, done, total, (done - first) / (now - began) if now > began else 0.0)
        if artifact is None:
            with suppress(Exception):
                artifact = create_progress_artifact(share, key="progress", description=line)
                sent = now
            return
        if done == total or (now - sent >= every_seconds and (sending is None or sending.done())):
            sent, sending = now, sender.submit(_send, artifact, share, line)

    return tell


def _send(artifact: Any, share: float, line: str) -> None:
    with suppress(Exception), get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=share, description=line))


def describe_progress(what: str, done: int, total: int, rate: float) -> str:
    """`photos: 1,024 of 7,500, 33.1/s, 3 min 16 s left`; `rate` in items a second, 0 where it is not known."""
    parts = [f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}"]
    if rate > 0:
        parts.append(f"{rate:,.1f}/s")
        if total > done:
            parts.append(f"{_duration((total - done) / rate)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {second} s" if minutes else f"{second} s"


def show_scores(metrics: dict[str, Any], where: str) -> None:
    """The table `adapter-scores`: the adapter's scores beside those of its base and the baselines."""
    rows = [{"": name, **columns} for name, columns in score_table(metrics)]
    create_table_artifact(rows, key="adapter-scores", description=f"{where}, test split")


def show_run(record: RunRecord, output: str, settings: RunSettings) -> None:
    """`enrichment`: the run on half a page. `counts`: a table. `contact-sheet`: photos. `report`: a link."""
    run_id = record.run.run_id
    create_markdown_artifact(render_summary(record.model_dump(mode="json"), output), "enrichment", f"Run {run_id}")
    create_table_artifact(counts(record), "counts", f"Run {run_id}: photos by reason and by outcome")
    if record.counts["ok"]:
        create_markdown_artifact(
            contact_sheet(output, record, settings), "contact-sheet", f"Run {run_id}: some of its photos"
        )
    report = f"{location(output)}/{record.run.folder}report.html"
    create_link_artifact(report, report, "report", f"Run {run_id}: the full report")


def counts(record: RunRecord) -> list[dict[str, Any]]:
    """Photos of a run by why they were done and by what became of them."""
    reasons = [("why they were done", reason, count) for reason, count in record.by_reason.items()]
    kinds = [("failed with", kind, count) for kind, count in record.by_error_kind.items()]
    ended = [("outcome", name, record.counts[name]) for name in ("ok", "failed")]
    return [
        {"what": what, "which": str(which), "photos": count, "share": f"{count / max(record.counts['rows'], 1):.1%}"}
        for what, which, count in [*reasons, *ended, *kinds]
    ]


def location(uri: str) -> str:
    """A URI with a scheme, without a slash at its end: an asset's key, a link's target."""
    return uri.rstrip("/") if is_s3(uri) else Path(uri).absolute().as_uri()
