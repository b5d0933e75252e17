"""Catalogs without a table: folders of photos, one for each category, and WebDataset archives."""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from enrich.catalog.embedded import Embedded
from enrich.catalog.records import read_json
from enrich.errors import UsageError, first_line
from enrich.photos.groups import natural_order
from enrich.settings.photos import SIDECARS

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
_TEXTS = {"txt": "title", "caption": "title", "text": "title", "cls": "category"}  # WebDataset's usual extensions
_ABOVE = ("train", "images", "photos", "data")  # folders above those of the classes
_MOST_METADATA = 1 << 20  # bytes of a text next to a photo
_MOST_MEMBERS = 10_000_000


def read_folders(directory: Path) -> tuple[list[dict[str, str]], list[str]]:
    """A row for each photo in a folder below `directory`, which is its category, and messages for the user.

    The product code is the file's name without its ending, with the folder before it where two are the same. The title
    is that name too where it has words, else the category.
    """
    found = []
    for folder, folders, names in os.walk(directory):
        folders.sort(key=natural_order)
        for name in sorted(names, key=natural_order):
            path = Path(os.path.relpath(os.path.join(folder, name), directory))
            if name.lower().endswith(IMAGES) and not _is_sidecar(name) and len(path.parts) > 1:
                found.append(path)
    times = Counter(path.stem for path in found)
    rows = [
        {
            "product_code": path.stem if times[path.stem] == 1 else path.with_suffix("").as_posix(),
            "title": _words(path.stem) or path.parent.name,
            "category": " > ".join(path.parts[1 if path.parts[0] in _ABOVE and len(path.parts) > 2 else 0 : -1]),
            "image": path.as_posix(),
        }
        for path in found
    ]
    if len({row["category"] for row in rows}) < 2:  # one folder says nothing about its photos
        return [], []
    worded = sum(bool(_words(path.stem)) for path in found)
    told = [
        f"no table: {len(rows):,} photos in folders whose names are the categories; titles are the names of "
        f"{worded:,} files and, for {len(rows) - worded:,} without words, of their folders; there are no prices"
    ]
    return rows, told


def read_archives(paths: Sequence[Path], embedded: Embedded) -> tuple[list[dict[str, str]], list[str]]:
    """A row for each sample of WebDataset archives: the files that share a name up to their endings.

    Texts (`.txt`, `.cls`) and what JSON holds become columns, photos are kept.

    Raises:
        UsageError: one is not a tar file.
    """
    samples: dict[str, dict[str, str]] = {}
    photos: dict[str, list[str]] = {}
    for path in paths:
        try:
            with tarfile.open(path, "r:*") as archive:
                for number, member in enumerate(archive):
                    if number > _MOST_MEMBERS:
                        raise UsageError(f"{path}: holds more than {_MOST_MEMBERS:,} files; split it")
                    if member.isfile():
                        _add(archive, member, samples, photos, embedded)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"{path} cannot be read: {first_line(error)[:200]}; replace the file") from error
    rows = [
        {"product_code": key.rpartition("/")[2], "__key__": key, **cells, "image": "|".join(photos.get(key, ()))}
        for key, cells in samples.items()
    ]
    names = sorted({name for row in rows for name in row})
    return rows, [f"{len(paths):,} archives with {len(rows):,} samples; columns: {', '.join(names)[:200]}"]


def _add(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    samples: dict[str, dict[str, str]],
    photos: dict[str, list[str]],
    embedded: Embedded,
) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    key, ending = (f"{folder}/{stem}" if folder not in ("", ".") else stem), ending.lower()
    if not stem or (_is_sidecar(name) and ending not in ("json", *_TEXTS)):
        return
    cells = samples.setdefault(key, {})
    file = archive.extractfile(member)
    if file is None:
        return
    if f".{ending.rpartition('.')[2]}" in IMAGES:
        photos.setdefault(key, []).append(embedded.keep(file.read((32 << 20) + 1)) or member.name)
        return
    if member.size > _MOST_METADATA:
        return
    text = file.read().decode("utf-8", "replace")
    if ending == "json":
        try:
            cells |= (read_json(json.dumps([json.loads(text)]), member.name)[0] or [{}])[0]
        except (ValueError, RecursionError):
            return
    else:
        cells.setdefault(_TEXTS.get(ending, ending), text.strip())


def _words(stem: str) -> str:
    """The name of a file as a title: with spaces, if it has a word of letters; "" otherwise."""
    text = re.sub(r"[\s_\-+.]+", " ", stem).strip()
    return (
        text if re.search(r"[^\W\d_]{3}", text) and not re.fullmatch(r"(?i)(img|dsc|photo|image)?\s*\d*", text) else ""
    )


def _is_sidecar(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern.lower()) for pattern in SIDECARS)
