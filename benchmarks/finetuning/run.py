"""Fine-tuning Phi-3-vision at full size on one GPU, from JPEG files, compared with two usual ways of doing it.

    python -m benchmarks.finetuning.run                    # every variant, each in a process of its own
    python -m benchmarks.finetuning.run ours cached plain   # some of them

Weights are random: speed does not depend on them. Photos are 1000x1333 JPEGs of the sample generator, all different;
num_crops is 4, LoRA r 16 on qkv_proj, o_proj, gate_up_proj, down_proj. The first steps of each epoch, in which code is
compiled and workers start, are left out. Results of a run: see README.md.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from benchmarks.finetuning.plain import train_plainly
from benchmarks.results import record
from enrich.answers.prompt import Prompt, make_prompt
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from enrich.models.protocols import Processor
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from enrich.train.collate import Photos
from enrich.train.examples import Example, build_examples
from enrich.train.fit import adapt, fit
from enrich.train.opening import open_photos
from enrich.train.trainer import training_arguments
from enrich.vocabulary import Product
from sample.dialects import DEMO
from sample.draw import render
from sample.products import sample_product

PEAK_FLOPS = 790e12  # dense bf16 matrix products of random data, measured on an H200
WARM_UP = 4  # steps of each epoch that are not counted


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    what: str
    settings: dict[str, Any]
    plain: bool = False  # transformers.Trainer with a plain collator and logits everywhere
    epochs: int = 1
    photos: int = 768
    memory_gib: float | None = None  # a smaller GPU: allocations beyond this fail


BATCH = {"batch_size": 16, "effective_batch_size": 16}
VARIANTS = {
    "ours": Variant("from JPEG files", {**BATCH, "cache_vision_features": False}),
    "cached": Variant("features kept in epoch 1, read in epoch 2", BATCH, epochs=2),
    "fresh": Variant("two epochs without keeping features", {**BATCH, "cache_vision_features": False}, epochs=2),
    "plain": Variant(
        "(a) Trainer, plain collator, logits everywhere", {"batch_size": 8, "effective_batch_size": 8}, plain=True,
        photos=320,
    ),
    "tutorial": Variant(
        "(b) batch 1, accumulation 16, logits everywhere", {"batch_size": 1, "effective_batch_size": 16}, plain=True,
        photos=160,
    ),
    "15gib": Variant(
        "15 GiB: gradient checkpointing",
        {"batch_size": 16, "effective_batch_size": 16, "gradient_checkpointing": True, "cache_vision_features": False},
        photos=320, memory_gib=15.0,
    ),
    "batch8": Variant(
        "batch 8", {"batch_size": 8, "effective_batch_size": 8, "cache_vision_features": False}, photos=384
    ),
    "batch32": Variant("batch 32", {"batch_size": 32, "effective_batch_size": 32, "cache_vision_features": False}),
    "eager": Variant("not compiled", {**BATCH, "compile": False, "cache_vision_features": False}, photos=320),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--one", metavar="VARIANT", help=argparse.SUPPRESS)
    parser.add_argument("--photos", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help="a model of a few layers, to try the script on a CPU")
    arguments = parser.parse_args()
    if arguments.one:
        print("RESULT", json.dumps(measure(VARIANTS[arguments.one], arguments.photos, tiny=arguments.tiny)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        chosen = arguments.variants or list(VARIANTS)
        count = 48 if arguments.tiny else max(VARIANTS[name].photos for name in chosen)
        make_photos(Path(folder), count)
        rows = []
        for name in chosen:
            rows += rows_of(VARIANTS[name], run_alone(name, folder, arguments.tiny))
            print(rows[-1], file=sys.stderr, flush=True)
    failed = [row for row in rows if "error" in row]
    record("finetuning", {"": [row for row in rows if row not in failed], **({"Failed": failed} if failed else {})})


def run_alone(name: str, folder: str, tiny: bool) -> dict[str, Any]:
    """Measure a variant in a fresh process, so that nothing of another's memory or compiled code is left."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.finetuning.run",
        "--one",
        name,
        "--photos",
        folder,
        *(["--tiny"] if tiny else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT ")) if lines else {"error": done.stderr.strip()[-1500:]}


def rows_of(variant: Variant, result: dict[str, Any]) -> list[dict[str, Any]]:
    """A table's row for each epoch."""
    if "error" in result:
        return [{"variant": variant.what, "error": result["error"]}]
    many = len(result["epochs"]) > 1
    return [
        {
            "variant": f"{variant.what}: epoch {number}" if many else variant.what,
            **epoch,
            **{name: result[name] for name in ("peak_gib", "busy", "start_seconds")},
        }
        for number, epoch in enumerate(result["epochs"], start=1)
    ]


def make_photos(folder: Path, count: int) -> None:
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_photo, [folder] * count, range(count), chunksize=8))


def _make_photo(folder: Path, index: int) -> None:
    photo = render(sample_product(0, index, DEMO), index)
    photo.resize((1000, 1333), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=85)


def catalog(folder: Path, count: int) -> tuple[list[Product], Prompt]:
    made = [sample_product(0, index, DEMO) for index in range(count)]
    products = [
        Product(own.product_code, own.title, own.category, own.price, (str(folder / f"{index}.jpg"),))
        for index, own in enumerate(made)
    ]
    return products, make_prompt(sorted({own.category for own in made}), "EUR", max_new_tokens=128)


