"""Text in pictures, in any script: each character is drawn by the first font of this machine that has it.

A character that no font has is written as its code. Browsers find fonts for the text of pages by themselves.
"""

import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont, features

# Part of matplotlib; has Latin, Greek, Cyrillic, Arabic, Hebrew, Armenian and Georgian letters.
DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
# Letters that a script cannot be written without.
SCRIPTS = {
    "Latin": "Aéß", "Greek": "Ωλ", "Cyrillic": "Жы", "Arabic": "حقپ", "Hebrew": "של",
    "Devanagari": "कमी", "Thai": "กระ", "Japanese": "製品カテゴリ", "Chinese": "产品类别類", "Korean": "장갑",
}  # fmt: skip
# Parts of the names of font files that are tried last, in this order: they draw, but not as the rest of a line looks.
_ODD = ("serif", "condensed", "mono", "thin", "light", "medium", "black", "bold", "italic", "oblique")
_NO_LETTERS = ("lastresort", "adobeblank")  # draw every character, as a box or as nothing

Run = tuple[str, str]  # a font's file, and the text that it draws


def undrawable() -> list[str]:
    """The scripts of which this machine has no font."""
    return [script for script, letters in SCRIPTS.items() if None in map(font_of, letters)]


def joins_letters() -> bool:
    """Whether pictures can have joined letters and text from right to left, as Arabic is written."""
    return bool(features.check("raqm"))


@lru_cache(maxsize=1 << 16)
def font_of(character: str) -> str | None:
    """The file of the first font that has a character."""
    return next((path for path in _fonts() if ord(character) in _characters(path)), None)


def runs(text: str) -> list[Run]:
    """`text` divided by fonts. A character without one is written as its code, such as \\u30b7."""
    found: list[Run] = []
    for character in text:
        font, before = font_of(character), found[-1] if found else (DEJAVU, "")
        # Marks, joiners and blanks belong to what they follow.
        if unicodedata.category(character) in ("Mn", "Mc", "Cf", "Zs") and ord(character) in _characters(before[0]):
            font = before[0]
        written = character if font else character.encode("unicode_escape").decode()
        if found and before[0] == (font or DEJAVU):
            found[-1] = (before[0], before[1] + written)
        else:
            found.append((font or DEJAVU, written))
    return found


def length(text: str, size: int) -> float:
    """How wide `text` is, in pixels."""
    return sum(_font(path, size).getlength(written) for path, written in runs(text))


def draw(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int], size: int
) -> None:
    """Draw one line of text; `place` is the left end of its baseline."""
    left, baseline = place
    for path, written in runs(text):
        font = _font(path, size)
        pen.text((left, baseline), written, colour, font, anchor="ls")
        left += font.getlength(written)


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _fonts() -> tuple[str, ...]:
    def order(path: str) -> tuple[int, str]:
        name = Path(path).stem.lower()
        return max((number for number, odd in enumerate(_ODD, start=1) if odd in name), default=0), name

    return (DEJAVU, *sorted(filter(_is_font_of_letters, findSystemFonts()), key=order))


def _is_font_of_letters(path: str) -> bool:
    return not Path(path).stem.lower().replace("-", "").startswith(_NO_LETTERS)


@cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none of a font of bitmaps, or one that cannot be read. A few ms a font."""
    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
