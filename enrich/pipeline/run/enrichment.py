"""One pass over a bucket: plan, fetch, answer and commit shard by shard, publish, report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from enrich.output.run_record import RunRecord
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.finish import finish_run
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.session import Session, open_session
from enrich.pipeline.run.start import start_run
from enrich.pipeline.run.state import Run

if TYPE_CHECKING:
    from enrich.pipeline.run.ray_runner import Workers

AnswerAll = Callable[[Sequence[int], Deadline], Iterator[int]]  # of a `Session` or `Workers`


def run_enrichment(request: RunRequest, progress: Progress = silent, on_message: OnMessage = unheard) -> RunRecord:
    """One whole run: plan, every missing shard, publish, report.

    Args:
        on_message: gets lines about what was chosen and found, before the first product is answered.

    Raises:
        UsageError: nothing was started. RunFailed, StorageError: it was interrupted; the same run id continues it.
    """
    deadline = Deadline.after(request.deadline)
    with start_run(request, progress) as run:
        for line in run.warnings:
            on_message(f"warning: {line}")
        shards = run.missing_shards()
        if shards:
            progress("starting the engine", 0, 0)
            with open_runner(run, progress, on_message) as runner:
                answer_shards(run, runner.answer, shards, shards, deadline, progress, on_message)
        progress("publishing", 0, 0)
        return finish_run(run)


def answer_shards(
    run: Run,
    answer: AnswerAll,
    todo: Sequence[int],
    missing: Sequence[int],
    deadline: Deadline,
    progress: Progress,
    on_message: OnMessage,
) -> None:
    """Answer the shards `todo` out of all that are `missing`. `progress` counts the products of the whole run."""
    total = run.manifest.rows
    before = done = total - run.manifest.rows_in(missing)
    progress("products", done, total)  # rates count from here
    for answered in answer(todo, deadline):
        done = before + answered
        progress("products", done, total)
    if done < before + run.manifest.rows_in(todo):
        on_message(f"stopped at its deadline: {total - done:,} of {total:,} products are left")


@contextmanager
def open_runner(
    run: Run, progress: Progress = silent, on_message: OnMessage = unheard
) -> Iterator["Session | Workers"]:
    """The runner of a run's shards: this process or, with `runner: ray`, the workers of a Ray cluster.

    Its engines are ready to answer, and are stopped on exit.

    Raises:
        UsageError: no such engine, or no Ray cluster with room for one. ParityFailed: see `start_verified_engine`.
    """
    if run.settings.runner == "inline":
        with open_session(run, progress, on_message) as session:
            yield session
        return
    from enrich.pipeline.run.ray_runner import open_workers  # Ray is an extra

    with open_workers(run, on_message) as workers:
        yield workers
