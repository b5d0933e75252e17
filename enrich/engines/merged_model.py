"""An adapter merged into its base by transformers, or loaded unmerged if it is served that way, in a separate process.

This process can do other things meanwhile. Closing it frees all of its memory, including the GPU's, which this process
could not release entirely.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from enrich.answers.completion import Completion
from enrich.engines.adapter import Adapter
from enrich.engines.base import Request
from enrich.engines.merged_cache import keep_merged
from enrich.engines.transformers_engine import add_adapter, base_of, merge_adapter, serve
from enrich.engines.vllm_core import begin_imports, forked
from enrich.errors import RunFailed
from enrich.models.device import device_and_dtype
from enrich.phases import Phases
from enrich.settings.run import RunSettings

T = TypeVar("T")


class MergedModel:
    """Made by `merged_model`. Requests are processed in order, and each is a phase of the start."""

    def __init__(
        self, pool: Executor, adapter: Adapter, settings: RunSettings, phases: Phases, *, answers: bool
    ) -> None:
        self._pool, self._adapter, self._settings, self._phases = pool, adapter, settings, phases
        parts: dict[str, float] = {}
        ended = phases.begin("merge" if settings.served == "merged" else "load", parts)
        self._merged = pool.submit(_merge, adapter, settings, answers, time.monotonic())
        self._last: Future[Any] = self._merged

        def end(merged: "Future[float]") -> None:
            if not merged.exception():
                parts["imports"] = merged.result()
            ended()

        self._merged.add_done_callback(end)

    def keep(self, place: Path) -> "Future[None]":
        """Write it as a checkpoint."""
        return self._ask("write", _keep, self._adapter, place)

    def answer(self, requests: Sequence[Request]) -> "Future[list[Completion]]":
        """Its answers, in the order of `requests`."""
        return self._ask("transformers", _answer, self._adapter, self._settings, requests)

    def _ask(self, phase: str, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        asked, before = self._pool.submit(function, *arguments), self._last
        self._last = asked

        def begin(_: object) -> None:
            ended = self._phases.begin(phase)
            asked.add_done_callback(lambda _: ended())

        before.add_done_callback(begin)
        return asked

    def result(self, asked: "Future[T]") -> T:
        """Wait for what was asked.

        Raises:
            UsageError: the adapter cannot be merged. RunFailed: the process was killed, or the disk is full.
        """
        try:
            self._merged.result()
            return asked.result()
        except BrokenProcessPool as error:
            raise RunFailed(
                f"adapter {self._adapter.path}: the process that merged it was killed; use a machine with more memory"
            ) from error


@contextmanager
def merged_model(adapter: Adapter, settings: RunSettings, phases: Phases, *, answers: bool) -> Iterator[MergedModel]:
    """Start merging; on exit the process ends, and its memory is freed.

    Args:
        answers: whether answers will be requested, so that the model stays on the GPU.
    """
    begin_imports(cpu=device_and_dtype(settings.device)[0].type == "cpu")
    with forked() as pool:
        yield MergedModel(pool, adapter, settings, phases, answers=answers)


_merged: PreTrainedModel | PeftModel | None = None  # in the process that merges


def _merge(adapter: Adapter, settings: RunSettings, answers: bool, asked: float) -> float:
    """Seconds between `asked` and the start of this, in which the process started and imported what this needs."""
    global _merged
    waited = time.monotonic() - asked
    device, dtype = device_and_dtype(settings.device)
    if settings.served == "lora":
        _merged = add_adapter(adapter, dtype, device)
        return waited
    if device.type == "cuda" and not answers and not _has_room(base_of(adapter)):
        device = torch.device("cpu")
    _merged = merge_adapter(adapter, dtype, device)
    return waited


def _has_room(base: Path) -> bool:
    """Whether the GPU holds the weights in float32; others may be using it too."""
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return torch.cuda.mem_get_info()[0] > 2.5 * size


def _keep(adapter: Adapter, place: Path) -> None:
    keep_merged(_model(), adapter, place)


def _answer(adapter: Adapter, settings: RunSettings, requests: Sequence[Request]) -> list[Completion]:
    found = {completion.id: completion for completion in serve(_model(), adapter, settings).complete(requests)}
    return [found[request.id] for request in requests]


def _model() -> Any:
    if _merged is None:
        raise RunFailed("the model was not merged")  # `result` raises why
    return _merged
