import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from enrich.models.phi3_vision.hd_transform import hd_size, hd_transform, resized_size
from tests.testing.tiny_phi3v import noise_image, pattern_image


def hd_transform_by_definition(image: Image.Image, num_crops: int, image_size: int) -> np.ndarray:
    """The original, word for word: a portrait is transposed, treated as a landscape and transposed back."""
    width, height = image.size
    portrait = width < height
    if portrait:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        width, height = image.size
    ratio = width / height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    scale -= 1
    new_width = scale * image_size
    new_height = max(1, int(new_width / ratio))
    pixels = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR))
    padding = math.ceil(new_height / image_size) * image_size - new_height
    top = padding // 2
    pixels = np.pad(pixels, ((top, padding - top), (0, 0), (0, 0)), constant_values=255)
    return pixels.transpose(1, 0, 2) if portrait else pixels


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 260),
    height=st.integers(1, 260),
    num_crops=st.integers(1, 16),
    image_size=st.sampled_from([4, 28, 56]),
    seed=st.integers(0, 99),
)
@example(width=112, height=150, num_crops=16, image_size=28, seed=0)  # the long side only is resized
@example(width=83, height=112, num_crops=16, image_size=28, seed=0)  # next to nothing is
@example(width=1, height=260, num_crops=16, image_size=28, seed=0)
def test_hd_transform_is_the_definition_to_the_bit(
    width: int, height: int, num_crops: int, image_size: int, seed: int
) -> None:
    photo = noise_image(width, height, seed)
    expected = hd_transform_by_definition(photo, num_crops, image_size)
    np.testing.assert_array_equal(hd_transform(photo, num_crops, image_size), expected)
    assert hd_size(width, height, num_crops, image_size) == expected.shape[1::-1]


@pytest.mark.parametrize("size", [(1000, 1333), (1333, 1000), (1000, 1000), (1000, 1001), (500, 667)])
def test_hd_transform_is_the_definition_at_the_models_own_size(size: tuple[int, int]) -> None:
    photo = noise_image(*size)
    np.testing.assert_array_equal(hd_transform(photo, 4), hd_transform_by_definition(photo, 4, 336))


@pytest.mark.parametrize(
    ("photo", "reduced", "grid", "grid_of_reduced"),
    [
        ((102, 51), (51, 26), (56, 28), (28, 28)),  # 26 rows stand for 25.5
        ((51, 102), (26, 51), (28, 56), (28, 28)),
        ((100, 101), (50, 50), (56, 56), (56, 56)),
    ],
)
def test_a_photo_decoded_at_a_reduced_scale_keeps_its_grid(
    photo: tuple[int, int], reduced: tuple[int, int], grid: tuple[int, int], grid_of_reduced: tuple[int, int]
) -> None:
    num_crops = 4 if grid == (56, 56) else 2
    assert hd_size(*photo, num_crops, 28) == grid
    image = Image.new("RGB", reduced)
    assert hd_transform(image, num_crops, 28).shape == (*grid_of_reduced[::-1], 3)
    scaled = hd_transform(image, num_crops, 28, size=photo)
    assert scaled.shape == (*grid[::-1], 3)
    width, height = resized_size(*photo, num_crops, 28)
    assert (scaled == 0).sum() == width * height * 3  # the black image, and white around it


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


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 array (4, 4)"),
        (np.zeros((3, 4, 4), np.uint8), "uint8 array (3, 4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32 array (4, 4, 3)"),
        ("photo.jpg", "str"),
    ],
)
def test_other_inputs_are_refused(image: object, found: str) -> None:
    with pytest.raises(ValueError, match=r"an image must be") as caught:
        hd_transform(image, 4)  # type: ignore[arg-type]
    assert str(caught.value) == f"an image must be a PIL image or a uint8 array (height, width, 3), got {found}"
