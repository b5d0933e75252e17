"""Greedy batch generation that keeps each token's log-probability and its best alternatives, and little else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

Allowed = Callable[[int, list[int]], list[int]]

_IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_features")


@dataclass(frozen=True)
class Generated:
    """One answer of n tokens, its stop token left out.

    Attributes:
        token_ids: n ids.
        logprobs: float32 (n,), natural logarithm, of the tokens chosen.
        top_ids, top_logprobs: int32 and float32 (n, k), the k most probable tokens of each step, best first.
        finished: the model ended the answer; False where the token budget did.
    """

    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    finished: bool


@dataclass
class _Row:
    token_ids: list[int] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)
    finished: bool = False


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    top_k: int = 8,
    allowed: Allowed | None = None,
) -> list[Generated]:
    """Answer a batch of prompts greedily.

    Args:
        model: a Phi3VForCausalLM (or PEFT's wrapper of one) in eval mode.
        inputs: what `Phi3VProcessor` returned, padded on the left; `image_features` may stand for `pixel_values`.
        max_new_tokens: budget of a row, its stop token included.
        stop_ids: ids that end an answer.
        top_k: alternatives kept per step: memory grows with it, not with the vocabulary (32,064 floats a step).
        allowed: for a row and its ids so far, the ids that may come next. Log-probabilities are then of the model's
            distribution over these; where they are fewer than top_k the rest of top_logprobs is -inf.

    Returns:
        One Generated per row. Log-probabilities come from the raw logits in float32: no temperature, no penalty.

    Raises:
        ValueError: a model in training mode, right padding, an empty `allowed`, or rows on both sides of the length
            where LongRoPE changes all positions.
    """
    if model.training:
        raise ValueError("call model.eval() before generating")
    step_ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
    _check_lengths(model, mask, max_new_tokens)
    images = {name: _to(inputs[name], model.device) for name in _IMAGE_INPUTS if inputs.get(name) is not None}
    rows = [_Row() for _ in range(len(step_ids))]
    running = list(range(len(rows)))
    cache = DynamicCache(config=model.config)
    for _ in range(max_new_tokens):
        outputs = model(
            input_ids=step_ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **images
        )
        images = {}  # their keys and values are cached
        logits = outputs.logits[:, -1].float()
        if allowed is not None:
            logits = _restrict(logits, [allowed(row, list(rows[row].token_ids)) for row in running])
        top = logits.log_softmax(-1).topk(min(top_k, logits.shape[-1]))
        kept = _record(rows, running, top.indices.tolist(), top.values.tolist(), set(stop_ids))
        if not kept:
            break
        step_ids = top.indices[kept, :1]
        if len(kept) < len(running):  # finished rows cost nothing more
            cache.batch_select_indices(torch.tensor(kept, device=mask.device))
            mask, running = mask[kept], [running[position] for position in kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return [_freeze(row, top_k) for row in rows]


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else [entry.to(device) for entry in value]


def _check_lengths(model: PreTrainedModel, mask: torch.Tensor, max_new_tokens: int) -> None:
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left")
    config = model.config
    if config.rope_parameters["rope_type"] != "longrope":
        return
    switch = config.original_max_position_embeddings
    lengths = mask.sum(1)
    last = int(lengths.max()) + max_new_tokens - 1  # the last new token is never fed back
    if last > switch >= int(lengths.min()):
        raise ValueError(
            f"prompts of up to {int(lengths.max())} tokens and {max_new_tokens} new ones cross {switch} tokens, where "
            f"LongRoPE changes all positions: shorten the text, lower num_crops or max_new_tokens"
        )


def _restrict(logits: torch.Tensor, permitted: list[list[int]]) -> torch.Tensor:
    restricted = torch.full_like(logits, -torch.inf)
    for position, ids in enumerate(permitted):
        if not ids:
            raise ValueError("allowed() left no token for a row; permit a stop id where an answer is complete")
        restricted[position, ids] = logits[position, ids]
    return restricted


def _record(
    rows: list[_Row],
    running: list[int],
    top_ids: list[list[int]],
    top_logprobs: list[list[float]],
    stop_ids: set[int],
) -> list[int]:
    """Append the best token to each running row; returns the positions in `running` that go on."""
    kept = []
    for position, number in enumerate(running):
        row, best = rows[number], top_ids[position][0]
        if best in stop_ids:
            row.finished = True
            continue
        row.token_ids.append(best)
        row.top_ids.append(top_ids[position])
        row.top_logprobs.append(top_logprobs[position])
        kept.append(position)
    return kept


def _freeze(row: _Row, top_k: int) -> Generated:
    width = len(row.top_ids[0]) if row.top_ids else top_k
    top_logprobs = np.array(row.top_logprobs, dtype=np.float32).reshape(-1, width)
    return Generated(
        token_ids=tuple(row.token_ids),
        logprobs=top_logprobs[:, 0].copy(),
        top_ids=np.array(row.top_ids, dtype=np.int32).reshape(-1, width),
        top_logprobs=top_logprobs,
        finished=row.finished,
    )
