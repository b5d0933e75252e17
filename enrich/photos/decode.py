"""Decode the bytes of a photo into its page, in the same way for training and for serving.

Pillow reads the bytes. This module decides what is accepted, and how colour profiles, transparency, 16-bit pixels and
EXIF orientations are treated. Only `enrich.photos.decoders` passes bytes from outside to it, in processes with limits.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from enrich.errors import ImageError
from enrich.models.base import Preparation
from enrich.models.registry import layouts
from enrich.photos.colour import colour_space, to_srgb
from enrich.photos.endings import completed, ends_properly
from enrich.photos.issues import COMPARED, issues_of
from enrich.photos.webp import is_webp, webp_size
from enrich.vocabulary import ErrorKind, PhotoIssue

if TYPE_CHECKING:  # at run time it would load pydantic, which every decoding process would then keep in memory
    from enrich.settings.photos import PhotoLimits

# The transposition that undoes each EXIF orientation (CIPA DC-008, tag 0x0112); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
# A JPEG decoded at a half, quarter or eighth of its sides may be smaller than the wanted sides by this share. So the
# halves of 1000x1333 and 960x1280 count as large enough for 504x672 (0.8 and 4.8 % short). They are closer to the photo
# resized from all of its pixels (41.2 and 40.8 dB) than a half that fits exactly (37.7 dB), which is not resized again.
REDUCTION_TOLERANCE = 0.05
_LAYOUTS = layouts()  # here: a decoding process imports no more once its limits hold
_NO_PAGE = np.empty((0, 0, 3), np.uint8)
_ROWS = 256  # rows of pixels that are scaled from 16 bits at a time
_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_ASPECT_RATIO = 50  # longer side / shorter side; a longer strip is not a photo of a product
# Phrases by which Pillow's plugins report a truncated file.
_ENDS_EARLY = ("truncated", "broken data stream", "unrecognized data stream contents", "unexpected end", "eof")

# Upper bounds of the memory that decoding takes, in bytes a pixel: JPEGs, and formats that may have transparency.
_JPEG_BYTES, _OTHER_BYTES = 12, 32
_FIXED_BYTES = 64 << 20  # in addition, for a photo of any size

# From the upright photo's (width, height) to the (width, height) that the caller will resize it to.
Wanted = Callable[[int, int], tuple[int, int]]
# Called with the bytes of memory that a photo needs, once its header is read. Returns when they may be used.
Admit = Callable[[int], object]


class ImageRefused(ImageError):
    """The bytes are not a usable photo."""


@dataclass(frozen=True)
class Photo:
    """Pixels made from a photo, and facts about the file."""

    page: np.ndarray  # (height, width, 3) uint8 RGB, sRGB; from `prepare` as the layout makes it
    width: int  # of the upright photo, in pixels
    height: int
    format: str = ""  # Pillow's name for it
    unfinished: bool = False  # the file lacks its end marker, but no pixel is missing
    issues: tuple[PhotoIssue, ...] = ()
    first: np.ndarray | None = None  # the page of a first look, where there is one


def _unlimited(memory: int) -> None:
    pass


def prepare(
    data: bytes, limits: "PhotoLimits", how: Preparation, admit: Admit = _unlimited, further: bool = False
) -> Photo:
    """The page of a product's main photo, or of a `further` one, for training and serving.

    Raises as `decode`.
    """
    layout, squares, side = _LAYOUTS[how.layout], how.most(int(further)), how.image_size

    def wanted(width: int, height: int) -> tuple[int, int]:
        return layout.resized(width, height, squares, side)

    found = _decode(data, limits, wanted if how.fast_decode else None, admit)
    page = layout.page(found.image, squares, side, size=found.size)
    if found.profile is not None:  # converted after scaling, because a page has fewer pixels than most photos
        page = np.asarray(to_srgb(Image.fromarray(page), found.profile))
    return _photo(page, found)


def shrink(data: bytes, limits: "PhotoLimits", side: int, admit: Admit = _unlimited) -> Photo:
    """A thumbnail for people, at most `side` pixels wide and high. Raises as `decode`."""
    found = _decode(data, limits, partial(_within, side), admit)
    picture = found.image.resize(_within(side, *found.size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _photo(np.asarray(to_srgb(picture, found.profile)), found)


def squeeze(data: bytes, limits: "PhotoLimits", side: int, admit: Admit = _unlimited) -> Photo:
    """The photo squeezed into a square of `side` pixels, to compare it with others. Raises as `decode`."""
    found = _decode(data, limits, partial(_within, COMPARED), admit)
    picture = found.image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return _photo(np.asarray(to_srgb(picture, found.profile)), found)


def inspect(data: bytes, limits: "PhotoLimits", admit: Admit = _unlimited) -> Photo:
    """Size and format of a photo that can be decoded; `page` is empty. Raises as `decode`."""
    return _photo(_NO_PAGE, _decode(data, limits, None, admit))


def decode(data: bytes, limits: "PhotoLimits", wanted: Wanted | None = None) -> Image.Image:
    """The first frame as an upright RGB image in sRGB, transparency on white, 16 bits scaled to 8.

    Size, format, number of pixels and aspect ratio are checked before anything is decoded. Pillow's own limit of
    178,956,970 pixels also holds, whatever `limits.max_pixels` says. A file without its end marker is accepted if no
    pixel is missing.

    Args:
        wanted: if given, a JPEG is decoded at the smallest of its reduced scales (1/2, 1/4, 1/8) that comes within
            REDUCTION_TOLERANCE of these sides, and then has exactly these sides. This skips most of the work, but
            averages pixels in another way than resizing the whole photo, so training and serving must agree on it
            (benchmarks/image_processor/README.md). Other photos are decoded whole.

    Raises:
        ImageRefused: EMPTY, TOO_LARGE, NOT_AN_IMAGE, TOO_MANY_PIXELS, TRUNCATED or UNSUPPORTED_MODE.
        MemoryError: the photo needs more memory than the process may use.
        OSError: the machine fails, not the photo: a full disk, too many open files.
    """
    found = _decode(data, limits, wanted)
    return to_srgb(found.image, found.profile)


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image  # RGB, upright
    size: tuple[int, int]  # (width, height) of the upright photo; the image is smaller if it was reduced
    format: str
    profile: bytes | None  # ICC profile still to be applied; None: the image is sRGB
    unfinished: bool = False


def _photo(page: np.ndarray, found: _Decoded) -> Photo:
    return Photo(page, *found.size, found.format, found.unfinished, issues_of(found.image, found.size))


def _within(side: int, width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _decode(data: bytes, limits: "PhotoLimits", wanted: Wanted | None, admit: Admit = _unlimited) -> _Decoded:
    if not data:
        raise ImageRefused(ErrorKind.EMPTY, "the file is empty")
    if len(data) > limits.max_bytes:
        raise ImageRefused(ErrorKind.TOO_LARGE, f"{len(data):,} bytes, more than the limit of {limits.max_bytes:,}")
    try:
        found = _open(data, limits, wanted, admit)
        return found if ends_properly(data, found.format) else replace(found, unfinished=True)
    except ImageRefused as refusal:
        whole = _complete(data, limits, wanted, admit) if refusal.kind is ErrorKind.TRUNCATED else None
        if whole is None:
            raise
        return replace(whole, unfinished=True)


def _complete(data: bytes, limits: "PhotoLimits", wanted: Wanted | None, admit: Admit) -> _Decoded | None:
    """A truncated file decoded, if no pixel is missing; else None."""
    found, pictures = None, set()
    for whole in completed(data):
        found = None  # keeps one image in memory at a time
        try:
            found = _open(whole, limits, wanted, admit)
        except ImageRefused:
            return None
        pictures.add(sha256(found.image.tobytes()).digest())
    return found if len(pictures) == 1 else None


def _open(data: bytes, limits: "PhotoLimits", wanted: Wanted | None, admit: Admit) -> _Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd EXIF, and more than 89 million pixels, which max_pixels decides
            if (stated := webp_size(data)) is not None and "WEBP" in limits.formats:
                _check_size(stated, limits)
                admit(_memory(data, stated, _OTHER_BYTES))
            with Image.open(BytesIO(data), formats=limits.formats) as image:
                format, size = image.format or "", image.size
                _check_size(size, limits)
                jpeg = format in ("JPEG", "MPO")
                admit(_memory(data, size, _JPEG_BYTES if jpeg else _OTHER_BYTES))
                if wanted is None or not jpeg:
                    image.load()
                    rgb, profile = _to_rgb(image)
                else:
                    turn = _turn(image)
                    rgb, profile = _to_rgb_reduced(image, _turned(wanted(*_turned(size, turn)), turn))
                turn = _turn(image)  # a PNG may store it after the pixels
                return _Decoded(rgb if turn is None else rgb.transpose(turn), _turned(size, turn), format, profile)
    except (ImageRefused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, "more pixels than Pillow decodes") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(limits.formats)
        raise ImageRefused(ErrorKind.NOT_AN_IMAGE, f"no image of an accepted format ({formats})") from error
    except Exception as error:  # hostile bytes make Pillow's plugins raise errors of any type
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the operating system, not of the photo
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "out of memory" in reason.lower():  # some plugins report it so
            raise MemoryError(reason) from error
        early = any(words in reason.lower() for words in _ENDS_EARLY) or _is_cut_webp(data)
        raise ImageRefused(ErrorKind.TRUNCATED if early else ErrorKind.NOT_AN_IMAGE, reason) from error


def _to_rgb_reduced(image: Image.Image, sides: tuple[int, int]) -> tuple[Image.Image, bytes | None]:
    """As `_to_rgb` for a JPEG: with these `sides` if a reduced scale is large enough, else whole."""
    width, height = image.size
    least = [math.ceil(side * (1 - REDUCTION_TOLERANCE)) for side in sides]
    drafted = image.draft(None, (least[0], least[1]))
    image.load()
    rgb, profile = _to_rgb(image)
    if drafted is None or image.size == (width, height):
        return rgb, profile
    # Half of 1333 rows is 667 rows, the last of which is half outside the photo; `box` says where the photo ends.
    # Without it the image would be scaled by 667 / 666.5, which nearly doubles the difference from the whole photo.
    _, box = drafted
    return rgb.resize(sides, Image.Resampling.BILINEAR, box), profile


def _is_cut_webp(data: bytes) -> bool:
    """Whether a WebP file has another length than its header says. libwebp does not report the reason itself."""
    return is_webp(data) and int.from_bytes(data[4:8], "little") + 8 != len(data)


def _memory(data: bytes, size: tuple[int, int], each: int) -> int:
    return _FIXED_BYTES + 2 * len(data) + size[0] * size[1] * each


def _check_size(size: tuple[int, int], limits: "PhotoLimits") -> None:
    """Check the size in the header, before memory is allocated for it."""
    width, height = size
    if min(width, height) < 1:
        raise ImageRefused(ErrorKind.NOT_AN_IMAGE, f"{width} x {height} pixels")
    if width * height > limits.max_pixels:
        message = f"{width} x {height} pixels, more than the limit of {limits.max_pixels:,}"
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, message)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        message = f"{width} x {height} pixels, an aspect ratio above the limit of {MAX_ASPECT_RATIO}"
        raise ImageRefused(ErrorKind.TOO_MANY_PIXELS, message)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """The image in RGB, and the profile that is still to be applied (`to_srgb`) when the image has been scaled down."""
    profile = image.info.get("icc_profile")
    space = colour_space(profile)
    if image.mode in _16_BIT:
        image = _scale_16_bit(image)
    if image.mode == "F":
        raise ImageRefused(ErrorKind.UNSUPPORTED_MODE, "floating-point pixels, which have no agreed white")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:  # a plain convert would drop alpha and show the hidden colours
        photo = image.convert("RGBA")
        if grey and space == "GRAY":
            colours, alpha = to_srgb(image.convert("L"), profile), photo.getchannel("A")
            photo = Image.merge("RGBA", (*colours.split(), alpha))
        elif space == "RGB":
            photo = to_srgb(photo, profile)
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB"), None
    if grey and space == "GRAY":
        return to_srgb(image.convert("L"), profile), None
    if image.mode == "CMYK":
        return to_srgb(image, profile), None
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB copies it
    return rgb, profile if space == "RGB" else None


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded (65535 / 255 = 257). A plain convert would clip values above 255 to white."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageRefused(ErrorKind.UNSUPPORTED_MODE, "32-bit pixels, which have no agreed white")
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):  # in parts, because 32 bits for all pixels would double the memory
        scaled[top : top + _ROWS] = (values[top : top + _ROWS].astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes `image` upright, according to its EXIF data.

    ImageOps.exif_transpose also rewrites the EXIF data, which fails for many broken ones whose orientation is readable.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF; the pixels are fine
        return None


def _turned(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    return (size[1], size[0]) if turn in _SWAPS_SIDES else size
