"""Colours as the file means them: ICC profiles to sRGB, which is what models and screens expect.

lcms does the conversion: relative colorimetric with black point compensation, as browsers do. A transform is built once
for each profile, some milliseconds, and kept; a profile as good as sRGB, by far the most common, costs one look-up.
"""

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20  # those of printing presses take up to 3 MB
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # of a profile that fits pixels of a mode
_SRGB = ImageCms.createProfile("sRGB")
_UNSEEN = 2  # levels of 255: no eye sees the difference, and copies of the sRGB profile differ from lcms's by as much
_LEVELS = (0, 1, 4, 16, 48, 96, 160, 208, 255)


def colour_space(profile: bytes | None) -> str | None:
    """`RGB`, `GRAY`, `CMYK` ... of an ICC profile; None where there is none, or none that can be read."""
    return None if not profile or len(profile) > MAX_PROFILE_BYTES else _colour_space(profile)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` in sRGB, a copy unless nothing has to change: RGB and RGBA in their own mode, L and CMYK as RGB.

    A profile that is broken, larger than MAX_PROFILE_BYTES or of another kind of pixels counts as absent: L and CMYK
    are then converted as Pillow does.
    """
    fits = profile is not None and colour_space(profile) == _SPACES[image.mode]
    transform = _transform(profile, image.mode) if fits and profile else None
    if transform is None:
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # as only `inPlace` says
    return converted


@lru_cache(maxsize=8)
def _colour_space(profile: bytes) -> str | None:
    try:
        return str(ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space).strip()
    except MemoryError:
        raise
    except Exception:  # lcms refuses it, in one of several ways
        return None


@lru_cache(maxsize=8)  # of the largest profiles 32 MB
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What makes sRGB of the profile's colours; None where it is unusable or would change nothing that can be seen."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            _SRGB,
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except MemoryError:
        raise
    except Exception:
        return None
    return None if mode in ("RGB", "RGBA") and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    before = np.array(list(_grid(len(mode))), np.uint8)[None]
    after = ImageCms.applyTransform(Image.fromarray(before), transform)
    return int(np.abs(np.asarray(after).astype(int) - before).max()) <= _UNSEEN


def _grid(channels: int) -> Iterator[tuple[int, ...]]:
    for levels in product(_LEVELS, repeat=3):
        yield (*levels, *(255,) * (channels - 3))
