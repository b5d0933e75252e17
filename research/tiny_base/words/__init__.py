"""Words of fashion and, in the files named `other`, of a few other trades."""

from pathlib import Path


def text(name: str) -> str:
    """The file `name`.txt next to this one: words between blanks and newlines."""
    return (Path(__file__).parent / f"{name}.txt").read_text("utf-8")


def words(language: str) -> list[str]:
    """All words of a language, of both files, sorted."""
    return sorted({*text(language).split(), *text(f"{language}_other").split()})
