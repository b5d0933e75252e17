"""Beginning a run, taking it up again, joining it from another process, and foreseeing it."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version

from enrich.engines.adapter import Adapter, read_adapter, read_metrics
from enrich.engines.start import choose_engine
from enrich.engines.transformers_engine import open_adapter
from enrich.errors import UsageError
from enrich.output.history import committed_shards
from enrich.output.manifest import (
    check_new_run_id,
    check_run_id,
    check_same_run,
    new_run_id,
    read_manifest,
)
from enrich.output.run_record import RunInfo
from enrich.output.schema import SCHEMA_VERSION
from enrich.photos.decode import PREPARATION_VERSION
from enrich.pipeline.kept_apart import check_places
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.planning import Forecast, forecast, plan_run
from enrich.pipeline.run.state import Run, adapter_warnings
from enrich.scores.worth import judge_worth
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from enrich.storage.tree import local_tree


@contextmanager
def open_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    run_id: str | None = None,
    limit: int | None = None,
    inventory: str | None = None,
    progress: Progress = silent,
) -> Iterator[Run]:
    """Begin a run, or take up the one that `run_id` names. Yields it while the adapter's files are at hand.

    Args:
        inventory: manifest.json of an S3 Inventory of the images, to be read instead of listing them.
    """
    started_at = datetime.now(UTC)
    if run_id is not None:
        check_run_id(run_id)
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: a run takes at least 1 photo; leave the limit out to take all")
    choose_engine(settings.engine, settings.device)
    _check_runner(settings)
    source = open_store(images, must_exist=True, s3=settings.s3)
    check_places(images, adapter, output)
    with ExitStack() as stack:
        loaded = open_adapter(stack.enter_context(local_tree(adapter)), settings.base)
        target = open_store(output, create=True, s3=settings.s3)
        target.check_conditional_writes()
        target.remove_abandoned()
        info = _describe(source, loaded, settings, run_id, started_at)
        begun = read_manifest(target, info.run_id) if run_id else None
        if begun is None:
            check_new_run_id(info.run_id)
            if run_id and target.head(f"{info.folder}run.json") is not None:
                raise UsageError(f"run {run_id}: it was finished and its rows were deleted; use another run id")
            if run_id and (next(target.list(f"{info.folder}sessions"), None) or committed_shards(target, info)):
                raise UsageError(f"run {run_id}: it had answered photos and its manifest is gone; use another run id")
            begun = plan_run(source, target, info, settings, limit, inventory, progress)
        check_same_run(begun, info)
        yield Run(source, target, loaded, adapter, settings, begun, started_at)


@contextmanager
def join_run(images: str, adapter: str, output: str, settings: RunSettings, run_id: str) -> Iterator[Run]:
    """The run that another process began, to answer some of its shards. Yields it as `open_run` does.

    Raises:
        UsageError: it is not to be seen from here, or would be answered otherwise here.
    """
    started_at = datetime.now(UTC)
    source = open_store(images, must_exist=True, s3=settings.s3)
    target = open_store(output, must_exist=True, s3=settings.s3)
    with local_tree(adapter) as directory:
        loaded = open_adapter(directory, settings.base)
        begun = read_manifest(target, run_id)
        if begun is None:
            raise UsageError(f"output {target.uri}: run {run_id} is not there; name a place that all machines share")
        check_same_run(begun, _describe(source, loaded, settings, run_id, started_at))
        yield Run(source, target, loaded, adapter, settings, begun, started_at)


def foresee_run(
    images: str,
    adapter: str,
    output: str,
    settings: RunSettings,
    *,
    limit: int | None = None,
    inventory: str | None = None,
    progress: Progress = silent,
) -> Forecast:
    """What `run_enrichment` would do, and how long it may take, going by the last run. Nothing is written."""
    source = open_store(images, must_exist=True, s3=settings.s3)
    check_places(images, adapter, output)
    with local_tree(adapter) as directory:
        loaded = read_adapter(directory)
        info = _describe(source, loaded, settings, None, datetime.now(UTC))
        about_adapter = adapter_warnings(judge_worth(read_metrics(directory)), settings.gate)
    target = open_store(output, s3=settings.s3)
    foreseen = forecast(source, target, info, settings, limit, inventory, progress)
    return replace(foreseen, warnings=(*foreseen.warnings, *about_adapter))


def _describe(
    source: Store, adapter: Adapter, settings: RunSettings, run_id: str | None, started_at: datetime
) -> RunInfo:
    return RunInfo(
        run_id=run_id or new_run_id(started_at),
        created_at=started_at,
        images_uri=source.uri,
        fingerprint=fingerprint(adapter, settings),
        model=adapter.base,
        adapter=adapter.id,
        prompt_version=adapter.prompt.version,
        shard_size=settings.shard_size,
        circumstances=circumstances(source.uri, settings),
        review_below=adapter.calibration.category.review_below,
    )


def fingerprint(adapter: Adapter, settings: RunSettings) -> str:
    """Hash of what would change an answer: model, revision, adapter, prompt, how photos are prepared, schema version,
    and the precision where vLLM serves in a lower one; 16 hex digits."""
    parts: list[object] = [
        adapter.base, adapter.revision, adapter.id, adapter.prompt.model_dump(mode="json"),
        asdict(adapter.preparation), PREPARATION_VERSION, SCHEMA_VERSION,
    ]  # fmt: skip
    precision = [settings.quantization, settings.kv_cache_dtype]
    if precision != ["none", "auto"] and choose_engine(settings.engine, settings.device) == "vllm":
        parts.append(precision)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def circumstances(images: str, settings: RunSettings) -> str:
    """Hash of what may make a photo fail beside its bytes and the fingerprint: place, limits, decoder, length of an
    answer, engine; 16 hex digits. Failures are tried again when it changes, good answers are not."""
    parts = [
        images, settings.s3.requester_pays, settings.limits.model_dump(mode="json"), version("pillow"),
        settings.max_new_tokens, settings.engine,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _check_runner(settings: RunSettings) -> None:
    """UsageError if the runner that `settings` name is not installed."""
    if settings.runner == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("runner ray: Ray is not installed; pip install 'enrich[ray]', or use the runner inline")
