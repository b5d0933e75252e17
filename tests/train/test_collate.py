"""Batches of rows of different lengths."""

import pytest
import torch
from PIL import Image

from enrich.models.phi3_vision import Phi3VImageProcessor
from enrich.models.phi3_vision.processing import END
from enrich.train.collate import Collator, Item, Photos
from enrich.train.examples import IGNORED
from tests.testing.tiny_job import TinyJob


def all_of(photos: Photos) -> list[Item]:
    return [photos[row] for row in range(len(photos))]


@pytest.fixture
def collator(job: TinyJob) -> Collator:
    return Collator(job.tiny.processor)


def _inputs(batch: dict, items: list) -> dict:
    """The batch for a model that is called by hand: its images as floats."""
    texts = {name: value for name, value in batch.items() if name in ("input_ids", "labels", "predict_at")}
    processor = Phi3VImageProcessor(num_crops=4, image_size=28, patch_size=7)
    pixels = processor([Image.open(item.example.product.image_paths[0]) for item in items])
    return {**texts, "pixel_values": pixels["pixel_values"], "image_sizes": pixels["image_sizes"]}


def test_rows_are_padded_on_the_right_and_padding_is_never_learned(photos: Photos, collator: Collator) -> None:
    batch = collator(all_of(photos))
    length = batch["input_ids"].shape[1]
    assert batch["rows"] == [0, 1, 2, 3, 4]
    for row, example in enumerate(photos.examples):
        gap = length - len(example.input_ids)
        assert batch["input_ids"][row].tolist() == example.input_ids + [collator._pad] * gap
        assert batch["labels"][row].tolist() == example.labels + [IGNORED] * gap
    assert any(len(example.input_ids) < length for example in photos.examples)
    assert "attention_mask" not in batch


def test_each_token_of_an_answer_is_predicted_from_the_one_before_it(
    photos: Photos, collator: Collator, job: TinyJob
) -> None:
    batch = collator(all_of(photos))
    learned = batch["input_ids"].flatten()[batch["predict_at"] + 1].tolist()
    assert learned == [token for example in photos.examples for token in example.answer_ids]
    assert learned.count(job.tiny.processor.tokenizer.convert_tokens_to_ids(END)) == len(photos)


def test_the_price_s_digits_count_as_often_as_asked(photos: Photos, collator: Collator, job: TinyJob) -> None:
    items = all_of(photos)
    plain, thrice = collator(items), Collator(photos.processor, price_weight=3)(items)
    count = len(plain["predict_at"])
    assert thrice["predict_at"][:count].tolist() == plain["predict_at"].tolist()
    again = thrice["input_ids"].flatten()[thrice["predict_at"][count:] + 1]
    prices = [f"{product.price:.0f}" for product in (item.example.product for item in all_of(photos)) if product.price]
    assert 0 < len(prices) <= len(items)
    assert job.tiny.processor.tokenizer.decode(again) == "".join(prices) * 2


def test_rows_reach_the_length_asked_for(photos: Photos, collator: Collator) -> None:
    longest = max(len(example.input_ids) for example in photos.examples)
    items = [photos[1]]
    assert Collator(photos.processor, longest)(items)["input_ids"].shape == (1, longest)
    assert Collator(photos.processor, 3)(items)["input_ids"].shape == (1, len(photos.examples[1].input_ids))


def test_a_batch_has_the_loss_of_its_rows(photos: Photos, collator: Collator, job: TinyJob) -> None:
    def loss_sum(items: list) -> torch.Tensor:
        return job.tiny.model(**_inputs(collator(items), items), num_items_in_batch=1).loss

    alone = sum(loss_sum([item]) for item in all_of(photos))
    torch.testing.assert_close(loss_sum(all_of(photos)), alone)


def test_logits_at_the_answers_are_enough(photos: Photos, collator: Collator, job: TinyJob) -> None:
    items = all_of(photos)
    inputs = _inputs(collator(items), items)
    at_answers = job.tiny.model(**inputs)
    kept = inputs.pop("predict_at")
    everywhere = job.tiny.model(**inputs)
    assert at_answers.logits.shape == (
        sum(len(example.answer_ids) for example in photos.examples),
        len(job.tiny.processor.tokenizer),
    )
    torch.testing.assert_close(at_answers.logits, everywhere.logits.flatten(0, 1)[kept])
    torch.testing.assert_close(at_answers.loss, everywhere.loss)


def test_prompts_hold_no_answer(photos: Photos, collator: Collator) -> None:
    batch = collator.prompts(all_of(photos))
    assert "labels" not in batch
    for row, example in enumerate(photos.examples):
        prompt = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        assert prompt.tolist() == list(example.prompt_ids)


@pytest.mark.parametrize(
    ("photos_shown", "cores", "gpu", "workers"),
    [(31, 16, True, 0), (32, 16, True, 1), (255, 16, True, 7), (5000, 16, True, 8), (5000, 4, True, 3),
     (5000, 16, False, 0)],
)  # fmt: skip
def test_there_is_a_process_to_load_photos_for_every_32_of_them(
    photos_shown: int, cores: int, gpu: bool, workers: int, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Photos, "__len__", lambda _: photos_shown)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert photos.workers == workers
