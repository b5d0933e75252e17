"""Convert colours from a photo's ICC profile to sRGB, which models and screens expect.

lcms does the conversion, relative colorimetric with black point compensation, as browsers do. A transform is built once
for each profile, which takes some milliseconds, and kept. Profiles equivalent to sRGB, by far the most common, cost one
look-up (benchmarks/decoding).
"""

from functools import lru_cache
from io import BytesIO
from itertools import product

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20  # profiles of printing presses are up to 3 MB
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode of pixels -> colour space of their profile
_SRGB = ImageCms.createProfile("sRGB")
_UNSEEN = 2  # levels of 255: invisible, and copies of the sRGB profile differ from that of lcms by as much
_LEVELS = (0, 1, 4, 16, 48, 96, 160, 208, 255)


def colour_space(profile: bytes | None) -> str | None:
    """Colour space of an ICC profile (`RGB`, `GRAY`, `CMYK` ...); None without a readable profile."""
    return None if not profile or len(profile) > MAX_PROFILE_BYTES else _colour_space(profile)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` in sRGB: RGB and RGBA keep their mode, L and CMYK become RGB. A copy, unless nothing has to change.

    A profile that is broken, larger than MAX_PROFILE_BYTES or for another colour space is ignored; Pillow then converts
    L and CMYK without it.
    """
    fits = colour_space(profile) == _SPACES[image.mode]
    transform = _transform(profile, image.mode) if profile and fits else None
    if transform is None:
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is returned only for `inPlace`
    return converted


@lru_cache(maxsize=8)
def _colour_space(profile: bytes) -> str | None:
    try:
        return str(ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space).strip()
    except MemoryError:
        raise
    except Exception:  # lcms raises errors of several types
        return None


@lru_cache(maxsize=8)  # 32 MB of profiles at most
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB; None if the profile is unusable, or the transform would change nothing visible."""
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
    except Exception:  # as above
        return None
    return None if mode in ("RGB", "RGBA") and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    alpha = (255,) * (len(mode) - 3)
    before = np.array([(*levels, *alpha) for levels in product(_LEVELS, repeat=3)], np.uint8)[None]
    after = ImageCms.applyTransform(Image.fromarray(before), transform)
    return int(np.abs(np.asarray(after).astype(int) - before).max()) <= _UNSEEN
