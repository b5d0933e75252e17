"""Colours come out as the file means them, whatever profile, mode and format say so."""

import struct
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.photos.colour import MAX_PROFILE_BYTES, to_srgb
from enrich.photos.decode import Preparation, decode, prepare, shrink
from tests.testing.photo_files import LIMITS, encoded

MEANT = [(200, 30, 40), (30, 140, 60), (30, 60, 190), (180, 120, 60), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# XYZ, adapted to D50, of red, green and blue: https://www.brucelindbloom.com/WorkingSpaceInfo.html
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03135, 0.00009, 0.82491))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space: bytes, gamma: float, primaries: tuple[tuple[float, ...], ...] = ()) -> bytes:
    """An ICC profile of version 2: a gamma, and for RGB where the primaries are."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249), b"desc": b"desc" + bytes(4) + bytes(84)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    for name, primary in zip(b"rgb", primaries, strict=False):
        tags[bytes((name,)) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
        tags[bytes((name,)) + b"TRC"] = curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content
    size = at + len(body)
    head = struct.pack(">I", size) + bytes(4) + b"\x02\x40\0\0" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    return (
        (head + bytes(28) + fixed(0.9642, 1.0, 0.8249)).ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    )


WIDE = {"prophoto": profile(b"RGB ", 1.8, PROPHOTO), "display-p3": profile(b"RGB ", 2.2, DISPLAY_P3)}


def stored(icc: bytes, mode: str = "RGB") -> Image.Image:
    """Stripes of the colours meant, as a file with this profile stores them."""
    meant = Image.fromarray(np.repeat(np.array([MEANT], np.uint8), 8, axis=1).repeat(24, axis=0))
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    into = ImageCms.ImageCmsProfile(BytesIO(icc))
    found = ImageCms.profileToProfile(meant, ImageCms.createProfile("sRGB"), into, intent, mode, flags=flags)
    assert found is not None
    return found


def off(image: Image.Image | np.ndarray) -> int:
    """Levels by which the worst channel of the middle of a stripe differs from what is meant."""
    pixels = np.asarray(image).astype(int)
    return max(int(np.abs(pixels[12, 8 * i + 4] - colour).max()) for i, colour in enumerate(MEANT))


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ],
)
def test_wide_gamuts_are_converted_to_srgb(name: str, format: str, options: dict[str, Any]) -> None:
    photo = stored(WIDE[name])
    assert off(photo) > 24  # what the model saw before
    most = 4 if format in ("PNG", "WEBP") else 8  # a level of a wide gamut is several of sRGB, and these lose some
    assert off(decode(encoded(photo, format, icc_profile=WIDE[name], **options), LIMITS)) <= most


def test_transparency_and_palettes_have_profiles_too() -> None:
    icc = WIDE["prophoto"]
    photo = stored(icc)
    clear = photo.copy()
    clear.putalpha(255)
    assert off(decode(encoded(clear, icc_profile=icc), LIMITS)) <= 4
    clear.putalpha(0)
    assert decode(encoded(clear, icc_profile=icc), LIMITS).getpixel((3, 3)) == (255, 255, 255)
    few = photo.quantize(16, dither=Image.Dither.NONE)
    assert few.mode == "P"
    assert off(decode(encoded(few, icc_profile=icc), LIMITS)) <= 4


def test_grey_photos_with_a_grey_profile_of_8_and_of_16_bits() -> None:
    linear = profile(b"GRAY", 1.0)
    meant = [round(255 * (level / 255) ** (1 / 2.4) * 1.055 - 14) for level in (64, 128)]
    for level, seen in zip((64, 128), meant, strict=True):
        shallow = encoded(Image.new("L", (8, 8), level), icc_profile=linear)
        deep = encoded(Image.fromarray(np.full((8, 8), level * 257, np.uint16)), icc_profile=linear)
        alpha = encoded(Image.new("LA", (8, 8), (level, 255)), icc_profile=linear)
        for data in (shallow, deep, alpha):
            pixel = decode(data, LIMITS).getpixel((4, 4))
            assert isinstance(pixel, tuple)
            assert max(abs(channel - seen) for channel in pixel) <= 4


def test_a_profile_of_another_kind_of_pixels_broken_or_huge_counts_as_absent() -> None:
    photo = stored(SRGB)
    for icc in (profile(b"GRAY", 1.0), b"no profile", WIDE["prophoto"][:200], bytes(MAX_PROFILE_BYTES + 1)):
        assert off(to_srgb(photo, icc)) == off(photo)
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert to_srgb(cmyk, WIDE["prophoto"]).getpixel((0, 0)) == cmyk.convert("RGB").getpixel((0, 0))


def test_an_srgb_profile_changes_nothing_and_costs_nothing() -> None:
    photo = Image.effect_noise((1000, 1333), 80).convert("RGB")
    assert to_srgb(photo, SRGB) is photo
    started = time.process_time()
    for _ in range(100):
        to_srgb(photo, SRGB)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("fast_decode", [False, True])
def test_training_serving_and_thumbnails_see_the_same_colours(fast_decode: bool) -> None:
    icc = WIDE["prophoto"]
    data = encoded(stored(icc).resize((448, 192), Image.Resampling.NEAREST), "JPEG", quality=98, icc_profile=icc)
    seen = decode(data, LIMITS)
    page = prepare(data, LIMITS, Preparation(4, 28, fast_decode)).page
    assert np.abs(page.astype(int) - hd_transform(seen, 4, 28)).mean() < 4
    small = shrink(data, LIMITS, 56).page
    assert off(small) <= 8
    reduced = decode(data, LIMITS, lambda width, height: (56, 24))
    assert off(reduced) <= 8
