"""Find the photos that a catalog names, in any notation: lists, Windows separators, accents as macOS writes them."""

import html
import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from enrich.catalog.download import urls_of
from enrich.catalog.embedded import Embedded, data_of, is_data_uri
from enrich.catalog.folders import IMAGES
from enrich.catalog.records import BETWEEN_PHOTOS

NOT_FOUND, EMPTY, OUTSIDE = "photo not found", "photo is an empty file", "photo is outside the catalog's directory"


URL = "photo is a URL, not a file: `enrich catalog fetch` downloads it"
NO_DATA = "photo is an empty data: URI"
_BETWEEN = re.compile(r"\s*[,;\n\r]\s*")


@dataclass(frozen=True)
class Photos:
    """Where the photos of a catalog are. `urls`: whether those that would have to be downloaded count as there."""

    directory: Path
    embedded: Embedded
    urls: bool = False

    def find(self, name: str) -> tuple[str, str]:
        """The absolute path of the photo `name`, or its URL, and "" or why it cannot be used."""
        if path := self.embedded.path_of(name):
            return path, ""
        if is_data_uri(name):
            kept = self.embedded.keep(data_of(name) or b"")
            return (self.embedded.path_of(kept) or "", "") if kept else ("", NO_DATA)
        if is_url(name):
            url = html.unescape(name)
            return (url, "") if self.urls else ("", URL)
        return find_photo(name, self.directory)


def is_url(name: str) -> bool:
    return name.startswith("//") or re.match(r"(?i)(https?|ftp|s3|gs)://", name) is not None


def names_of(cell: str) -> list[str]:
    """The names in a cell, joined by `|` or as a JSON list; URLs and names of files also by commas and semicolons."""
    return [name for part in cell.split(BETWEEN_PHOTOS) for name in _names_in(part.strip())]


def _names_in(part: str) -> list[str]:
    if is_data_uri(part):
        return [part]
    if part.startswith("[") and part.endswith("]"):
        try:
            return [str(one) for one in json.loads(part) if one]
        except (ValueError, RecursionError):
            part = part[1:-1].replace('"', "").replace("'", "")
    if is_url(part):
        return urls_of(part)
    parts = [one for one in _BETWEEN.split(part) if one]
    several = len(parts) > 1 and all(one.lower().endswith(IMAGES) or is_url(one) for one in parts)
    return parts if several else [part] if part else []


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
