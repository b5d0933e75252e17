import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from enrich.errors import EnrichError
from enrich.photos.decode import ImageRefused, decode
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import ErrorKind
from tests.testing.photo_files import LIMITS, NOISE, PNG, TURNED, decoded, encoded, exif, png_header

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def row(mode: str, *pixels: Any) -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def pixels(data: bytes, limits: PhotoLimits = LIMITS) -> list[Any]:
    image = decode(data, limits)
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]


def palette(*colours: tuple[int, int, int], **options: Any) -> bytes:
    image = row("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return encoded(image, **options)


def big_endian_16_bit() -> bytes:
    return encoded(Image.frombytes("I;16B", (2, 1), b"\x01\x01\xff\xff"), "TIFF")


TIFF = PhotoLimits(formats=("TIFF",))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(row("1", 0, 1)), [(0, 0, 0), WHITE], id="1 bit"),
        pytest.param(encoded(row("L", 7, 200)), [(7, 7, 7), (200, 200, 200)], id="grey"),
        pytest.param(encoded(row("RGB", RED, (1, 2, 3))), [RED, (1, 2, 3)], id="RGB"),
        pytest.param(palette(RED, BLUE), [RED, BLUE], id="palette"),
        pytest.param(palette(RED, BLUE, transparency=0), [WHITE, BLUE], id="palette with a transparent colour"),
        pytest.param(
            palette(RED, BLUE, transparency=b"\x00\x80"), [WHITE, (127, 127, 255)], id="palette with half transparency"
        ),
        pytest.param(
            encoded(row("RGBA", (*RED, 0), (*RED, 255), (0, 0, 0, 51))),
            [WHITE, RED, (204, 204, 204)],
            id="alpha hides a colour",
        ),
        pytest.param(encoded(row("LA", (0, 0), (9, 255))), [WHITE, (9, 9, 9)], id="grey and alpha"),
        pytest.param(encoded(row("RGB", RED, BLUE), transparency=RED), [WHITE, BLUE], id="RGB, one colour transparent"),
        pytest.param(encoded(row("L", 5, 6), transparency=5), [WHITE, (6, 6, 6)], id="grey, one level transparent"),
        pytest.param(
            encoded(row("I;16", 0, 128, 129, 257, 32896, 65535)),
            [(v, v, v) for v in (0, 0, 1, 1, 128, 255)],
            id="16 bit",
        ),
        pytest.param(encoded(row("P", 0, 0), "GIF"), [(0, 0, 0), (0, 0, 0)], id="GIF"),
        pytest.param(encoded(row("RGB", RED, BLUE), "BMP"), [RED, BLUE], id="BMP"),
        pytest.param(encoded(row("RGBA", (*RED, 255), (*BLUE, 0)), "WEBP", lossless=True), [RED, WHITE], id="WEBP"),
        pytest.param(encoded(row("RGB", (9, 9, 9)), "PNG"), [(9, 9, 9)], id="one pixel"),
    ],
)
def test_every_mode_becomes_the_rgb_that_a_person_sees(data: bytes, expected: list[Any]) -> None:
    assert pixels(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(big_endian_16_bit(), [(1, 1, 1), WHITE], id="16 bit, big-endian"),
        pytest.param(encoded(row("I", 257, 65535), "TIFF"), [(1, 1, 1), WHITE], id="16 bit in 32"),
        pytest.param(encoded(row("YCbCr", (76, 85, 255)), "TIFF"), [(254, 0, 0)], id="YCbCr"),
    ],
)
def test_modes_of_formats_that_a_setting_adds(data: bytes, expected: list[Any]) -> None:
    assert pixels(data, TIFF) == expected


def test_cmyk_is_converted_as_adobe_stores_it() -> None:
    cyan, black = Image.new("CMYK", (8, 8), (255, 0, 0, 0)), Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert np.allclose(decoded(encoded(cyan, "JPEG", quality=100)), (0, 255, 255), atol=3)
    assert np.allclose(decoded(encoded(black, "JPEG", quality=100)), (0, 0, 0), atol=3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "MPO"])  # MPO: a phone's photo and a second picture
@pytest.mark.parametrize("further", [(), (GREEN, BLUE)])
def test_an_animation_is_its_first_frame(format: str, further: tuple[Any, ...]) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, *further)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert np.allclose(decoded(data), RED, atol=8)


# ---- EXIF

CORNERS = Image.fromarray(np.array([[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (9, 9, 9)]], dtype=np.uint8))


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    data = encoded(CORNERS, exif=exif(orientation))
    assert np.array_equal(decoded(data), TURNED[orientation](np.asarray(CORNERS)))


def test_orientation_6_makes_a_wide_photo_tall() -> None:
    assert decode(encoded(Image.new("RGB", (640, 480)), "JPEG", exif=exif(6)), LIMITS).size == (480, 640)


