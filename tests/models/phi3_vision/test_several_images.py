"""Prompts with several images: ids by the original's rule, crops by place, and answers that depend on each image."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enrich.answers.prompt import make_prompt
from enrich.models.phi3_vision import Phi3VImageProcessor, Phi3VProcessor
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.models.phi3_vision.processing import render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.tiny_phi3v import Tiny, byte_level_tokenizer, noise_image, pattern_image, tiny_phi3v

PROMPT = make_prompt(("BAGS", "HATS"), "EUR")
SIZES = ((300, 400), (640, 360), (100, 100), (40, 800), (500, 333))


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_phi3v(tmp_path)


def _processor(num_crops: int, more_crops: int | None) -> Phi3VProcessor:
    images = Phi3VImageProcessor(
        num_crops=num_crops, image_size=28, patch_size=7, photos_per_product=5, more_crops=more_crops
    )
    return Phi3VProcessor(images, byte_level_tokenizer())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_each_stretch_of_text_is_tokenised_on_its_own(count: int) -> None:
    processor = load_processor(TINY_MODEL_PATH, photos_per_product=5, more_crops=1)
    text = render_turn(PROMPT.instruction, count)
    inputs = processor(text, [pattern_image(*size) for size in SIZES[:count]])
    # The original: every stretch gets its <s>; the k-th image takes as many positions -k as it has tokens.
    stretches = [processor.tokenizer(part).input_ids for part in re.split(r"<\|image_\d+\|>", text)]
    expected = list(stretches[0])
    for number, stretch in enumerate(stretches[1:]):
        tokens = processor.image_processor.num_image_tokens(*SIZES[number], number)
        expected += [-number - 1] * tokens + stretch
    assert inputs["input_ids"].tolist() == [expected]
    assert expected.count(processor.tokenizer.bos_token_id) == count + 1
    assert len(inputs["image_sizes"]) == count


def test_the_prompt_is_the_model_cards() -> None:
    assert render_turn(PROMPT.instruction, 3) == (
        f"<|user|>\n<|image_1|>\n<|image_2|>\n<|image_3|>\n{PROMPT.instruction}<|end|>\n<|assistant|>\n"
    )
    assert render_turn(PROMPT.instruction) == render_turn(PROMPT.instruction, 1)


@pytest.mark.parametrize(("num_crops", "more_crops", "crops"), [(4, 1, 4), (1, 4, 4), (4, None, 4), (2, 2, 2)])
def test_only_the_first_image_has_the_main_photos_crops(num_crops: int, more_crops: int | None, crops: int) -> None:
    processor = _processor(num_crops, more_crops)
    images = [noise_image(100, 100, seed) for seed in range(4)]
    texts = ["<|image_1|>a", "<|image_1|>\n<|image_2|>\n<|image_3|>b"]
    inputs = processor(texts, images, do_normalize=False)
    further = num_crops if more_crops is None else more_crops
    assert inputs["pixel_values"].shape == (4, crops, 28, 28, 3)
    for image, place, made, size in zip(
        images, (0, 0, 1, 2), inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True
    ):
        page = hd_transform(image, further if place else num_crops, 28)
        assert size == list(page.shape[:2])
        count = page.shape[0] * page.shape[1] // 28**2
        (alone,) = Phi3VImageProcessor(num_crops=count, image_size=28, patch_size=7)(
            page, do_hd_transform=False, do_normalize=False
        )["pixel_values"]
        assert torch.equal(made[:count], alone)
        assert not made[count:].any()  # padded with zeros


def test_a_page_with_more_crops_than_its_place_allows_is_refused() -> None:
    pages = [hd_transform(noise_image(100, 100), 4, 28)] * 2
    with pytest.raises(ValueError, match="56x56 is not the result of hd_transform with num_crops=1"):
        _processor(4, 1)("<|image_1|><|image_2|>", pages, do_hd_transform=False)


def test_most_tokens_are_those_of_the_largest_image() -> None:
    images = load_processor(TINY_MODEL_PATH, num_crops=16, photos_per_product=5, more_crops=5).image_processor
    sizes = [(width, height) for width in range(40, 2000, 97) for height in range(40, 2000, 89)]
    for position in (0, 1):
        counts = [images.num_image_tokens(*size, position) for size in [*sizes, (40, 1960)]]
        assert max(counts) == images.most_image_tokens(position)


def test_sizes_are_written_only_where_a_prompt_shows_several(tmp_path: Path) -> None:
    one = load_processor(TINY_MODEL_PATH, num_crops=4, photos_per_product=1, more_crops=3).image_processor
    assert one.to_dict() == load_processor(TINY_MODEL_PATH, num_crops=4).image_processor.to_dict()
    several = load_processor(TINY_MODEL_PATH, num_crops=4, photos_per_product=3, more_crops=2)
    several.save_pretrained(tmp_path)
    images = load_processor(tmp_path).image_processor
    assert (images.num_crops, images.photos_per_product, images.more_crops) == (4, 3, 2)


def _logits(tiny: Tiny, processor: Phi3VProcessor, images: list[Any]) -> torch.Tensor:
    inputs = processor(render_turn(PROMPT.instruction, len(images)), images)
    with torch.inference_mode():
        return tiny.model(**inputs).logits[0, -1]


def test_the_answer_depends_on_each_image_and_on_their_order(tiny: Tiny) -> None:
    processor = _processor(4, 1)
    images = [noise_image(60, 60, seed) for seed in range(5)]
    told = _logits(tiny, processor, images)
    assert torch.equal(_logits(tiny, processor, images), told)
    others = [
        *([*images[:at], noise_image(60, 60, 100 + at), *images[at + 1 :]] for at in range(5)),
        [images[0], images[2], images[1], *images[3:]],
        [images[1], images[0], *images[2:]],
        images[:4],
    ]
    for other in others:
        assert (_logits(tiny, processor, other) - told).abs().max() > 1e-3


def test_rows_of_a_batch_may_have_different_numbers_of_images(tiny: Tiny) -> None:
    processor = _processor(4, 1)
    rows = [[noise_image(60, 60, 10 * row + at) for at in range(row)] for row in (3, 1, 2)]
    inputs = processor([render_turn(PROMPT.instruction, len(images)) for images in rows], rows)
    with torch.inference_mode():
        together = tiny.model(**inputs).logits[:, -1]
    alone = torch.stack([_logits(tiny, processor, images) for images in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert np.unique(inputs["input_ids"][0].numpy()).tolist()[:3] == [-3, -2, -1]
