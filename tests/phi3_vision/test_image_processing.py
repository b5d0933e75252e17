import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from enrich.phi3_vision import Phi3VConfig, Phi3VImageProcessor
from enrich.phi3_vision.image_processing import CLIP_MEAN, CLIP_STD, hd_size, hd_transform
from tests.phi3_vision.tiny import ORIGINAL_PREPROCESSOR, pattern_image

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


def test_hd_transform_scales_up_and_pads_with_white() -> None:
    landscape = hd_transform(Image.new("RGB", (60, 45)), 4, 28)  # black, 4:3, to 56x42 in 2x2 crops
    portrait = hd_transform(Image.new("RGB", (45, 60)), 4, 28)
    assert landscape.shape == (56, 56, 3)
    assert landscape.dtype == np.uint8
    assert not landscape[7:49].any()
    assert (landscape[:7] == 255).all()
    assert (landscape[49:] == 255).all()
    np.testing.assert_array_equal(portrait, landscape.transpose(1, 0, 2))
    tiny = hd_transform(Image.new("RGB", (4, 3)), 4, 28)
    np.testing.assert_array_equal(tiny, landscape)
    strip = hd_transform(Image.new("RGB", (500, 1)), 4, 28)  # 112 pixels wide, a fifth of a pixel high: one row is kept
    assert strip.shape == (28, 112, 3)
    assert [row for row in range(28) if not strip[row].any()] == [13]


def test_hd_transform_of_a_fitting_image_changes_nothing() -> None:
    image = pattern_image(56, 56)
    np.testing.assert_array_equal(hd_transform(image, 4, 28), np.asarray(image))
    np.testing.assert_array_equal(hd_transform(np.asarray(image), 4, 28), np.asarray(image))


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
    ("image", "given"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 array (4, 4)"),
        (np.zeros((3, 4, 4), np.uint8), "uint8 array (3, 4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32 array (4, 4, 3)"),
        ("photo.jpg", "str"),
    ],
)
def test_other_inputs_are_refused(image: object, given: str) -> None:
    with pytest.raises(ValueError, match=r"an image must be") as caught:
        hd_transform(image, 4)  # type: ignore[arg-type]
    assert str(caught.value) == f"an image must be a PIL image or a uint8 array (height, width, 3), got {given}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_crops": 0}, "num_crops must be at least 1, got 0"),
        ({"image_size": 30, "patch_size": 7}, "image_size 30 must be a multiple of twice the patch_size (7)"),
        ({"image_size": 35, "patch_size": 7}, "image_size 35 must be a multiple of twice the patch_size (7)"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as caught:
        Phi3VImageProcessor(**settings)
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
        "image_mean": list(CLIP_MEAN),
        "image_processor_type": "Phi3VImageProcessor",
        "image_size": 28,
        "image_std": list(CLIP_STD),
        "num_crops": 9,
        "patch_size": 7,
    }
    assert Phi3VImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    changed = Phi3VImageProcessor.from_pretrained(tmp_path, num_crops=4)
    assert (changed.num_crops, changed.image_size) == (4, 28)
