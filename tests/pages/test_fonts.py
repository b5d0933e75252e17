"""Pictures show any script that a font of this machine has, and the codes of other characters."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from enrich.pages import fonts

OTHER = str(Path(fonts.DEJAVU).with_name("DejaVuSansMono.ttf"))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Replace the machine's fonts by these files, in addition to matplotlib's own."""

    def install(*files: str, **characters: str) -> None:
        monkeypatch.setattr(fonts, "findSystemFonts", lambda: list(files))
        stems = {Path(file).stem: file for file in (fonts.DEJAVU, *files)}
        found = {stems[stem]: frozenset(map(ord, letters)) for stem, letters in characters.items()}
        real = fonts._characters
        monkeypatch.setattr(fonts, "_characters", lambda path: found.get(path) or real(path))
        forget()

    def forget() -> None:
        fonts.font_of.cache_clear()
        fonts._fonts.cache_clear()

    yield install
    monkeypatch.undo()
    forget()


def test_what_no_font_has_is_written_as_its_code(install: Callable[..., None]) -> None:
    install()
    assert fonts.runs("Coat 半袖 👟") == [(fonts.DEJAVU, "Coat \\u534a\\u8896 \\U0001f45f")]
    assert fonts.runs("Пальто حقائب קמיץ") == [(fonts.DEJAVU, "Пальто حقائب קמיץ")]
    assert fonts.runs("") == []
    assert fonts.undrawable() == ["Devanagari", "Thai", "Japanese", "Chinese", "Korean"]


def test_each_run_of_characters_has_the_first_font_that_has_them(install: Callable[..., None]) -> None:
    install("/a/Kana-Bold.ttf", "/b/Kana.ttf", "/c/LastResort.otf", **{
        "Kana-Bold": "シャツ半", "Kana": "シャツ \u3099", "LastResort": "👟",
    })  # fmt: skip
    assert fonts.runs("T-シャツ、半 \u3099 A") == [
        (fonts.DEJAVU, "T-"), ("/b/Kana.ttf", "シャツ"), (fonts.DEJAVU, "\\u3001"), ("/a/Kana-Bold.ttf", "半"),
        (fonts.DEJAVU, " "), ("/b/Kana.ttf", "\u3099 "), (fonts.DEJAVU, "A"),
    ]  # fmt: skip
    assert fonts.font_of("👟") is None  # Apple's LastResort has a box for everything


def test_files_that_are_no_fonts_have_no_characters(tmp_path: Path, install: Callable[..., None]) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"OTTO" * 100)
    install(str(tmp_path / "broken.ttf"), str(tmp_path / "gone.ttf"))
    assert fonts.runs("シ") == [(fonts.DEJAVU, "\\u30b7")]


def drawn(text: str) -> np.ndarray:
    picture = Image.new("RGB", (300, 40), "white")
    fonts.draw(ImageDraw.Draw(picture), (5, 25), text, (0, 0, 0), 13)
    return 255 - np.asarray(picture.convert("L")).astype(int)


def test_runs_of_several_fonts_stand_side_by_side(install: Callable[..., None]) -> None:
    install(OTHER, DejaVuSans="Coat ", DejaVuSansMono="Жы")
    assert fonts.runs("Coat Жы") == [(fonts.DEJAVU, "Coat "), (OTHER, "Жы")]
    whole, left = drawn("Coat Жы"), drawn("Coat ")
    columns = np.flatnonzero(whole.any(axis=0))
    assert columns[-1] == pytest.approx(5 + fonts.length("Coat Жы", 13), abs=2)
    both = int(5 + fonts.length("Coat ", 13))
    assert (whole[:, :both] == left[:, :both]).all()
    assert whole[:, both:].any()


@pytest.mark.skipif(not fonts.joins_letters(), reason="Pillow has no libraqm here")
def test_letters_run_from_right_to_left_and_join(install: Callable[..., None]) -> None:
    install()
    second = drawn("ב")
    width = int(fonts.length("ב", 13))
    assert (drawn("אב")[:, : 5 + width] == second[:, : 5 + width]).all()
    assert fonts.length("لا", 13) < 0.8 * (fonts.length("ل", 13) + fonts.length("ا", 13))  # one ligature
