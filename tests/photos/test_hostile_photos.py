"""Photos made to do harm: each is a photo or a refusal, in bounded memory and time."""

import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from enrich.photos.decode import ImageRefused, Preparation, decode
from enrich.photos.fetch import fetcher
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from enrich.vocabulary import ErrorKind, ListedPhoto
from tests.testing.photo_files import LIMITS, encoded, png_chunk
from tests.testing.rows import make_item

PHOTO = Image.effect_noise((40, 30), 80).convert("RGB")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_a_file_cut_at_any_byte_is_a_refusal_or_the_whole_photo(format: str) -> None:
    data = encoded(PHOTO, format)
    for length in range(len(data)):
        try:
            assert decode(data[:length], LIMITS).size == (40, 30)
        except ImageRefused as refusal:
            kind = refusal.kind
        else:
            kind = ErrorKind.TRUNCATED
        assert kind in (ErrorKind.TRUNCATED, ErrorKind.NOT_AN_IMAGE, ErrorKind.EMPTY)


def test_a_jpeg_cut_by_one_segment_marker_too_many() -> None:
    data = encoded(PHOTO, "JPEG", progressive=True, quality=95)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for at in scans[1:]:  # a progressive photo without its last scans would be shown blurred
        with pytest.raises(ImageRefused) as caught:
            decode(data[:at], LIMITS)
        assert caught.value.kind is ErrorKind.TRUNCATED


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200


@pytest.mark.parametrize(
    "data",
    [
        SVG,
        b"<!doctype html><title>403</title>",
        HEIC,
        b"%PDF-1.7\n" + b"x" * 99,
        b"MZ" + b"\0" * 99,
        b"PK\3\4" + b"x" * 50,
    ],
)
def test_what_only_has_the_name_of_a_photo_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageRefused) as caught:
        decode(data, LIMITS)
    assert caught.value.kind is ErrorKind.NOT_AN_IMAGE


def png_with(kind: bytes, content: bytes) -> bytes:
    """A good PNG with one chunk more, before its pixels."""
    data = encoded(PHOTO, "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + png_chunk(kind, content) + data[at:]


BOMB = zlib.compress(b"\0" * (300 << 20), 9)  # 300 kB that unpack to 300 MB


@pytest.mark.parametrize(
    ("kind", "content"),
    [(b"zTXt", b"Comment\0\0" + BOMB), (b"iTXt", b"Comment\0\1\0\0\0" + BOMB), (b"iCCP", b"profile\0\0" + BOMB)],
)
def test_a_bomb_in_the_text_or_the_colour_profile_of_a_png_is_not_unpacked(kind: bytes, content: bytes) -> None:
    started = time.monotonic()
    try:
        assert decode(png_with(kind, content), LIMITS).size == (40, 30)
    except ImageRefused as refusal:
        found = refusal.kind
    else:
        found = ErrorKind.NOT_AN_IMAGE
    assert found in (ErrorKind.NOT_AN_IMAGE, ErrorKind.TOO_MANY_PIXELS)
    assert time.monotonic() - started < 10


def test_a_colour_profile_good_broken_or_large_does_not_lose_the_photo() -> None:
    good = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (good, b"no profile", good[:50], b"\0" * 500_000):
        assert decode(encoded(PHOTO, "JPEG", icc_profile=profile), LIMITS).size == (40, 30)


def test_exif_that_points_at_itself_or_claims_gigabytes_does_not_lose_the_photo() -> None:
    loop = b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\x01" + struct.pack(">HHII", 0x8769, 4, 1, 8) + struct.pack(">I", 8)
    huge = b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\x01" + struct.pack(">HHII", 0x9286, 7, 0xFFFFFFF0, 26) + b"\0\0\0\0"
    many = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + struct.pack(">HHII", 0x0112, 3, 1, 6 << 16) * 5000
    for exif in (loop, huge, many[:65_000]):
        started = time.monotonic()
        assert sorted(decode(encoded(PHOTO, "JPEG", exif=exif), LIMITS).size) == [30, 40]
        assert time.monotonic() - started < 5


def test_an_animation_of_a_thousand_frames_costs_one() -> None:
    frames = [Image.new("RGB", (300, 300), (number % 256, 0, 0)) for number in range(1000)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    started = time.monotonic()
    assert decode(data, LIMITS).size == (300, 300)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_one_pixel_is_a_photo(format: str) -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), "red"), format), LIMITS).size == (1, 1)


def fetched(folder: Path, photos: dict[str, bytes], **limits: Any) -> dict[str, tuple[ErrorKind | None, str | None]]:
    """What real decoding processes make of photos."""
    store = open_store(str(folder), create=True)
    for name, data in photos.items():
        store.put(name, data)
    items = [make_item(ListedPhoto(info.key, info.size, info.etag)) for info in store.list()]
    settings = RunSettings(decode_processes=1, limits=PhotoLimits(**limits))
    with fetcher(store, settings, Preparation(num_crops=4, image_size=336)) as fetch_items:
        found = list(fetch_items(items))
    return {one.item.product_id: (one.photos[0].error_kind, one.photos[0].error_message) for one in found}


def test_fifty_megapixels_are_decoded_within_the_limits(tmp_path: Path) -> None:
    large = Image.new("RGB", (8000, 6250), "navy")
    photos = {"a.jpg": encoded(large, "JPEG"), "b.png": encoded(large, "PNG"), "c.webp": encoded(large, "WEBP")}
    assert fetched(tmp_path, photos) == dict.fromkeys(photos, (None, None))


def test_a_photo_that_wants_more_memory_or_time_than_it_may_costs_one_row(tmp_path: Path) -> None:
    large = Image.new("RGB", (7000, 7000), "navy")
    photos = {"a large.png": encoded(large, "PNG"), "b good.png": encoded(PHOTO, "PNG")}
    found = fetched(tmp_path / "memory", photos, decode_memory_bytes=100 << 20)
    assert found["a large.png"][0] is ErrorKind.TOO_MANY_PIXELS
    assert found["b good.png"] == (None, None)
    found = fetched(tmp_path / "time", photos, decode_seconds=0.02)
    assert found["a large.png"] == (ErrorKind.NOT_AN_IMAGE, "decoding took more than 0.02 s of CPU time")
