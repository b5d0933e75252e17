"""One optimiser step before training, on the longest batch there is: it measures the memory that training needs.

Nothing here knows the model's architecture. The step runs the code of training, and evaluation's generation of one
token, which with gradient checkpointing takes more than a step does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from transformers import TrainingArguments

from enrich.errors import UsageError
from enrich.models.device import free_memory
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.device import peak_memory_bytes
from enrich.train.evaluate import generate
from enrich.train.examples import IGNORED
from enrich.train.lora import optimizer, uncast_lora_inputs


def try_longest_batch(model: PeftModel, photos: Photos, settings: TrainSettings, arguments: TrainingArguments) -> int:
    """Make one step on the `batch_size` longest rows of `photos`, then restore weights, gradients and random state.

    Photos are decoded, whatever the feature cache holds, and nothing is added to that cache: features that are computed
    in other batches than training's would differ in their last bits.

    Returns:
        The peak in bytes, as `peak_memory_bytes`. On a GPU that counter starts again here.

    Raises:
        UsageError: GPU memory ran out; the message names the settings to change.
    """
    device = model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    weights = [(weight, weight.detach().to("cpu", copy=True)) for weight in model.parameters() if weight.requires_grad]
    longest = photos.longest(settings.batch_size)
    with (
        refuse_out_of_memory(settings, longest=len(longest)),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        _step(model, longest, settings, arguments)
        model.zero_grad(set_to_none=True)
        generate(model, longest, settings, max_new_tokens=1)
    with torch.no_grad():
        for weight, before in weights:
            weight.copy_(before)
    peak = peak_memory_bytes(device)
    free_memory()
    return peak


def _step(model: PeftModel, photos: Photos, settings: TrainSettings, arguments: TrainingArguments) -> None:
    """Forward, backward and an optimiser step as Trainer makes them.

    In the same precision and with the same arguments, so that training reuses the code that is compiled here.
    """
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    model.train()
    collate = Collator(photos.processor, price_weight=settings.price_weight)
    # A frozen tower's layers are specialised to the first numbers of crops they see, so that stays for training.
    with torch.compiler.set_stance("force_eager"):
        batch = embed_images(model, collate(photos.__getitems__(range(len(photos)))), photos, settings)
    batch = send_to_device(batch, model.device)
    full = len(photos) == settings.batch_size
    with uncast_lora_inputs(model), torch.compiler.set_stance("default" if full else "force_eager"):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = model(**batch, use_cache=False, num_items_in_batch=(batch["labels"] != IGNORED).sum()).loss
        loss.backward()
    optimizer(model, settings, arguments).step()


@contextmanager
def refuse_out_of_memory(settings: TrainSettings, *, longest: int = 0) -> Iterator[None]:
    """Turn a lack of GPU memory before training into a UsageError that names the settings to change.

    Args:
        longest: how many photos a trial step shows; 0 while the base is loaded.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        changes = {
            "lower batch_size (effective_batch_size keeps the result)": longest > 1,
            "set gradient_checkpointing: true": longest and not settings.gradient_checkpointing,
            "set load_in_4bit: true": not (settings.load_in_4bit or settings.adapt_vision),
            "lower num_crops": longest and settings.num_crops > 1,
            "lower photos_per_product": longest and settings.photos_per_product > 1,
        }
        advice = ", ".join(change for change, helps in changes.items() if helps)
        photos = f"{longest} photos" if longest > 1 else "photo"
        raise UsageError(
            f"GPU memory: it ran out in {f'a trial step on the longest {photos}' if longest else 'loading the base'}; "
            + (f"{advice}, or use a larger GPU" if advice else "use a larger GPU")
        ) from error
