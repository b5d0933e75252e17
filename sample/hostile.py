"""Files that are named as photos and are none, each with the error kind that a careful reader gives it."""

import struct
import zlib

from enrich.vocabulary import ErrorKind

_BOMB_SIDE = 20_000  # pixels: 400 megapixels in about 50 kB


def hostile_files(photo: bytes) -> dict[str, tuple[bytes, ErrorKind]]:
    """File name -> bytes and expected error kind. `photo` is a whole JPEG, to be cut short."""
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
    drawing = (
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="300" height="400">'
        b'<rect width="300" height="400" fill="#eee"/></svg>\n'
    )
    return {
        "sku-empty.jpg": (b"", ErrorKind.EMPTY),
        "sku-webpage.jpg": (page, ErrorKind.NOT_AN_IMAGE),
        "sku-drawing.png": (drawing, ErrorKind.NOT_AN_IMAGE),
        "sku-truncated.jpg": (photo[: len(photo) * 6 // 10], ErrorKind.TRUNCATED),
        "sku-bomb.png": (_bomb(), ErrorKind.TOO_MANY_PIXELS),
    }


def _bomb() -> bytes:
    """A valid black 1-bit PNG that is small as a file and huge as pixels."""
    row = bytes(1 + _BOMB_SIDE // 8)  # filter type, then 8 pixels a byte
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(row * 500) for _ in range(_BOMB_SIDE // 500)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", _BOMB_SIDE, _BOMB_SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
