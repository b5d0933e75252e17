import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from enrich.models.phi3_vision import Phi3VConfig, Phi3VImageProcessor
from enrich.models.phi3_vision.image_processing import (
    CLIP_MEAN,
    CLIP_STD,
    hd_size,
    hd_transform,
    normalize_crops,
)
from tests.testing.published_phi3v import ORIGINAL_PREPROCESSOR
from tests.testing.tiny_phi3v import noise_image, pattern_image

SIZES = [
    (1, 1),
    (1, 900),
    (900, 1),
    (50, 8000),
    (336, 336),
    (337, 336),
    (640, 480),
    (480, 640),
    (999, 1000),
    (3000, 700),
]


def test_golden_values_of_the_original_processor() -> None:
    # Measured with the original processor on transformers 5.19, Pillow 13 and torchvision 0.28.
    outputs = Phi3VImageProcessor(num_crops=4)(pattern_image(300, 400), return_tensors="pt")
    pixels = outputs["pixel_values"]
    assert pixels.shape == (1, 5, 3, 336, 336)
    assert pixels.dtype == torch.float32
    assert outputs["image_sizes"].tolist() == [[672, 672]]
    assert outputs["image_sizes"].dtype == torch.int64
    assert outputs["num_img_tokens"] == [757]
    assert pixels.mean().item() == pytest.approx(0.654631, abs=1e-6)
    assert pixels.std().item() == pytest.approx(1.220803, abs=1e-6)
    assert pixels[0, 0].sum().item() == pytest.approx(221715.6875, abs=0.05)
    assert pixels[0, 1].sum().item() == pytest.approx(221393.3438, abs=0.05)
    torch.testing.assert_close(pixels[0, 0, 0, 0, :3], torch.tensor([1.9303362] * 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels[0, 1, 0, 0, :3], torch.tensor([1.9303361] * 3), rtol=0, atol=1e-6)
    expected = torch.tensor([1.9325962, 1.9610363, 1.9894764])
    torch.testing.assert_close(pixels[0, 1, 2, 335, 333:], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_crops", "width", "height", "tokens"),
    [
        (16, 1000, 1000, 2509),
        (16, 900, 1200, 1933),
        (16, 1200, 900, 1921),
        (16, 2000, 3000, 1933),
        (16, 50, 8000, 2653),
        (4, 1000, 1000, 757),
        (4, 900, 1200, 757),
        (4, 50, 8000, 781),
        (4, 8000, 50, 745),
        (9, 1000, 1000, 1489),
        (1, 1000, 1000, 313),
        (1, 50, 8000, 313),
    ],
)
def test_tokens_of_a_photo(num_crops: int, width: int, height: int, tokens: int) -> None:
    processor = Phi3VImageProcessor(num_crops=num_crops)
    assert processor.num_image_tokens(width, height) == tokens
    assert processor.calc_num_image_tokens_from_image_size(width=width, height=height) == tokens


@pytest.mark.parametrize("num_crops", [1, 4, 9, 16])
def test_counts_without_pixels_are_those_with_pixels(num_crops: int) -> None:
    processor = Phi3VImageProcessor(num_crops=num_crops, image_size=28, patch_size=7)
    for width, height in SIZES:
        outputs = processor(pattern_image(width, height))
        padded_height, padded_width = outputs["image_sizes"][0].tolist()
        rows, columns = padded_height // 28, padded_width // 28
        assert rows * columns <= num_crops
        assert hd_size(width, height, num_crops, 28) == (padded_width, padded_height)
        assert processor.num_image_tokens(width, height) == outputs["num_img_tokens"][0]
        assert outputs["num_img_tokens"] == [(rows * columns + 1) * 4 + 1 + (rows + 1) * 2]
        assert outputs["pixel_values"].shape == (1, num_crops + 1, 3, 28, 28)
        assert not outputs["pixel_values"][0, rows * columns + 1 :].any()
        assert outputs["pixel_values"][0, rows * columns].any()


def test_crops_are_normalised_and_row_major_after_the_global_view() -> None:
    image = pattern_image(84, 56)
    pixels = Phi3VImageProcessor(num_crops=6, image_size=28, patch_size=7)(image)["pixel_values"][0].numpy()
    expected = (np.asarray(image) / 255 - CLIP_MEAN) / CLIP_STD
    for row in range(2):
        for column in range(3):
            block = expected[row * 28 : (row + 1) * 28, column * 28 : (column + 1) * 28].transpose(2, 0, 1)
            np.testing.assert_allclose(pixels[1 + row * 3 + column], block, atol=1e-5)
    whole = torch.tensor(expected, dtype=torch.float32).permute(2, 0, 1)[None]
    view = torch.nn.functional.interpolate(whole, size=(28, 28), mode="bicubic", align_corners=False, antialias=False)
    np.testing.assert_allclose(pixels[0], view[0].numpy(), atol=1e-5)


MIXED = [(84, 84), (30, 90), (90, 30), (31, 90), (112, 28), (28, 112), (60, 60)]


def uint8_crops(*sizes: tuple[int, int], num_crops: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    processor = Phi3VImageProcessor(num_crops=num_crops, image_size=28, patch_size=7)
    outputs = processor([noise_image(*size, seed) for seed, size in enumerate(sizes)], do_normalize=False)
    return outputs["pixel_values"], outputs["image_sizes"]


def test_crops_left_as_bytes_are_the_photo_cut_row_by_row() -> None:
    processor = Phi3VImageProcessor(num_crops=7, image_size=28, patch_size=7)
    photos = [noise_image(84, 56), noise_image(56, 84, seed=1)]  # they fit 3x2 and 2x3 crops as they are
    outputs, normalised = processor(photos, do_normalize=False), processor(photos)
    crops = outputs["pixel_values"]
    assert crops.dtype == torch.uint8
    assert crops.shape == (2, 7, 28, 28, 3)
    for own, photo, (rows, columns) in zip(crops.numpy(), photos, [(2, 3), (3, 2)], strict=True):
        for row in range(rows):
            for column in range(columns):
                block = np.asarray(photo)[row * 28 : (row + 1) * 28, column * 28 : (column + 1) * 28]
                np.testing.assert_array_equal(own[row * columns + column], block)
        assert not own[6:].any()
    assert torch.equal(outputs["image_sizes"], normalised["image_sizes"])
    assert outputs["num_img_tokens"] == normalised["num_img_tokens"]
    assert processor(photos, do_normalize=False, return_tensors="np")["pixel_values"].dtype == np.uint8


def test_a_batch_of_many_grids_is_normalised_as_its_photos_alone() -> None:
    crops, sizes = uint8_crops(*MIXED, *MIXED)
    assert len({tuple(size) for size in sizes.tolist()}) > 3
    before = crops.clone()
    together = normalize_crops(crops, sizes)
    assert torch.equal(crops, before)
    processor = Phi3VImageProcessor(num_crops=5, image_size=28, patch_size=7)
    for i, size in enumerate([*MIXED, *MIXED]):
        assert torch.equal(together[i], normalize_crops(crops[i : i + 1], sizes[i : i + 1])[0])
        assert torch.equal(together[i], processor(noise_image(*size, i))["pixel_values"][0])


def test_many_photos_of_one_grid_are_normalised_as_each_alone() -> None:
    crops, sizes = uint8_crops(*[(60, 45)] * 6)
    together = normalize_crops(crops, sizes)
    for i in range(6):
        assert torch.equal(together[i], normalize_crops(crops[i : i + 1], sizes[i : i + 1])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalising_rounds_once_at_the_end(dtype: torch.dtype) -> None:
    crops, sizes = uint8_crops(*MIXED)
    assert torch.equal(normalize_crops(crops, sizes, dtype), normalize_crops(crops, sizes).to(dtype))


def test_what_is_behind_an_images_crops_does_not_matter() -> None:
    crops, sizes = uint8_crops((60, 45), (112, 28))
    dirty = crops.clone()
    dirty[:, 4:] = 77
    assert torch.equal(normalize_crops(dirty, sizes), normalize_crops(crops, sizes))
    assert not normalize_crops(dirty, sizes)[:, 5:].any()


def test_a_processors_own_statistics_are_used() -> None:
    processor = Phi3VImageProcessor(
        num_crops=1, image_size=28, patch_size=7, image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 0.25, 1.0]
    )
    pixels = processor(Image.new("RGB", (28, 28), (255, 0, 51)))["pixel_values"]
    expected = torch.tensor([1.0, -1.0, 0.2])[:, None, None].expand(3, 28, 28)
    torch.testing.assert_close(pixels[0, 1], expected)
    torch.testing.assert_close(pixels[0, 0], expected)


def test_no_images_are_no_rows() -> None:
    processor = Phi3VImageProcessor(num_crops=3, image_size=28, patch_size=7)
    assert processor([])["pixel_values"].shape == (0, 4, 3, 28, 28)
    assert processor([], do_normalize=False)["pixel_values"].shape == (0, 3, 28, 28, 3)


@pytest.mark.parametrize(
    ("crops", "sizes", "message"),
    [
        (torch.zeros(1, 4, 28, 28, 3), [[56, 56]], "crops must be uint8 (images, num_crops, side, side, 3), got "
         "float32 (1, 4, 28, 28, 3)"),
        (torch.zeros(1, 4, 3, 28, 28, dtype=torch.uint8), [[56, 56]], "crops must be uint8 (images, num_crops, side, "
         "side, 3), got uint8 (1, 4, 3, 28, 28)"),
        (torch.zeros(4, 28, 28, 3, dtype=torch.uint8), [[56, 56]], "crops must be uint8 (images, num_crops, side, "
         "side, 3), got uint8 (4, 28, 28, 3)"),
        (torch.zeros(2, 4, 28, 28, 3, dtype=torch.uint8), [[56, 56]], "2 images of crops, but 1 in image_sizes"),
        (torch.zeros(1, 4, 28, 28, 3, dtype=torch.uint8), [[56, 84]], "image_sizes: 56x84 (height x width) is not a "
         "grid of 1 to 4 crops of 28 pixels"),
        (torch.zeros(1, 4, 28, 28, 3, dtype=torch.uint8), [[50, 56]], "image_sizes: 50x56 (height x width) is not a "
         "grid of 1 to 4 crops of 28 pixels"),
        (torch.zeros(1, 4, 28, 28, 3, dtype=torch.uint8), [[0, 56]], "image_sizes: 0x56 (height x width) is not a "
         "grid of 1 to 4 crops of 28 pixels"),
    ],
)  # fmt: skip
def test_crops_that_do_not_fit_are_refused(crops: torch.Tensor, sizes: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=r"crop") as caught:
        normalize_crops(crops, torch.tensor(sizes))
    assert str(caught.value) == message


def test_every_mode_is_converted_to_rgb() -> None:
    gray = Image.new("L", (30, 30), 100)
    processor = Phi3VImageProcessor(num_crops=1, image_size=28, patch_size=7)
    outputs = processor([gray, gray.convert("RGB"), np.full((30, 30, 3), 100, np.uint8)])
    first, second, third = outputs["pixel_values"]
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_prepared_images_give_the_same_as_photos() -> None:
    processor = Phi3VImageProcessor(num_crops=4, image_size=28, patch_size=7)
    photos = [pattern_image(90, 40), pattern_image(31, 77)]
    prepared = [hd_transform(photo, 4, 28) for photo in photos]
    whole, split = processor(photos), processor(prepared, do_hd_transform=False)
    assert torch.equal(whole["pixel_values"], split["pixel_values"])
    assert torch.equal(whole["image_sizes"], split["image_sizes"])
    with pytest.raises(ValueError, match=r"^an image of 90x40 is not the result of hd_transform with num_crops=4"):
        processor(photos[0], do_hd_transform=False)
    with pytest.raises(ValueError, match=r"^an image of 84x56 is not"):  # 6 crops
        processor(pattern_image(84, 56), do_hd_transform=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_crops": 0}, "num_crops must be at least 1, got 0"),
        ({"image_size": 30, "patch_size": 7}, "image_size 30 must be a multiple of twice the patch_size (7)"),
        ({"image_size": 35, "patch_size": 7}, "image_size 35 must be a multiple of twice the patch_size (7)"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as caught:
        Phi3VImageProcessor(**values)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"num_crops must be at least 1, got -1"):
        hd_transform(pattern_image(4, 4), -1)


def test_the_original_file_loads(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ORIGINAL_PREPROCESSOR))
    Phi3VConfig().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is Phi3VImageProcessor
    assert (processor.num_crops, processor.image_size, processor.patch_size) == (16, 336, 14)
    assert not hasattr(processor, "auto_map")
    assert AutoImageProcessor.from_pretrained(tmp_path, num_crops=4).num_crops == 4


def test_save_and_load(tmp_path: Path) -> None:
    processor = Phi3VImageProcessor(num_crops=9, image_size=28, patch_size=7)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == {
        "fast_decode": False,
        "image_mean": list(CLIP_MEAN),
        "image_processor_type": "Phi3VImageProcessor",
        "image_size": 28,
        "image_std": list(CLIP_STD),
        "num_crops": 9,
        "num_img_tokens": 4,  # a crop's; the original's code reads it
        "patch_size": 7,
        "preparation_version": 1,
    }
    assert Phi3VImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    changed = Phi3VImageProcessor.from_pretrained(tmp_path, num_crops=4)
    assert (changed.num_crops, changed.image_size) == (4, 28)
    assert Phi3VImageProcessor.from_pretrained(tmp_path, image_size=336, patch_size=14).num_img_tokens == 144
