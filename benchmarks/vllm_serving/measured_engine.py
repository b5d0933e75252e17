"""One engine with the made-up checkpoint, and what is measured with it: rates, the GPU's share of time, CPU seconds."""

import argparse
import json
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

from benchmarks.made_up import FULL, prompt

IMAGE_TOKENS = {1: 313, 4: 757}  # of an image of so many crops, by the model's arrangement of features
WARM_UP = 64  # photos; 2 where --tiny


class Bench:
    """An engine with the benchmark's checkpoint and its decoding processes, and what is measured with them."""

    def __init__(self, settings: dict[str, str], options: argparse.Namespace, photos: int = 1) -> None:
        """
        Args:
            photos: that a prompt may show.
        """
        from enrich.engines.vllm_engine import VllmEngine, engine_arguments
        from enrich.engines.vllm_process import EngineProcess
        from enrich.models.checkpoint import load_processor
        from enrich.models.device import device_and_dtype
        from enrich.models.registry import family_of
        from enrich.settings.run import RunSettings

        self.started, self.options = time.perf_counter(), options
        own = {name: value for name, value in settings.items() if not name.startswith("vllm.")}
        self.settings = RunSettings.model_validate(own)
        model = family_of(options.folder / "model").load()
        self.arguments = {
            **engine_arguments(self.settings, *device_and_dtype("auto"), model), "model": str(options.folder / "model"),
            **{name.removeprefix("vllm."): json.loads(settings[name]) for name in settings.keys() - own.keys()},
        }  # fmt: skip
        if not options.tiny:  # so that one engine takes photos of 16 crops too
            self.arguments["mm_processor_kwargs"] = {"num_crops": 16 if photos == 1 else 4}
        if photos > 1:
            self.arguments["limit_mm_per_prompt"] = {"image": photos}
        self.in_flight = self.arguments["max_num_seqs"] * 5 // 4
        self.processor = load_processor(options.folder / "model")
        crops = self.processor.image_processor
        crops.num_crops = crops.more_crops = 1 if options.tiny else 16
        crops.photos_per_product = photos
        start = partial(EngineProcess, self.arguments, cpu=options.tiny)
        self.engine = VllmEngine(start, self.processor, prompt(), in_flight=self.in_flight)
        self.pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"))
        self.ready: float | None = None
        self.measured = 0

    def __enter__(self) -> "Bench":
        self.from_jpeg(count=warm_up(self.options), first=self.options.photos)
        self.ready = time.perf_counter() - self.started
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()
        self.pool.shutdown()

    def from_jpeg(
        self, *, crops: Sequence[int] = (4,), tokens: int | None = None, count: int | None = None, first: int = 0
    ) -> dict[str, float]:
        """This engine, from the bytes of JPEG files to completions.

        Args:
            crops: of each photo of a product.
            tokens: of every answer; None: as many as the checkpoint's own answer has.
            count: products; None: as many as the photos are enough for.
        """
        from enrich.engines.vllm_render import sampling
        from enrich.models.checkpoint import stop_ids
        from enrich.photos.decode import Preparation

        count = count or self.options.photos // len(crops)
        hows = [Preparation(num_crops=1 if self.options.tiny else number, image_size=336) for number in crops]
        # What the checkpoint writes behind its own answer means nothing, but costs as much.
        self.engine._free = sampling([], tokens) if tokens else sampling(stop_ids(self.processor), 64)
        photos = photo_bytes(self.options, first, count * len(crops))
        self.measured += 1  # in the ids, by which vLLM would know a photo again that it has encoded before
        with clock(count) as result:
            stream = requests(self.pool, photos, hows, self.in_flight, f"{self.measured}")
            answers = list(self.engine.complete(stream))
        wrong = [answer for answer in answers if len(answer.token_ids) != (tokens or FULL.answer_tokens - 1)]
        if wrong or len(answers) != count:
            raise RuntimeError(f"{len(answers)} answers, {len(wrong)} of them wrong, such as {wrong[:1]}")
        return result if self.ready is None else {**result, "ready after s": self.ready}

    def text(self, crops: Sequence[int] = (4,)) -> dict[str, float]:
        """Prompts of as many tokens as those with photos of `crops`, as many answers: the language model alone."""
        from enrich.engines.vllm_render import sampling

        prompts, params, done = text_prompts(self.processor, self.options, crops), sampling([], FULL.answer_tokens), 0
        with clock(len(prompts)) as result:
            for index, text in enumerate(prompts):
                self.engine.process.add(f"text-{time.monotonic_ns()}-{index}", text, params)
            while done < len(prompts):
                done += len(self.engine.process.outputs())
        return result

    def encoder(self, crops: int = 4) -> dict[str, float]:
        """Images from uint8 crops on the GPU to token embeddings, in batches as large as a step of the engine takes."""
        tiny = self.options.tiny

        def encode(model: Any) -> float:
            import torch

            device = model.vision_embed_tokens.glb_GN.device
            shown = 1 if tiny else crops
            side, batch = 336 * math.isqrt(shown), 1 if tiny else 16_384 // IMAGE_TOKENS[shown]
            pixels = torch.randint(0, 256, (batch, shown, 336, 336, 3), dtype=torch.uint8, device=device)
            sizes = torch.tensor([[side, side]] * batch)
            steps = 1 if tiny else 24
            with torch.inference_mode():
                for repeat in range(steps + 3):
                    if repeat == 3:
                        torch.accelerator.synchronize() if device.type == "cuda" else None
                        started = time.perf_counter()
                    model.embed_multimodal(pixel_values=pixels, image_sizes=sizes)
                torch.accelerator.synchronize() if device.type == "cuda" else None
            return steps * batch / (time.perf_counter() - started)

        return {"a second": run_in_engine(self.engine, encode)}

    def set_step_tokens(self, tokens: int) -> None:
        """As `max_num_batched_tokens` would, but without another engine's start; no more than that was at the start."""

        def change(model: Any) -> None:
            import inspect

            for frame in inspect.stack():  # the engine, whose loop calls this
                engine = frame.frame.f_locals.get("self")
                if hasattr(engine, "scheduler"):
                    engine.scheduler.max_num_scheduled_tokens = tokens
                    return
            raise RuntimeError("the model runs in another process than the engine's scheduler")

        run_in_engine(self.engine, change)

    def profile(self) -> str:
        """The GPU's time by kernel, over half of the photos once more."""
        return profile(self.engine, lambda: self.from_jpeg(count=self.options.photos // 2))


def run_in_engine(engine: Any, function: Callable[..., Any], **arguments: Any) -> Any:
    """What `function(model)` returns, called in the process of a `VllmEngine`."""

    def call(worker: Any) -> Any:
        return function(worker.get_model(), **arguments)

    return engine.process._engine.collective_rpc(call)[0]


def profile(engine: Any, work: Callable[[], object]) -> str:
    """The GPU's time by kernel while a `VllmEngine` does this work."""

    def start(model: Any) -> None:
        import torch

        kinds = torch.profiler.ProfilerActivity
        activity = kinds.CUDA if torch.cuda.is_available() else kinds.CPU  # which finds no kernels
        torch.enrich_profile = torch.profiler.profile(activities=[activity])
        torch.enrich_profile.start()

    def stop(model: Any) -> str:
        import torch

        torch.enrich_profile.stop()
        rows = sorted(torch.enrich_profile.key_averages(), key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows) or 1
        top = [
            f"{row.self_device_time_total / total:6.1%} {row.self_device_time_total / 1e3:9.1f} ms {row.count:6d} "
            f"{row.key[:110]}" for row in rows[:40]
        ]  # fmt: skip
        return "\n".join([f"kernels: {total / 1e6:.2f} s", *top])

    run_in_engine(engine, start)
    began = time.perf_counter()
    work()
    wall = time.perf_counter() - began
    return f"wall {wall:.2f} s\n{run_in_engine(engine, stop)}"


def text_prompts(processor: Any, options: argparse.Namespace, crops: Sequence[int] = (4,)) -> list[Any]:
    """Prompts of any tokens, as many as a prompt with photos of `crops` has; one for each product."""
    import numpy as np
    from vllm.inputs import TokensPrompt

    from enrich.models.phi3_vision.processing import render_turn

    images = [IMAGE_TOKENS[1 if options.tiny else number] for number in crops]
    length = len(processor.token_ids(render_turn(prompt().instruction, len(images)), images))
    ids = np.random.default_rng(0).integers(300, 1400, (options.photos // len(crops), length)).tolist()
    return [TokensPrompt(prompt_token_ids=row) for row in ids]


def run_tower_as_vllm(model: Any) -> None:
    """Operation by operation, attention by PyTorch's kernels that vLLM allows."""
    from torch.nn.functional import scaled_dot_product_attention

    for layer in model.vision_embed_tokens.img_processor.vision_model.encoder.layers:
        layer._compiled_call_impl, heads = None, layer.self_attn.num_heads_per_partition

        def attend(query: Any, key: Any, value: Any, heads: int = heads) -> Any:
            by_head = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
            return scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)

        layer.self_attn.attn.forward = attend


def run_tower_compiled(model: Any) -> None:
    """As this project runs it: undo `run_tower_as_vllm`."""
    for layer in model.vision_embed_tokens.img_processor.vision_model.encoder.layers:
        del layer.self_attn.attn.forward
    model.vision_embed_tokens.compile_layers()


def requests(pool: ProcessPoolExecutor, photos: list[bytes], hows: list[Any], ahead: int, prefix: str) -> Iterator[Any]:
    """Requests from JPEG bytes, as many photos each as `hows`, decoded by the pool; `ahead` between pool and engine."""
    from enrich.engines.base import Request

    rest = range(0, len(photos), len(hows)).__iter__()
    waiting: deque[tuple[int, list[Future[Any]]]] = deque()

    def start(most: int) -> None:
        for first in islice(rest, most):
            shown = zip(photos[first:], hows, strict=False)
            waiting.append((first, [pool.submit(prepare_photo, data, how) for data, how in shown]))

    start(ahead)
    while waiting:
        first, decoded = waiting.popleft()
        ids = tuple(f"{prefix}-{first + place}" for place in range(len(hows)))
        yield Request(ids[0], tuple(page.result() for page in decoded), ids)
        start(1)


def prepare_photo(data: bytes, how: Any) -> Any:
    from enrich.photos.decode import prepare
    from enrich.settings.photos import PhotoLimits

    return prepare(data, PhotoLimits(), how).page


def photo_bytes(options: argparse.Namespace, first: int, count: int) -> list[bytes]:
    return [(options.folder / "photos" / f"{index}.jpg").read_bytes() for index in range(first, first + count)]


def warm_up(options: argparse.Namespace) -> int:
    return 2 if options.tiny else WARM_UP


@contextmanager
def clock(photos: int) -> Iterator[dict[str, float]]:
    """Photos a second, share of the time in which the GPU was at work, and CPU seconds a photo of all processes."""
    import torch

    result: dict[str, float] = {}
    shares: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            shares.append(torch.cuda.utilization() / 100)

    if torch.cuda.is_available():
        threading.Thread(target=watch, daemon=True).start()
    spent, started = cpu_seconds(), time.perf_counter()
    yield result
    elapsed = time.perf_counter() - started
    over.set()
    result["a second"] = photos / elapsed
    if shares:
        result["GPU busy"] = statistics.fmean(shares)
    result["CPU s/image"] = (cpu_seconds() - spent) / photos


def cpu_seconds() -> float:
    """Of this process and those it started."""
    import psutil

    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)])
