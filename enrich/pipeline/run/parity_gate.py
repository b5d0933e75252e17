"""Proof that the model served is the one trained, before its answers are published for the first time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

import torch

from enrich.answers.completion import Completion
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine, Request
from enrich.engines.parity import ParityRecord, Precision, compare
from enrich.engines.predictor import prompts_of
from enrich.engines.start import choose_engine, need_vllm_imports, start_engine
from enrich.engines.transformers_engine import load_engine
from enrich.errors import ParityFailed
from enrich.models.checkpoint import load_processor, stop_ids
from enrich.models.device import device_and_dtype, free_memory
from enrich.output.manifest import items
from enrich.photos.fetch import Fetched
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.pipeline.run.state import Run
from enrich.settings.run import RunSettings
from enrich.vocabulary import ManifestItem

PROMPTS = 32  # that are compared: enough to meet every arrangement of crops, and a minute of a GPU
Fetch = Callable[[Iterable[ManifestItem]], Iterator[Fetched]]


def start_verified_engine(
    run: Run, fetch: Fetch, progress: Progress = silent, on_message: OnMessage = unheard
) -> Engine:
    """The engine for a run; vLLM, where it serves this adapter for the first time in this output, after a comparison.

    The run's first photos go through transformers and then, in its place, through vLLM. What was found is written to
    the run's parity.json; that it was the same model also to `parity/`, where the next runs see it. A mismatch is not
    kept there: once its cause is fixed, the run can be started again.

    Raises:
        ParityFailed: it is not the same model; nothing was answered.
    """
    settings = run.settings
    if choose_engine(settings.engine, settings.device) != "vllm":
        return start_engine(run.adapter, settings)
    key = f"parity/{'-'.join(_served(run.adapter, settings))}.json"
    requests = first_prompts(run, fetch, PROMPTS) if run.output.head(key) is None else []
    if not requests:  # it was compared before, or there is nothing to answer
        return start_engine(run.adapter, settings)
    with ExitStack() as stack:
        engine, record = compare_engines(run.adapter, settings, requests, progress, stack)
        written = record.model_dump_json(indent=1).encode()
        run.output.put(f"{run.info.folder}parity.json", written)
        if not record.ok:
            raise ParityFailed(
                f"run {run.info.run_id}: {mismatch(record)}; {run.output.uri_of(run.info.folder)}parity.json has the "
                "figures; check the versions of vllm and transformers against constraints.txt, or use the engine "
                "transformers"
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
            prompts = prompts_of(fetched[item.product_id].pages, run.adapter.preparation.photos_per_product)
            for prompt, named in zip(prompts, named_after(item.product_id, prompts), strict=True):
                found.setdefault(prompt.id, named)
    return list(found.values())[:count]


def named_after(product: str, prompts: Sequence[Request]) -> list[Request]:
    """The prompts of a product with ids that a person can look up."""
    more = len(prompts) > 1
    return [
        replace(prompt, id=f"{product}, prompt {number}" if more else product)
        for number, prompt in enumerate(prompts, 1)
    ]


def compare_engines(
    adapter: Adapter, settings: RunSettings, requests: Sequence[Request], progress: Progress, stack: ExitStack
) -> tuple[Engine, ParityRecord]:
    """vLLM's engine, closed with `stack`, and how it compares. One model at a time: a small GPU has no room for two."""
    need_vllm_imports(adapter.path)  # before transformers' answers, which take minutes
    progress("loading the model", 0, 0)
    reference = load_engine(adapter, settings)
    ours = _complete(reference, requests, "comparing, transformers", progress)
    reference.close()
    del reference
    free_memory()
    progress("starting vLLM", 0, 0)
    engine = start_engine(adapter, settings)
    stack.callback(engine.close)
    theirs = _complete(engine, requests, "comparing, vLLM", progress)
    processor = load_processor(adapter.path)
    _, version, served, *_ = _served(adapter, settings)
    return engine, compare(
        ours,
        theirs,
        precision(settings),
        stop_ids=stop_ids(processor),
        spell=lambda token: processor.tokenizer.decode([token]),
        adapter=adapter.id,
        engine=version.replace("_", " "),
        served=served,
    )


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
    return f"{record.engine} does not serve the model that was trained: {record.finding}"
