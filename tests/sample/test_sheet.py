"""The contact sheet marks what is wrong, and draws any text a model may say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sample.sheet import ACROSS, CELL, HEADER, MARGIN, PHOTO, draw_sheet


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 40), "white").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def row(title: str | None, category: str | None, price: float | None, **more: Any) -> dict[str, Any]:
    return {
        "product_code": "C-1", "title": "Wool Coat in Navy", "category": "COATS", "price": 100.0,
        "answered_title": title, "answered_category": category, "answered_price": price,
        "price_low": None, "price_high": None, **more,
    }  # fmt: skip


RIGHT = row("Wool coat  in navy", "COATS", 119.0)


def reds(photo: Path, told: dict[str, Any]) -> int:
    """Red pixels below the legend."""
    red, green, blue = np.moveaxis(np.asarray(draw_sheet([((photo,), told)], "EUR"))[HEADER:], 2, 0)
    return int(((red > 150) & (green < 80) & (blue < 80)).sum())


def test_nothing_right_is_red(photo: Path) -> None:
    assert reds(photo, RIGHT) == 0
    assert reds(photo, row("Wool Coat in Navy", "COATS", None) | {"price": None}) == 0


@pytest.mark.parametrize(
    "told",
    [
        row("Wool Coat", "COATS", 100.0),
        row("Wool Coat in Navy", "HATS", 100.0),
        row("Wool Coat in Navy", "COATS", 121.0),
        row("Wool Coat in Navy", "COATS", None),
        row(None, None, None),
    ],
    ids=["title", "category", "price", "no price", "no answer"],
)
def test_what_is_wrong_is_red(photo: Path, told: dict[str, Any]) -> None:
    assert reds(photo, told) > 20


def test_the_interval_is_shown(photo: Path) -> None:
    with_interval = draw_sheet([((photo,), RIGHT | {"price_low": 80.0, "price_high": 140.0})], "EUR")
    assert not np.array_equal(np.asarray(with_interval), np.asarray(draw_sheet([((photo,), RIGHT)], "EUR")))


def test_whatever_is_said_stays_in_its_cell(photo: Path) -> None:
    said = row("<b>\x00\n" + "x" * 5000 + "\u202e", "C\nD" * 400, 1e300, price_low=0.0, price_high=1e300)
    sheet = draw_sheet([((photo,), said)] * (ACROSS + 1), "EUR")
    assert sheet.width == ACROSS * CELL
    assert sheet.height - HEADER == 2 * (draw_sheet([((photo,), RIGHT)], "EUR").height - HEADER)
    for cell in range(1, ACROSS + 1):
        edge = np.asarray(sheet)[HEADER:, cell * CELL - 4 : cell * CELL + 4]
        assert (edge == 255).all()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_photos_of_a_product_are_side_by_side(tmp_path: Path, count: int) -> None:
    colours = [(20, 220, 20), (20, 20, 220), (220, 220, 20), (20, 220, 220)][:count]
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (300, 400), colour).save(path)
    sheet = np.asarray(draw_sheet([(paths, RIGHT)], "EUR"))[HEADER:, :CELL]
    left = []
    for colour in colours:
        rows, columns = np.nonzero((np.abs(sheet.astype(int) - colour) < 8).all(axis=2))
        assert (rows.min() >= 0, columns.max() - columns.min() > 90) == (True, True)
        assert rows.max() < PHOTO + MARGIN
        left.append(columns.min())
    assert left[0] < left[1]
