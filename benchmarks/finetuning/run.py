"""Fine-tuning Phi-3-vision at full size on one GPU, from JPEG files, beside two usual ways of doing it.

    python -m benchmarks.finetuning.run                    # every variant, each in a process of its own
    python -m benchmarks.finetuning.run ours cached plain   # some of them

Weights are random: speed does not depend on them. Photos are 1000x1333 JPEGs of the sample generator, all different;
num_crops is 4, LoRA r 16 on qkv_proj, o_proj, gate_up_proj, down_proj. The first steps of each epoch, in which code is
compiled and workers start, are left out. Results of a run: README.md beside this file.
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
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from enrich.answers.prompt import Prompt, make_prompt
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.checkpoint import load_processor
from enrich.photos.decode import decode
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from enrich.train.collate import Photos
from enrich.train.examples import IGNORED, Example, build_examples
from enrich.train.features import FeatureCache
from enrich.train.fit import adapt, fit
from enrich.train.lora import add_lora
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
        for name in chosen:
            report(VARIANTS[name], run_alone(name, folder, arguments.tiny))


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


def report(variant: Variant, result: dict[str, Any]) -> None:
    """One Markdown row, or several where epochs differ."""
    if "error" in result:
        print(f"| {variant.what} | failed: {result['error']} |", flush=True)
        return
    for number, epoch in enumerate(result["epochs"], start=1):
        what = variant.what if len(result["epochs"]) == 1 else f"{variant.what}: epoch {number}"
        print(
            f"| {what} | {epoch['images_per_second']:.1f} | {epoch['tokens_per_second']:,.0f} | {epoch['mfu']:.1%} | "
            f"{result['peak_gib']:.1f} | {result['busy']:.0%} | {epoch['loss']:.4f} | {result['start_seconds']:.0f} |",
            flush=True,
        )


def make_photos(folder: Path, count: int) -> None:
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_photo, [folder] * count, range(count), chunksize=8))


def _make_photo(folder: Path, index: int) -> None:
    photo = render(sample_product(0, index, DEMO), index)
    photo.resize((1000, 1333), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=85)


def catalog(folder: Path, count: int) -> tuple[list[Product], Prompt]:
    made = [sample_product(0, index, DEMO) for index in range(count)]
    products = [
        Product(own.product_code, own.title, own.category, own.price, str(folder / f"{index}.jpg"))
        for index, own in enumerate(made)
    ]
    return products, make_prompt(sorted({own.category for own in made}), "EUR")


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
            "max_new_tokens": 128,
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
            train_ours(model, examples, processor, settings, Path(work), steps)
    batch = settings.effective_batch_size
    per_epoch = len(steps) // variant.epochs
    first, last = steps[WARM_UP][0], steps[per_epoch - 1][0]
    epochs = [steps[number * per_epoch : (number + 1) * per_epoch] for number in range(variant.epochs)]
    return {
        "epochs": [
            _rates(epoch, batch, tokens, decoder + (0 if number and settings.cache_vision_features else tower))
            for number, epoch in enumerate(epochs)
        ],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "busy": statistics.fmean([share for when, share in shares if first < when < last] or [0.0]),
        "start_seconds": epochs[0][0][0] - started,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def _rates(epoch: list[tuple[float, float]], batch: int, tokens: float, flops: float) -> dict[str, float]:
    counted = epoch[WARM_UP:]
    rate = batch * (len(counted) - 1) / (counted[-1][0] - counted[0][0])
    return {
        "images_per_second": rate,
        "tokens_per_second": rate * tokens,
        "mfu": rate * flops / PEAK_FLOPS,
        "loss": statistics.fmean(loss for _, loss in counted),
    }


def train_ours(
    model: Phi3VForCausalLM, examples: list[Example], processor: Phi3VProcessor, settings: TrainSettings, work: Path,
    steps: list[tuple[float, float]],
) -> None:  # fmt: skip
    cache = None
    if settings.cache_vision_features:
        lengths = [example.num_image_tokens for example in examples]
        cache = FeatureCache(work / "features", lengths, model.config.hidden_size, model.dtype)
    photos = Photos(examples, processor, settings.limits, cache)
    unseen = Photos(examples[:2], processor, settings.limits)
    adapted = adapt(model, settings, len(photos))
    arguments = training_arguments(settings, work / "checkpoints", device=model.device, dtype=model.dtype)
    fit(
        adapted, photos, unseen, settings, arguments,
        on_progress=lambda state: steps.append((time.perf_counter(), state.loss or 0.0)),
    )  # fmt: skip


class _Plain(Dataset[dict[str, torch.Tensor]]):
    """What most scripts do: the processor's output, float32 pixels and all."""

    def __init__(self, examples: list[Example], processor: Phi3VProcessor, settings: TrainSettings) -> None:
        self.examples, self.processor, self.settings = examples, processor, settings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self.examples[index]
        pixels = self.processor.image_processor(
            decode(Path(example.product.image_path).read_bytes(), self.settings.limits)
        )
        return {
            "input_ids": torch.tensor(example.input_ids),
            "labels": torch.tensor(example.labels),
            "pixel_values": pixels["pixel_values"][0],
            "image_sizes": pixels["image_sizes"][0],
        }


def _collate_plainly(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    def padded(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    return {
        "input_ids": ids,
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "image_sizes": torch.stack([item["image_sizes"] for item in items]),
    }


class _Clock(TrainerCallback):
    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self.steps = steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.steps.append((time.perf_counter(), logs["loss"]))


def train_plainly(
    model: Phi3VForCausalLM, examples: list[Example], processor: Phi3VProcessor, settings: TrainSettings, work: Path,
    steps: list[tuple[float, float]],
) -> None:  # fmt: skip
    """The same adapter on the same data through stock transformers.Trainer and stock PEFT."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=settings.batch_size, num_train_epochs=settings.epochs,
        gradient_accumulation_steps=settings.effective_batch_size // settings.batch_size,
        learning_rate=settings.learning_rate, bf16=cuda, use_cpu=not cuda, dataloader_num_workers=8 if cuda else 0,
        remove_unused_columns=False, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    dataset = _Plain(examples, processor, settings)
    adapted = add_lora(model, settings)
    Trainer(adapted, arguments, _collate_plainly, dataset, callbacks=[_Clock(steps)]).train()


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
