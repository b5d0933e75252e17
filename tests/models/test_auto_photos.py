"""Photos of the generic families: resized once, as transformers' own image processors do, and counted beforehand."""

import subprocess
import sys
from copy import copy
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    _resize_output_size_rescale_to_max_len,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from enrich.models import gemma4, qwen3_vl, smolvlm
from tests.testing.tiny_families import Member
from tests.testing.tiny_phi3v import noise_image, pattern_image

SIZES = [(100, 133), (133, 100), (300, 200), (50, 50), (200, 90), (64, 64), (33, 400), (1000, 1333), (20, 16), (7, 300)]


def stock(member: Member) -> Any:
    """As transformers loads it."""
    return AutoImageProcessor.from_pretrained(member.path, backend="pil")


def stock_text(kind: str, made: Any) -> str:
    """What the family's own processor writes for its first photo."""
    if kind == "smolvlm":
        return get_image_prompt_string(
            made["rows"][0][0], made["cols"][0][0], 4, "<fake_token_around_image>", "<image>", "<global-img>"
        )
    if kind == "qwen3_vl":
        processor: Any = SimpleNamespace(image_processor=SimpleNamespace(merge_size=2), image_token="<|image_pad|>")
        return Qwen3VLProcessor.replace_image_token(processor, made, 0)
    return f"<|image>{'<|image|>' * int(made['num_soft_tokens_per_image'][0])}<image|>"  # its module needs torchvision


@pytest.mark.parametrize("size", SIZES)
def test_a_photo_becomes_what_the_stock_processor_makes_of_it(member: Member, size: tuple[int, int]) -> None:
    kind, processor = member.family.model_types[0], member.processor
    photo = pattern_image(*size)
    rows = {"return_row_col_info": True} if kind == "smolvlm" else {}
    expected = stock(member)(photo, return_tensors="pt", **rows)
    prepared = processor.preparation
    page = member.family.layout.page(photo, prepared.num_crops, prepared.image_size)
    found = processor.preprocess(page)

    counted = processor.photo_tokens(*size)
    down, across = counted.grid
    assert member.how.facts.spelling(down, across, processor.each) == stock_text(kind, expected)
    assert counted == processor.page_tokens(page)
    assert counted.total <= processor.most_photo_tokens()
    assert found.keys() == member.how.facts.tensors.keys()
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        if kind != "smolvlm":
            assert torch.equal(tensor, expected[name])
    if kind == "smolvlm" and size == (1000, 1333):  # it resizes twice; some levels of 255
        assert 0 < 127.5 * (found["pixel_values"] - expected["pixel_values"]).abs().mean() < 2


@pytest.mark.parametrize("mean", [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [0.48, 0.46, 0.41]])
def test_values_are_those_of_the_image_processors_own_arithmetic(member: Member, mean: list[float]) -> None:
    images = copy(member.processor.images)
    images.do_normalize, images.image_mean, images.image_std = True, mean, [0.27, 0.27, 0.28 if mean[2] else 0.27]
    processor, page = replace(member.processor, images=images), member.page(1000, 1333)
    prepared = processor.preparation
    settings = processor.facts.settings(prepared.num_crops, prepared.image_size)
    settings |= {"do_resize": False, "input_data_format": "channels_last", "return_tensors": "pt"}
    expected = images(page, **settings)
    found = processor.preprocess(page)
    for name in found:
        assert torch.equal(found[name], expected[name])
    raw = processor.preprocess(page, dtype=torch.uint8)["pixel_values"]
    levels = images(page, do_rescale=False, do_normalize=False, **settings)["pixel_values"]
    assert raw.dtype == torch.uint8
    assert torch.equal(raw, levels.byte())
    half = processor.preprocess(page, dtype=torch.bfloat16)["pixel_values"]
    assert torch.equal(half, found["pixel_values"].to(torch.bfloat16))


def test_nothing_needs_torchvision_whose_filters_differ(member: Member) -> None:
    assert type(member.processor.images).__name__.endswith("Pil")
    assert stock(member).resample == member.how.facts.resample


def test_arrays_and_pictures_make_the_same_page_of_whole_squares(member: Member) -> None:
    photo, prepared = noise_image(150, 90), member.processor.preparation
    page = member.family.layout.page(np.asarray(photo), prepared.num_crops, prepared.image_size)
    assert np.array_equal(page, member.page(150, 90))
    assert (page.shape[0] % prepared.image_size, page.shape[1] % prepared.image_size) == (0, 0)
    halved = member.family.layout.page(
        photo.reduce(2), prepared.num_crops, prepared.image_size, size=(150, 90)
    )  # as a JPEG decoded at half its scale
    assert halved.shape == page.shape


