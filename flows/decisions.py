"""Ask a person and wait: the Resume button of a paused flow run shows a form, below the facts to decide by.

All external text in it is escaped.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput

from enrich.output.run_record import RunRecord
from enrich.pages.report import score_table, template
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.standing import Standing
from enrich.settings.run import GateSettings

MARGIN_SECONDS = 3600  # Prefect fails a run whose pause times out; ours ends the pause earlier and changes nothing

F = TypeVar("F", bound=RunInput)


async def ask(form: type[F], description: str, hours: float, about: str) -> F | None:
    """The form as a person filled it in; None if nobody did in time.

    Args:
        form: the question.
        description: the facts to decide by, as Markdown.
        hours: how long to wait.
        about: identifies the question within the flow run.
    """
    seconds = hours * 3600
    key = re.sub("[^a-z0-9-]", "-", about.lower())  # the characters that Prefect allows
    asked = form.with_initial_data(description=description)
    pause = apause_flow_run(wait_for_input=asked, timeout=round(seconds) + MARGIN_SECONDS, key=key)
    try:
        return await asyncio.wait_for(pause, seconds)
    except TimeoutError:
        return None


def render_held(record: RunRecord, failed: Sequence[Mapping[str, Any]]) -> str:
    """Each limit that a run exceeded with its value, and the rows of some products that failed."""
    findings = [{"label": _label(one.limit), "allowed": one.allowed, "value": one.value} for one in record.findings]
    total = record.counts["failed"]
    page = template("held.md.jinja", escape=False)
    return str(page.render(findings=findings, failed=failed, total=total))


def _label(limit: str) -> str:
    field = GateSettings.model_fields.get(limit)
    return (field.description if field else None) or limit.replace("_", " ")


def render_promotion(
    new: str, standing: Standing | None, found: Challenge | None, metrics: Mapping[str, Mapping[str, Any] | None]
) -> str:
    """A new adapter and the standing one, on the same products, or else each on its own test (`metrics`, by name)."""
    own = [(name, score_table(scores)[0][1]) for name, scores in metrics.items() if scores]
    columns = list(own[0][1]) if own else []
    page = template("promotion.md.jinja", escape=False)
    return str(page.render(new=new, standing=standing, found=found, own=own, columns=columns))
