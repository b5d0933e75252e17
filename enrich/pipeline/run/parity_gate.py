"""Proof that the model served is the one trained, before its answers are published for the first time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from enrich.answers.completion import Completion
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine, Request
from enrich.engines.merged_cache import is_merged, merging, place_here
from enrich.engines.merged_model import merged_model
from enrich.engines.orphans import end_orphans
from enrich.engines.parity import ParityRecord, Precision, compare
from enrich.engines.predictor import show
from enrich.engines.start import choose_engine, need_vllm_imports, start_engine
from enrich.engines.vllm_process import import_vllm
from enrich.errors import ParityFailed
from enrich.models.checkpoint import load_processor, stop_ids
from enrich.models.device import device_and_dtype
from enrich.output.manifest import items
from enrich.phases import Phases
from enrich.photos.fetch import Fetched
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.pipeline.run.state import Run
from enrich.settings.run import RunSettings
from enrich.storage import Store
from enrich.storage.cache import cache_directory
from enrich.storage.exclusive import exclusively, if_first
from enrich.vocabulary import ManifestItem

PROMPTS = 32  # that are compared: enough to meet every arrangement of crops, and a minute of a GPU
IMPORTS = "vLLM's imports"
Fetch = Callable[[Iterable[ManifestItem]], Iterator[Fetched]]


def start_verified_engine(
    run: Run, fetch: Fetch, progress: Progress = silent, on_message: OnMessage = unheard
) -> Engine:
    """The engine for a run; vLLM, where it serves this adapter for the first time in this output, after a comparison.

    The run's first photos go through transformers and then, after it has been closed, through vLLM. The result is
    written to the run's parity.json, and a match also to `parity/`, where later runs find it. A mismatch is not stored
    there: once its cause is fixed, the run can be restarted.

    Of several workers on a machine one compares, while the others start their engines and wait for the outcome.

    Raises:
        ParityFailed: it is not the same model; nothing was answered.
    """
    settings = run.settings
    if choose_engine(settings.engine, settings.device) != "vllm":
        with run.phases("engine"):
            return start_engine(run.adapter, settings)
    need_vllm_imports(run.adapter.path)  # before merging, which takes a while
    end_orphans()  # merging needs the GPU's memory too
    key = f"parity/{'-'.join(_served(run.adapter, settings))}.json"
    if run.output.head(key) is not None:
        return start_vllm(run.adapter, settings, run.phases, progress)
    lock = lock_of(run.output, key)
    with if_first(lock) as first:
        if first:
            return _start_and_compare(run, key, fetch, progress, on_message)
    with ExitStack() as stack:
        engine = start_vllm(run.adapter, settings, run.phases, progress)
        stack.callback(engine.close)
        with run.phases("parity"), exclusively(lock, "parity"):
            if run.output.head(key) is not None:
                stack.pop_all()
                return engine
    return start_verified_engine(run, fetch, progress, on_message)  # the other worker was killed, or found no photo


def lock_of(output: Store, key: str) -> Path:
    """The file that a process of this machine holds locked while it compares for `key` of the output."""
    return cache_directory() / "parity" / f"{hashlib.sha256(output.uri_of(key).encode()).hexdigest()[:16]}.lock"


def start_vllm(adapter: Adapter, settings: RunSettings, phases: Phases, progress: Progress) -> Engine:
    """vLLM's engine, without a comparison."""
    if settings.served == "merged":
        place = place_here(adapter, settings)
        with merging(place):
            if not is_merged(place):
                progress("merging the adapter", 0, 0)
                with merged_model(adapter, settings, phases, answers=False) as model:
                    written = model.keep(place)
                    _import_vllm(settings, phases)
                    model.result(written)
    progress("starting vLLM", 0, 0)
    _import_vllm(settings, phases)
    with phases("engine") as parts:
        engine = start_engine(adapter, settings)
        parts.update(engine.clock.start)
    return engine


def _start_and_compare(run: Run, key: str, fetch: Fetch, progress: Progress, on_message: OnMessage) -> Engine:
    """vLLM's engine, if it is the same model. Raises ParityFailed if not."""
    adapter, settings, phases = run.adapter, run.settings, run.phases
    requests, ours = ask_transformers(adapter, settings, lambda: first_prompts(run, fetch, PROMPTS), phases, progress)
    with ExitStack() as stack:
        engine = start_vllm(adapter, settings, phases, progress)
        stack.callback(engine.close)
        if requests:  # otherwise there is nothing to answer
            with phases("parity"):
                record = compare_engines(engine, adapter, settings, requests, ours, progress)
            written = record.model_dump_json(indent=1).encode()
            run.output.put(f"{run.info.folder}parity.json", written)
            if not record.ok:
                raise ParityFailed(
                    f"run {run.info.run_id}: {mismatch(record)}; {run.output.uri_of(run.info.folder)}parity.json has "
                    "the figures; check the versions of vllm and transformers against constraints.txt, or use the "
                    "engine transformers"
                )
            run.output.create(key, written)
            on_message(f"parity: {record.summary}")
        stack.pop_all()
    return engine


