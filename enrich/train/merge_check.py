"""Proof that the merged model, which is served, is the adapter that was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from enrich.errors import PermanentFailure, RunFailed
from enrich.models.adapted import load_merged
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.evaluate import generate
from enrich.train.record import Difference, MergeCheck

MAX_ROWS = 8
# A merge may differ by this many times the model's own rounding noise (`rounded_otherwise`). At full size (random
# weights, 32 steps, H100) right merges came to 1.06 times it with a 4-bit base and 1.18 times with the vision side;
# rounded to the nearest, which loses much of an adapter, to 2.6 and 2.7 times.
NOISE_FACTOR = 2.0
# The limit is never lower than this, half a unit in the last of bf16's 8 bits: rounding may leave a model alone.
LEAST_LIMIT = 2.0**-9
FLOAT32_LIMIT = 1e-3  # a correct merge of two random layers came to 1e-6


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for the same few rows."""

    logits: torch.Tensor  # float32 (answer tokens, vocabulary), teacher-forced, on the CPU
    answers: list[tuple[int, ...]]  # generated greedily
    rounded: torch.Tensor | None = None  # the logits once more, `rounded_otherwise`


def outputs(
    model: PreTrainedModel | PeftModel,
    photos: Photos,
    settings: TrainSettings,
    max_new_tokens: int,
    *,
    noise: bool = False,
) -> Outputs:
    """Logits and answers of `photos`; the logits twice where the model's own `noise` is asked for."""
    generated = generate(model, photos, settings, max_new_tokens)
    collate = Collator(photos.processor)

    def logits() -> torch.Tensor:
        batch = embed_images(model, collate(photos.__getitems__(range(len(photos)))), photos, settings)
        del batch["labels"]
        # Compiled code rounds less often than the same layers uncompiled, which is how the merged model runs.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            return model(**send_to_device(batch, model.device), use_cache=False).logits.float().cpu()

    answers = [answer.token_ids for answer in generated]
    return Outputs(logits(), answers, rounded_otherwise(model, logits) if noise else None)


def rounded_otherwise(model: nn.Module, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of `compute` while every linear layer of `model` rounds differently: as accurate, but not identical.

    Each sums the two halves of its inputs separately, and the weights below an adapter are moved by up to half a unit
    in their last place, as by a merge. So the logits move as far as rounding alone can move them. Weights matter most:
    their errors are the same for every token, so attention does not average them out as it does those of the sums.
    """
    hooks: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            seed = len(hooks) if name.endswith(".base_layer") else None
            hooks.append(module.register_forward_hook(partial(_round_otherwise, seed=seed)))
    try:
        return compute()
    finally:
        for hook in hooks:
            hook.remove()


def _round_otherwise(
    layer: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor, seed: int | None
) -> torch.Tensor:
    """The layer's result from halves of its inputs; with a `seed`, and with weights rounded otherwise."""
    (given,) = inputs
    lower = torch.arange(given.shape[-1], device=given.device) < given.shape[-1] // 2
    first, second = layer.forward(given * lower), layer.forward(given * ~lower)  # whole layers: 4-bit ones have no rows
    total = first + (second if layer.bias is None else second - layer.bias)
    return total if seed is None else total + given @ _weight_errors(layer, given, seed)


def _weight_errors(layer: nn.Linear, given: torch.Tensor, seed: int) -> torch.Tensor:
    """Rounding errors of the layer's weights (inputs, outputs) in the type of `given`: the same ones for a `seed`."""
    bias: nn.Parameter | None = layer.bias  # subtracted from the result it would leave rounded weights
    layer.register_parameter("bias", None)
    try:
        weights = layer.forward(torch.eye(layer.in_features, dtype=given.dtype, device=given.device))  # 4-bit ones too
    finally:
        layer.register_parameter("bias", bias)
    half_unit = torch.finfo(given.dtype).eps / 2 * weights.float().abs().log2().floor().exp2()
    generator = torch.Generator(given.device).manual_seed(seed)
    share = 2 * torch.rand(weights.shape, generator=generator, device=given.device) - 1
    return (half_unit * share).to(given.dtype)


def merged_model(
    base: Path, adapter: Path, *, dtype: torch.dtype, device: torch.device, quantized: bool = False
) -> PreTrainedModel:
    """The adapter merged as serving merges it; on the CPU where the GPU cannot hold the base in float32.

    Where the base is `quantized` it is the one that a 4-bit training saw.
    """
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))  # bf16: half of what is needed
    room = device.type != "cuda" or torch.cuda.mem_get_info()[0] > 2.5 * weights
    where = device if room else torch.device("cpu")
    return load_merged(base, adapter, dtype=dtype, device=where, quantize_on=device if quantized else None).to(device)


def compare(unmerged: Outputs, merged: Outputs, *, exact: bool) -> MergeCheck:
    """Compare, and say whether they are the same model (`ok`).

    Args:
        exact: whether all of the arithmetic was in float32. Then logits may differ by FLOAT32_LIMIT and answers not at
            all. Otherwise (bf16, or a 4-bit base, whose kernels round to bf16 on some processors) the limit is
            NOISE_FACTOR times the unmerged model's own noise; there two nearly equal tokens may swap, so how many
            answers stayed is only reported.
    """
    found = difference(unmerged, merged)
    noise = 0.0 if unmerged.rounded is None else _relative(unmerged.rounded, unmerged.logits)
    limit = FLOAT32_LIMIT if exact else max(LEAST_LIMIT, NOISE_FACTOR * noise)
    rows = len(unmerged.answers)
    ok = found.relative_difference <= limit and (not exact or found.same_answers == rows)
    return MergeCheck(**dict(found), rows=rows, noise=noise, limit=limit, ok=ok)


def difference(one: Outputs, other: Outputs) -> Difference:
    """The difference between `other` and `one`."""
    return Difference(
        max_logit_difference=float((other.logits - one.logits).abs().max()),
        relative_difference=_relative(other.logits, one.logits),
        same_answers=sum(a == b for a, b in zip(one.answers, other.answers, strict=True)),
    )


def _relative(logits: torch.Tensor, reference: torch.Tensor) -> float:
    return float((logits - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def merge_failed(check: MergeCheck, outcome: str, merge_only: tuple[str, ...]) -> RunFailed:
    """The error for a failed check; `outcome` says what happened to the adapter."""
    beside = "serve it unmerged (engine: vllm, served: lora), or "
    only = f"vLLM serves it merged only ({merge_only[0]}); " if merge_only else beside
    return PermanentFailure(
        f"the merged model is not the adapter: logits differ by {check.relative_difference:.2g} of their size "
        f"(at most {check.limit:.2g}; rounding alone makes {check.noise:.2g}), "
        f"{check.same_answers} of {check.rows} answers agree; {outcome}: "
        f"{only}check the versions of peft and transformers against constraints.txt and try again"
    )
