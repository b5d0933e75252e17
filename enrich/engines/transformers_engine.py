"""The engine that needs only transformers: batches through `generate`, on a CPU or a GPU."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from enrich.answers.completion import TOP_K, Completion
from enrich.answers.grammar import answer_grammar
from enrich.answers.prompt import Prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.adapter import Adapter, answer_budget, check_base, read_adapter
from enrich.engines.base import EngineClock, Request
from enrich.errors import Unreachable, UsageError, first_line
from enrich.models.adapted import load_adapted, load_merged
from enrich.models.checkpoint import load_model, load_processor, stop_ids, weights_signature
from enrich.models.device import device_and_dtype
from enrich.models.generation import generate_answers
from enrich.models.hub import resolve
from enrich.models.protocols import Processor
from enrich.models.registry import CheckpointError, local_directory
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.run import RunSettings

T = TypeVar("T")


class TransformersEngine:
    """Greedy answers from a model in this process, `batch_size` products at a time."""

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: Processor,
        prompt: Prompt,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 64,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.prompt = prompt
        self.clock = EngineClock()
        self.tokens = AnswerTokens(processor.tokenizer, prompt, processor.stop_tokens[0])
        self._grammar = answer_grammar(self.tokens, stop_ids(processor))
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        """See `Engine`. A batch that fails is retried one by one, so that it costs one row."""
        stream = iter(requests)
        while batch := self._next_batch(stream):
            try:
                yield from self._generate(batch, grammar)
            except (RuntimeError, ValueError) as error:
                if len(batch) == 1:
                    yield Completion(batch[0].id, error=f"the engine failed: {first_line(error)}")
                else:
                    for request in batch:
                        yield from self.complete([request], grammar=grammar)

    def close(self) -> None:
        """Free the model."""
        del self.model

    def _next_batch(self, stream: Iterator[Request | None]) -> list[Request]:
        start = perf_counter()
        batch = list(islice(iter(partial(next, stream, None), None), self._batch_size))  # up to a None
        self.clock.starved += perf_counter() - start
        return batch

    @torch.inference_mode()
    def _generate(self, batch: list[Request], grammar: bool) -> list[Completion]:
        start = perf_counter()
        for request in batch:
            request.check(self.processor.preparation.photos_per_product)
        inputs = self.processor.inputs(self.prompt.instruction, [request.pages for request in batch])
        rendered = perf_counter()
        self.clock.render += rendered - start
        generated = generate_answers(
            self.model,
            inputs,
            max_new_tokens=self._max_new_tokens,
            stop_ids=stop_ids(self.processor),
            top_k=TOP_K,
            allowed=self._grammar if grammar else None,
        )
        self.clock.busy += perf_counter() - rendered
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        prompts = ids.masked_fill(ids < 0, self.processor.image_token_id)
        return [
            Completion(
                id=request.id,
                text=self.processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
                **vars(answer),
                prompt_tokens=int(seen.sum()),
                prompt_ids=prompt[seen].numpy().astype(np.int32),
            )
            for request, answer, prompt, seen in zip(batch, generated, prompts, mask, strict=True)
        ]


def load_engine(adapter: Adapter, settings: RunSettings) -> TransformersEngine:
    """The engine for `adapter`, merged into its base in float32 and cast once.

    Raises:
        UsageError: the base cannot be found, or the adapter's tensors do not fit it.
    """
    device, dtype = device_and_dtype(settings.device)
    return serve(merge_adapter(adapter, dtype, device), adapter, settings)


def merge_adapter(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The base with the adapter in its weights. UsageError if the base is missing or the adapter does not fit it."""
    return _loaded(load_merged, adapter, dtype, device)


def add_adapter(adapter: Adapter, dtype: torch.dtype, device: torch.device) -> PeftModel:
    """The base with the adapter unmerged. Raises as `merge_adapter`."""
    return _loaded(load_adapted, adapter, dtype, device)


def _loaded(load: Callable[..., T], adapter: Adapter, dtype: torch.dtype, device: torch.device) -> T:
    base = base_of(adapter)
    try:
        return load(base, adapter.path, dtype=dtype, device=device)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"adapter {adapter.path}: it does not fit its base {adapter.base}: {first_line(error)}; "
            "fine-tune on this base, or name the base it was made from"
        ) from error


def load_base_engine(base: Path, adapter: Adapter, settings: RunSettings) -> TransformersEngine:
    """The same engine without the adapter: the base's answers to the same prompt."""
    device, dtype = device_and_dtype(settings.device)
    return serve(load_model(base, dtype=dtype, device=device), adapter, settings)


def serve(model: PreTrainedModel | PeftModel, adapter: Adapter, settings: RunSettings) -> TransformersEngine:
    """The engine of a loaded model, for the adapter's prompt. UsageError: the adapter cannot be used."""
    size, budget = settings.batch_size, answer_budget(adapter, settings)
    try:
        processor = load_processor(adapter.path)
        return TransformersEngine(model, processor, adapter.prompt, batch_size=size, max_new_tokens=budget)
    except Exception as error:  # transformers reports a damaged file by whatever its code happens to raise
        raise UsageError(
            f"adapter {adapter.path}: its tokenizer or prompt cannot be used ({first_line(error)}); make it again"
        ) from error


def open_adapter(path: Path, base: str | None = None) -> Adapter:
    """Read the adapter directory `path`, find its base, and check that it is the one the adapter was made from.

    If the base was a directory that is gone, it is also looked for next to the adapter: they may have moved together.

    Args:
        base: hub id or directory of the base, if it is no longer where the adapter says.

    Raises:
        UsageError: the adapter is unusable, or its base is missing or another model.
    """
    adapter = read_adapter(path)
    found = find_base(base, None) if base else _named_base(adapter)
    check_base(replace(adapter, base=base or adapter.base), found)
    try:
        other = adapter.base_weights is not None and adapter.base_weights != weights_signature(found)
    except ValueError as error:
        raise UsageError(f"model {found}: {first_line(error)}") from error
    if other:
        raise UsageError(
            f"adapter {path}: {base or found} has other weights than the base it was made from ({adapter.base}); "
            "name that one with --base, or fine-tune on this one"
        )
    return replace(adapter, base_at=found)


def base_of(adapter: Adapter) -> Path:
    """The directory of the adapter's base. Raises UsageError as `find_base`."""
    return adapter.base_at or find_base(adapter.base, adapter.revision)


def _named_base(adapter: Adapter) -> Path:
    beside = adapter.path.absolute().parent / Path(adapter.base).name
    by_path = adapter.base.count("/") != 1 and adapter.base != TINY_MODEL  # one slash: a hub id
    if by_path and not local_directory(adapter.base) and os.path.isdir(beside):
        return find_base(str(beside), None)
    try:
        return find_base(adapter.base, adapter.revision)
    except UsageError as error:
        raise type(error)(f"adapter {adapter.path}: {error}; or say where its base is now with --base") from error


def find_base(model: str, revision: str | None) -> Path:
    """The base's directory, downloaded if it is a hub id.

    Raises:
        UsageError: it is not available or not usable. Unreachable: the hub does not answer.
    """
    try:
        return resolve(str(TINY_MODEL_PATH) if model == TINY_MODEL else model, revision)
    except CheckpointError as error:
        kind = Unreachable if error.away else UsageError
        raise kind(f"model {error.place}: {error.reason}") from error
    except ValueError as error:
        raise UsageError(f"model {model}: {first_line(error)}") from error