def broken_exif() -> list[Any]:
    good = exif(6)
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    absurd = b"\x87\x69\x00\x04\xff\xff\xff\xff\xff\xff\xff\xff"  # a sub-directory out of nowhere, four billion long
    head = b"Exif\0\0MM\0*\0\0\0\x08"
    return [
        pytest.param(b"Exif\0\0" + b"\xff" * 40, (3, 2), id="noise"),
        pytest.param(b"Exif\0\0MM", (3, 2), id="cut"),
        pytest.param(good[:-6], (3, 2), id="cut in the entry"),
        pytest.param(head + b"\0\x02" + entry + absurd + b"\0\0\0\0", (2, 3), id="absurd second entry"),
        pytest.param(head + b"\0\x01" + b"\x01\x12\x00\x02\x00\x00\x00\x01A\0\0\0" + b"\0\0\0\0", (3, 2), id="text"),
    ]


@pytest.mark.parametrize(("data", "size"), broken_exif())
def test_broken_exif_does_not_lose_the_photo(data: bytes, size: tuple[int, int]) -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        assert decode(encoded(CORNERS, format, exif=data), LIMITS).size == size


# ---- refusals


ACCEPTED = "no image of an accepted format (JPEG, PNG, WEBP, GIF, BMP, AVIF)"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        pytest.param(b"", ErrorKind.EMPTY, "the file is empty", id="empty"),
        pytest.param(b"<html>Not found</html>", ErrorKind.NOT_AN_IMAGE, ACCEPTED, id="an error page"),
        pytest.param(b"\0" * 5000, ErrorKind.NOT_AN_IMAGE, ACCEPTED, id="zeros"),
        pytest.param(encoded(NOISE, "TIFF"), ErrorKind.NOT_AN_IMAGE, ACCEPTED, id="a format that is not accepted"),
        pytest.param(EPS, ErrorKind.NOT_AN_IMAGE, ACCEPTED, id="EPS, for Ghostscript"),
        pytest.param(PNG + b"junk" * 9, ErrorKind.TRUNCATED, "Truncated File Read", id="a signature and nothing more"),
        pytest.param(
            png_header(20_000, 20_000), ErrorKind.TOO_MANY_PIXELS, "more pixels than Pillow decodes", id="400 Mpx"
        ),
        pytest.param(
            png_header(10_000, 9_500),
            ErrorKind.TOO_MANY_PIXELS,
            "10000 x 9500 pixels, more than the limit of 64,000,000",
            id="95 Mpx, where Pillow only warns",
        ),
        pytest.param(
            png_header(51_000, 1_000),
            ErrorKind.TOO_MANY_PIXELS,
            "51000 x 1000 pixels, an aspect ratio above the limit of 50",
            id="a strip",
        ),
    ],
)
def test_what_is_not_a_photo_is_refused(data: bytes, kind: ErrorKind, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("default", ResourceWarning)  # of what an earlier test left open
        with pytest.raises(ImageRefused) as caught:
            decode(data, LIMITS)
    assert (caught.value.kind, str(caught.value)) == (kind, message)
    assert isinstance(caught.value, EnrichError)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])  # libavif knows no such thing
def test_a_cut_file_is_truncated(format: str) -> None:
    data = encoded(NOISE, format)
    for share in (0.5, 0.9, 0.99):
        with pytest.raises(ImageRefused) as caught:
            decode(data[: int(len(data) * share)], LIMITS)
        assert caught.value.kind is ErrorKind.TRUNCATED


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (row("F", 0.5), "floating-point pixels, which have no agreed white"),
        (row("I", 70_000), "32-bit pixels, which have no agreed white"),
        (row("I", -1), "32-bit pixels, which have no agreed white"),
    ],
)
def test_modes_without_an_agreed_meaning_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        decode(encoded(image, "TIFF"), TIFF)
    assert (caught.value.kind, str(caught.value)) == (ErrorKind.UNSUPPORTED_MODE, message)


def test_limits_hold_at_their_values() -> None:
    data = encoded(Image.new("RGB", (100, 2)))
    assert decode(data, PhotoLimits(max_bytes=len(data), max_pixels=200)).size == (100, 2)
    for limits, kind in (
        (PhotoLimits(max_bytes=len(data) - 1), ErrorKind.TOO_LARGE),
        (PhotoLimits(max_pixels=199), ErrorKind.TOO_MANY_PIXELS),
    ):
        with pytest.raises(ImageRefused) as caught:
            decode(data, limits)
        assert caught.value.kind is kind
    with pytest.raises(ImageRefused, match="101 x 2 pixels, an aspect ratio above the limit of 50"):
        decode(encoded(Image.new("RGB", (101, 2))), LIMITS)


@pytest.mark.parametrize("format", LIMITS.formats)
def test_damaged_bytes_give_a_photo_or_a_refusal_and_nothing_else(format: str) -> None:
    rng = np.random.default_rng(1)
    good = encoded(NOISE, format)
    outcomes = set()
    for _ in range(100):
        data = bytearray(good)
        for position in rng.integers(0, len(data), 4):
            data[position] = rng.integers(0, 256)
        try:
            outcomes.add(decode(bytes(data), LIMITS).mode)
        except ImageRefused as refusal:
            outcomes.add(refusal.kind)
    assert outcomes <= {"RGB", ErrorKind.NOT_AN_IMAGE, ErrorKind.TRUNCATED, ErrorKind.TOO_MANY_PIXELS}


def test_a_broken_photo_leaves_no_trace_in_pillow() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    decode(encoded(NOISE), LIMITS)
    with pytest.raises(ImageRefused):
        decode(encoded(NOISE)[:-100], LIMITS)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
