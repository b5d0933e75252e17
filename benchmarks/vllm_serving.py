"""Phi-3-vision at full size through vLLM on one GPU: the stock path, what could be had at best, and this engine.

    python benchmarks/vllm_serving.py                      # every part, each in a process of its own
    python benchmarks/vllm_serving.py c d --photos 2048     # some of them
    python benchmarks/vllm_serving.py --tiny                # a small model on a CPU, to try the script

    a  stock vLLM: LLM.generate with its own class, PIL images in memory, decoded beforehand
    b  the ceiling: prompts of the same length without a photo, and the encoder alone; 1 / (1 / text + 1 / encoder)
    c  this engine, from the bytes of JPEG files, bf16
    d  this engine with fp8 weights and fp8 keys and values

Weights are random: speed does not depend on them. Photos are 1000x1333 JPEGs of the sample generator, all different;
num_crops is 4 (757 image tokens), every answer has the same number of tokens. Rates are of all photos from the first
request to the last answer, after a warm-up. Results of a run: vllm_serving.md beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = {
    "a": ["stock LLM.generate, PIL images", "a"],
    "b": ["ceiling: text alone", "text", "ceiling: encoder alone", "encoder"],
    "c": ["this engine, bf16, from JPEG bytes", "c"],
    "d": ["this engine, fp8 weights and KV cache, from JPEG bytes", "d"],
}
# What each part's processes load as vLLM's plugin. The stock part gets the configuration and the processor only.
PLUGINS = {"a": "enrich.phi3_vision.auto:register"}
PLUGIN = "enrich.phi3_vision.vllm_plugin:register"
WARM_UP = 32  # photos; 2 where --tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--photos", type=int, help="how many; 1024, or 6 where --tiny")
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of each answer")
    parser.add_argument("--max-num-seqs", type=int, help="of this engine; by the GPU")
    parser.add_argument("--max-num-batched-tokens", type=int, help="of this engine; by the GPU")
    parser.add_argument("--workers", type=int, help="decoding processes; by default all cores but three")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script on a CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.photos = options.photos or (6 if options.tiny else 1024)
    options.workers = options.workers or max(1, (os.cpu_count() or 4) - 3)
    if options.one:
        print("RESULT", json.dumps(MEASURES[options.one](options)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        made = time.perf_counter()
        make_photos(options.folder, options.photos + WARM_UP)
        make_model(options.folder / "model", tiny=options.tiny)
        print(f"{options.photos} photos made in {time.perf_counter() - made:.0f} s\n", flush=True)
        print("| part | images/s | GPU busy | CPU s/image | start s |\n| --- | --- | --- | --- | --- |", flush=True)
        for part in options.parts or list(PARTS):
            run_part(part, options)


def run_part(part: str, options: argparse.Namespace) -> None:
    """Measure a part, each of its measures in a fresh process, and print a Markdown row for each."""
    rates = []
    for what, name in zip(PARTS[part][::2], PARTS[part][1::2], strict=True):
        result = run_alone(name, options)
        if "error" in result:
            print(f"| {what} | failed: {result['error']} |", flush=True)
            return
        rates.append(result["rate"])
        print(
            f"| {what} | {result['rate']:.2f} | {result['busy']:.0%} | {result['cpu']:.3f} | {result['start']:.0f} |",
            flush=True,
        )
    if len(rates) > 1:
        print(f"| ceiling: both | {1 / sum(1 / rate for rate in rates):.2f} | | | |", flush=True)


def run_alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measure in a process of its own, which shares neither memory nor compiled code with another's."""
    plugins = options.folder / f"plugin-{name}"
    if not plugins.exists():
        info = plugins / "enrich_benchmark-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: enrich-benchmark\nVersion: 0\n")
        wanted = PLUGINS.get(name, PLUGIN)
        (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\nenrich_benchmark = {wanted}\n")
    paths = [str(plugins), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VLLM_PLUGINS": "enrich_benchmark",  # and not the installed package's, in whose place it is
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if name == "encoder":
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its model is called from here
    if options.tiny:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment["OMP_NUM_THREADS"] = str(os.cpu_count())
    command = [sys.executable, __file__, "--one", name, "--folder", str(options.folder)]
    command += ["--photos", str(options.photos), "--tokens", str(options.tokens), "--workers", str(options.workers)]
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if getattr(options, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(
        [*command, *(["--tiny"] if options.tiny else [])], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT ")) if lines else {"error": done.stderr.strip()[-3000:]}


def make_photos(folder: Path, count: int) -> None:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(make_photo, folder), range(count), chunksize=8))


def make_photo(folder: Path, index: int) -> None:
    from PIL import Image

    from enrich.catalog.sample.dialects import DEMO
    from enrich.catalog.sample.draw import render
    from enrich.catalog.sample.products import sample_product

    photo = render(sample_product(0, index, DEMO), index)
    photo.resize((1000, 1333), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=85)


def make_model(path: Path, *, tiny: bool) -> None:
    """Configuration, tokenizer and processor of a checkpoint; vLLM makes up its weights."""
    from enrich.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
    from enrich.phi3_vision.checkpoint import load_processor
    from enrich.settings import TINY_MODEL_PATH

    width, layers, heads, inner = (192, 2, 2, 256) if tiny else (3072, 32, 32, 8192)
    rope = {"type": "su", "short_factor": [1.1] * 48, "long_factor": [2.0] * 48}
    Phi3VConfig(
        architectures=["Phi3VForCausalLM"], vocab_size=32064, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, rope_scaling=rope,
        original_max_position_embeddings=4096, pad_token_id=32000, dtype="float32" if tiny else "bfloat16",
    ).save_pretrained(path)  # fmt: skip
    crops = 1 if tiny else 4  # a stock tower has 24 layers, which take a CPU seconds a crop
    Phi3VProcessor(Phi3VImageProcessor(num_crops=crops), load_processor(TINY_MODEL_PATH).tokenizer).save_pretrained(
        path
    )


def arguments(options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """vLLM's arguments as this engine chooses them for the machine."""
    from enrich.infer.transformers_engine import device_and_dtype
    from enrich.infer.vllm_engine import engine_arguments
    from enrich.settings import RunSettings

    sizes = {name: getattr(options, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    chosen = engine_arguments(RunSettings(**settings, **sizes), *device_and_dtype("auto"))
    return {**chosen, "model": str(options.folder / "model"), "load_format": "dummy"}


def prompt_text() -> str:
    from enrich.prompt import make_prompt, render_prompt

    return render_prompt(make_prompt(("BAGS", "HATS"), "EUR"))


def photo_bytes(options: argparse.Namespace, first: int, count: int) -> list[bytes]:
    return [(options.folder / f"{index}.jpg").read_bytes() for index in range(first, first + count)]


def warm_up(options: argparse.Namespace) -> int:
    return 2 if options.tiny else WARM_UP


def greedy(options: argparse.Namespace) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=options.tokens, ignore_eos=True, detokenize=False)


def measure_stock(options: argparse.Namespace) -> dict[str, Any]:
    from io import BytesIO

    from PIL import Image
    from vllm import LLM

    started = time.perf_counter()
    plain = {"enforce_eager": True, "max_num_seqs": 8} if options.tiny else {}
    llm = LLM(
        str(options.folder / "model"), load_format="dummy", max_model_len=4096, limit_mm_per_prompt={"image": 1},
        disable_log_stats=True, **plain,
    )  # fmt: skip
    images = [
        Image.open(BytesIO(data)).convert("RGB") for data in photo_bytes(options, 0, options.photos + warm_up(options))
    ]
    prompts = [{"prompt": prompt_text(), "multi_modal_data": {"image": image}} for image in images]
    llm.generate(prompts[options.photos :], greedy(options), use_tqdm=False)
    start = time.perf_counter() - started
    with clock(options.photos) as result:
        llm.generate(prompts[: options.photos], greedy(options), use_tqdm=False)
    return {**result, "start": start}


def measure_text(options: argparse.Namespace) -> dict[str, Any]:
    """Prompts of as many tokens as those with a photo: what the language model alone can do."""
    import numpy as np
    from vllm import LLM

    from enrich.phi3_vision.checkpoint import load_processor

    started = time.perf_counter()
    processor = load_processor(options.folder / "model")
    length = len(processor.token_ids(prompt_text(), [processor.image_processor.num_image_tokens(1000, 1333)]))
    ids = np.random.default_rng(0).integers(3, 1400, (options.photos + warm_up(options), length)).tolist()
    prompts = [{"prompt_token_ids": row} for row in ids]
    llm = LLM(**arguments(options))
    llm.generate(prompts[options.photos :], greedy(options), use_tqdm=False)
    start = time.perf_counter() - started
    with clock(options.photos) as result:
        llm.generate(prompts[: options.photos], greedy(options), use_tqdm=False)
    return {**result, "start": start}


def measure_encoder(options: argparse.Namespace) -> dict[str, Any]:
    """From uint8 crops on the GPU to token embeddings, in batches as large as a step of the engine takes."""
    from vllm import LLM

    started = time.perf_counter()
    llm = LLM(**arguments(options))
    count = min(options.photos, 256)
    return llm.apply_model(partial(time_encoder, count=count, tiny=options.tiny, started=started))[0]


def time_encoder(model: Any, *, count: int, tiny: bool, started: float) -> dict[str, Any]:
    import torch

    device = model.vision_embed_tokens.glb_GN.device
    crops, batch, side = (1, 1, 336) if tiny else (4, 20, 672)  # 16,384 tokens a step hold 20 photos
    pixels = torch.randint(0, 256, (batch, crops, 336, 336, 3), dtype=torch.uint8, device=device)
    sizes = torch.tensor([[side, side]] * batch)
    steps = max(1, count // batch)

    def encode(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                model.embed_multimodal(pixel_values=pixels, image_sizes=sizes)
        if device.type == "cuda":
            torch.cuda.synchronize()

    encode(1 if tiny else 3)
    start = time.perf_counter() - started
    with clock(steps * batch) as result:
        encode(steps)
    return {**result, "start": start}


def measure_ours(options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    from enrich.images import Preparation
    from enrich.infer.vllm_engine import VllmEngine
    from enrich.infer.vllm_process import EngineProcess
    from enrich.infer.vllm_render import sampling
    from enrich.phi3_vision.checkpoint import load_processor
    from enrich.prompt import make_prompt

    started = time.perf_counter()
    chosen = arguments(options, **({} if options.tiny else settings))  # fp8 is for GPUs
    in_flight = chosen["max_num_seqs"] * 5 // 4
    processor = load_processor(options.folder / "model")
    prompt = make_prompt(("BAGS", "HATS"), "EUR")
    how = Preparation(num_crops=processor.image_processor.num_crops, image_size=336)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        engine = VllmEngine(
            partial(EngineProcess, chosen, cpu=options.tiny), processor, prompt, in_flight=in_flight,
        )  # fmt: skip
        engine._free = sampling([], options.tokens)  # no stop tokens: every answer is as long
        warm, photos = photo_bytes(options, options.photos, warm_up(options)), photo_bytes(options, 0, options.photos)
        list(engine.complete(pages(pool, warm, how, in_flight)))
        start = time.perf_counter() - started
        with clock(options.photos) as result:
            answers = list(engine.complete(pages(pool, photos, how, in_flight)))
        engine.close()
    wrong = [answer for answer in answers if answer.error or len(answer.token_ids) != options.tokens]
    if wrong or len(answers) != options.photos:
        raise RuntimeError(f"{len(answers)} answers, {len(wrong)} of them wrong, such as {wrong[:1]}")
    return {**result, "start": start}


def pages(pool: ProcessPoolExecutor, photos: list[bytes], how: Any, ahead: int) -> Iterator[Any]:
    """Requests from JPEG bytes, decoded by the pool; at most `ahead` between pool and engine."""
    from enrich.infer.engine import Request

    rest = enumerate(photos)
    waiting: deque[tuple[int, Future[Any]]] = deque()
    for index, data in rest:
        waiting.append((index, pool.submit(prepare_photo, data, how)))
        if len(waiting) >= ahead:
            break
    while waiting:
        index, future = waiting.popleft()
        yield Request(f"{index}-{len(photos)}", future.result())
        for following, data in rest:
            waiting.append((following, pool.submit(prepare_photo, data, how)))
            break


def prepare_photo(data: bytes, how: Any) -> Any:
    from enrich.images import prepare
    from enrich.settings import PhotoLimits

    return prepare(data, PhotoLimits(), how).page


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
    result["rate"] = photos / elapsed
    result["cpu"] = (cpu_seconds() - spent) / photos
    result["busy"] = statistics.fmean(shares or [0.0])


def cpu_seconds() -> float:
    """Of this process and those it started."""
    import psutil

    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)])


MEASURES = {
    "a": measure_stock,
    "text": measure_text,
    "encoder": measure_encoder,
    "c": measure_ours,
    "d": partial(measure_ours, quantization="fp8", kv_cache_dtype="fp8"),
}

if __name__ == "__main__":
    main()
