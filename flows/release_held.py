"""A person decides about a run that the publish gate held back, given its numbers."""

from itertools import islice
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from enrich.output.history import read_frames
from enrich.output.run_record import RunRecord
from enrich.pages.report import render_summary
from enrich.pipeline.run.records import held_back
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from flows import tasks
from flows.decisions import ask, render_held
from flows.parameters import Hours, Output, RunId
from flows.states import held

MOST_NAMED = 10  # failed products


class Decision(RunInput):
    """Approve adds the run's rows to products.parquet; reject leaves it unchanged."""

    decision: Literal["approve", "reject"] = Field(title="Decision")
    comment: str = Field(default="", title="Why", description="Kept in the log of this flow run", max_length=500)


@flow(name="release-held", flow_run_name="decide on a held run of {output}")
async def release_held(output: Output, run_id: RunId = None, hours: Hours = 12.0) -> State[Any]:
    """Pause, showing the numbers of a held run, until somebody resumes with a decision.

    If nobody decides in time the run stays held; it can be released later, by this flow or by the command.

    Args:
        output: Output of the run that was held back: a directory or s3://bucket/prefix.
        run_id: Name of the run; if empty, the last one.
        hours: How long to wait for a decision.
    """
    record = tasks.read_run(output, run_id)
    name = record.run.run_id
    if record.state != "held":
        return Completed(message=f"run {name} is {record.state.replace('_', ' ')}; there is nothing to decide")
    links = tasks.report(record, output, RunSettings())
    answer = await ask(Decision, f"{links}\n{numbers(record, output)}", hours, f"release-{name}")
    if answer is None:
        return held(f"nobody decided in {hours:g} h; {held_back(record, output)}")
    get_run_logger().info("run=%s decision=%s comment=%r", name, answer.decision, answer.comment)
    if answer.decision == "reject":
        return Completed(name="Rejected", message=f"run {name} stays held; products.parquet is unchanged")
    tasks.release(output, name)
    return Completed(name="Released", message=f"run {name} is in products.parquet")


def numbers(record: RunRecord, output: str) -> str:
    """The facts to decide by: each exceeded limit with its value, the first failed products, and the run in half a
    page. Markdown."""
    store = open_store(output)
    rows = (row for frame in read_frames(store, record.run) for row in frame.rows(named=True))
    failed = list(islice((row for row in rows if row["status"] == "failed"), MOST_NAMED))
    summary = render_summary(record.model_dump(mode="json"), output, deciding=True)
    return f"{render_held(record, failed)}\n{summary}"
