"""Optimiser steps before training, on the longest batch: they measure the memory and the time of training.

Nothing here knows the model's architecture. A step runs the code of training, and evaluation's generation of one token
follows, which with gradient checkpointing takes more memory than a step does.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from transformers import TrainingArguments

from enrich.errors import UsageError
from enrich.models.device import free_memory
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Item, Photos, embed_images
from enrich.train.device import peak_memory_bytes
from enrich.train.evaluate import generate
from enrich.train.examples import IGNORED
from enrich.train.lora import optimizer, uncast_lora_inputs


@dataclass(frozen=True)
class Trial:
    """Memory and time of a step on the longest batch."""

    memory_bytes: int  # the peak, as `peak_memory_bytes`
    products_per_second: float  # without the time to read photos, which happens in parallel, and to compile

    def describe(self, device: torch.device, products: float, steps: int) -> str:
        """A line to print about a training of `steps` steps that shows `products` products in this process."""
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        of = f" of the GPU's {total / 2**30:.1f} GiB" if total else " of the process"
        minutes = products / self.products_per_second / 60
        return (
            f"memory: {self.memory_bytes / 2**30:.1f} GiB{of}, and {self.products_per_second:.3g} products/s, measured "
            f"in a trial step on the largest photos and longest answers; the {steps:,} steps take at most "
            f"{max(1, minutes):,.0f} min, without evaluations"
        )


def try_longest_batch(model: PeftModel, photos: Photos, settings: TrainSettings, arguments: TrainingArguments) -> Trial:
    """Run steps on the `batch_size` longest rows of `photos`, then restore weights, gradients and random state.

    Photos are decoded, whatever the feature cache holds, and nothing is added to that cache: features that are computed
    in other batches than training's would differ in their last bits.

    Returns:
        What the step took. On a GPU the counter of `peak_memory_bytes` starts again here.

    Raises:
        UsageError: GPU memory ran out; the message names settings that fit, which were tried, or what to change. Or the
            model's loss is not a finite number.
    """
    try:
        return _try(model, photos, settings, arguments)
    except torch.OutOfMemoryError:
        pass  # the error would keep the step's tensors
    longest = min(settings.batch_size, len(photos))
    raise _out_of_memory(
        f"a trial step on the longest {f'{longest} photos' if longest > 1 else 'photo'}",
        _fitting(model, photos, settings, arguments)
        or {
            "set load_in_4bit: true": not (settings.load_in_4bit or settings.adapt_vision),
            f"lower {settings.budget_names[0]}": photos.processor.preparation.num_crops > 1,
            "lower photos_per_product": settings.photos_per_product > 1,
        },
    )


def _try(model: PeftModel, photos: Photos, settings: TrainSettings, arguments: TrainingArguments) -> Trial:
    device = model.device
    free_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    weights = [(weight, weight.detach().to("cpu", copy=True)) for weight in model.parameters() if weight.requires_grad]
    longest = photos.longest(settings.batch_size)
    items = longest.__getitems__(range(len(longest)))
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for again in (False, True):  # the first one compiles
                started = time.perf_counter()
                loss = _step(model, longest, items, settings, arguments)
                if not again and not loss.isfinite():
                    raise UsageError(
                        f"model {settings.model}: its loss in a trial step, before anything is learned, is not a "
                        "finite number; its weights are damaged: fetch it again"
                    )
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - started
            model.zero_grad(set_to_none=True)
            generate(model, longest, settings, max_new_tokens=1)
        return Trial(peak_memory_bytes(device), len(longest) / seconds)
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, before in weights:
                weight.copy_(before)
        free_memory()


def _step(
    model: PeftModel, photos: Photos, items: Sequence[Item], settings: TrainSettings, arguments: TrainingArguments
) -> torch.Tensor:
    """Forward, backward and an optimiser step as Trainer makes them; returns the loss.

    In the same precision and with the same arguments, so that training reuses the code that is compiled here.
    """
    model.zero_grad(set_to_none=True)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    model.train()
    collate = Collator(photos.processor, price_weight=settings.price_weight)
    # A frozen tower's layers are specialised to the first numbers of crops they see, so that stays for training.
    with torch.compiler.set_stance("force_eager"):
        batch = embed_images(model, collate(items), photos, settings)
    batch = send_to_device(batch, model.device)
    full = len(photos) == settings.batch_size
    with uncast_lora_inputs(model), torch.compiler.set_stance("default" if full else "force_eager"):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = model(**batch, use_cache=False, num_items_in_batch=(batch["labels"] != IGNORED).sum()).loss
        loss.backward()
    optimizer(model, settings, arguments).step()
    return loss.detach()


def _fitting(
    model: PeftModel, photos: Photos, settings: TrainSettings, arguments: TrainingArguments
) -> dict[str, bool] | None:
    """The fastest settings that were tried and fit, as advice: smaller batches, then gradient checkpointing too."""
    halves = [settings.batch_size >> by for by in range(16)]
    sizes = [size for size in halves if size and not settings.effective_batch_size % size]
    tried, *others = product(sorted({settings.gradient_checkpointing, True}), sizes)
    for checkpointing, size in others:
        changes = {"batch_size": size, "gradient_checkpointing": checkpointing}
        try:
            trial = _try(model, photos, settings.model_copy(update=changes), arguments)
        except torch.OutOfMemoryError:
            continue
        wanted = [f"batch_size: {size}"] * (size != tried[1])
        wanted += ["gradient_checkpointing: true"] * (checkpointing != tried[0])
        took = f"{trial.memory_bytes / 2**30:.1f} GiB"
        return {f"set {' and '.join(wanted)}, which takes {took} without changing results": True}
    return None


@contextmanager
def refuse_large_base(settings: TrainSettings) -> Iterator[None]:
    """Turn a lack of GPU memory while the base is loaded into a UsageError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        small = settings.load_in_4bit or settings.adapt_vision
        raise _out_of_memory("loading the base", {"set load_in_4bit: true": not small}) from error


def _out_of_memory(where: str, changes: Mapping[str, bool]) -> UsageError:
    advice = [change for change, helps in changes.items() if helps]
    return UsageError(
        f"GPU memory: it ran out in {where}; {', '.join([*advice, ''])}{'or ' * bool(advice)}use a larger GPU"
    )
