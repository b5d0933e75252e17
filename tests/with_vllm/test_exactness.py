"""The port against another implementation: vLLM's own Phi3VForCausalLM answers like ours from the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enrich.models.phi3_vision import Phi3VForCausalLM
from enrich.models.phi3_vision.vision_model import load_processor
from tests.testing.vllm.comparison import (
    NEW_TOKENS,
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

PORTRAIT, LANDSCAPE, SQUARE, STRIP = (300, 400), (640, 360), (336, 336), (40, 1600)
# Every shape where crops are few; more of them cost seconds each.
CASES = [
    *((1, size) for size in (PORTRAIT, LANDSCAPE, SQUARE, STRIP)),
    *((4, size) for size in (PORTRAIT, LANDSCAPE, SQUARE, STRIP)),
    (9, LANDSCAPE),
    (9, PORTRAIT),
    (16, SQUARE),
    (16, STRIP),
]


@pytest.fixture(scope="module")
def up_to_4096(engine: Engine, checkpoint: Path) -> Iterator[Any]:
    """As it serves: vLLM takes LongRoPE's short factors."""
    with engine(checkpoint, max_model_len=4096, limit_mm_per_prompt={"image": 2}) as llm:
        yield llm


@pytest.fixture(scope="module")
def together(up_to_4096: Any) -> dict[tuple[int, tuple[int, int]], Any]:
    """What vLLM makes of the cases: those of one `num_crops` in one batch (stock vLLM fails on a mixture)."""
    completions: dict[tuple[int, tuple[int, int]], Any] = {}
    for num_crops in (1, 4, 9, 16):
        cases = [case for case in CASES if case[0] == num_crops]
        options = {"mm_processor_kwargs": {"num_crops": num_crops}}
        prompts = [{"prompt": PROMPT, "multi_modal_data": {"image": photo(size)}, **options} for _, size in cases]
        completions.update(zip(cases, theirs(up_to_4096, prompts), strict=True))
    return completions


@pytest.mark.parametrize(("num_crops", "size"), CASES)
def test_a_photo(
    num_crops: int, size: tuple[int, int], together: Any, model: Phi3VForCausalLM, checkpoint: Path
) -> None:
    inputs = load_processor(checkpoint, num_crops=num_crops)(PROMPT, photo(size))
    completion = together[num_crops, size]
    assert list(completion.prompt_token_ids) == seen_by_vllm(inputs["input_ids"][0])
    assert difference(ours(model, inputs)[0], completion) < TOLERANCE


def test_several_rows_of_different_length(up_to_4096: Any, model: Phi3VForCausalLM, checkpoint: Path) -> None:
    """Left-padded here, flattened there; a text, one photo, and two photos in one prompt."""
    one_crop = load_processor(checkpoint, num_crops=1)
    both = PROMPT.replace("<|image_1|>", "<|image_1|>\n<|image_2|>")
    prompts, photos = [TEXT_PROMPT, PROMPT, both], [[], [photo(STRIP)], [photo(PORTRAIT), photo(SQUARE)]]
    inputs = one_crop(prompts, photos)
    options = {"mm_processor_kwargs": {"num_crops": 1}}
    requests = [
        {"prompt": prompt, **({"multi_modal_data": {"image": own}, **options} if own else {})}
        for prompt, own in zip(prompts, photos, strict=True)
    ]
    rows = zip(ours(model, inputs), theirs(up_to_4096, requests), inputs["input_ids"], strict=True)
    for answer, completion, ids in rows:
        told = list(completion.prompt_token_ids)
        assert told == seen_by_vllm(ids)[-len(told) :]
        assert difference(answer, completion) < TOLERANCE


def test_the_last_prompt_before_4096(up_to_4096: Any, model: Phi3VForCausalLM) -> None:
    inputs = random_text(4096 - NEW_TOKENS)
    (completion,) = theirs(up_to_4096, [{"prompt_token_ids": inputs["input_ids"][0].tolist()}])
    assert difference(ours(model, inputs)[0], completion) < TOLERANCE
