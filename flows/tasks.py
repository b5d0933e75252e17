"""What flows are made of: each task is one call of the pipeline, with its retries and the name of its runs."""

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
    """Errors that a user can act on are one line in the logs of runs; unforeseen ones keep their traceback. That a run
    is held is not an error, though Prefect logs an exception of the engine."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, EnrichError):
        record.exc_info = None
    return not isinstance(error, CancelledRun)


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_one_line)
if "enrich" in PREFECT_LOGGING_EXTRA_LOGGERS.value():  # its lines go to the UI; Prefect sets no level
    logging.getLogger("enrich").setLevel(logging.INFO)


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether what failed may succeed without a change by a person. Wrong arguments stay wrong, damaged files damaged
    and bugs bugs; what is unreachable or was refused by an endpoint may pass."""
    error = state.data
    return isinstance(error, Unreachable) or not isinstance(error, UsageError | PermanentFailure | BUGS)


TURN_SECONDS = 60.0  # to wait for it; most publish within seconds
RELEASE, PROMOTE = "release-held/release-held", "promote-adapter/promote-adapter"  # deployments that ask a person

# Seconds after which a task is considered hung, and is retried: many times what each has ever taken.
QUICK, SLOW, TRAINING = 1800.0, 4 * 3600.0, 7 * 24 * 3600.0
PRODUCT = {"vllm": 2.0}  # for each product, added to QUICK; 60 with the transformers engine, which may have no GPU

# 10 to 160 seconds, plus at most half of that: 5 minutes in all, in which a Prefect server or an endpoint may be away.
# Nothing is cached or stored: the output has what is done.
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
    """The adapter for the catalog as it is now, or where it is to be written; shows its scores if it is there."""
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
    """An adapter at `out`; its scores beside the baselines are the artifact `adapter-scores`."""
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
    """The run: a new one, or the one that `request.run_id` names. Its files are at hand until `stack` is closed."""
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
    """Answer and commit `shards`; a retry does those that are not committed yet. `progress` is of the whole run."""
    missing = run.missing_shards()
    todo = sorted(set(shards).intersection(missing))
    answer_shards(run, answer_all, todo, missing, deadline, progress or _to_log(), get_run_logger().info)


def answer_timeout(engine: str, products: int) -> float:
    """Seconds after which answering so many products is considered hung."""
    return QUICK + PRODUCT.get(engine, 60.0) * products


@contextmanager
def in_turn() -> Iterator[None]:
    """One publisher after the other, which spares the retries of the swap. One whose slot leaked keeps nobody out, nor
    does a server that is away."""
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(PUBLISHERS, timeout_seconds=TURN_SECONDS))
        except TimeoutError:
            line = "the limit %s had no slot for %.0f s; publishing without (`enrich doctor --prefect` says who has it)"
            get_run_logger().warning(line, PUBLISHERS, TURN_SECONDS)
        except ConcurrencySlotAcquisitionError as error:
            get_run_logger().warning("%s (%s); publishing without", error, first_line(error.__cause__ or error))
        yield


@task(name="publish", task_run_name="publish", timeout_seconds=SLOW, **RETRIED)
def publish(run: Run) -> RunRecord:
    """Judge the run, fold it into products.parquet unless it is held back, and write its report and run.json."""
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
        get_run_logger().info("no deployment %s: nobody is asked in the UI", deployment)
        return
    assert isinstance(run, FlowRun)  # a coroutine only in async code
    get_run_logger().warning("%s: flow run %s waits for a decision", about, run.name)


@task(name="read record", task_run_name="read record", timeout_seconds=QUICK, **RETRIED)
def read_run(output: str, run_id: str | None) -> RunRecord:
    """The record of a finished run, by default of the one created last."""
    return read_record(open_store(output, must_exist=True), run_id)


@task(name="look for a broken-off run", task_run_name="look for a broken-off run", timeout_seconds=SLOW, **RETRIED)
def find_broken_off(request: RunRequest) -> str | None:
    """The id of the run that started last, if it broke off and this night may go on with it."""
    found = broken_off(request)
    if found:
        get_run_logger().warning(
            "run=%s broke off with answers that nobody published; this night goes on with it", found
        )
    return found


def seconds_left(until: str | None) -> float | None:
    """Seconds until this flow run stops by itself; None: never. The time is written to the log."""
    now, run = datetime.now(UTC), this_run()
    seconds = seconds_until(until, now, (run.expected_start_time if run else None) or now)
    if seconds is not None:
        stops = (now + timedelta(seconds=seconds)).astimezone()
        get_run_logger().info("stops at %s at the latest", f"{stops:%Y-%m-%d %H:%M %Z}")
    return seconds


def own_run_id(adapter: str) -> str:
    """The run id that belongs to this flow run and adapter: a flow run that is started again goes on with its run."""
    run = this_run()
    assert run is not None
    digest = hashlib.sha256(f"{run.id} {adapter}".encode()).hexdigest()[:6]
    return f"{(run.created or datetime.now(UTC)).astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest}"


def _counted(record: RunRecord) -> str:
    return " ".join(f"{name}={count}" for name, count in record.counts.items())


def watched() -> Progress:
    """For the log of the current run and its artifact `progress`."""
    return ProgressArtifact(_to_log())


def _to_log() -> Progress:
    return logged(get_run_logger().info)
