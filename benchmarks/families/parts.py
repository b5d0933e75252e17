"""The parts of `benchmarks.families.full_size`, each of which runs in a process of its own."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.families.members import PHI, SIZES
from benchmarks.made_up import prompt
from benchmarks.vllm_serving.measured_engine import clock, photo_bytes, profile, requests, warm_up

PHOTO_TOKENS, TINY_TOKENS = 750, 64  # that are asked for; each family has its nearest
ANSWER_TOKENS = 32  # as many as title, category and price take with the published vocabularies


def photo_tokens(options: argparse.Namespace) -> int:
    return TINY_TOKENS if options.tiny else PHOTO_TOKENS


def measure(name: str, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a part has found. Runs in a process of its own."""
    path = options.folder / name
    if part == "stock":
        return serve_stock(path, options)
    return serve_ours(path, options) if part == "engine" else train(path, part, options)


def train(path: Path, part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune for an epoch (two where `cached`), from JPEG files."""
    started = time.perf_counter()
    import torch

    from benchmarks.finetuning.plain import train_plainly
    from benchmarks.finetuning.run import PEAK_FLOPS, WARM_UP, busy, catalog, rates, train_ours
    from enrich.settings.training import TrainSettings
    from enrich.train.device import device_and_dtype
    from enrich.train.examples import build_examples
    from enrich.train.opening import open_model, open_processor

    device, dtype = device_and_dtype("auto")
    batch = 2 if options.tiny else 8 if part == "plain" else 16
    settings = TrainSettings(
        model=str(path), photo_tokens=photo_tokens(options), batch_size=batch, effective_batch_size=batch,
        epochs=2 if part == "cached" else 1, evaluations=1, compile=device.type == "cuda",
        cache_vision_features=part == "cached",
    )  # fmt: skip
    processor = open_processor(path, settings)
    products, asked = catalog(options.folder / "photos", options.photos // (2 if part == "plain" else 1))
    examples, _ = build_examples(products, processor, asked, settings)
    model = open_model(path, settings, device, dtype)
    tower, decoder = flops(model, processor, examples, settings)
    loaded = time.perf_counter()
    steps: list[tuple[float, float]] = []
    with busy() as shares, tempfile.TemporaryDirectory(dir=options.folder) as work:
        if part == "plain":
            train_plainly(model, examples, processor, settings, Path(work), steps)
        else:
            train_ours(model, examples, processor, settings, asked, Path(work), steps)
    tokens = statistics.fmean(len(example.input_ids) for example in examples)
    epoch = steps[-(len(steps) // int(settings.epochs)) :]  # the last one
    found = rates(epoch, batch, tokens, 2 * decoder + (0 if part == "cached" else tower))
    return {
        "photos a second": found["images_per_second"],
        "MFU": found["mfu"],
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0,
        "GPU busy": statistics.fmean([part for at, part in shares if epoch[WARM_UP][0] < at < epoch[-1][0]] or [0.0]),
        "start s": steps[0][0] - loaded,
        "load s": loaded - started,
        "image tokens": examples[0].num_image_tokens,
        "tokens": tokens,
        "TFLOP a photo": (2 * decoder + tower) / 1e12,
        "MFU is of": PEAK_FLOPS / 1e12,
        "loss": found["loss"],
        **shapes(path, model),
    }


def flops(model: Any, processor: Any, examples: Sequence[Any], settings: Any) -> tuple[float, float]:
    """Of a photo's pass through the vision tower, and of its row's through the language model, as torch counts them.

    Training does the second twice: the base is frozen, so the backward pass computes gradients of activations alone.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from enrich.train.collate import Collator, Photos, embed_images

    photos = Photos(examples[:2], processor, settings.limits)
    batch = Collator(processor)([photos[0], photos[1]])
    # Fused attention over fewer key heads than query heads is refused by the counter (torch 2.11).
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as tower:
            ready = embed_images(model, batch, photos, settings)
        on_device = {key: one.to(model.device) if hasattr(one, "to") else one for key, one in ready.items()}
        with FlopCounterMode(display=False) as decoder:
            model(**on_device)
    return tower.get_total_flops() / 2, decoder.get_total_flops() / 2


def shapes(path: Path, model: Any) -> dict[str, Any]:
    """Of the model: parameters, and bytes of a token's keys and values in 16 bits."""
    from enrich.models.registry import family_of

    published = {one.name: one for one in family_of(path).published}[SIZES[path.name].published]
    return {
        "model": published.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "KV bytes a token": published.kv_bytes,
    }


def serve_stock(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    from PIL import Image
    from vllm import LLM, SamplingParams

    from enrich.engines.vllm_engine import PHOTOS_ONLY

    def decoded(data: bytes) -> Image.Image:
        return Image.open(BytesIO(data)).convert("RGB")

    plain: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 8} if options.tiny else {}
    plain |= given(options)
    text, photos = stock_question(path)
    llm = LLM(
        str(path), max_model_len=4096, limit_mm_per_prompt=PHOTOS_ONLY, mm_processor_kwargs=photos,
        disable_log_stats=True, **plain,
    )  # fmt: skip
    with ThreadPoolExecutor(options.workers) as pool:
        images = list(pool.map(decoded, photo_bytes(options, 0, options.photos + warm_up(options))))
    prompts = [{"prompt": text, "multi_modal_data": {"image": image}} for image in images]
    greedy = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    llm.generate(prompts[options.photos :], greedy, use_tqdm=False)
    ready = time.perf_counter() - started
    with clock(options.photos) as found:
        outputs = llm.generate(prompts[: options.photos], greedy, use_tqdm=False)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    return _served(found, ready, [len(output.prompt_token_ids or ()) for output in outputs], lengths)


def given(options: argparse.Namespace) -> dict[str, Any]:
    pairs = (argument.split("=", 1) for argument in options.vllm)
    return {name: json.loads(value) for name, value in pairs}


def stock_question(path: Path) -> tuple[str, dict[str, Any] | None]:
    """The question with one photo, as text; and what the checkpoint's files alone do not tell vLLM about photos, such
    as how many tokens one has in Gemma 4."""
    from enrich.models.checkpoint import load_processor
    from enrich.models.registry import family_of

    processor: Any = load_processor(path)
    if path.name == PHI:
        from enrich.models.phi3_vision.processing import render_turn

        return render_turn(prompt().instruction), None
    content = [{"type": "image"}, {"type": "text", "text": prompt().instruction}]
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, **processor.facts.template
    )
    return text, family_of(path).load().vllm_photo_arguments(processor.preparation)