@pytest.mark.parametrize("shape", [(33, 31, 3), (0, 32, 3), (4096, 4096, 3)])
def test_a_page_of_another_layout_is_refused(member: Member, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a page of \d+ x \d+ pixels is not 1 to \d+ squares of \d+"):
        member.processor.preprocess(np.zeros(shape, np.uint8))


def photos(count: int) -> list[tuple[int, int]]:
    """Sizes with sides of 16 to 6,000 pixels, the longer at most 50 times the shorter."""
    random = Random(0)
    sizes = [(int(2 ** random.uniform(4, 12.5)), int(2 ** random.uniform(4, 12.5))) for _ in range(2 * count)]
    return [size for size in sizes if max(size) <= 50 * min(size)][:count]


@pytest.mark.parametrize("squares", [250, 500, 750, 16384])
def test_sides_at_full_size_are_qwens(squares: int) -> None:
    for width, height in photos(400):
        down, across = smart_resize(height, width, 32, 64 * 32**2, squares * 32**2)
        if down * across <= squares * 32**2:  # except strips that get more cells than there may be
            assert qwen3_vl.resized(width, height, squares, 32) == (across, down)


@pytest.mark.parametrize("squares", [70, 280, 1120])
def test_sides_at_full_size_are_gemmas(squares: int) -> None:
    for width, height in photos(400):
        down, across = get_aspect_ratio_preserving_size(height, width, 16, squares * 9, 3)
        assert gemma4.resized(width, height, squares, 48) == (across, down)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sides_at_full_size_are_smolvlms(count: int) -> None:
    processor = SmolVLMImageProcessorPil()
    sizes: list[tuple[int, int]] = []
    processor.resize = lambda image, size, resample: sizes.append((size.width, size.height))
    for width, height in photos(400):
        once = _resize_output_size_rescale_to_max_len(height, width, max_len=count * 512)
        processor.resize_for_vision_encoder(np.empty((3, *once), bool), 512)
        assert smolvlm.resized(width, height, count**2, 512) == sizes[-1]


@pytest.mark.parametrize("squares", [1, 4, 16, 24, 250])
def test_no_page_has_more_squares_than_there_may_be(squares: int) -> None:
    for width, height in [*photos(400), (50, 1), (1, 50), (5000, 100), (100, 5000)]:
        for resized in (qwen3_vl.resized, gemma4.resized, smolvlm.resized):
            across, down = resized(width, height, squares, 32)
            assert across % 32 == down % 32 == 0 < across * down <= squares * 32**2


BUDGETS = {  # photo_tokens: (squares, image positions of a photo of 1000 x 1333 pixels)
    "qwen3_vl": {250: (250, 234), 500: (500, 475), 750: (750, 713)},
    "gemma4": {60: (70, 63), 250: (280, 266), 500: (560, 540), 750: (560, 540), 2000: (1120, 1064)},
    "smolvlm": {4: (1, 4), 20: (4, 20), 30: (9, 40), 50: (16, 52), 500: (36, 124)},  # 4 a tile: the tiny member's
}


def test_one_setting_chooses_the_budget_of_each_family(member: Member) -> None:
    for wanted, (squares, tokens) in BUDGETS[member.family.model_types[0]].items():
        processor = member.how.load_processor(member.path, photo_tokens=wanted)
        assert (processor.preparation.num_crops, processor.photo_tokens(1000, 1333).total) == (squares, tokens)
        assert processor.preparation.more_crops == squares
        page = member.family.layout.page(pattern_image(1000, 1333), squares, processor.preparation.image_size)
        assert processor.page_tokens(page).total == tokens
        assert processor.images(pattern_image(10, 13)).keys()  # its own settings are possible ones


def test_gemma_has_five_budgets(member: Member) -> None:
    if member.family.model_types[0] == "gemma4":
        with pytest.raises(ValueError, match="Gemma 4 gives a photo 70, 140, 280, 560, 1120 tokens, not 16"):
            member.how.load_processor(member.path, num_crops=16)


def test_photos_with_different_budgets_share_a_batch(member: Member) -> None:
    small = {"smolvlm": 1, "qwen3_vl": 8, "gemma4": 70}[member.family.model_types[0]]
    large = {"smolvlm": 9, "qwen3_vl": 30, "gemma4": 140}[member.family.model_types[0]]
    processor = member.how.load_processor(member.path, num_crops=large, more_crops=small, photos_per_product=2)
    side, layout = processor.preparation.image_size, member.family.layout
    pages = [layout.page(noise_image(90, 120, seed), squares, side) for seed, squares in enumerate((large, small))]
    inputs = processor.inputs("?", [pages])
    photos = {name: inputs[name] for name in member.how.facts.tensors}
    with torch.inference_mode():
        both = member.how.image_features(member.model, processor.pixels(photos, torch.device("cpu"), torch.float32))
        alone: list[torch.Tensor] = []
        for position, page in enumerate(pages):
            joined = processor.join([processor.preprocess(page, position)])
            pixels = processor.pixels(joined, torch.device("cpu"), torch.float32)
            alone += member.how.image_features(member.model, pixels)
    assert len(both[0]) > len(both[1]) > 0
    for one, other in zip(both, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_decoding_processes_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from enrich.models import registry; registry.families(); "
        "print(*{'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
