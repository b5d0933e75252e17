"""Two engines' completions compared: what may differ, and what is found first where too much does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from enrich.answers.completion import Completion
from enrich.engines.parity import LIMITS, Limits, ParityRecord, compare

WORDS = ["<end>", "Red", "Blue", "Hat", "Bag", "Coat"]
PROMPT = np.array([1, 2, 3], np.int32)


def answer(*steps: tuple[tuple[int, float], ...], id: str = "a.jpg", finished: bool = True) -> Completion:
    """Each step its tokens with their log-probabilities, the one chosen first."""
    return Completion(
        id=id,
        token_ids=tuple(step[0][0] for step in steps),
        logprobs=np.array([step[0][1] for step in steps], np.float32),
        top_ids=np.array([[token for token, _ in step] for step in steps], np.int32).reshape(len(steps), 2),
        top_logprobs=np.array([[logprob for _, logprob in step] for step in steps], np.float32).reshape(len(steps), 2),
        finished=finished,
        prompt_tokens=3,
        prompt_ids=PROMPT,
    )


def check(ours: list[Completion], theirs: list[Completion], precision: Any = "float32") -> ParityRecord:
    return compare(
        ours, theirs, precision, stop_ids=[0], spell=WORDS.__getitem__, adapter="a1", engine="vllm 1", served="merged"
    )


BASE = answer(((1, -0.1), (2, -2.5)), ((3, -0.2), (4, -1.9)))


def test_the_same() -> None:
    record = check([BASE, replace(BASE, id="b.jpg")], [replace(BASE, id="b.jpg"), BASE])  # in any order

    assert record == ParityRecord(
        adapter="a1", engine="vllm 1", served="merged", precision="float32", rows=2, failed=0, same_prompts=2,
        same_answers=2, near_ties=0, largest_difference=0.0, mean_difference=0.0, largest_allowed=2e-3,
        mean_allowed=2e-4, ok=True, finding=None,
    )  # fmt: skip
    assert record.summary == (
        "2 prompts through transformers and vllm 1 (merged, float32): 2 prompts and 2 answers are the same, "
        "log-probabilities differ by 0 at most (limit 0.002) and 0 on average (limit 0.0002)"
    )


def step(chosen: float, rival: float, tokens: tuple[int, int] = (3, 4)) -> tuple[tuple[int, float], ...]:
    return (tokens[0], chosen), (tokens[1], rival)


FIRST = step(-0.1, -2.5, (1, 2))
APART = "product a.jpg, token 2 'Hat': its log-probability is -0.2000 for transformers, {} for the other engine"
CHOICES = "product a.jpg, token {}: transformers chose {}, the other engine {}"
HAT = "'Hat' (log-probability -0.7000)"
ENDS = "to end the answer"


@pytest.mark.parametrize(
    ("ours", "theirs", "precision", "finding"),
    [
        # What another order of summing makes, and what it does not.
        (BASE, answer(FIRST, step(-0.2003, -1.9)), "float32", None),
        (BASE, answer(FIRST, step(-0.203, -1.9)), "float32", APART.format("-0.2030")),
        (BASE, answer(FIRST, step(-0.29, -1.9)), "bfloat16", None),
        (BASE, answer(FIRST, step(-0.71, -1.9)), "bfloat16", APART.format("-0.7100")),
        (
            BASE,
            answer(FIRST, step(-0.61, -1.9)),
            "bfloat16",
            "log-probabilities differ by 0.21 on average, more than 0.05",
        ),
        (BASE, answer(FIRST, step(-0.49, -1.9)), "fp8", None),
        (BASE, answer(FIRST, step(float("nan"), -1.9)), "fp8", APART.format("nan")),
        # Another token.
        (answer(FIRST, step(-0.7, -0.703)), answer(FIRST, step(-0.7, -0.703, (4, 3))), "float32", None),
        (
            answer(FIRST, step(-0.7, -0.71)),
            answer(FIRST, step(-0.7, -0.71, (4, 3))),
            "float32",
            CHOICES.format(2, HAT, "'Bag' (log-probability -0.7000)"),
        ),
        (answer(FIRST, step(-0.7, -0.71)), answer(FIRST, step(-0.7, -0.71, (4, 3))), "bfloat16", None),
        (
            answer(FIRST, step(-0.7, -0.7)),
            answer(FIRST, step(-0.7, -0.7, (5, 4))),  # not among the alternatives of the first
            "fp8",
            CHOICES.format(2, HAT, "'Coat' (log-probability -0.7000)"),
        ),
        # One of them ends.
        (answer(FIRST), answer(FIRST, step(-0.7, -0.703, (3, 0))), "float32", None),
        (answer(FIRST), answer(FIRST, step(-0.7, -0.71, (3, 0))), "float32", CHOICES.format(2, ENDS, HAT)),
        (
            answer(FIRST, step(-0.7, -0.71)),
            answer(FIRST, finished=False),
            "float32",
            CHOICES.format(2, HAT, "nothing more"),
        ),
        (answer(), answer(finished=False), "float32", CHOICES.format(1, ENDS, "nothing more")),
        # Another prompt.
        (
            BASE,
            replace(BASE, prompt_ids=np.array([1, 4, 3], np.int32)),
            "fp8",
            "product a.jpg: token 2 of its prompt is 'Blue' for transformers, 'Bag' for the other",
        ),
        (
            BASE,
            replace(BASE, prompt_ids=np.array([1, 2], np.int32)),
            "fp8",
            "product a.jpg: its prompt has 3 tokens for transformers, 2 for the other",
        ),
    ],
)
def test_what_differs(ours: Completion, theirs: Completion, precision: Any, finding: str | None) -> None:
    record = check([ours], [theirs], precision)

    assert record.finding == finding
    assert record.ok == (finding is None)
    assert record.near_ties == int(record.ok and record.same_answers == 0)


def test_the_first_product_that_differs_is_named() -> None:
    others = [replace(BASE, id=id, prompt_ids=PROMPT[:2]) for id in ("c.jpg", "b.jpg")]

    record = check([BASE, replace(BASE, id="b.jpg"), replace(BASE, id="c.jpg")], [*others, BASE])

    assert record.finding == "product b.jpg: its prompt has 3 tokens for transformers, 2 for the other"
    assert (record.rows, record.same_prompts, record.same_answers) == (3, 1, 3)


def test_prompts_without_an_answer_are_no_evidence_unless_most_are() -> None:
    failed = Completion("b.jpg", error="the engine failed: no room")

    assert check([BASE, failed], [BASE, replace(BASE, id="b.jpg")]).ok
    record = check(
        [BASE, failed, replace(failed, id="c.jpg")], [BASE, replace(BASE, id="b.jpg"), replace(BASE, id="c.jpg")]
    )
    assert (record.rows, record.failed) == (1, 2)
    assert record.finding == "2 of 3 prompts have no answer, first of them product b.jpg: the engine failed: no room"


def test_what_follows_a_near_tie_says_nothing() -> None:
    ours = answer(FIRST, step(-0.7, -0.703), step(-0.1, -9.0))
    theirs = answer(FIRST, step(-0.7, -0.703, (4, 3)), step(-5.0, -5.1))

    record = check([ours], [theirs])

    assert (record.ok, record.near_ties, record.largest_difference) == (True, 1, 0.0)


def test_limits_widen_with_coarser_numbers() -> None:
    assert LIMITS["float32"] == Limits(2e-3, 2e-4)
    assert LIMITS["float32"] < LIMITS["bfloat16"] < LIMITS["fp8"]