def serve_ours(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    from enrich.engines.vllm_engine import VllmEngine, engine_arguments
    from enrich.engines.vllm_process import EngineProcess
    from enrich.engines.vllm_render import sampling
    from enrich.models.checkpoint import load_processor
    from enrich.models.device import device_and_dtype
    from enrich.models.registry import family_of
    from enrich.photos.prompt_size import most_tokens
    from enrich.settings.run import RunSettings

    processor = load_processor(path)
    arguments = engine_arguments(RunSettings(), *device_and_dtype("auto"), family_of(path).load())
    arguments |= {"model": str(path), "max_model_len": most_tokens(path), **given(options)}
    in_flight = arguments["max_num_seqs"] * 5 // 4
    start = partial(EngineProcess, arguments, cpu=options.tiny)
    with (
        ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
        closing(VllmEngine(start, processor, prompt(), in_flight=in_flight)) as engine,
    ):
        engine._free = sampling([], ANSWER_TOKENS)  # random weights never end an answer, or do at once

        def answer(photos: list[bytes], prefix: str) -> list[Any]:
            return list(engine.complete(requests(pool, photos, [processor.preparation], in_flight, prefix)))

        answer(photo_bytes(options, options.photos, warm_up(options)), "warm-up")
        ready = time.perf_counter() - started
        photos = photo_bytes(options, 0, options.photos)
        with clock(options.photos) as found:
            answers = answer(photos, "measured")
        if options.profile:
            print(profile(engine, lambda: answer(photos, "profiled")), file=sys.stderr)
    if wrong := [one.error for one in answers if one.error]:
        raise RuntimeError(f"{len(wrong)} photos without an answer, such as: {wrong[0]}")
    lengths = [len(one.token_ids) for one in answers]
    return _served(found, ready, [one.prompt_tokens for one in answers], lengths)


def _served(found: Mapping[str, float], ready: float, prompts: Sequence[int], answers: Sequence[int]) -> dict[str, Any]:
    if set(answers) != {ANSWER_TOKENS}:
        raise RuntimeError(f"answers of {min(answers)} to {max(answers)} tokens, not {ANSWER_TOKENS}")
    return {
        "photos a second": found["a second"],
        "GPU busy": found.get("GPU busy", 0.0),
        "CPU s a photo": found["CPU s/image"],
        "start s": ready,
        "prompt tokens": statistics.fmean(prompts),
    }
