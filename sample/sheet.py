"""A contact sheet: photos with what a model says of them and what is true. Its text is drawn, never interpreted."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from enrich.answers.amount import digits, money
from enrich.pages import fonts
from enrich.photos.decode import shrink
from enrich.photos.decoders import Decoders
from enrich.settings.photos import PhotoLimits

ACROSS = 4  # products in a row
TOLERANCE = 0.2  # a price off by more is marked; the score table counts the same
# Pixels: 1,200 across are sharp enough where a page shows them at two thirds of that.
CELL, PHOTO, MARGIN, HEADER = 300, 270, 15, 40
LINE, LETTERS = 20, 13
BLACK, RED, GREY = (25, 25, 25), (190, 20, 20), (125, 125, 125)
_JOINERS = "\u200c\u200d"  # parts of words, as in Persian
_HEIGHT = PHOTO + 2 * MARGIN + 7 * LINE
_LEGEND = (("answer", BLACK), ("wrong, or a price more than 20 % off", RED), ("truth", GREY))

Line = tuple[str, tuple[int, int, int]]


def draw_sheet(rows: Sequence[tuple[Sequence[Path], Mapping[str, Any]]], currency: str | None) -> Image.Image:
    """Rows of four products, the photos of each side by side above its code, title, category and price: the answer, red
    where wrong, then the truth.

    Args:
        rows: the photos' files, and a row of SCORE_SCHEMA about the product.
        currency: of the prices.
    """
    sheet = Image.new("RGB", (ACROSS * CELL, HEADER + -(-len(rows) // ACROSS) * _HEIGHT), "white")
    pen = ImageDraw.Draw(sheet)
    left = MARGIN
    for text, colour in _LEGEND:
        pen.rectangle((left, HEADER // 2 - 5, left + 10, HEADER // 2 + 5), colour)
        fonts.draw(pen, (left + 18, HEADER // 2 + 5), text, colour, LETTERS)
        left += 18 + int(fonts.length(text, LETTERS)) + 2 * MARGIN
    with Decoders(partial(shrink, side=PHOTO), PhotoLimits(), 1, most_pixels=PHOTO * PHOTO) as decoders:
        shown = [[Image.fromarray(decoders.decode(path.read_bytes()).page) for path in paths] for paths, _ in rows]
    for number, (photos, (_, row)) in enumerate(zip(shown, rows, strict=True)):
        left, top = number % ACROSS * CELL + MARGIN, HEADER + number // ACROSS * _HEIGHT
        _paste(sheet, photos, left, top)
        for line, (text, colour) in enumerate(_lines(row, currency)):
            fonts.draw(pen, (left, top + PHOTO + 8 + LETTERS + line * LINE), _fitting(text), colour, LETTERS)
    return sheet


def _paste(sheet: Image.Image, photos: Sequence[Image.Image], left: int, top: int) -> None:
    """Side by side in equal squares, as few rows of them as are wide enough."""
    across = math.ceil(math.sqrt(len(photos)))
    square = PHOTO // max(1, across)
    down = (PHOTO - square * -(-len(photos) // max(1, across))) // 2
    for number, photo in enumerate(photos):
        photo.thumbnail((square, square))
        x, y = left + number % across * square, top + down + number // across * square
        sheet.paste(photo, (x + (square - photo.width) // 2, y + (square - photo.height) // 2))


def _lines(row: Mapping[str, Any], currency: str | None) -> list[Line]:
    code: Line = (row["product_code"], GREY)
    truth: list[Line] = [
        (text, GREY) for text in (row["title"], row["category"], _money(row["price"], currency) or "no price")
    ]
    if row["answered_title"] is None:
        return [code, ("no answer", RED), *truth]
    price, true = row["answered_price"], row["price"]
    said = _money(price, currency) or "no price"
    if row["price_low"] is not None:
        said += f" ({digits(row['price_low'], currency)} to {digits(row['price_high'], currency)})"
    off = true is not None and abs((price or 0.0) - true) > TOLERANCE * true
    told = (
        (row["answered_title"], row["answered_title"].casefold().split() != row["title"].casefold().split()),
        (row["answered_category"], row["answered_category"] != row["category"]),
        (said, off),
    )
    return [code, *((text, RED if wrong else BLACK) for text, wrong in told), *truth]


def _money(amount: float | None, currency: str | None) -> str:
    return "" if amount is None else money(amount, currency)


def _fitting(text: str) -> str:
    """One line of printable text, cut to the width of a photo."""
    line = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in text[:200])
    if fonts.length(line, LETTERS) <= PHOTO:
        return line
    while line and fonts.length(line + "…", LETTERS) > PHOTO:
        line = line[:-1]
    return line.rstrip() + "…"
