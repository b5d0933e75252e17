"""The bytes of a photo -> its page of crops, the same for training and for serving. Pillow reads them; this file says
what is accepted and what a photo looks like when it has transparency, 16 bits or an EXIF orientation."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from enrich.errors import ImageError
from enrich.phi3_vision.hd_transform import hd_transform, resized_size
from enrich.schema import ErrorKind
from enrich.settings import PhotoLimits

# What undoes each EXIF orientation (CIPA DC-008, tag 0x0112); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
# A half, quarter or eighth of a JPEG is enough if it falls short of the wanted sides by no more than this. That admits
# the halves of 1000x1333 and 960x1280, 0.8 and 4.8 % short of 504x672. They are nearer to the photo resized from all of
# its pixels (41.2 and 40.8 dB) than a half that fits exactly, which nothing smooths any more (37.7 dB).
REDUCTION_TOLERANCE = 0.05
_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# How Pillow's plugins word an early end of the file.
_ENDS_EARLY = ("truncated", "broken data stream", "unrecognized data stream contents", "unexpected end", "eof")


Wanted = Callable[[int, int], tuple[int, int]]


class ImageRefused(ImageError):
    """The bytes make no photo."""


@dataclass(frozen=True)
class Preparation:
    """How photos become pages of crops: what an adapter was trained with, and must be served with."""

    num_crops: int
    image_size: int  # pixels of a crop's side
    fast_decode: bool = False  # see `decode_reduced`


@dataclass(frozen=True)
class Photo:
    """A photo as the model will see it."""

    page: np.ndarray  # (rows x image_size, columns x image_size, 3) uint8 RGB, as `hd_transform` makes it
    width: int  # of the upright photo, pixels
    height: int


def prepare(data: bytes, limits: PhotoLimits, how: Preparation) -> Photo:
    """The bytes of a photo to its page of crops: what training and serving both do, and nothing else does.

    Raises:
        As `decode`.
    """
    grid = {"num_crops": how.num_crops, "image_size": how.image_size}
    image, (width, height) = _decode(data, limits, partial(resized_size, **grid) if how.fast_decode else None)
    return Photo(hd_transform(image, **grid, size=(width, height)), width, height)


def decode(data: bytes, limits: PhotoLimits) -> Image.Image:
    """The first frame as an upright RGB image, transparency on white, 16 bits scaled to 8.

    Size, format, number of pixels and aspect ratio are checked before anything is decoded. Pillow's own limit of
    178,956,970 pixels holds as well, whatever `limits.max_pixels` says.

    Raises:
        ImageRefused: EMPTY, TOO_LARGE, NOT_AN_IMAGE, TOO_MANY_PIXELS, TRUNCATED or UNSUPPORTED_MODE.
        MemoryError: where the process has a memory limit and the photo needs more.
    """
    return _decode(data, limits, None)[0]


def decode_reduced(data: bytes, limits: PhotoLimits, wanted: Wanted) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode`, but a JPEG much larger than needed is decoded at a half, quarter or eighth of its sides.

    That skips most of the work, and averages pixels otherwise than resizing the whole photo does, so training and
    serving must both do it or both not (benchmarks/image_processor.md).

    Args:
        wanted: from the upright photo's (width, height) to the (width, height) that the caller will resize it to.

    Returns:
        The image and the upright photo's (width, height). The image has the wanted sides where a reduced scale came
        within `REDUCTION_TOLERANCE` of them; else it is whole, as `decode` gives it.

    Raises:
        As `decode`.
    """
    return _decode(data, limits, wanted)


def _decode(data: bytes, limits: PhotoLimits, wanted: Wanted | None) -> tuple[Image.Image, tuple[int, int]]:
    if not data:
        raise ImageRefused(ErrorKind.EMPTY, "the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageRefused(ErrorKind.TOO_LARGE, f"{len(data):,} bytes, more than the limit of {limits.max_bytes:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd EXIF, and on 89 million pixels: max_pixels decides that
            with Image.open(BytesIO(data), formats=limits.formats) as image:
                _check_shape(image, limits)
                size = image.size
                if wanted is None or image.format not in ("JPEG", "MPO"):
                    image.load()
                    rgb = _to_rgb(image)
                else:
                    turn = _turn(image)
                    rgb = _to_rgb_reduced(image, _turned(wanted(*_turned(size, turn)), turn))
                turn = _turn(image)  # which a PNG may only know once it is read
                return rgb if turn is None else rgb.transpose(turn), _turned(size, turn)
    except (ImageRefused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, "more pixels than Pillow decodes") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(limits.formats)
        raise ImageRefused(ErrorKind.NOT_AN_IMAGE, f"no image of an accepted format ({formats})") from error
    except Exception as error:  # on hostile bytes Pillow's plugins raise whatever their parsing runs into
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        early = any(words in reason.lower() for words in _ENDS_EARLY) or _is_cut_webp(data)
        raise ImageRefused(ErrorKind.TRUNCATED if early else ErrorKind.NOT_AN_IMAGE, reason) from error


def _to_rgb_reduced(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """A JPEG in RGB: `sides` large if a reduced scale is enough for that, else whole."""
    width, height = image.size
    least = [math.ceil(side * (1 - REDUCTION_TOLERANCE)) for side in sides]
    drafted = image.draft(None, (least[0], least[1]))
    image.load()
    rgb = _to_rgb(image)
    if drafted is None or image.size == (width, height):
        return rgb
    # Half of 1333 lines are 667 of which the last is half outside: `box` says where the photo ends. Without it
    # everything would be scaled by 667 / 666.5, and the difference from the whole photo nearly doubles.
    _, box = drafted
    return rgb.resize(sides, Image.Resampling.BILINEAR, box)


def _is_cut_webp(data: bytes) -> bool:
    """Whether a RIFF file is shorter than its header says; libwebp gives no reason of its own."""
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _check_shape(image: Image.Image, limits: PhotoLimits) -> None:
    """Judges the size that the header states; a few bytes can state a size that fills the memory."""
    width, height = image.size
    if min(width, height) < 1:
        raise ImageRefused(ErrorKind.NOT_AN_IMAGE, f"{width} x {height} pixels")
    if width * height > limits.max_pixels:
        message = f"{width} x {height} pixels, more than the limit of {limits.max_pixels:,}"
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, message)
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        message = f"{width} x {height} pixels, an aspect ratio above the limit of {limits.max_aspect_ratio:g}"
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, message)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _16_BIT:
        return _scale_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ImageRefused(ErrorKind.UNSUPPORTED_MODE, "floating-point pixels, which have no agreed white")
    if image.has_transparency_data:  # a plain convert would drop alpha and show the colours hidden under it
        photo = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB copies it


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """0..65535 -> 0..255, rounded; 65535 / 255 = 257. A plain convert clips everything above 255 to white."""
    values = np.asarray(image).astype(np.int64 if image.mode == "I" else np.uint32)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageRefused(ErrorKind.UNSUPPORTED_MODE, "32-bit pixels, which have no agreed white")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes `image` upright, as its EXIF data say. ImageOps.exif_transpose also writes the data anew, which fails
    on many broken ones whose orientation can be read."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF, as any parsing above; the photo itself is fine
        return None


def _turned(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    return (size[1], size[0]) if turn in _SWAPS_SIDES else size
