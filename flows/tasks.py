"""The flows' tasks: each is one call of the pipeline, with its retries and the name of its runs."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.deployments import run_deployment
from prefect.exceptions import CancelledRun, ObjectNotFound
from prefect.settings import PREFECT_LOGGING_EXTRA_LOGGERS
from prefect.tasks import Task, exponential_backoff

from enrich.errors import BUGS, EnrichError, PermanentFailure, Unreachable, UsageError, first_line
from enrich.output.run_record import RunRecord
from enrich.phases import describe_start
from enrich.pipeline import adapter_cache
from enrich.pipeline.adapter_cache import Retrain
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.finetuning import Finetuned, finetune
from enrich.pipeline.progress import Progress, logged
from enrich.pipeline.releasing import publish_held
from enrich.pipeline.run.bottleneck import describe_stages
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.enrichment import AnswerAll, answer_shards, open_runner
from enrich.pipeline.run.finish import finish_run
from enrich.pipeline.run.records import read_record
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import broken_off, start_run
from enrich.pipeline.run.state import Run
from enrich.pipeline.standing import Choice, choose, read_standing
from enrich.settings.catalog import SampleSettings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.storage import open_store
from flows.artifacts import ProgressArtifact, show_challenge, show_run, show_scores
from flows.nights import PUBLISHERS, this_run
from flows.until import seconds_until

if TYPE_CHECKING:
    from enrich.pipeline.run.ray_runner import Workers
    from enrich.pipeline.run.session import Session
    from sample.generate import SampleSummary


def _one_line(record: logging.LogRecord) -> bool:
    """Errors that a user can act on are one line in the logs of runs; unexpected ones keep their traceback. A held run
    is not an error, though Prefect's engine logs an exception."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, EnrichError):
        record.exc_info = None
    return not isinstance(error, CancelledRun)


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_one_line)
if "enrich" in PREFECT_LOGGING_EXTRA_LOGGERS.value():  # its lines go to the UI; Prefect sets no level
    logging.getLogger("enrich").setLevel(logging.INFO)


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether the task may succeed without a change by a person. Wrong arguments, damaged files and bugs stay as they
    are; errors of a network or an endpoint may be temporary."""
    error = state.data
    return isinstance(error, Unreachable) or not isinstance(error, UsageError | PermanentFailure | BUGS)


TURN_SECONDS = 60.0  # to wait for a slot of PUBLISHERS; most runs publish within seconds
RELEASE, PROMOTE = "release-held/release-held", "promote-adapter/promote-adapter"  # deployments that ask a person

# Seconds after which a task is considered hung and is retried: many times the longest duration seen.
QUICK, SLOW, TRAINING = 1800.0, 4 * 3600.0, 7 * 24 * 3600.0
PRODUCT = {"vllm": 2.0}  # for each product, added to QUICK; 60 with the transformers engine, which may have no GPU

# 10 to 160 seconds, plus at most half of that: 5 minutes in all, for a Prefect server or an endpoint that is down.
# Nothing is cached or stored: the output records what is done.
RETRIED: dict[str, Any] = {
    "retries": 5,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="make sample", task_run_name="make sample", timeout_seconds=SLOW, **RETRIED)
def sample(out: str, bucket: str | None, settings: SampleSettings, progress: Progress | None = None) -> "SampleSummary":
    """A catalog of synthetic photos, and a bucket of unlabelled ones."""
    from sample.make import make_sample

    return make_sample(out, settings, bucket=bucket, progress=progress or watched())


@task(name="find adapter", task_run_name="find adapter", timeout_seconds=SLOW, **RETRIED)
def find_adapter(
    catalog: str, adapters: str, settings: TrainSettings, in_use: str | None, retrain: Retrain
) -> adapter_cache.CachedAdapter:
    """The adapter for the current catalog, or where to write it; shows its scores if it exists."""
    kept = read_standing(adapters)
    found = adapter_cache.find_adapter(
        catalog, adapters, settings, in_use, standing=(kept.uri, kept.since) if kept else None, retrain=retrain
    )
    get_run_logger().info("adapter %s: %s", found.uri, found.note or ("ready" if found.ready else "to be made"))
    if found.ready and (metrics := adapter_cache.read_metrics(found.uri)):
        show_scores(metrics, f"Adapter at {found.uri}")
    return found


@task(name="fine-tune", task_run_name="fine-tune", timeout_seconds=TRAINING, **RETRIED)
def train(catalog: str, out: str, settings: TrainSettings, progress: Progress | None = None) -> Finetuned:
    """An adapter at `out`; the artifact `adapter-scores` compares its scores with the baselines."""
    done = finetune(catalog, out, settings, progress or watched(), on_message=get_run_logger().info)
    show_scores(done.metrics, f"Adapter {done.adapter} at {done.uri}")
    return done


@task(name="choose adapter", task_run_name="choose adapter", timeout_seconds=SLOW, **RETRIED)
def choose_adapter(
    catalog: str, adapters: str, new: str, settings: RunSettings, *, fresh: bool, in_use: str | None
) -> Choice:
    """The adapter that serves: the new one, unless it is worse than the standing one. Their comparison is the artifact
    `comparison`."""
    choice = choose(catalog, adapters, new, settings, _to_log(), fresh=fresh, in_use=in_use)
    get_run_logger().log(logging.INFO if choice.uri == new else logging.WARNING, choice.why)
    if choice.challenge:
        show_challenge(choice.challenge, choice.why)
    return choice


def ask_to_promote(adapters: str, new: str, choice: Choice) -> None:
    """Ask a person about a new adapter that lost its comparison; once for each pair."""
    if choice.challenge and not choice.challenge.won:
        pair = f"adapter {choice.challenge.new} or {choice.challenge.standing}"
        ask(PROMOTE, f"{pair} of {adapters}", {"adapters": adapters, "adapter": new})


@task(name="score hold-out", task_run_name="score hold-out", timeout_seconds=SLOW, **RETRIED)
def score_unlike(
    adapter: str, catalog: str, sheet: str, settings: RunSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Scores on a sample's hold-out, as in metrics.json; a contact sheet of its unseen products goes to `sheet`."""
    from sample.scores import score_holdout, write_sheet

    metrics = score_holdout(adapter, catalog, settings, progress or _to_log())
    write_sheet(adapter, catalog, sheet)
    return metrics


