"""What is said and refused before training starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enrich.errors import UsageError
from enrich.train.examples import Example
from enrich.train.preflight import preflight, refuse_broken_prefix, refuse_leaks
from enrich.train.record import Preflight, Spread, Trainable
from tests.testing.tiny_job import TinyJob

Look = Callable[..., Preflight]


@pytest.fixture
def examples(job: TinyJob) -> list[Example]:
    return job.build(job.products)[0]


@pytest.fixture
def look(examples: list[Example], job: TinyJob) -> Look:
    def do(**changes: object) -> Preflight:
        return preflight(examples, job.tiny.processor, job.prompt, job.settings(**changes), job.tiny.path)

    return do


def test_what_is_ahead_is_counted_from_the_rows_and_the_configuration(look: Look) -> None:
    found = look(batch_size=2, effective_batch_size=4, epochs=2.5)
    assert found.trainable == (
        Trainable(module="o_proj", count=2, parameters=2 * 16 * (32 + 32)),
        Trainable(module="qkv_proj", count=2, parameters=2 * 16 * (32 + 96)),
        Trainable(module="gate_up_proj", count=2, parameters=2 * 16 * (32 + 96)),
        Trainable(module="down_proj", count=2, parameters=2 * 16 * (48 + 32)),
    )
    assert found.learned == "Product: Red\nCategory: WARM\nFull Price: 12<|end|>"
    assert found.image_tokens == Spread(least=21, median=27, most=27)
    assert (found.photos, found.steps, found.product_code) == (5, 5, "P0")


def test_the_record_tells_what_then_happens(job: TinyJob, tmp_path: Path) -> None:
    told: list[str] = []
    changes: dict[str, Any] = {"batch_size": 2, "effective_batch_size": 4, "epochs": 2.5, "evaluations": 1}
    report, _ = job.train(tmp_path, on_message=told.append, **changes)
    plan = report.preflight
    *lines, memory, took = told
    assert lines == plan.lines
    assert memory.startswith("memory: ")
    assert took.startswith("training time: ")
    assert [phase.name for phase in report.phases] == [
        "photos", "base", "trial step", "training", "unmerged answers", "merge check",
    ]  # fmt: skip
    assert plan.steps == report.planned_steps
    assert plan.parameters == report.parameters
    assert sum(group.parameters for group in plan.trainable) == report.trainable_parameters


def test_messages_for_people_are_lines(look: Look) -> None:
    assert look(output_learning_rate=1e-2, epochs=3).lines == [
        "trained: o_proj x 2, qkv_proj x 2, gate_up_proj x 2, down_proj x 2, lm_head x 1: 17,552 of 63,928 parameters "
        "(27.46%)",
        "learned of product P0: 'Product: Red\\nCategory: WARM\\nFull Price: 12<|end|>'",
        "photos: 5 for 3 epochs: 3 steps of 5; image tokens 21 to 27, median 27; sequence length 146 to 158, "
        "median 157",
    ]


@pytest.mark.parametrize("title", ["Red", "RED", " red ", "R\uff45d", "Red\u00a0"])
def test_a_title_in_two_splits_is_refused(job: TinyJob, title: str) -> None:
    leaked = replace(job.products[1], title=title)
    with pytest.raises(UsageError) as raised:
        refuse_leaks({"train": job.products[:1], "validation": job.products[2:], "test": [leaked]})
    assert str(raised.value) == (
        "label leak: product P0 of the train split and product P1 of the test split have the same title "
        f"{title!r}; keep products with the same title in one split"
    )


def test_a_title_twice_in_one_split_is_no_leak(job: TinyJob) -> None:
    refuse_leaks({"train": [job.products[0], job.products[0]], "validation": job.products[1:]})


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(examples: list[Example], job: TinyJob) -> None:
    refuse_broken_prefix(examples, job.tiny.processor, job.prompt)
    shifted = [replace(example, prompt_ids=example.prompt_ids[:-1]) for example in examples]
    with pytest.raises(UsageError) as raised:
        refuse_broken_prefix(shifted, job.tiny.processor, job.prompt)
    assert str(raised.value) == (
        f"tokenizer: the ids of prompt + answer differ from those of the prompt, then the answer, at position "
        f"{len(shifted[0].prompt_ids)}, in the answer (product P0); use the tokenizer.json of the base model"
    )
    ids = examples[0].prompt_ids
    wrong = [replace(examples[0], prompt_ids=(*ids[:3], ids[3] + 1, *ids[4:]))]
    with pytest.raises(UsageError, match=r"at position 3, in the prompt \(product P0\)"):
        refuse_broken_prefix(wrong, job.tiny.processor, job.prompt)


def test_a_processor_without_the_second_start_token_is_refused(
    examples: list[Example], job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    bos, whole = job.tiny.processor.tokenizer.bos_token_id, job.tiny.processor.token_ids

    def once(text: str, counts: list[int]) -> list[int]:
        first, *rest = whole(text, counts)
        return [first, *(token for token in rest if token != bos)]

    without = [
        replace(example, prompt_ids=(bos, *(token for token in example.prompt_ids if token != bos)))
        for example in examples
    ]
    monkeypatch.setattr(job.tiny.processor, "token_ids", once)
    with pytest.raises(UsageError) as raised:
        refuse_broken_prefix(without, job.tiny.processor, job.prompt)
    assert str(raised.value) == (
        "tokenizer, product P0: no <s> after the image, where the original processor puts one; "
        "use the base model's tokenizer.json"
    )
