"""Size and chunks of a WebP file, read before Pillow opens it: opening already takes all the memory of the photo."""

from collections.abc import Iterator


def is_webp(data: bytes) -> bool:
    """Whether the bytes start as a WebP file does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first chunk; None if it has none."""
    kind, body = data[12:16], data[20:30]
    if not is_webp(data) or len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def whole_chunks(data: bytes) -> Iterator[bytes]:
    """The complete chunks, each padded to an even length."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            return
        yield data[at : at + 8 + length] + b"\0" * (length % 2)
        at += 8 + length + length % 2
