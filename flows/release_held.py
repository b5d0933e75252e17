"""A person decides on a run that the publish gate held back, with its numbers in front of them."""

import asyncio
import re
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from enrich.output.run_record import RunRecord
from enrich.pages.report import render_summary
from enrich.pipeline.run.records import held_back
from enrich.settings.run import RunSettings
from flows import tasks
from flows.parameters import Hours, Output, RunId

MARGIN_SECONDS = 3600  # Prefect fails a pause that ends by itself; ours ends before and leaves the run as it was


class Decision(RunInput):
    """Approve puts the run's rows into products.parquet; reject does not change it."""

    decision: Literal["approve", "reject"] = Field(title="Decision")
    comment: str = Field(default="", title="Why", description="Kept in the log of this flow run", max_length=500)


@flow(name="release-held", flow_run_name="decide on a held run of {output}")
async def release_held(output: Output = "demo/output", run_id: RunId = None, hours: Hours = 12.0) -> State[Any]:
    """Pause with the numbers of a held run until somebody resumes with a decision.

    Nobody in time leaves the run held: it can be released later, from here again or by the command.

    Args:
        output: Output of the run that was held back: a directory or s3://bucket/prefix.
        run_id: Name of the run; left empty, the last one.
        hours: How long to wait for a decision.
    """
    record = tasks.read_run(output, run_id)
    name = record.run.run_id
    if record.state != "held":
        return Completed(message=f"run {name} is {record.state.replace('_', ' ')}; there is nothing to decide")
    tasks.report(record, output, RunSettings())
    form = Decision.with_initial_data(description=numbers(record, output))
    seconds = hours * 3600
    try:
        pause = apause_flow_run(wait_for_input=form, timeout=round(seconds) + MARGIN_SECONDS, key=_key(name))
        answer = await asyncio.wait_for(pause, seconds)
        assert answer is not None
    except TimeoutError:
        return Completed(name="Held", message=f"nobody decided in {hours:g} h; {held_back(record, output)}")
    get_run_logger().info("run=%s decision=%s comment=%r", name, answer.decision, answer.comment)
    if answer.decision == "reject":
        return Completed(name="Rejected", message=f"run {name} stays held, products.parquet is as it was")
    tasks.release(output, name)
    return Completed(name="Released", message=f"run {name} is in products.parquet")


def _key(run_id: str) -> str:
    """The pause's name, one for each run; Prefect takes small letters, digits and dashes."""
    return f"release-{re.sub('[^a-z0-9-]', '-', run_id.lower())}"


def numbers(record: RunRecord, output: str) -> str:
    """What to decide by: each limit that was passed with its value, then the run on half a page. Markdown."""
    lines = ["| limit | allowed | this run |", "| --- | ---: | ---: |"]
    lines += [f"| {finding.limit} | {finding.allowed:g} | **{finding.value:.3g}** |" for finding in record.findings]
    return "\n".join(lines) + "\n\n" + render_summary(record.model_dump(mode="json"), output)
