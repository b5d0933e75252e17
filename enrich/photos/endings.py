"""Truncated photos that still contain all pixels: uploads cut by a proxy, encoders that omit the end marker.

Decoders fill in missing pixels without saying so. This module therefore completes the file with two different endings:
if both decode to the same picture, the missing bytes carried no pixels.
"""

from collections.abc import Iterator

from enrich.photos.webp import is_webp, whole_chunks

_JPEG_END = b"\xff\xd9"
_RESTARTS = range(0xD0, 0xD8)  # restart markers within the data of a JPEG
_NO_LENGTH = {0x01, 0xD8, 0xD9, *_RESTARTS}  # JPEG markers without a segment
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG segments that describe the picture
_SCAN = 0xDA
_FILLER = bytes(1 + (170 + 89 * i) % 254 for i in range(254))  # arbitrary data without 0x00 and 0xFF, which are special
_OPPOSITE = bytes(255 - byte for byte in _FILLER)  # the complement: any missing bit differs between the two
_ENDS = {"JPEG": _JPEG_END, "MPO": _JPEG_END, "PNG": b"IEND\xaeB`\x82", "GIF": b";"}


def completed(data: bytes) -> tuple[bytes, ...]:
    """`data` with several endings. No pixel is missing if all of them decode to the same picture.

    Empty for other formats, and for a JPEG that lacks whole scans.
    """
    if data[:2] == b"\xff\xd8":
        if not _has_all_scans(data):
            return ()
        start = data[:-1] if data[-1:] == b"\xff" else data
        return tuple(
            start + filler + b"".join(bytes((0xFF, marker)) + filler for marker in (*_RESTARTS, *_RESTARTS)) + _JPEG_END
            for filler in (_FILLER, _OPPOSITE)
        )
    if data[:4] == b"GIF8" or data[:2] == b"BM":
        return data + b"\0" * 256 + b";", data + b"\xff" * 256 + b"\0;"
    if is_webp(data):
        body = b"".join(whole_chunks(data))
        return (b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body,) if body else ()
    return ()


def ends_properly(data: bytes, format: str) -> bool:
    """Whether the file has the end marker of its format; True for formats without one."""
    mark = _ENDS.get(format)
    return mark is None or mark in data[-64:] or mark in data  # the last bytes first, because a photo has up to 32 MB


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG contain every coefficient in full. A progressive one may end between two scans."""
    missing: dict[int, set[int]] = {}  # component -> coefficients that are missing or lack bits
    for marker, segment in _segments(data):
        if marker in _FRAMES and len(segment) > 5:
            missing = {segment[6 + 3 * i]: set(range(64)) for i in range(segment[5]) if 6 + 3 * i < len(segment)}
        elif marker == _SCAN and segment and len(segment) >= 4 + 2 * segment[0]:
            first, last, bits = segment[-3], segment[-2], segment[-1] & 15  # bits still to come
            for component in segment[1 : 1 + 2 * segment[0] : 2]:
                if not bits and component in missing:
                    missing[component].difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of a JPEG with their segments, without a truncated one."""
    at = 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            return
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length