@task(name="plan", task_run_name="plan", timeout_seconds=SLOW, **RETRIED)
def plan(stack: ExitStack, request: RunRequest, progress: Progress | None = None) -> Run:
    """The run: a new one, or the one that `request.run_id` names. Its files are available until `stack` is closed."""
    run = stack.enter_context(start_run(request, progress or _to_log()))
    for line in run.warnings:
        get_run_logger().warning(line)
    get_run_logger().info("run=%s products=%d shards=%d", run.info.run_id, run.manifest.rows, len(run.manifest.shards))
    return run


@task(name="start engine", task_run_name="start engine", timeout_seconds=SLOW, **RETRIED)
def start(stack: ExitStack, run: Run, progress: Progress | None = None) -> "Session | Workers":
    """Engines and decoding processes, here or on Ray, stopped when `stack` is closed."""
    return stack.enter_context(open_runner(run, progress or _to_log(), get_run_logger().info))


def _shards_name() -> str:
    first, *others = runtime.task_run.parameters["shards"]
    return f"shards {first}-{others[-1]}" if others else f"shard {first}"


@task(name="answer", task_run_name=_shards_name, **RETRIED)
def answer(
    run: Run, answer_all: AnswerAll, shards: Sequence[int], deadline: Deadline, progress: Progress | None = None
) -> None:
    """Answer and commit `shards`; a retry does those not committed yet. `progress` reports on the whole run."""
    missing = run.missing_shards()
    todo = sorted(set(shards).intersection(missing))
    answer_shards(run, answer_all, todo, missing, deadline, progress or _to_log(), get_run_logger().info)


