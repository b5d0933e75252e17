"""Photos embedded in tables and archives, stored as files in the cache so that training reads them like others."""

import base64
import binascii
import hashlib
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

from enrich.storage.cache import cache_directory, disk_errors

_MOST_BYTES = 32 << 20  # of a photo, as limits.max_bytes has it by default; decoding checks the limits that are set
# What the bytes of a format begin with; the first bytes of WEBP and AVIF are lengths and names of containers.
_FORMATS = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"), (re.compile(rb"\x89PNG\r\n"), "png"), (re.compile(rb"GIF8"), "gif"),
    (re.compile(rb"BM"), "bmp"), (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
)  # fmt: skip
_DATA_URI = re.compile(
    r"data:(?:image/[\w.+-]+)?(?:;[\w.=+-]+)*?(?P<base64>;base64)?,(?P<data>.*)", re.DOTALL | re.ASCII
)
PREFIX = "embedded/"  # of the names of such photos, which are not paths


class Embedded:
    """Photos by name. Their files are named by their bytes, so each is kept once, and a second run finds it again."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def keep(self, data: bytes) -> str:
        """The name of the photo `data`; "" where there are no bytes, or too many."""
        if not data or len(data) > _MOST_BYTES:
            return ""
        ending = next((ending for start, ending in _FORMATS if start.match(data)), "bin")
        name = f"{hashlib.sha256(data).hexdigest()}.{ending}"
        if PREFIX + name not in self._paths:
            folder = cache_directory() / "photos"
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / name, data)
            self._paths[PREFIX + name] = str(folder / name)
        return PREFIX + name

    def path_of(self, name: str) -> str | None:
        """The file of the photo with this name; None if this table has no such photo."""
        return self._paths.get(name)


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def data_of(uri: str) -> bytes | None:
    """The bytes in a data: URI; None if it holds none that can be read."""
    match = _DATA_URI.fullmatch(uri[:5].lower() + uri[5:])
    if match is None or len(uri) > 2 * _MOST_BYTES:
        return None
    if not match["base64"]:
        return unquote_to_bytes(match["data"]) or None
    try:
        return base64.b64decode(unquote_to_bytes("".join(match["data"].split())), validate=True) or None
    except binascii.Error:
        return None


def _write(path: Path, data: bytes) -> None:
    """Write atomically, unless it already exists."""
    if path.is_file() and path.stat().st_size == len(data):
        return
    handle, part = tempfile.mkstemp(dir=path.parent)
    with open(handle, "wb") as file:
        file.write(data)
    os.replace(part, path)
