"""Looks at a run before it starts: what it will learn and need, and what would make it worthless."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_low

import torch
from peft import PeftModel

from enrich.answers.prompt import END, Prompt, render_answer, render_prompt
from enrich.errors import UsageError
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from enrich.settings.training import TrainSettings
from enrich.train.estimate import Shape, Work, first_that_fits, memory, seconds, smaller_settings, sustained_rate
from enrich.train.examples import Example
from enrich.train.kernels import worth_compiling
from enrich.train.lora import add_lora, merge_only
from enrich.train.record import Memory, Preflight, Spread, Trainable
from enrich.vocabulary import Product, same_design

MAX_CHECKED = 512  # rows whose ids are made a second time: at 0.2 ms each, a tenth of a second


def preflight(
    examples: Sequence[Example],
    unseen: Sequence[Example],
    processor: Phi3VProcessor,
    prompt: Prompt,
    settings: TrainSettings,
    base: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Preflight:
    """What training on `examples`, evaluated on `unseen`, will do and need. Loads no weights.

    Raises:
        UsageError: prompt ids are no prefix of the whole texts' ids, or the GPU has too little free memory.
        ValueError: `base` holds no configuration of a Phi-3-vision.
    """
    refuse_broken_prefix(examples, processor, prompt)
    config = Phi3VConfig.from_pretrained(base)
    with torch.device("meta"):  # shapes without storage: 60 ms for 4 B parameters
        adapted = add_lora(Phi3VForCausalLM(config), settings)
    shape = _shape(adapted, config, dtype)
    lengths = [len(example.input_ids) for example in examples]
    answer = max(len(example.answer_ids) for example in examples)
    # As Trainer counts: a last step of an epoch may be smaller.
    batches = math.ceil(len(examples) / settings.batch_size)
    per_epoch = math.ceil(batches / (settings.effective_batch_size // settings.batch_size))
    work = Work(
        photos=len(examples),
        unseen=len(unseen),
        steps=math.ceil(settings.epochs * per_epoch),
        mean_length=fmean(lengths),
        answer=answer,
    )

    def needed(candidate: TrainSettings) -> Memory:
        return memory(
            shape,
            rows=min(candidate.batch_size, len(examples)),
            length=max(lengths),
            kept=answer + 1,
            checkpointing=candidate.gradient_checkpointing,
            compiled=worth_compiling(candidate, device, len(examples)),
            load_in_4bit=candidate.load_in_4bit,
            adapted_crops=(candidate.num_crops + 1) if candidate.adapt_vision else 0,
        )

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if free is not None and needed(settings).total > free:
        fits = first_that_fits(smaller_settings(settings), lambda candidate: needed(candidate).total, free)
        raise UsageError(_too_large(settings, needed(settings).total, free, fits))
    return Preflight(
        trainable=trainable_modules(adapted),
        merge_only=merge_only(settings),
        parameters=shape.parameters + shape.trainable,
        product_code=examples[0].product.product_code,
        learned=processor.tokenizer.decode(examples[0].answer_ids),
        image_tokens=_spread([example.num_image_tokens for example in examples]),
        length=_spread(lengths),
        photos=len(examples),
        epochs=settings.epochs,
        steps=work.steps,
        effective_batch_size=settings.effective_batch_size,
        memory=needed(settings),
        free_memory_bytes=free,
        seconds=seconds(
            shape,
            work,
            settings,
            device,
            sustained_rate(device, dtype),
            compiled=worth_compiling(settings, device, len(examples)),
        ),
    )


def refuse_leaks(splits: Mapping[str, Sequence[Product]]) -> None:
    """Refuse splits of which two hold the same title, but for case, spacing and Unicode's compatible forms.

    Such rows are one design in several photos: what one split teaches, the other would measure as if it were new.

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


def refuse_broken_prefix(examples: Sequence[Example], processor: Phi3VProcessor, prompt: Prompt) -> None:
    """Refuse a tokenizer that reads prompt + answer otherwise than the prompt, then the answer.

    Then training would show the model a prompt that serving never sends. Made a second time from the whole text, on
    rows spread over all of them.

    Raises:
        UsageError: the ids differ, or no `<s>` follows the image, where the original processor puts one.
    """
    bos = processor.tokenizer.bos_token_id
    for example in examples[:: math.ceil(len(examples) / MAX_CHECKED)]:
        product = example.product
        text = render_prompt(prompt) + render_answer(prompt, product.title, product.category, product.price) + END
        whole = processor.token_ids(text, [example.num_image_tokens])
        if whole != example.input_ids:
            place = _first_difference(whole, example.input_ids)
            part = "prompt" if place < len(example.prompt_ids) else "answer"
            raise UsageError(
                f"tokenizer: the ids of prompt + answer differ from those of the prompt, then the answer, at position "
                f"{place}, in the {part} (product {product.product_code}); use the tokenizer.json of the base model"
            )
        after_image = max(place for place, token in enumerate(whole) if token < 0) + 1
        if whole[after_image] != bos:
            raise UsageError(
                f"tokenizer: no <s> after the image (product {product.product_code}), where the original processor "
                "puts one; use the tokenizer.json of the base model"
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


def _shape(adapted: PeftModel, config: Phi3VConfig, dtype: torch.dtype) -> Shape:
    frozen = {name: parameter.numel() for name, parameter in adapted.named_parameters() if not parameter.requires_grad}
    vision = config.vision_config
    return Shape(
        parameters=sum(frozen.values()),
        trainable=sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad),
        layer_parameters=sum(count for name, count in frozen.items() if ".model.layers." in name),
        vision_parameters=sum(count for name, count in frozen.items() if "vision_embed_tokens" in name),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        key_value=config.hidden_size * config.num_key_value_heads // config.num_attention_heads,
        vocabulary=config.vocab_size,
        vision_layers=vision.num_hidden_layers - 1,
        vision_hidden=vision.hidden_size,
        crop_positions=(vision.image_size // vision.patch_size) ** 2 + 1,
        itemsize=dtype.itemsize,
    )


def _spread(values: Sequence[int]) -> Spread:
    return Spread(least=min(values), median=median_low(values), most=max(values))


def _first_difference(some: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(some, others, strict=False)  # one may go on where the other ends
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))


def _too_large(settings: TrainSettings, needed: int, free: int, fits: TrainSettings | None) -> str:
    problem = f"GPU memory: training needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if fits is None:
        return (
            f"{problem}; no batch_size fits, not even with gradient_checkpointing and the smallest base: "
            "lower num_crops or use another GPU"
        )
    values = {name: getattr(fits, name) for name in ("batch_size", "gradient_checkpointing", "load_in_4bit")}
    changed = [f"{name}: {str(value).lower()}" for name, value in values.items() if value != getattr(settings, name)]
    return f"{problem}; set {', '.join(changed)}"