def answer_timeout(engine: str, products: int) -> float:
    """Seconds after which answering that many products is considered hung."""
    return QUICK + PRODUCT.get(engine, 60.0) * products


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one publisher run at a time, which avoids retries of the swap. Neither a leaked slot nor a server that is
    down blocks publishing."""
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(PUBLISHERS, timeout_seconds=TURN_SECONDS))
        except TimeoutError:
            line = "the limit %s had no slot for %.0f s; publishing without one (`enrich doctor --prefect` shows leaks)"
            get_run_logger().warning(line, PUBLISHERS, TURN_SECONDS)
        except ConcurrencySlotAcquisitionError as error:
            get_run_logger().warning("%s (%s); publishing without a slot", error, first_line(error.__cause__ or error))
        yield


@task(name="publish", task_run_name="publish", timeout_seconds=SLOW, **RETRIED)
def publish(run: Run) -> RunRecord:
    """Check the run against the gate, fold it into products.parquet unless held, and write its report and run.json."""
    with in_turn():
        record = finish_run(run)
    get_run_logger().info("run=%s state=%s %s", run.info.run_id, record.state, _counted(record))
    if record.stages:
        get_run_logger().info(describe_stages(record.stages))
    if record.start:
        get_run_logger().info("start: %s", describe_start(record.start))
    return record


@task(name="release", task_run_name="release {run_id}", timeout_seconds=SLOW, **RETRIED)
def release(output: str, run_id: str) -> RunRecord:
    """Publish a run that the gate held back."""
    with in_turn():
        record = publish_held(output, run_id)
    get_run_logger().info("run=%s state=%s %s", run_id, record.state, _counted(record))
    return record


@task(name="report", task_run_name="report", timeout_seconds=QUICK, **RETRIED)
def report(record: RunRecord, output: str, settings: RunSettings) -> str:
    """The artifacts `enrichment`, `counts`, `contact-sheet` and `report`, whose text it returns."""
    return show_run(record, output, settings)


@task(name="show comparison", task_run_name="show comparison", timeout_seconds=QUICK, **RETRIED)
def show_comparison(found: Challenge, why: str) -> None:
    """The artifact `comparison`."""
    show_challenge(found, why)


@task(name="ask", task_run_name="ask", timeout_seconds=QUICK, **RETRIED)
def ask(deployment: str, about: str, parameters: dict[str, str]) -> None:
    """Start the flow run in which a person decides, once for each `about`."""
    try:
        run = run_deployment(
            deployment, parameters=parameters, timeout=0, idempotency_key=f"decide {about}", as_subflow=False
        )
    except ObjectNotFound:
        get_run_logger().info("no deployment %s: the decision is not offered in the UI", deployment)
        return
    assert isinstance(run, FlowRun)  # a coroutine only in async code
    get_run_logger().warning("%s: flow run %s waits for a decision", about, run.name)


@task(name="read record", task_run_name="read record", timeout_seconds=QUICK, **RETRIED)
def read_run(output: str, run_id: str | None) -> RunRecord:
    """The record of a finished run, by default of the one created last."""
    return read_record(open_store(output, must_exist=True), run_id)


@task(name="look for a broken-off run", task_run_name="look for a broken-off run", timeout_seconds=SLOW, **RETRIED)
def find_broken_off(request: RunRequest) -> str | None:
    """The id of the run that started last, if it was interrupted and this nightly run may continue it."""
    found = broken_off(request)
    if found:
        get_run_logger().warning(
            "run=%s was interrupted with unpublished answers; this nightly run continues it", found
        )
    return found


def seconds_left(until: str | None) -> float | None:
    """Seconds until this flow run stops by itself; None: never. Logs the time."""
    now, run = datetime.now(UTC), this_run()
    seconds = seconds_until(until, now, (run.expected_start_time if run else None) or now)
    if seconds is not None:
        stops = (now + timedelta(seconds=seconds)).astimezone()
        get_run_logger().info("stops at %s at the latest", f"{stops:%Y-%m-%d %H:%M %Z}")
    return seconds


def own_run_id(adapter: str) -> str:
    """The run id that belongs to this flow run and adapter: a restarted flow run continues its own run."""
    run = this_run()
    assert run is not None
    digest = hashlib.sha256(f"{run.id} {adapter}".encode()).hexdigest()[:6]
    return f"{(run.created or datetime.now(UTC)).astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest}"


def _counted(record: RunRecord) -> str:
    return " ".join(f"{name}={count}" for name, count in record.counts.items())


def watched() -> Progress:
    """Reports to the log of the current run and to its artifact `progress`."""
    return ProgressArtifact(_to_log())


def _to_log() -> Progress:
    return logged(get_run_logger().info)
