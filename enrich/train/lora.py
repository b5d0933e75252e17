"""LoRA on the language model's linear layers, and optionally on the vision tower and the projector."""

import re
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import PreTrainedModel, Trainer, TrainingArguments

from enrich.errors import UsageError
from enrich.models.protocols import VisionModel
from enrich.models.registry import vision_model
from enrich.settings.training import TrainSettings

_MAX_VLLM_RANK = 512  # vLLM 0.32, max_lora_rank


def add_lora(model: PreTrainedModel, settings: TrainSettings) -> PeftModel:
    """Freeze `model` and add float32 adapter weights to linear layers of each decoder layer.

    They are `settings.target_modules`, or where none are named those that the model's family names. With
    `settings.output_learning_rate` the output layer gets them too, with `settings.adapt_vision` the linear layers of
    the vision tower and the projector.

    Modules are named by their full path, so that nothing else can match. Seed torch first: A is random.

    Raises:
        UsageError: a target module that the decoder layers lack, or LoRA on an output layer that is the embedding.
    """
    family = vision_model(model.config.model_type)
    decoder, wanted = family.decoder_linears(model), settings.target_modules or family.target_modules
    layers = [name for name, _ in model.named_modules() if re.fullmatch(rf"{decoder}\.\w+_proj", name)]
    known = sorted({name.rpartition(".")[2] for name in layers})
    for name in wanted:
        if name not in known:
            raise UsageError(f"target_modules: no decoder layer has {name!r}; choose from {', '.join(known)}")
    targets = [rf"{decoder}\.(?:{'|'.join(map(re.escape, wanted))})"]
    if settings.output_learning_rate:
        if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            raise UsageError(
                "output_learning_rate: this model's output layer and embedding are one tensor, and an adapter would "
                "change only one of them; remove output_learning_rate"
            )
        targets.append("lm_head")
    if settings.adapt_vision:
        targets += family.vision_linears(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        target_modules="|".join(targets),
    )
    # autocast_adapter_dtype keeps A and B in float32 on a bf16 base: AdamW's small updates would be rounded away.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    # get_peft_model writes the directory the base was loaded from; what others can load it by is this.
    written = adapted.peft_config["default"]
    written.base_model_name_or_path, written.revision = settings.model, settings.revision
    return adapted


def merge_only(settings: TrainSettings, family: VisionModel) -> tuple[str, ...]:
    """Why vLLM could serve such an adapter only merged into its base; empty if it can serve it unmerged."""
    reasons = {
        "adapt_vision: vLLM has LoRA on the language model only": settings.adapt_vision and not family.tower_lora,
        f"lora_r {settings.lora_r}: vLLM takes at most {_MAX_VLLM_RANK}": settings.lora_r > _MAX_VLLM_RANK,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def optimizer(model: PeftModel, settings: TrainSettings, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimiser of `arguments`, by default AdamW, over the adapter; the output layer has its own learning rate."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inner = [parameter for name, parameter in trainable if "lm_head" not in name]
    output = [parameter for name, parameter in trainable if "lm_head" in name]
    groups: list[dict[str, Any]] = [{"params": inner, "lr": settings.learning_rate}]
    if output:
        groups.append({"params": output, "lr": settings.output_learning_rate})
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return kind([{**group, "weight_decay": arguments.weight_decay} for group in groups], **options)


def uncast_lora_inputs(model: PeftModel) -> AbstractContextManager[None]:
    """Keep PEFT from casting the inputs of A and B to float32 on a bf16 base.

    Autocast casts A and B to bf16 in the product instead. The float32 inputs would be kept for the backward pass, a
    fifth of the peak memory.
    """
    return disable_input_dtype_casting(model, active=model.dtype == torch.bfloat16)


def count_parameters(model: PeftModel) -> tuple[int, int]:
    """Trainable parameters, and all."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in model.parameters())
