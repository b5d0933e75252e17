"""A photo that a catalog names, found whatever system wrote the name: separators of Windows, accents of a Mac."""

import os
import unicodedata
from pathlib import Path

NOT_FOUND, EMPTY, OUTSIDE = "photo not found", "photo is an empty file", "photo is outside the catalog's directory"


def find_photo(name: str, directory: Path) -> tuple[str, str]:
    """The absolute path of the photo `name`, relative to `directory`, and "" or why it cannot be used."""
    reasons = []
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        path = os.path.normpath(directory / written)
        if not path.startswith(str(directory) + os.sep):
            reasons.append(OUTSIDE)
            continue
        path = _as_on_disk(path, directory)
        size = _size(path)
        if size:
            return path, ""
        reasons.append(NOT_FOUND if size is None else EMPTY)
    return "", reasons[0]


def _size(path: str) -> int | None:
    """Bytes of the file; None where there is none."""
    try:
        return os.stat(path).st_size if os.path.isfile(path) else None
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return None


def _as_on_disk(path: str, directory: Path) -> str:
    """The path with each name in the form that the disk has, where the two differ in Unicode normalisation only."""
    if path.isascii() or _size(path) is not None:
        return path
    found = str(directory)
    for name in os.path.relpath(path, directory).split(os.sep):
        forms = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
        found = next(
            (one for form in forms if os.path.lexists(one := f"{found}{os.sep}{form}")), f"{found}{os.sep}{name}"
        )
    return found
