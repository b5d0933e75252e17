"""Batches of rows of different lengths."""

from collections.abc import Callable

import pytest
import torch

from enrich.prompt import END, Prompt
from enrich.schema import Product
from enrich.settings import TrainSettings
from enrich.train.collate import Collator, Photos
from enrich.train.examples import IGNORED, build_examples
from tests.phi3_vision.tiny import Tiny


@pytest.fixture
def photos(products: list[Product], tiny: Tiny, prompt: Prompt, make_settings: Callable[..., TrainSettings]) -> Photos:
    settings = make_settings()
    return Photos(build_examples(products, tiny.processor, prompt, settings)[0], tiny.processor, settings.limits)


@pytest.fixture
def collator(tiny: Tiny) -> Collator:
    return Collator(tiny.processor.tokenizer.pad_token_id)


def test_rows_are_padded_on_the_left_and_padding_is_never_learned(
    photos: Photos, collator: Collator, tiny: Tiny
) -> None:
    batch = collator(list(photos))
    end = tiny.processor.tokenizer.convert_tokens_to_ids(END)
    for row, example in enumerate(photos.examples):
        gap = batch["input_ids"].shape[1] - len(example.input_ids)
        assert batch["input_ids"][row].tolist() == [collator._pad] * gap + example.input_ids
        assert batch["attention_mask"][row].tolist() == [0] * gap + [1] * len(example.input_ids)
        assert batch["labels"][row].tolist() == [IGNORED] * gap + example.labels
    assert (batch["labels"][:, -1] == end).all()
    assert (batch["attention_mask"] == 0).any()


def test_a_batch_has_the_loss_of_its_rows(photos: Photos, collator: Collator, tiny: Tiny) -> None:
    def loss_sum(items: list) -> torch.Tensor:
        return tiny.model(**collator(items), num_items_in_batch=1).loss

    alone = sum(loss_sum([item]) for item in photos)
    torch.testing.assert_close(loss_sum(list(photos)), alone)


def test_logits_at_the_answers_are_enough(photos: Photos, collator: Collator, tiny: Tiny) -> None:
    batch = collator(list(photos))
    kept = batch.pop("logits_to_keep")
    assert kept == max(len(example.answer_ids) for example in photos.examples) + 1
    everywhere = tiny.model(**batch)
    at_answers = tiny.model(**batch, logits_to_keep=kept)
    assert at_answers.logits.shape[1] == kept < everywhere.logits.shape[1]
    torch.testing.assert_close(at_answers.loss, everywhere.loss)


def test_prompts_hold_no_answer(photos: Photos, collator: Collator) -> None:
    batch = collator.prompts(list(photos))
    assert "labels" not in batch
    for row, example in enumerate(photos.examples):
        prompt = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        assert prompt.tolist() == list(example.prompt_ids)
