"""Photos as files: the usual encodings, and unusual ones that occur in real buckets."""

import io

import numpy as np
from PIL import Image

# Usual encodings and their share; the extension is the encoding's name.
USUAL = {"jpg": 0.88, "png": 0.06, "webp": 0.06}
_ORIENTATION_TAG, _ROTATED_90_CW = 0x0112, 6


def encode(photo: Image.Image, encoding: str, rng: np.random.Generator) -> bytes:
    """The bytes of an RGB photo. Every encoding here must decode to that photo, or to what it says below.

    `jpg`, `png`, `webp`; `gif`: the first of two frames; `cmyk.jpg`; `exif.jpg`: stored on its side; `gray16.png`:
    16 bits of grey; `alpha.png`: a transparent frame with colours hidden in it; `palette.png`: 64 colours.
    """
    quality = int(rng.integers(84, 94))
    if encoding == "jpg":
        return _saved(photo, "JPEG", quality=quality)
    if encoding == "png":
        return _saved(photo, "PNG", compress_level=6)
    if encoding == "webp":
        return _saved(photo, "WEBP", quality=quality, method=2)
    if encoding == "gif":
        blank = Image.new("P", photo.size, 0)
        first = photo.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        return _saved(first, "GIF", save_all=True, append_images=[blank], duration=500)
    if encoding == "cmyk.jpg":
        return _saved(photo.convert("CMYK"), "JPEG", quality=quality)
    if encoding == "exif.jpg":
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = _ROTATED_90_CW
        return _saved(photo.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=quality, exif=exif)
    if encoding == "gray16.png":
        grey = np.asarray(photo.convert("L"), np.uint16) * 257
        return _saved(Image.fromarray(grey), "PNG")
    if encoding == "alpha.png":
        return _saved(_framed(photo), "PNG")
    if encoding == "palette.png":
        return _saved(photo.quantize(64, dither=Image.Dither.NONE), "PNG")
    raise ValueError(f"unknown encoding {encoding!r}")


def _saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _framed(photo: Image.Image) -> Image.Image:
    """Opaque except for a frame of 4 % that is fully transparent and, underneath, magenta."""
    frame = Image.new("RGBA", photo.size, (255, 0, 255, 0))
    edge = round(0.04 * min(photo.size))
    inner = (edge, edge, photo.width - edge, photo.height - edge)
    frame.paste(photo.crop(inner).convert("RGBA"), inner)
    return frame
