"""Who answers the shards of a run: this process, or the workers of a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.session import answer_shards, open_session
from enrich.pipeline.run.state import Run


@dataclass(frozen=True)
class Runner:
    """What answers and commits shards.

    `answer` takes shards, and yields how many of their photos are done; it begins none once the deadline has passed.
    Where a shard fails it raises, and may be called again with the shards that are missing.
    """

    engine_name: str
    answer: Callable[[Sequence[int], Deadline], Iterator[int]]


@contextmanager
def open_runner(
    run: Run, progress: Progress = silent, announce: Callable[[str], object] = lambda line: None
) -> Iterator[Runner]:
    """The runner that the settings name, its engines ready to answer; stopped on the way out.

    Raises:
        UsageError: no such engine, or no Ray cluster with room for one. ParityFailed: see `start_verified_engine`.
    """
    if run.settings.runner == "ray":
        # Ray is an extra; and its workers open runs, as the caller does.
        from enrich.pipeline.run.ray_runner import open_workers

        with open_workers(run, announce) as workers:
            yield Runner(workers.engine_name, workers.answer)
        return
    with open_session(run, progress, announce) as session:
        yield Runner(session.engine_name, partial(answer_shards, session))
