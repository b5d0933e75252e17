"""The page of a first look has the size, padding and nearly the pixels of one that was prepared with so few squares."""

import numpy as np
import pytest
from PIL import Image

from enrich.models.base import Preparation
from enrich.models.registry import layouts
from enrich.photos.decode import Photo
from enrich.photos.first_look import first_look, with_first_look

SIDES = {"crops": 112, "qwen3_vl": 32, "gemma4": 48, "smolvlm": 128}
LOOKS = {
    "crops": [(1, 4), (2, 4), (4, 9), (4, 16)],
    "qwen3_vl": [(128, 400)],
    "gemma4": [(140, 560)],
    "smolvlm": [(1, 4)],
}


def photo(width: int, height: int) -> Image.Image:
    """Smooth, so that the order of two scalings changes little."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("layout", SIDES)
@pytest.mark.parametrize("size", [(600, 800), (800, 600), (500, 500), (1000, 350), (90, 2000), (641, 480), (37, 53)])
def test_it_is_the_page_of_fewer_squares(layout: str, size: tuple[int, int]) -> None:
    page, side = layouts()[layout].page, SIDES[layout]
    whole = photo(*size)
    for few, many in LOOKS[layout]:
        shown = Photo(page(whole, many, side), *size)
        found, expected = first_look(shown, Preparation(many, side, layout=layout), few), page(whole, few, side)
        assert (found.shape, found.dtype) == (expected.shape, np.uint8)
        assert np.abs(found.astype(int) - expected).mean() < 6


def test_padding_stays_white_and_outside() -> None:
    page = layouts()["crops"].page
    black = Image.new("RGB", (600, 800))
    found = first_look(Photo(page(black, 4, 112), 600, 800), Preparation(4, 112), 1)
    assert (found == page(black, 1, 112)).all()


def test_a_photo_without_a_first_look_stays_as_it_is() -> None:
    shown = Photo(np.zeros((112, 112, 3), np.uint8), 50, 50)
    assert with_first_look(shown, Preparation(4, 112), None) is shown
    assert with_first_look(shown, Preparation(4, 112), 1).first is not None
