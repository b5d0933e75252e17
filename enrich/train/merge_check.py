"""Proof that the merged model, which is served, is the adapter that was trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from enrich.errors import RunFailed
from enrich.phi3_vision import Phi3VForCausalLM
from enrich.phi3_vision.checkpoint import load_merged
from enrich.settings import TrainSettings
from enrich.train.collate import Collator, Photos
from enrich.train.evaluate import generate
from enrich.train.record import MergeCheck

MAX_ROWS = 8
# Root mean square of the logits' differences, relative to that of the logits. On a random base of two layers a correct
# merge came to 1e-6 in float32 and 0.024 in bf16 (each sum of base and adapter rounded to 8 bits), one that lost the
# adapter to 1.3.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Outputs:
    """What a model makes of the same few rows."""

    logits: torch.Tensor  # float32 (rows, longest answer + 1, vocabulary), teacher-forced, on the CPU
    answers: list[tuple[int, ...]]  # generated greedily


def outputs(model: PreTrainedModel | PeftModel, photos: Photos, settings: TrainSettings) -> Outputs:
    """Logits and answers of `photos`."""
    generated = generate(model, photos, settings)
    batch = Collator(photos.processor.tokenizer.pad_token_id)([photos[index] for index in range(len(photos))])
    del batch["labels"], batch["product_codes"]
    moved = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    with torch.inference_mode():
        logits = model(**moved, use_cache=False).logits.float().cpu()
    return Outputs(logits, [answer.token_ids for answer in generated])


def merged_model(base: Path, adapter: Path, *, dtype: torch.dtype, device: torch.device) -> Phi3VForCausalLM:
    """The adapter merged as serving merges it; on the CPU where the GPU cannot hold the base in float32."""
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))  # bf16: half of what is needed
    room = device.type != "cuda" or torch.cuda.mem_get_info()[0] > 2.5 * weights
    return load_merged(base, adapter, dtype=dtype, device=device if room else "cpu").to(device)


def compare(unmerged: Outputs, merged: Outputs, dtype: torch.dtype) -> MergeCheck:
    """Compare, and fail where they are not the same model.

    Raises:
        RunFailed: logits differ by more than `TOLERANCE`, or answers do in float32. (In bf16 two nearly equal tokens
            may swap; how many answers stayed the same is reported.)
    """
    difference = merged.logits - unmerged.logits
    check = MergeCheck(
        rows=len(unmerged.answers),
        max_logit_difference=float(difference.abs().max()),
        relative_difference=float(difference.square().mean().sqrt() / unmerged.logits.square().mean().sqrt()),
        same_answers=sum(a == b for a, b in zip(unmerged.answers, merged.answers, strict=True)),
    )
    answers_may_differ = dtype != torch.float32
    if check.relative_difference <= TOLERANCE[dtype] and (answers_may_differ or check.same_answers == check.rows):
        return check
    raise RunFailed(
        f"the merged model is not the adapter: logits differ by {check.relative_difference:.2g} of their size "
        f"(at most {TOLERANCE[dtype]:.2g}), {check.same_answers} of {check.rows} answers agree; "
        "lower learning_rate, and check the versions of peft and transformers against constraints.txt"
    )