def make_model(device: torch.device, *, tiny: bool) -> Phi3VForCausalLM:
    small = {
        "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "img_processor": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    } if tiny else {}  # fmt: skip
    half = (small.get("hidden_size", 3072) // small.get("num_attention_heads", 32)) // 2
    rope = {"type": "su", "short_factor": [1.1] * half, "long_factor": [2.0] * half}
    config = Phi3VConfig(
        vocab_size=32064, original_max_position_embeddings=4096, rope_scaling=rope, **{**FULL, **small}
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        model = Phi3VForCausalLM(config)
    torch.set_default_dtype(before)
    return model.eval()


FULL: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def flops_per_image(config: Phi3VConfig, examples: Sequence[Example]) -> tuple[float, float]:
    """Of the decoder, and of the tower: 4 P T of the decoder's linear layers (forward, and the backward of activations:
    the base is frozen); the tower's and projector's forward pass with its attention. The head, at the answers only, is
    left out, and so is the decoder's attention, 2 % of it."""
    text, vision = config, config.vision_config
    width, inner = text.hidden_size, text.intermediate_size
    decoder = text.num_hidden_layers * (4 * width**2 + 3 * width * inner)
    tokens = statistics.fmean(len(example.input_ids) for example in examples)
    patches, crops, depth = (vision.image_size // vision.patch_size) ** 2 + 1, 5, vision.num_hidden_layers - 1
    tower = 2 * patches * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    attention = 4 * patches**2 * vision.hidden_size
    projector = 2 * 757 * (4 * vision.hidden_size * width + width**2)
    return 4 * decoder * tokens, crops * depth * (tower + attention) + projector


def measure(variant: Variant, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Train as `variant` says; rates, memory, and the share of time in which the GPU was at work."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda and variant.memory_gib:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(variant.memory_gib * 2**30 / total)
    shrunk = {"batch_size": 2, "effective_batch_size": 4} if tiny else {}
    settings = TrainSettings.model_validate(
        {
            "epochs": variant.epochs,
            "evaluations": 1,
            "compile": cuda,
            **variant.settings,
            **shrunk,
        }
    )
    products, prompt = catalog(folder, 48 if tiny else variant.photos)
    processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=4), load_processor(TINY_MODEL_PATH).tokenizer)
    examples, _ = build_examples(products, processor, prompt, settings)
    model = make_model(device, tiny=tiny)
    decoder, tower = flops_per_image(model.config, examples)
    tokens = statistics.fmean(len(example.input_ids) for example in examples)
    steps: list[tuple[float, float]] = []  # when, and the loss
    started = time.perf_counter()
    with busy() as shares, tempfile.TemporaryDirectory() as work:
        if variant.plain:
            train_plainly(model, examples, processor, settings, Path(work), steps)
        else:
            train_ours(model, examples, processor, settings, prompt, Path(work), steps)
    batch = settings.effective_batch_size
    per_epoch = len(steps) // variant.epochs
    first, last = steps[WARM_UP][0], steps[per_epoch - 1][0]
    epochs = [steps[number * per_epoch : (number + 1) * per_epoch] for number in range(variant.epochs)]
    return {
        "epochs": [
            rates(epoch, batch, tokens, decoder + (0 if number and settings.cache_vision_features else tower))
            for number, epoch in enumerate(epochs)
        ],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "busy": statistics.fmean([share for when, share in shares if first < when < last] or [0.0]),
        "start_seconds": epochs[0][0][0] - started,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def rates(epoch: list[tuple[float, float]], batch: int, tokens: float, flops: float) -> dict[str, float]:
    counted = epoch[WARM_UP:]
    rate = batch * (len(counted) - 1) / (counted[-1][0] - counted[0][0])
    return {
        "images_per_second": rate,
        "tokens_per_second": rate * tokens,
        "mfu": rate * flops / PEAK_FLOPS,
        "loss": statistics.fmean(loss for _, loss in counted),
    }


def train_ours(
    model: PreTrainedModel, examples: list[Example], processor: Processor, settings: TrainSettings, prompt: Prompt,
    work: Path, steps: list[tuple[float, float]],
) -> None:  # fmt: skip
    photos = open_photos(model, examples, processor, settings, work / "train.features")
    unseen = Photos(examples[:2], processor, settings.limits)
    adapted = adapt(model, settings, len(photos))
    arguments = training_arguments(settings, work / "checkpoints", device=model.device, dtype=model.dtype)
    fit(
        adapted, photos, unseen, settings, prompt, arguments,
        on_progress=lambda state: steps.append((time.perf_counter(), state.loss or 0.0)),
    )  # fmt: skip


@contextmanager
def busy() -> Iterator[list[tuple[float, float]]]:
    """(when, share of the last moment in which a kernel ran), as the driver counts it, some ten times a second."""
    shares: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            shares.append((time.perf_counter(), torch.cuda.utilization() / 100))

    watcher = threading.Thread(target=watch, daemon=True)
    if torch.cuda.is_available():
        watcher.start()
    try:
        yield shares
    finally:
        over.set()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