def first_prompts(run: Run, fetch: Fetch, count: int) -> list[Request]:
    """The first prompts of the products that the run has to answer, in their order; identical photos once."""
    rest = (item for shard in run.missing_shards() for item in items(run.manifest, shard))
    found: dict[str, Request] = {}  # by content
    while len(found) < count and (some := list(islice(rest, count - len(found)))):
        fetched = {result.item.product_id: result for result in fetch(some)}
        for item in some:
            shown = show(item.product_id, fetched[item.product_id].good, run.adapter.preparation.photos_per_product)
            prompts = (*shown.first, *shown.prompts)
            for prompt, named in zip(prompts, named_after(item.product_id, prompts), strict=True):
                found.setdefault(prompt.id, named)
    return list(found.values())[:count]


def named_after(product: str, prompts: Sequence[Request]) -> list[Request]:
    """The prompts of a product with readable ids."""
    more = len(prompts) > 1
    return [
        replace(prompt, id=f"{product}, prompt {number}" if more else product)
        for number, prompt in enumerate(prompts, 1)
    ]


def ask_transformers(
    adapter: Adapter,
    settings: RunSettings,
    make_requests: Callable[[], list[Request]],
    phases: Phases,
    progress: Progress,
) -> tuple[list[Request], list[Completion]]:
    """Requests, and the answers that vLLM's are compared with.

    Another process merges the adapter, writes the checkpoint that vLLM will load, if there is none, and answers; this
    one makes the requests and imports vLLM. The engine has to wait, as a GPU has no room for both models.
    """
    progress("merging the adapter", 0, 0)
    with ExitStack() as alone, merged_model(adapter, settings, phases, answers=True) as model:
        written = None
        if settings.served == "merged":
            place = place_here(adapter, settings)
            alone.enter_context(merging(place))
            written = None if is_merged(place) else model.keep(place)
        with phases("photos"):
            requests = make_requests()
        answers = model.answer(requests)
        _import_vllm(settings, phases)
        if written:
            model.result(written)
        alone.close()  # other workers load what was written, while this one waits for the answers
        progress("comparing, transformers", 0, 0)
        return requests, model.result(answers)


def compare_engines(
    engine: Engine,
    adapter: Adapter,
    settings: RunSettings,
    requests: Sequence[Request],
    ours: Sequence[Completion],
    progress: Progress,
) -> ParityRecord:
    """How vLLM's `engine` compares with the answers of transformers."""
    theirs = _complete(engine, requests, "comparing, vLLM", progress)
    processor = load_processor(adapter.path)
    _, version, served, *_ = _served(adapter, settings)
    return compare(
        ours,
        theirs,
        precision(settings),
        stop_ids=stop_ids(processor),
        spell=lambda token: processor.tokenizer.decode([token]),
        adapter=adapter.id,
        engine=version.replace("_", " "),
        served=served,
    )


def _import_vllm(settings: RunSettings, phases: Phases) -> None:
    if IMPORTS in phases:
        return
    with phases(IMPORTS):
        import_vllm(cpu=device_and_dtype(settings.device)[0].type == "cpu")


def _complete(engine: Engine, requests: Sequence[Request], what: str, progress: Progress) -> list[Completion]:
    found: dict[str, Completion] = {}
    progress(what, 0, len(requests))
    for completion in engine.complete(requests):
        found[completion.id] = completion
        progress(what, len(found), len(requests))
    return [found[request.id] for request in requests]


def precision(settings: RunSettings) -> Precision:
    """The coarsest number that the served model computes with."""
    if "fp8" in (settings.quantization, settings.kv_cache_dtype):
        return "fp8"
    return "float32" if device_and_dtype(settings.device)[1] == torch.float32 else "bfloat16"


def _served(adapter: Adapter, settings: RunSettings) -> tuple[str, ...]:
    """What can cause a mismatch by itself: adapter, engine, way of serving, precision of sums, weights and cache."""
    from vllm import __version__

    dtype = str(device_and_dtype(settings.device)[1]).removeprefix("torch.")
    weights, cache = f"weights_{settings.quantization}", f"cache_{settings.kv_cache_dtype}"
    return adapter.id, f"vllm_{__version__}", settings.served, dtype, weights, cache


def mismatch(record: ParityRecord) -> str:
    return f"{record.engine} does not give the trained model's answers: {record.finding}"
