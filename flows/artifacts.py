"""The artifacts of a run in Prefect's UI: progress while it runs, then numbers, photos and links to its pages.

Answers and file names are untrusted text: they are escaped before they become Markdown.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from enrich.output.run_record import RunRecord
from enrich.pages.links import render_links
from enrich.pages.report import render_summary, score_table
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.linking import link_pages
from enrich.pipeline.progress import Progress, describe_progress
from enrich.pipeline.run.records import contact_sheet
from enrich.settings.run import RunSettings

EVERY_SECONDS = 5.0  # between updates of the progress


class ProgressArtifact:
    """A `Progress` that keeps the flow run's artifact `progress` up to date, and calls `also`.

    Updates are sent from a thread, and dropped while the previous one is being sent: a slow or unreachable server
    neither delays the run nor makes it fail.
    """

    def __init__(self, also: Progress, every_seconds: float = EVERY_SECONDS) -> None:
        self._also, self._every_seconds = also, every_seconds
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="progress")
        self._artifact: Any = None  # its id at the server
        self._sent_at = 0.0
        self._sending: Future[None] | None = None
        self._kind, self._kind_since, self._kind_from = "", 0.0, 0  # of work, with time and count at its start

    def __call__(self, what: str, done: int, total: int) -> None:
        self._also(what, done, total)
        now, kind = time.monotonic(), what.partition(",")[0]
        if kind != self._kind:
            self._kind, self._kind_since, self._kind_from = kind, now, done
        seconds = now - self._kind_since
        line = describe_progress(what, done, total, (done - self._kind_from) / seconds if seconds else 0.0)
        share = 100 * done / total if total else 0.0
        if self._artifact is None:
            with suppress(Exception):
                self._artifact = create_progress_artifact(share, key="progress", description=line)
                self._sent_at = now
        elif done == total or (now - self._sent_at >= self._every_seconds and self._is_idle()):
            self._sent_at, self._sending = now, self._sender.submit(_send, self._artifact, share, line)

    def _is_idle(self) -> bool:
        return self._sending is None or self._sending.done()


def _send(artifact: Any, share: float, line: str) -> None:
    with suppress(Exception), get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=share, description=line))


def show_scores(metrics: dict[str, Any], where: str) -> None:
    """The table `adapter-scores`: the adapter's scores next to those of its base and the baselines."""
    rows = [{"": name, **columns} for name, columns in score_table(metrics)]
    create_table_artifact(rows, key="adapter-scores", description=f"{where}, test split")


def show_challenge(found: Challenge, why: str) -> None:
    """The table `comparison`: the new adapter against the standing one, with the error of each difference."""
    rows = [
        {
            "by": one.labels,
            "products": one.products,
            "": difference.what,
            "new": f"{difference.new:.3f}",
            "standing": f"{difference.standing:.3f}",
            "99 % of the difference": f"{difference.low:+.3f} to {difference.high:+.3f}",
            "verdict": "worse" if difference.worse else "at least as good",
        }
        for one in found.contests
        for difference in one.differences
    ]
    people = f" People decided {found.decided:,} of the products that are never trained on." if found.decided else ""
    create_table_artifact(rows, key="comparison", description=f"{why}.{people}")


def show_run(record: RunRecord, output: str, settings: RunSettings) -> str:
    """`enrichment`: the run in half a page. `counts`: a table. `contact-sheet`: photos. `report`: links, which are also
    returned as Markdown."""
    run_id = record.run.run_id
    create_markdown_artifact(render_summary(record.model_dump(mode="json"), output), "enrichment", f"Run {run_id}")
    create_table_artifact(counts(record), "counts", f"Run {run_id}: products by reason and by outcome")
    if record.counts["ok"]:
        create_markdown_artifact(
            contact_sheet(output, record, settings), "contact-sheet", f"Run {run_id}: some of its products"
        )
    links = page_links(record, output, settings)
    create_markdown_artifact(links, "report", f"Run {run_id}: its pages")
    return links


def page_links(record: RunRecord, output: str, settings: RunSettings) -> str:
    """Links to the report and the review page of a run, or the commands that show them, as Markdown.

    Links into S3 are credentials: they belong in artifacts, which only users of the Prefect server see, and not in
    logs, state messages or files.
    """
    return render_links(link_pages(record, output, settings))


def counts(record: RunRecord) -> list[dict[str, Any]]:
    """Products of a run by reason and by outcome."""
    reasons = [("why processed", reason, count) for reason, count in record.by_reason.items()]
    kinds = [("failed with", kind, count) for kind, count in record.by_error_kind.items()]
    ended = [("outcome", name, record.counts[name]) for name in ("ok", "failed")]
    return [
        {"what": what, "which": str(which), "products": count, "share": f"{count / max(record.counts['rows'], 1):.1%}"}
        for what, which, count in [*reasons, *ended, *kinds]
    ]
