"""Prompts beyond 4,096 tokens, where LongRoPE takes its long factors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enrich.models.phi3_vision import Phi3VForCausalLM
from enrich.models.phi3_vision.vision_model import load_processor
from tests.testing.vllm.comparison import (
    PROMPT,
    TEXT_PROMPT,
    TOLERANCE,
    Engine,
    difference,
    ours,
    photo,
    random_text,
    seen_by_vllm,
    theirs,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def up_to_8192(engine: Engine, checkpoint: Path) -> Iterator[Any]:
    with engine(checkpoint, max_model_len=8192, mm_processor_kwargs={"num_crops": 4}) as llm:
        yield llm


def test_the_first_prompt_beyond_4096(up_to_8192: Any, model: Phi3VForCausalLM) -> None:
    inputs = random_text(4097)
    (completion,) = theirs(up_to_8192, [{"prompt_token_ids": inputs["input_ids"][0].tolist()}])
    assert difference(ours(model, inputs)[0], completion) < TOLERANCE


def test_a_photo_beyond_4096(up_to_8192: Any, model: Phi3VForCausalLM, checkpoint: Path) -> None:
    long = PROMPT.replace("What", "What " * 700)
    inputs = load_processor(checkpoint, num_crops=4)(long, photo((640, 360)))
    (completion,) = theirs(up_to_8192, [{"prompt": long, "multi_modal_data": {"image": photo((640, 360))}}])
    ids = list(completion.prompt_token_ids)
    assert len(ids) > 4096
    assert ids == seen_by_vllm(inputs["input_ids"][0])
    assert difference(ours(model, inputs)[0], completion) < TOLERANCE


def test_short_prompts_are_answered_otherwise_there(up_to_8192: Any, model: Phi3VForCausalLM, checkpoint: Path) -> None:
    """vLLM chooses the factors by the longest prompt it might get: why serving keeps to max_model_len 4096."""
    (answer,) = ours(model, load_processor(checkpoint)(TEXT_PROMPT))
    (completion,) = theirs(up_to_8192, [{"prompt": TEXT_PROMPT}])
    first, (output,) = answer.token_ids[0], completion.outputs
    logprobs = {token: entry.logprob for token, entry in output.logprobs[0].items()}
    assert first not in logprobs or abs(logprobs[first] - float(answer.logprobs[0])) > 100 * TOLERANCE
