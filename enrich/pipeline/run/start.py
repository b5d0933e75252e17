"""Starting a run, continuing it, joining it from another process, and its dry run."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version

from enrich.engines.adapter import Adapter, read_adapter, read_metrics
from enrich.engines.merged_cache import weights_of
from enrich.engines.start import choose_engine, need_vllm_imports
from enrich.engines.transformers_engine import open_adapter
from enrich.engines.vllm_core import begin_imports
from enrich.errors import UsageError
from enrich.models.base import PREPARATION_VERSION
from enrich.models.device import device_and_dtype
from enrich.output.history import committed_shards
from enrich.output.manifest import (
    Manifest,
    check_new_run_id,
    check_run_id,
    check_same_run,
    new_run_id,
    read_manifest,
)
from enrich.output.run_record import RunInfo, claims, read_record_of
from enrich.output.schema import SCHEMA_VERSION
from enrich.output.sinks import appoint
from enrich.phases import Phases
from enrich.pipeline.kept_apart import check_places
from enrich.pipeline.progress import Progress, silent
from enrich.pipeline.run.planning import Forecast, forecast, plan_run
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.state import Run, adapter_warnings
from enrich.scores.worth import judge_worth
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from enrich.storage.read_ahead import read_ahead
from enrich.storage.tree import local_tree


@contextmanager
def start_run(request: RunRequest, progress: Progress = silent) -> Iterator[Run]:
    """Start a run, or continue the one that `request.run_id` names. Yields it while the adapter's files exist locally.

    Raises:
        UsageError: something in the request does not exist or does not fit; no product was answered.
    """
    started_at, settings, run_id = datetime.now(UTC), request.settings, request.run_id
    _check(request)
    engine = choose_engine(settings.engine, settings.device)
    if settings.runner == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("runner ray: Ray is not installed; pip install 'enrich[ray]', or use the runner inline")
    phases = Phases(request.waited)
    opened = phases.begin("adapter")
    serves = engine == "vllm" and settings.runner == "inline"
    if serves:
        _begin_imports(settings)
    images = open_store(request.images, must_exist=True, s3=settings.s3)
    check_places(request.images, request.adapter, request.output)
    with local_tree(request.adapter) as directory:
        adapter = open_adapter(directory, settings.base)
        if engine == "vllm":
            need_vllm_imports(adapter.path)
        if serves:
            read_ahead(weights_of(adapter, settings))
        opened()
        planned = phases.begin("plan")
        output = open_store(request.output, create=True, s3=settings.s3)
        output.check_conditional_writes()
        appoint(output, settings)
        output.remove_abandoned()
        info = _describe(images, adapter, request, started_at)
        manifest = _read_started(output, info) if run_id else None
        if manifest is None:
            check_new_run_id(info.run_id)
            manifest = plan_run(images, output, info, request, progress)
        check_same_run(manifest, info)
        planned()
        yield Run(request, images, output, adapter, manifest, started_at, phases)


def _check(request: RunRequest) -> None:
    """UsageError for a request that is invalid whatever its locations contain."""
    if request.run_id is not None:
        check_run_id(request.run_id)
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"limit {request.limit}: a run needs at least 1 product; omit the limit to process all")


def _begin_imports(settings: RunSettings) -> None:
    """Import vLLM in the process that its engines are forked from, while this one opens the stores and plans."""
    begin_imports(cpu=device_and_dtype(settings.device)[0].type == "cpu")


def _read_started(output: Store, run: RunInfo) -> Manifest | None:
    """The manifest of a run id that was used before; UsageError if only other traces of that run are left."""
    manifest = read_manifest(output, run.run_id)
    if manifest is None:
        if output.head(f"{run.folder}run.json") is not None:
            raise UsageError(f"run {run.run_id}: it is finished and its rows were deleted; use another run id")
        if next(output.list(f"{run.folder}sessions"), None) or committed_shards(output, run):
            raise UsageError(f"run {run.run_id}: it has answers but its manifest is missing; use another run id")
    return manifest


def broken_off(request: RunRequest) -> str | None:
    """The id of the run that started last in this output, if it has answers, no end, and fits this request.

    Its answers are not in products.parquet, so another run would compute them again. Continuing a run that is still in
    progress is safe, but no faster than starting another one.
    """
    images = open_store(request.images, must_exist=True, s3=request.settings.s3)
    output = open_store(request.output, s3=request.settings.s3)
    key = next(iter(claims(output).values()), None)
    if key is None:
        return None
    run_id = output.get(key)[0].decode()
    manifest = None if read_record_of(output, run_id) else read_manifest(output, run_id)
    if manifest is None or not committed_shards(output, manifest.run):
        return None
    with local_tree(request.adapter) as directory:
        info = _describe(images, read_adapter(directory), replace(request, run_id=run_id), datetime.now(UTC))
    try:
        check_same_run(manifest, info)
    except UsageError:
        return None
    return run_id


@contextmanager
def join_run(request: RunRequest) -> Iterator[Run]:
    """The run that another process started, to answer some of its shards. Yields it as `start_run` does.

    Raises:
        UsageError: it cannot be seen from here, or its answers would differ here.
    """
    started_at, settings, phases = datetime.now(UTC), request.settings, Phases()
    opened = phases.begin("adapter")
    serves = choose_engine(settings.engine, settings.device) == "vllm"
    if serves:
        _begin_imports(settings)
    images = open_store(request.images, must_exist=True, s3=settings.s3)
    output = open_store(request.output, must_exist=True, s3=settings.s3)
    with local_tree(request.adapter) as directory:
        adapter = open_adapter(directory, settings.base)
        if serves:
            read_ahead(weights_of(adapter, settings))
        opened()
        planned = phases.begin("plan")
        info = _describe(images, adapter, request, started_at)
        manifest = read_manifest(output, info.run_id)
        if manifest is None:
            raise UsageError(
                f"output {output.uri}: run {info.run_id} does not exist; name a location that all machines share"
            )
        check_same_run(manifest, info)
        planned()
        yield Run(request, images, output, adapter, manifest, started_at, phases)


def dry_run(request: RunRequest, progress: Progress = silent) -> Forecast:
    """What a run would do, and how long it may take, going by the last run. Nothing is written."""
    settings = request.settings
    _check(request)
    images = open_store(request.images, must_exist=True, s3=settings.s3)
    check_places(request.images, request.adapter, request.output)
    with local_tree(request.adapter) as directory:
        info = _describe(images, read_adapter(directory), request, datetime.now(UTC))
        about_adapter = adapter_warnings(judge_worth(read_metrics(directory)), settings.gate)
    planned = forecast(images, open_store(request.output, s3=settings.s3), info, request, progress)
    return replace(planned, warnings=(*planned.warnings, *about_adapter))


def _describe(images: Store, adapter: Adapter, request: RunRequest, started_at: datetime) -> RunInfo:
    return RunInfo(
        run_id=request.run_id or new_run_id(started_at),
        created_at=started_at,
        images_uri=images.uri,
        fingerprint=fingerprint(adapter, request.settings),
        model=adapter.base,
        adapter=adapter.id,
        prompt_version=adapter.prompt.version,
        shard_size=request.settings.shard_size,
        circumstances=circumstances(images.uri, request.settings),
        review_below=adapter.calibration.category.review_below,
        fields_review_below={name: one.review_below for name, one in adapter.calibration.attributes.items()},
    )


def fingerprint(adapter: Adapter, settings: RunSettings) -> str:
    """Hash of what would change an answer: model, revision, adapter, prompt, how photos are prepared, schema version,
    photos shown if not as usual, and the precision where vLLM serves in a lower one; 16 hex digits."""
    prepared = asdict(adapter.preparation)
    del prepared["layout"]  # the family's, and the adapter's id covers its config.json
    parts: list[object] = [
        adapter.base, adapter.revision, adapter.id, adapter.prompt.model_dump(mode="json"),
        prepared, PREPARATION_VERSION, SCHEMA_VERSION,
    ]  # fmt: skip
    if settings.photos_answered not in (None, adapter.preparation.photos_per_product):
        parts.append({"photos_answered": settings.photos_answered})
    precision = [settings.quantization, settings.kv_cache_dtype]
    if precision != ["none", "auto"] and choose_engine(settings.engine, settings.device) == "vllm":
        parts.append(precision)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def circumstances(images: str, settings: RunSettings) -> str:
    """Hash of what may make a product fail, other than its bytes and the fingerprint: place, limits, decoder, length of
    an answer, engine; 16 hex digits. Failures are retried when it changes, good answers are not."""
    parts = [
        images, settings.s3.requester_pays, settings.limits.model_dump(mode="json"), version("pillow"),
        settings.max_new_tokens, settings.engine,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
