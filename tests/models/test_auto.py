"""The generic implementation, on a tiny member of each family: prompts, photos, rows of different lengths, features."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from enrich.models.base import PhotoTokens
from enrich.models.generation import with_answer
from tests.testing.tiny_families import Member, open_member, write_member

QUESTION = "What is it?"
ROWS = [[(100, 133)], [(300, 200), (50, 50)], [(200, 90)], [(64, 64), (100, 133), (33, 90)]]  # photos of four products

PROMPTS = {
    "smolvlm": "<|im_start|>User:{photos}What is it?<end_of_utterance>\nAssistant:",
    "qwen3_vl": "<|im_start|>user\n{photos}What is it?<|im_end|>\n<|im_start|>assistant\n",
    "gemma4": "<bos><|turn>user\n{photos}What is it?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
}
# A photo of 200 x 150 pixels.
PHOTOS = {
    "smolvlm": "".join(
        "".join(f"<fake_token_around_image><row_{row}_col_{column}>" + "<image>" * 4 for column in (1, 2)) + "\n"
        for row in (1, 2)
    )
    + "\n<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>",
    "qwen3_vl": "<|vision_start|>" + "<|image_pad|>" * 20 + "<|vision_end|>",
    "gemma4": "\n\n<|image>" + "<|image|>" * 63 + "<image|>\n\n",
}  # fmt: skip


@pytest.mark.parametrize("photos", [1, 2, 3])
def test_a_prompt_is_the_chat_templates_without_thinking(member: Member, photos: int) -> None:
    kind = member.family.model_types[0]
    shown = [member.processor.photo_tokens(200, 150)] * photos
    ids = member.processor.prompt_ids(QUESTION, shown)
    seen = [token if token >= 0 else member.processor.image_token_id for token in ids]
    assert member.processor.tokenizer.decode(seen) == PROMPTS[kind].format(photos=PHOTOS[kind] * photos)
    assert [ids.count(-number) for number in range(1, photos + 2)] == [shown[0].total] * photos + [0]
    assert [token for token in ids if token < 0] == sorted((token for token in ids if token < 0), reverse=True)


def test_a_prompt_of_photos_that_take_nothing_measures_its_text(member: Member) -> None:
    ids = member.processor.prompt_ids(QUESTION, [PhotoTokens(0)] * 2)
    assert min(ids) >= 0
    assert len(ids) < 60


def test_prompt_answer_and_end_are_the_ids_of_the_whole_text(member: Member) -> None:
    answer = "Product: Blue shirt\nCategory: HATS\nFull Price: 1250"
    processor, shown = member.processor, [member.processor.photo_tokens(200, 150)]
    end = processor.tokenizer.convert_tokens_to_ids(processor.stop_tokens[0])
    ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    assert processor.whole_ids(QUESTION, shown, answer) == [*processor.prompt_ids(QUESTION, shown), *ids, end]


def test_an_instruction_that_spells_an_image_token_is_refused(member: Member) -> None:
    with pytest.raises(ValueError, match="the chat template shows 2 of 1 photos; "):
        member.processor.prompt_ids(f"a {member.how.facts.image_token}", [member.processor.photo_tokens(9, 9)])


def test_loading_processes_get_copies_of_the_processor(member: Member) -> None:
    copy = pickle.loads(pickle.dumps(member.processor))
    shown = [copy.photo_tokens(200, 150)]
    assert copy.prompt_ids(QUESTION, shown) == member.processor.prompt_ids(QUESTION, shown)


@torch.inference_mode()
def generated(member: Member, inputs: dict[str, Any], tokens: int = 12) -> torch.Tensor:
    ids = member.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return ids[:, inputs["input_ids"].shape[1] :]


def inputs_of(member: Member, rows: list[list[tuple[int, int]]]) -> dict[str, Any]:
    return member.processor.inputs(
        QUESTION, [[member.page(*size, seed=index) for index, size in enumerate(row)] for row in rows]
    )


def test_rows_padded_on_the_left_get_the_answers_of_rows_alone(member: Member) -> None:
    together = generated(member, inputs_of(member, ROWS))
    alone = [generated(member, inputs_of(member, [row]))[0] for row in ROWS]
    assert together.tolist() == [row.tolist() for row in alone]
    assert len({tuple(row) for row in together.tolist()}) == len(ROWS)  # so photos were seen


def test_generating_is_predicting_the_next_token_again_and_again(member: Member) -> None:
    inputs = inputs_of(member, ROWS[3:])
    answer: list[int] = []
    for _ in range(6):
        with torch.inference_mode():
            logits = member.model(**with_answer(inputs, answer)).logits
        answer.append(int(logits[0, -1].argmax()))
    assert generated(member, inputs, 6).tolist() == [answer]


def test_known_features_stand_for_photos(member: Member) -> None:
    inputs = inputs_of(member, ROWS)
    photos = {name: inputs.pop(name) for name in member.how.facts.tensors}
    shown = [member.processor.photo_tokens(*size) for row in ROWS for size in row]
    with torch.inference_mode():
        pixels = member.processor.pixels(photos, torch.device("cpu"), torch.float32)
        features = member.how.image_features(member.model, pixels)
        seen = member.model(**inputs, **pixels).logits
        known = member.model(**inputs, **member.how.with_features(features, shown)).logits
    width = member.how.feature_width(member.model.config)
    assert [tuple(one.shape) for one in features] == [(one.total, width) for one in shown]
    assert torch.equal(seen, known)
    joined = member.how.with_features(torch.cat(list(features)), shown)
    assert torch.equal(generated(member, {**inputs, **joined}), generated(member, {**inputs, **photos}))


def right_padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("both_ways", [False, True])
def test_training_rows_need_no_mask(member: Member, both_ways: bool, tmp_path: Path) -> None:
    """Padded on the right they predict what they predict alone, and logits of some positions are those of all."""
    kind = member.family.model_types[0]
    if both_ways:
        if kind != "gemma4":
            pytest.skip("only Gemma's image tokens see each other")
        member = open_member(write_member(kind, tmp_path / "both", use_bidirectional_attention="vision"))
    inputs = inputs_of(member, ROWS)
    rows = [
        [token for token, seen in zip(ids, mask, strict=True) if seen]
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    ]
    ids = right_padded(rows, member.processor.tokenizer.pad_token_id)
    images = {name: inputs[name] for name in member.how.facts.tensors}
    places = torch.tensor([number * ids.shape[1] + len(row) - 1 for number, row in enumerate(rows)])
    with torch.inference_mode():
        logits = member.model(input_ids=ids, predict_at=places, **images).logits
        everywhere = member.model(input_ids=ids, **images).logits.flatten(0, 1)[places]
        alone = torch.cat([member.model(**inputs_of(member, [row])).logits[:, -1] for row in ROWS])
    torch.testing.assert_close(logits, everywhere)
    torch.testing.assert_close(logits, alone, atol=2e-5, rtol=1e-4)
    assert ids.min() < 0  # the model changed a copy


def test_image_tokens_of_larger_gemmas_see_those_behind_them(tmp_path: Path) -> None:
    causal, both = (
        open_member(write_member("gemma4", tmp_path / str(way), use_bidirectional_attention=way))
        for way in (None, "vision")
    )
    with torch.inference_mode():
        one, other = (one.model(**inputs_of(one, ROWS[:1])).logits[0, -1] for one in (causal, both))
    assert (one - other).abs().max() > 1e-3


def test_the_loss_counts_some_positions_and_divides_by_the_given_number(member: Member) -> None:
    inputs = with_answer(inputs_of(member, ROWS[:1]), [5, 6, 7])
    length = inputs["input_ids"].shape[1]
    labels = torch.full((1, length), -100)
    labels[0, -3:] = torch.tensor([5, 6, 7])
    places = torch.arange(length - 4, length - 1)
    with torch.inference_mode():
        found = member.model(**inputs, labels=labels, predict_at=places, num_items_in_batch=6)
        whole = member.model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(whole.logits[0, places], torch.tensor([5, 6, 7]))
    assert found.logits.shape == (3, whole.logits.shape[-1])
    torch.testing.assert_close(found.loss * 2, expected)
    torch.testing.assert_close(whole.loss, expected)


def test_an_adapter_keeps_how_photos_were_prepared(member: Member, tmp_path: Path) -> None:
    kind = member.family.model_types[0]
    fewer = {"smolvlm": 1, "qwen3_vl": 8, "gemma4": 70}[kind]
    changed = member.how.load_processor(
        member.path, more_crops=fewer, photos_per_product=3, fast_decode=True, preparation_version=2
    )
    changed.save(tmp_path)
    assert member.family.read_preparation(tmp_path) == changed.preparation
    assert changed.preparation == replace(
        member.processor.preparation, more_crops=fewer, photos_per_product=3, fast_decode=True
    )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((member.path / name).read_bytes())
    again = member.how.load_processor(tmp_path)
    assert again.preparation == changed.preparation
    assert again.most_photo_tokens(1) <= again.most_photo_tokens(0) == member.processor.most_photo_tokens(0)


@pytest.mark.parametrize("wrong", [None, {}, {"preparation": []}, {"preparation": {"num_crops": "4"}}])
def test_a_file_that_does_not_say_so_is_refused(member: Member, wrong: dict[str, Any] | None, tmp_path: Path) -> None:
    if wrong is not None:
        (tmp_path / member.family.photo_file).write_text(str(wrong).replace("'", '"'))
    with pytest.raises(ValueError, match="does not say how photos were prepared"):
        member.family.read_preparation(tmp_path)


def test_gemma_is_served_with_an_attention_that_compiles(member: Member) -> None:
    on_gpu, on_cpu = (member.how.vllm_arguments(torch.device(kind), torch.bfloat16) for kind in ("cuda", "cpu"))
    gemma = member.family.model_types == ("gemma4",)
    assert on_gpu == {**on_cpu, **({"attention_backend": "TRITON_ATTN"} if gemma else {})}
    assert "attention_backend" not in on_cpu
