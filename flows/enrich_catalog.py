"""Enrich new and changed products of a bucket: plan, shards as task runs, publish, report."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from typing import Any

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.states import Completed

from enrich.output.run_record import RunRecord
from enrich.pipeline.progress import Progress
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.records import held_back
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.state import Run
from flows import tasks
from flows.parameters import ADHOC, ANSWERING, Adapter, AdhocSettings, Output, Photos, Text, read_text
from flows.states import held

MOST_GROUPS = 500  # of shards; each is a task run
LEAST_SHARDS = 8  # in a group; a retry does the missing ones


@flow(name="enrich-catalog", flow_run_name="enrich {photos}")
def enrich_catalog(photos: Photos, adapter: Adapter, output: Output, settings: Text = ADHOC) -> State[Any]:
    """Write titles, categories and prices of new products, and of those whose photos changed, to products.parquet.

    Ends as Held, not Completed, if the publish gate left products.parquet unchanged.
    """
    more = read_text(AdhocSettings, settings, "run", ANSWERING)
    request = RunRequest(
        photos, adapter, output, more.run, more.run_id, more.limit, more.inventory, tasks.seconds_left(more.until),
        more.products,
    )  # fmt: skip
    return ending(enrich(request), output)


def enrich_all(request: RunRequest) -> RunRecord:
    """Finish the run of an earlier flow run whose process was killed, if there is one, then do what is new."""
    if left := tasks.find_broken_off(request):
        started = time.monotonic()
        enrich(replace(request, run_id=left))
        if request.deadline is not None:
            request = replace(request, deadline=max(request.deadline - (time.monotonic() - started), 0.0))
    return enrich(request)


def enrich(request: RunRequest, progress: Progress | None = None) -> RunRecord:
    """The tasks of one run, within the calling flow; a request without a run id gets the flow run's own."""
    deadline = Deadline.after(request.deadline)
    request = replace(request, run_id=request.run_id or tasks.own_run_id(request.adapter))
    with ExitStack() as stack, tags(f"run:{request.run_id}"):
        run = tasks.plan(stack, request, progress)
        _answer_missing(run, deadline, progress)
        record = tasks.publish(run)
        tasks.report(record, request.output, request.settings)
        if record.state == "held":
            name = record.run.run_id
            tasks.ask(tasks.RELEASE, f"{request.output} run={name}", {"output": request.output, "run_id": name})
    return record


def _answer_missing(run: Run, deadline: Deadline, progress: Progress | None) -> None:
    """Answer every shard that is not committed yet, until the deadline."""
    # Ray distributes the shards itself, so it gets all of them at once.
    groups = shard_groups(run.missing_shards(), most=1 if run.settings.runner == "ray" else MOST_GROUPS)
    if not groups:
        return
    with ExitStack() as stack:
        runner = tasks.start(stack, run, progress)
        on_progress = progress or tasks.watched()
        for group in groups:
            if deadline.passed():
                return
            limited = tasks.answer.with_options(
                timeout_seconds=tasks.answer_timeout(runner.engine_name, run.manifest.rows_in(group))
            )
            limited(run, runner.answer, group, deadline, on_progress)


def shard_groups(shards: Sequence[int], most: int = MOST_GROUPS, least: int = LEAST_SHARDS) -> list[list[int]]:
    """`shards` in order, in at most `most` groups whose sizes differ by one at most; of `least` shards, if there are.

    Each group is a task run. Prefect's SQLite server drops events in bursts of a few thousand, and nobody reads more
    than 500 lines. The engine runs dry at the end of a group: about 2 s, where a shard takes 40 s on a large GPU.
    """
    count = min(most, math.ceil(len(shards) / least))
    bounds = [len(shards) * index // count for index in range(count + 1)] if count else []
    return [list(shards[start:end]) for start, end in pairwise(bounds)]


def ending(record: RunRecord, output: str) -> State[Any]:
    """The final state of the flow that made this run: Completed, or Held with the reason and what to do."""
    if record.state == "held":
        return held(str(held_back(record, output)))
    left = f"; {record.missing_shards} of {record.shards} shards are left" if record.missing_shards else ""
    if record.state == "nothing_to_do" and not left:
        return Completed(message="nothing to do: every product has its answer")
    counts = record.counts
    return Completed(message=f"{counts['rows']} products: {counts['ok']} ok, {counts['failed']} failed{left}")
