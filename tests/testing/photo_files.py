"""Photos as files, whole and hostile."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from enrich.photos.decode import decode
from enrich.settings.photos import PhotoLimits

LIMITS = PhotoLimits()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """(height, width, 3) uint8, as a run sees the photo."""
    return np.asarray(decode(data, LIMITS))


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # how the array must be turned, by numpy's names for it
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.rot90(np.fliplr(a)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.fliplr(a), -1),
    8: np.rot90,
    9: lambda a: a,
}


def exif(orientation: Any) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


PNG = b"\x89PNG\r\n\x1a\n"


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and contains next to nothing."""
    return png_of(width, height, zlib.compress(b"\0" * 64))


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of 1 bit a pixel with these compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
