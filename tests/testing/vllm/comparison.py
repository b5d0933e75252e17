"""Compare greedy answers of the port and of vLLM token by token."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL import Image

from enrich.models.generation import Generated, generate_answers
from enrich.models.phi3_vision import Phi3VForCausalLM
from tests.testing.tiny_phi3v import pattern_image
from tests.testing.vllm.random_phi3v import IMAGE_ID

Engine = Callable[..., AbstractContextManager[Any]]  # the fixture `engine`: starts vLLM on a checkpoint

PROMPT = "<|user|>\n<|image_1|>\nWhat product is this? Give its title, category and full price.<|end|>\n<|assistant|>\n"
TEXT_PROMPT = PROMPT.replace("<|image_1|>\n", "")
NEW_TOKENS = 12
# For log-probabilities in float32. The largest difference seen was 5e-5, with the best two tokens at least 0.008 apart.
# Of the mistakes tried, tanh for exact GELU between the projector's layers made the least, 8e-4; no quick_gelu, 0.06.
TOLERANCE = 3e-4


def theirs(llm: Any, prompts: Sequence[Any]) -> list[Any]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=8, ignore_eos=True, detokenize=False)
    return llm.generate(prompts, greedy, use_tqdm=False)


def ours(model: Phi3VForCausalLM, inputs: Any) -> list[Generated]:
    return generate_answers(model, inputs, max_new_tokens=NEW_TOKENS, stop_ids=[], top_k=5)


def seen_by_vllm(input_ids: torch.Tensor) -> list[int]:
    return input_ids.masked_fill(input_ids < 0, IMAGE_ID).tolist()


def difference(answer: Generated, completion: Any) -> float:
    """Return the largest difference in log-probability over our best five tokens of each step."""
    (output,) = completion.outputs
    assert (answer.top_logprobs[:, 0] - answer.top_logprobs[:, 1]).min() > TOLERANCE  # no near ties
    assert list(output.token_ids) == list(answer.token_ids)
    assert len(answer.token_ids) == NEW_TOKENS
    return max(
        abs(float(logprob) - step[token].logprob)
        for step, ids, logprobs in zip(output.logprobs, answer.top_ids.tolist(), answer.top_logprobs, strict=True)
        for token, logprob in zip(ids, logprobs, strict=True)
    )


def photo(size: tuple[int, int]) -> Image.Image:
    return pattern_image(*size)


def random_text(length: int) -> dict[str, torch.Tensor]:
    """A prompt of random bytes."""
    ids = torch.randint(3, 259, (1, length), generator=torch.Generator().manual_seed(length))
    ids[0, 0] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
