"""Checks before the base is loaded: what a run will train, and faults that would make it worthless."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import median_low

import torch
from peft import PeftModel

from enrich.answers.prompt import Prompt, taught_answer
from enrich.errors import UsageError
from enrich.models.checkpoint import empty_model
from enrich.models.protocols import Processor
from enrich.models.registry import family_of
from enrich.settings.training import TrainSettings
from enrich.train.examples import Example
from enrich.train.lora import add_lora, count_parameters, merge_only
from enrich.train.record import Preflight, Spread, Trainable
from enrich.vocabulary import Product, same_design

MAX_CHECKED = 512  # rows that are tokenised again: at 0.2 ms each, a tenth of a second


def preflight(
    examples: Sequence[Example], processor: Processor, prompt: Prompt, settings: TrainSettings, base: Path
) -> Preflight:
    """The plan of training on `examples`. Loads no weights.

    Raises:
        UsageError: the ids of a prompt are not a prefix of the ids of the whole text.
        CheckpointError: `base` holds no configuration of a model.
    """
    refuse_broken_prefix(examples, processor, prompt)
    adapted = empty_adapted(base, settings)
    # As Trainer counts: a last step of an epoch may be smaller.
    batches = math.ceil(len(examples) / settings.batch_size)
    per_epoch = math.ceil(batches / (settings.effective_batch_size // settings.batch_size))
    return Preflight(
        trainable=trainable_modules(adapted),
        merge_only=merge_only(settings, family_of(base).load()),
        parameters=count_parameters(adapted)[1],
        product_code=examples[0].product.product_code,
        learned=processor.tokenizer.decode(examples[0].answer_ids),
        image_tokens=_spread([example.num_image_tokens for example in examples]),
        length=_spread([len(example.input_ids) for example in examples]),
        photos=sum(len(example.photos) for example in examples),
        products=len(examples),
        photos_per_product=settings.photos_per_product,
        epochs=settings.epochs,
        steps=math.ceil(settings.epochs * per_epoch),
        effective_batch_size=settings.effective_batch_size,
    )


def empty_adapted(base: Path, settings: TrainSettings) -> PeftModel:
    """The model that will be trained, in shapes without storage: 60 ms for 4 B parameters.

    Raises:
        UsageError: the base cannot be adapted as the settings ask.
        CheckpointError: as `checkpoint.empty_model`.
    """
    with torch.device("meta"):
        return add_lora(empty_model(base), settings)


def refuse_leaks(splits: Mapping[str, Sequence[Product]]) -> None:
    """Refuse splits of which two have the same title, ignoring case, spacing and Unicode's compatible forms.

    Such rows are one design in several photos: one split would teach what the other measures as if it were new.

    Raises:
        UsageError: two splits share a title; the first found is named.
    """
    seen: dict[str, tuple[str, Product]] = {}
    for split, products in splits.items():
        for product in products:
            other, first = seen.setdefault(same_design(product.title), (split, product))
            if other != split:
                raise UsageError(
                    f"label leak: product {first.product_code} of the {other} split and product "
                    f"{product.product_code} of the {split} split have the same title {product.title!r}; "
                    "keep products with the same title in one split"
                )


def refuse_broken_prefix(examples: Sequence[Example], processor: Processor, prompt: Prompt) -> None:
    """Refuse a tokenizer for which prompt + answer differ from the prompt's tokens followed by the answer's.

    Training would then show the model a prompt that serving never sends. Checked on rows spread over all of them.

    Raises:
        UsageError: the ids differ, or the tokenizer is not the family's.
    """
    for example in examples[:: math.ceil(len(examples) / MAX_CHECKED)]:
        product = example.product
        photos = [example.views[at].tokens for at in example.shown]
        try:
            whole = processor.whole_ids(prompt.instruction, photos, taught_answer(prompt, product))
        except ValueError as error:
            raise UsageError(f"tokenizer, product {product.product_code}: {error}") from error
        if whole != example.input_ids:
            pairs = enumerate(zip_longest(whole, example.input_ids))
            place = next(place for place, (one, other) in pairs if one != other)
            part = "prompt" if place < len(example.prompt_ids) else "answer"
            raise UsageError(
                f"tokenizer: the ids of prompt + answer differ from those of the prompt, then the answer, at position "
                f"{place}, in the {part} (product {product.product_code}); use the tokenizer.json of the base model"
            )


def trainable_modules(model: PeftModel) -> tuple[Trainable, ...]:
    """The adapter by the names of the modules it is added to, in the model's order."""
    modules: dict[str, set[str]] = {}
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path = name.partition(".lora_")[0]
            module = path.rpartition(".")[2]
            modules.setdefault(module, set()).add(path)
            parameters[module] = parameters.get(module, 0) + parameter.numel()
    return tuple(
        Trainable(module=module, count=len(paths), parameters=parameters[module]) for module, paths in modules.items()
    )


def _spread(values: Sequence[int]) -> Spread:
    return Spread(least=min(values), median=median_low(values), most=max(values))
