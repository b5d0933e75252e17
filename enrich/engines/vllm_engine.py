"""The engine for GPUs: streams photos through vLLM and restarts it when it dies."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from enrich.answers.completion import TOP_K, Completion
from enrich.answers.grammar import answer_structure
from enrich.answers.prompt import Prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.adapter import Adapter, answer_budget
from enrich.engines.base import Request
from enrich.engines.merged_cache import merged_checkpoint, merged_folder
from enrich.engines.transformers_engine import base_of
from enrich.engines.vllm_clock import BusyTimer
from enrich.engines.vllm_core import begin_imports
from enrich.engines.vllm_process import EngineDied, EngineProcess
from enrich.engines.vllm_render import completion, renderer, sampling
from enrich.errors import RunFailed, UsageError, first_line
from enrich.models.checkpoint import load_processor, stop_ids
from enrich.models.device import device_and_dtype
from enrich.models.protocols import Processor, VisionModel
from enrich.models.registry import family_of
from enrich.photos.prompt_size import MOST_TOKENS, most_tokens
from enrich.settings.run import RunSettings

log = logging.getLogger(__name__)

_END = object()  # of a stream
DEATHS = 3  # the run ends after this many consecutive deaths without an answer between them
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM has kernels for
# Otherwise vLLM profiles a video of maximum length at start, and reserves memory for one.
PHOTOS_ONLY = {"image": 1, "video": 0, "audio": 0}
GIB = 1 << 30


@dataclass
class _Flight:
    """A request that was sent to the engine, and where its completion goes."""

    key: str
    request: Request
    params: Any
    inbox: deque[Completion]
    deaths: int = 0  # of the engine while it had this request


class VllmEngine:
    """Greedy answers from vLLM, `in_flight` photos at a time.

    An engine that dies is restarted, and the photos in flight are resent one at a time, so that only a photo that kills
    it again gets an error. This takes 0.3 s per photo at full size, and minutes for all photos that a GPU has in
    flight. After `DEATHS` deaths without an answer the run ends.

    Args:
        start: starts an engine process.
        in_flight: products in the engine at a time. Each photo's page stays in memory, 1.4 MB at 4 crops.
    """

    name = "vllm"

    def __init__(
        self,
        start: Callable[[], EngineProcess],
        processor: Processor,
        prompt: Prompt,
        *,
        in_flight: int,
        max_new_tokens: int = 64,
    ) -> None:
        self.processor = processor
        self.tokens = AnswerTokens(processor.tokenizer, prompt, processor.stop_tokens[0])
        self.restarts = 0
        self._start = start
        self._in_flight = in_flight
        stops = stop_ids(processor)
        self._free = sampling(stops, max_new_tokens)
        self._constrained = sampling(stops, max_new_tokens, answer_structure(self.tokens))
        self._flying: dict[str, _Flight] = {}
        self._suspects: deque[_Flight] = deque()
        self._deaths = 0
        self._count = 0
        self._timer = BusyTimer(
            lambda: len(self._flying) + len(self._suspects), finished=lambda: self.process.finished()
        )
        self.clock = self._timer.clock
        self.process = start()
        self.clock.start = self.process.start_parts
        self._render = renderer(processor, prompt.instruction, self.process.dtype)

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        """See `Engine`. Streams may be nested: each gets the completions of its own requests.

        Raises:
            RunFailed: the engine died repeatedly, or could not be restarted.
        """
        inbox: deque[Completion] = deque()
        params = self._constrained if grammar else self._free
        stream, asked, exhausted = iter(requests), 0, False
        try:
            while True:
                while inbox:
                    asked -= 1
                    yield inbox.popleft()
                if exhausted and not asked:
                    return
                # Yield finished answers first: the next photo may take a while to arrive.
                if not exhausted and self._has_room() and not self.process.has_outputs():
                    with self._timer.pulling():
                        request = next(stream, _END)
                    if request is None:
                        self._advance()
                    elif isinstance(request, Request):
                        asked, self._count = asked + 1, self._count + 1
                        self._send(_Flight(f"{self._count}-{request.id}", request, params, inbox))
                    else:
                        exhausted = True
                else:
                    self._advance()
        finally:
            self._forget(inbox)

    def close(self) -> None:
        """Stop the engine process."""
        self.process.close()

    def _has_room(self) -> bool:
        watching = bool(self._suspects) or any(flight.deaths for flight in self._flying.values())
        return not watching and len(self._flying) < self._in_flight

    def _send(self, flight: _Flight) -> None:
        try:
            with self._timer.rendering():
                prompt = self._render(flight.request)
            self.process.add(flight.key, prompt, flight.params)
        except ValueError as error:
            flight.inbox.append(Completion(flight.request.id, error=f"the engine failed: {first_line(error)}"))
        except EngineDied as died:
            self._recover(died)
            self._send(flight)
        else:
            self._timer.tick()
            self._flying[flight.key] = flight

    def _advance(self) -> None:
        """Wait for the next completions and put them in their inboxes."""
        if self._suspects and not self._flying:
            self._send(self._suspects.popleft())
        if not self._flying and not self.process.has_outputs():
            return
        try:
            outputs = self.process.outputs()
        except EngineDied as died:
            self._recover(died)
            return
        self._timer.tick()
        for output in outputs:
            flight = self._flying.pop(output.request_id, None)
            if flight is not None:
                self._deaths = 0
                flight.inbox.append(completion(output, flight.request.id, self.processor.tokenizer))

    def _recover(self, died: EngineDied) -> None:
        flights, self._flying = list(self._flying.values()), {}
        for flight in flights:
            flight.deaths += 1
            if flight.deaths > 1:
                message = f"the engine failed: it died twice while it had this photo ({died})"
                flight.inbox.append(Completion(flight.request.id, error=message))
            else:
                self._suspects.append(flight)
        self._deaths += 1
        if self._deaths > DEATHS:
            raise RunFailed(f"engine vllm: died {self._deaths} times in a row: {died}; continue with the same run id")
        log.warning("vLLM died (%s); restarting it, %d photos are sent again", died, len(self._suspects))
        self.process.close()
        self.restarts += 1
        try:
            self.process = self._start()
        except (UsageError, RunFailed) as error:
            raise RunFailed(f"engine vllm: it died ({died}) and did not restart: {error}") from error

    def _forget(self, inbox: deque[Completion]) -> None:
        """Cancel the requests of a stream that no longer waits for them."""
        unwanted = [key for key, flight in self._flying.items() if flight.inbox is inbox]
        for key in unwanted:
            del self._flying[key]
        self._suspects = deque(flight for flight in self._suspects if flight.inbox is not inbox)
        if unwanted:
            self.process.abort(unwanted)


def load_vllm_engine(adapter: Adapter, settings: RunSettings) -> VllmEngine:
    """The engine for `adapter`, merged into its base's weights or unmerged, according to `settings.served`.

    Raises:
        UsageError: no device for this vLLM, too little memory, no base, or an adapter that vLLM cannot serve.
        RunFailed: vLLM does not start.
    """
    device, dtype = device_and_dtype(settings.device)
    lora = adapter.path if settings.served == "lora" else None
    if lora and adapter.merge_only:
        raise UsageError(f"adapter {lora}: served: lora: {adapter.merge_only[0]}; set served to merged")
    model = family_of(adapter.path).load()
    begin_imports(cpu=device.type == "cpu")  # while this process merges
    arguments = engine_arguments(settings, device, dtype, model)  # before merging, too: it may reject the settings
    arguments["model"] = str(base_of(adapter) if lora else merged_checkpoint(adapter, dtype, merged_folder()))
    how = adapter.preparation
    arguments["limit_mm_per_prompt"] = {**PHOTOS_ONLY, "image": how.photos_per_product}
    if lora:  # the base's own sizes of photos may differ
        arguments |= {**lora_arguments(lora), "mm_processor_kwargs": model.vllm_photo_arguments(how)}
    arguments["max_model_len"] = most_tokens(adapter.path)
    in_flight = arguments["max_num_seqs"] * 5 // 4
    log.info("vLLM: %s, in_flight %d", arguments, in_flight)
    return VllmEngine(
        lambda: EngineProcess(arguments, cpu=device.type == "cpu", lora=lora),
        load_processor(adapter.path),
        adapter.prompt,
        in_flight=in_flight,
        max_new_tokens=answer_budget(adapter, settings),
    )


def engine_arguments(
    settings: RunSettings, device: torch.device, dtype: torch.dtype, model: VisionModel
) -> dict[str, Any]:
    """vLLM's arguments for a stream of distinct photos.

    Raises:
        UsageError: `settings.vllm` names a field that vLLM does not have, or that this function sets.
    """
    tokens, sequences = _sizes(device)
    defaults = {
        "max_num_batched_tokens": tokens,
        "max_num_seqs": sequences,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": device.type == "cpu",  # compiling takes a minute on a CPU and gains nothing
    }
    fixed = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": MOST_TOKENS,  # or what the adapter's model was made for
        "seed": 0,
        "quantization": None if settings.quantization == "none" else settings.quantization,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "attention_backend": None,
        "limit_mm_per_prompt": PHOTOS_ONLY,  # or as many as the adapter's photos_per_product
        # Prompts differ from their fifth token on, where the photo starts: no block of 16 is ever shared, and hashing
        # 50 blocks per photo is wasted. Hardly a photo occurs twice either: caching its crops would only cost memory.
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "generation_config": "vllm",  # ignore the checkpoint's: the engine sets its own stop tokens
        "max_logprobs": TOP_K,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,  # we print the progress ourselves
        "trust_remote_code": False,  # those who start a run choose its settings, not its code
        **model.vllm_arguments(device, dtype),
    }
    _check_names(settings.vllm, fixed)
    return _with_graphs({**defaults, **settings.vllm, **fixed})


def _with_graphs(arguments: dict[str, Any]) -> dict[str, Any]:
    """With the sizes of steps that get a CUDA graph: 22 instead of vLLM's 51, since every start captures them again.

    A step is filled up to the next size. Steps of photos are larger than any of these; what is left are steps of
    answers alone, which are bound by the cache that they read, not by what they compute.
    """
    if arguments["enforce_eager"]:
        return arguments
    most = arguments.pop("max_cudagraph_capture_size", min(512, 2 * arguments["max_num_seqs"]))
    sizes = [size for size in (1, 2, 4, *range(8, 32, 8), *range(32, 513, 32)) if size < most]
    return {**arguments, "cudagraph_capture_sizes": [*sizes, most]}


def _check_names(given: Mapping[str, object], fixed: Mapping[str, object]) -> None:
    """UsageError for a name that is not a field of EngineArgs, or that is `fixed` or set elsewhere in this module."""
    if not given:
        return
    from vllm import EngineArgs

    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    own = {*fixed, "model", "enable_lora", "max_loras", "max_lora_rank", "mm_processor_kwargs", "logging_config"}
    own |= {"cudagraph_capture_sizes"}  # max_cudagraph_capture_size limits them
    for name in given:
        if name in own or name not in fields:
            why = "enrich sets it itself" if name in own else "vLLM's EngineArgs have no such field"
            raise UsageError(f"setting vllm.{name}: {why}; remove it")


def lora_arguments(adapter: Path) -> dict[str, Any]:
    """The arguments with which vLLM serves one adapter without merging it."""
    config = LoraConfig.from_pretrained(str(adapter))
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": min(r for r in _LORA_RANKS if r >= rank)}


def _sizes(device: torch.device) -> tuple[int, int]:
    """max_num_batched_tokens and max_num_seqs for the device's memory.

    A photo's keys and values take 0.33 GB in bf16 at num_crops 4: with 8.3 GB of weights, 24 GB hold 30 photos, 80 GB
    190, 141 GB 340, and twice as many in fp8. A higher bound costs nothing; above 512 vLLM has no CUDA graphs.
    """
    if device.type == "cpu":
        return 4096, 8
    memory = torch.cuda.get_device_properties(device).total_memory
    if memory < 40 * GIB:
        return 4096, 64
    return (8192, 256) if memory < 100 * GIB else (16384, 512)
