"""What flows are made of: each task is one call of the pipeline, with its retries and the name of its runs."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from enrich.catalog.sample.generate import SampleSummary
from enrich.errors import EnrichError, ParityFailed, UsageError
from enrich.pipeline.catalogs import make_sample
from enrich.pipeline.enrichment import finish_run, open_run
from enrich.pipeline.finetuning import Finetuned, finetune
from enrich.pipeline.progress import Progress, logged
from enrich.pipeline.run import Run
from enrich.pipeline.session import Session, open_session
from enrich.pipeline.standing import StandingAdapter, find_standing
from enrich.report import render_summary, score_table
from enrich.schema import RunRecord
from enrich.settings import RunSettings, SampleSettings, TrainSettings
from enrich.stages import describe_stages


class OneLine(logging.Filter):
    """Logs of runs tell in one line what a user can act on; tracebacks are left to errors that nobody foresaw."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], EnrichError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(OneLine())


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Wrong arguments stay wrong, and so does a wrong model; what a network or an endpoint refused may pass."""
    return not isinstance(state.data, UsageError | ParityFailed)


# 10, 20 and 40 seconds, half as much again at most. Nothing is cached or stored: what is done lies in the output.
RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="make sample", task_run_name="make sample", **RETRIED)
def sample(out: str, bucket: str | None, settings: SampleSettings, progress: Progress | None = None) -> SampleSummary:
    """A catalog of synthetic photos, and a bucket of unlabelled ones."""
    return make_sample(out, settings, bucket=bucket, progress=progress or _to_log())


@task(name="find adapter", task_run_name="find adapter", **RETRIED)
def find_adapter(catalog: str, adapters: str, settings: TrainSettings) -> StandingAdapter:
    """Where the adapter for the catalog as it is now lies, and whether it is there already."""
    standing = find_standing(catalog, adapters, settings)
    get_run_logger().info("adapter %s: %s", standing.uri, "stands" if standing.current else "to be made")
    return standing


@task(name="fine-tune", task_run_name="fine-tune", **RETRIED)
def train(catalog: str, out: str, settings: TrainSettings, progress: Progress | None = None) -> Finetuned:
    """An adapter at `out`; its scores beside the baselines are the artifact `adapter-scores`."""
    done = finetune(catalog, out, settings, progress or _to_log(), announce=get_run_logger().info)
    rows = [{"": name, **columns} for name, columns in score_table(done.metrics)]
    create_table_artifact(rows, key="adapter-scores", description=f"Adapter {done.adapter} at {done.uri}, test split")
    return done


@task(name="plan", task_run_name="plan", **RETRIED)
def plan(
    stack: ExitStack,
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    run_id: str | None,
    limit: int | None,
    progress: Progress | None = None,
) -> Run:
    """The run: a new one, or the one that `run_id` names. Its files are at hand until `stack` is closed."""
    opened = open_run(images, adapter, output, settings, run_id=run_id, limit=limit, progress=progress or _to_log())
    run = stack.enter_context(opened)
    get_run_logger().info("run %s: %d photos", run.info.run_id, run.manifest.rows)
    return run


@task(name="start engine", task_run_name="start engine", **RETRIED)
def start(stack: ExitStack, run: Run, progress: Progress | None = None) -> Session:
    """The engine and the decoding processes, stopped when `stack` is closed."""
    return stack.enter_context(open_session(run, progress or _to_log(), get_run_logger().info))


def _shards_name() -> str:
    first, *others = runtime.task_run.parameters["shards"]
    return f"shards {first}-{others[-1]}" if others else f"shard {first}"


@task(name="answer", task_run_name=_shards_name, **RETRIED)
def answer(
    run: Run, answer_one: Callable[[int], Iterator[int]], shards: Sequence[int], progress: Progress | None = None
) -> None:
    """Answer and commit `shards`; a retry does those that are not committed yet."""
    tell = progress or _to_log()
    missing = sorted(set(shards).intersection(run.missing_shards()))
    done, total = 0, run.manifest.rows_in(missing)
    for shard in missing:
        for answered in answer_one(shard):
            tell("photos", done + answered, total)
        done += run.manifest.rows_in([shard])


@task(name="publish", task_run_name="publish", **RETRIED)
def publish(run: Run) -> RunRecord:
    """Judge the run, fold it into products.parquet unless it is held back, and write its report and run.json."""
    record = finish_run(run)
    if record.stages:
        get_run_logger().info(describe_stages(record.stages))
    return record


@task(name="report", task_run_name="report", **RETRIED)
def report(record: RunRecord, output: str) -> None:
    """The artifact `enrichment`: counts, reasons, findings, and where the full report lies."""
    summary = render_summary(record.model_dump(mode="json"), output)
    create_markdown_artifact(summary, key="enrichment", description=f"Run {record.run.run_id}")


def _to_log() -> Progress:
    return logged(get_run_logger().info)
