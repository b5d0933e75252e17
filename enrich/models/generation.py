"""Greedy batch generation with transformers' `generate`, keeping each token's log-probability and its alternatives'."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from transformers import LogitsProcessor, PreTrainedModel


@dataclass(frozen=True)
class Generated:
    """One answer of n tokens, without its stop token.

    Attributes:
        token_ids: n ids.
        logprobs: float32 (n,), natural logarithm, of the chosen tokens.
        top_ids, top_logprobs: int32 and float32 (n, k), the k most probable tokens of each step, best first.
        finished: the model ended the answer; False if the token budget did.
    """

    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    finished: bool


class _TopLogprobs(LogitsProcessor):
    """Records the `k` most probable tokens of each step: `ids` and `logprobs`, tensors (rows, k) on the device."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.ids: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top = scores.log_softmax(-1).topk(min(self.k, scores.shape[-1]))
        self.ids.append(top.indices)
        self.logprobs.append(top.values)
        # In bf16 the best two logits are often equal, and argmax need not choose the one that topk puts first.
        return torch.full_like(scores, -torch.inf).scatter_(1, top.indices[:, :1], 0.0)


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel | PeftModel,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    top_k: int = 8,
    allowed: Callable[[list[int]], list[int]] | None = None,
) -> list[Generated]:
    """Answer a batch of prompts greedily.

    Args:
        model: a causal model in eval mode, or PEFT's wrapper of one.
        inputs: what the model's processor returned, padded on the left; tensors, or lists of tensors, on any device.
        max_new_tokens: budget of a row, including its stop token.
        stop_ids: ids that end an answer.
        top_k: alternatives kept per step. Memory grows with it, not with the vocabulary (32,064 floats a step).
        allowed: for the ids of an answer so far, those that may come next. Log-probabilities are then those of the
            model's distribution over these; if they are fewer than top_k, the rest of top_logprobs is -inf.

    Returns:
        One Generated per row. Log-probabilities come from the raw logits in float32: no temperature, no penalty, unless
        `model.generation_config` sets one (`load_model` clears it).

    Raises:
        ValueError: a model in training mode, right padding, an empty `allowed`, or rows on both sides of the length
            where LongRoPE changes all positions.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.training:
        raise ValueError("call model.eval() before generating")
    given = {name: value for name, value in inputs.items() if value is not None}
    inputs = send_to_device(given, base.device)
    _check_lengths(base.config, inputs["attention_mask"], max_new_tokens)
    prompt_length, ends = inputs["input_ids"].shape[1], frozenset(stop_ids)
    padding = next(iter(stop_ids), 0)  # what `generate` appends to rows that are finished

    def permitted(row: int, ids: torch.Tensor) -> list[int]:
        written = ids[prompt_length:].tolist()
        finished = bool(written) and written[-1] in ends
        return [padding] if finished or allowed is None else allowed(written)

    top = _TopLogprobs(top_k)
    base.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=padding,
        logits_processor=[top],
        prefix_allowed_tokens_fn=permitted if allowed else None,
    )
    ids = torch.stack(top.ids, dim=1).to("cpu", torch.int32).numpy()
    logprobs = torch.stack(top.logprobs, dim=1).cpu().numpy()
    return [_until_stop(*row, ends) for row in zip(ids, logprobs, strict=True)]


def with_answer(inputs: Mapping[str, Any], answer: Sequence[int]) -> dict[str, Any]:
    """`Processor.inputs` of a single row, with the ids of an answer after its prompt."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([list(answer)], dtype=torch.int64)], dim=1)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _check_lengths(config: Any, mask: torch.Tensor, max_new_tokens: int) -> None:
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left")
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") != "longrope":
        return
    switch = config.original_max_position_embeddings
    lengths = mask.sum(1)
    last = int(lengths.max()) + max_new_tokens - 1  # the last new token is never fed back
    if last > switch >= int(lengths.min()):
        raise ValueError(
            f"prompts of up to {int(lengths.max())} tokens and {max_new_tokens} new ones cross {switch} tokens, where "
            f"LongRoPE changes all positions: shorten the text, lower num_crops or max_new_tokens"
        )


def _until_stop(ids: np.ndarray, logprobs: np.ndarray, ends: frozenset[int]) -> Generated:
    """A row's steps (steps, k) up to its first stop token."""
    chosen = ids[:, 0].tolist()
    length = next((step for step, token in enumerate(chosen) if token in ends), len(chosen))
    return Generated(
        token_ids=tuple(chosen[:length]),
        logprobs=logprobs[:length, 0].copy(),
        top_ids=ids[:length].copy(),
        top_logprobs=logprobs[:length].copy(),
        finished=length < len(chosen),
    )
