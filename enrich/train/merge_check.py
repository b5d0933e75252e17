"""Proof that the merged model, which is served, is the adapter that was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from enrich.phi3_vision import Phi3VForCausalLM
from enrich.phi3_vision.checkpoint import load_merged
from enrich.settings import TrainSettings
from enrich.train.collate import Collator, Photos
from enrich.train.evaluate import embed, generate
from enrich.train.record import Difference, MergeCheck

MAX_ROWS = 8
# How often a model's own rounding noise (`reordered`) a merge may differ by. Random bf16 models of 2 to 24 layers,
# merged right, came to 1.02 to 1.10 times; with every other layer's adapter lost to 3.2 times where the adapter moved
# the logits by 14 %, and to 10 to 46 times where it moved them by 37 % and more.
NOISE_FACTOR = 2.0
# What no model need stay below, for one that rounding leaves alone: half a unit in the last of bf16's 8 bits.
LEAST_LIMIT = 2.0**-9
FLOAT32_LIMIT = 1e-3  # a correct merge of two random layers came to 1e-6


@dataclass(frozen=True)
class Outputs:
    """What a model makes of the same few rows."""

    logits: torch.Tensor  # float32 (answer tokens, vocabulary), teacher-forced, on the CPU
    answers: list[tuple[int, ...]]  # generated greedily
    reordered: torch.Tensor | None = None  # the logits once more, with sums in another order


def outputs(
    model: PreTrainedModel | PeftModel, photos: Photos, settings: TrainSettings, *, reorder: bool = False
) -> Outputs:
    """Logits and answers of `photos`; the logits twice where the model's own noise is asked for (`reorder`)."""
    generated = generate(model, photos, settings)
    collate = Collator(photos.processor.tokenizer.pad_token_id)

    def logits() -> torch.Tensor:
        batch = embed(model, collate(photos.__getitems__(range(len(photos)))), photos, settings)
        del batch["labels"]
        moved = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
        }
        # Compiled code rounds less often than the same layers uncompiled, which is how the merged model runs.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            return model(**moved, use_cache=False).logits.float().cpu()

    answers = [answer.token_ids for answer in generated]
    return Outputs(logits(), answers, reordered(model, logits) if reorder else None)


def reordered(model: nn.Module, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `compute` gives while every linear layer of `model` adds up the two halves of its inputs apart, each sum
    rounded: as right, and not the same.

    How far that takes the logits is how far rounding alone can take them. (Another batch size or attention kernel
    says less: sums within a layer are kept in float32, so that few results or none are rounded otherwise.)
    """
    hooks = [module.register_forward_hook(_halves) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        return compute()
    finally:
        for hook in hooks:
            hook.remove()


def _halves(layer: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
    (given,) = inputs
    lower = torch.arange(given.shape[-1], device=given.device) < given.shape[-1] // 2
    first, second = layer.forward(given * lower), layer.forward(given * ~lower)  # whole layers: 4-bit ones have no rows
    return first + (second if layer.bias is None else second - layer.bias)


def merged_model(
    base: Path, adapter: Path, *, dtype: torch.dtype, device: torch.device, quantized: bool = False
) -> Phi3VForCausalLM:
    """The adapter merged as serving merges it; on the CPU where the GPU cannot hold the base in float32.

    Where the base is `quantized` it is the one that a 4-bit training saw.
    """
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))  # bf16: half of what is needed
    room = device.type != "cuda" or torch.cuda.mem_get_info()[0] > 2.5 * weights
    where = device if room else torch.device("cpu")
    return load_merged(base, adapter, dtype=dtype, device=where, quantize_on=device if quantized else None).to(device)


def compare(unmerged: Outputs, merged: Outputs, dtype: torch.dtype) -> MergeCheck:
    """Compare, and say whether they are the same model (`ok`).

    In float32 logits may differ by FLOAT32_LIMIT and answers not at all. In bf16 the limit is NOISE_FACTOR times the
    unmerged model's own noise; there two nearly equal tokens may swap, so how many answers stayed is only reported.
    """
    found = difference(unmerged, merged)
    noise = 0.0 if unmerged.reordered is None else _relative(unmerged.reordered, unmerged.logits)
    exact = dtype == torch.float32
    limit = FLOAT32_LIMIT if exact else max(LEAST_LIMIT, NOISE_FACTOR * noise)
    rows = len(unmerged.answers)
    ok = found.relative_difference <= limit and (not exact or found.same_answers == rows)
    return MergeCheck(**dict(found), rows=rows, noise=noise, limit=limit, ok=ok)


def difference(one: Outputs, other: Outputs) -> Difference:
    """How far `other` is from `one`."""
    return Difference(
        max_logit_difference=float((other.logits - one.logits).abs().max()),
        relative_difference=_relative(other.logits, one.logits),
        same_answers=sum(a == b for a, b in zip(one.answers, other.answers, strict=True)),
    )


def _relative(logits: torch.Tensor, reference: torch.Tensor) -> float:
    return float((logits - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def describe_failure(check: MergeCheck) -> str:
    """What is wrong, for the front of an error message."""
    return (
        f"the merged model is not the adapter: logits differ by {check.relative_difference:.2g} of their size "
        f"(at most {check.limit:.2g}; rounding alone makes {check.noise:.2g}), "
        f"{check.same_answers} of {check.rows} answers agree"
    )


def unmerged_advice(merge_only: tuple[str, ...]) -> str:
    """What can be done with an adapter whose merge failed, for the end of an error message."""
    beside = "serve it beside its base, unmerged (engine: vllm, served: lora), or "
    only = f"vLLM serves it merged only ({merge_only[0]}); " if merge_only else beside
    return f"{only}check the versions of peft and transformers against constraints.txt and try again"
