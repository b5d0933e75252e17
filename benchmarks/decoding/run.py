"""The cost of converting ICC profiles: CPU time from the bytes of a photo to its page, with and without a profile.

    taskset -c 1 python -m benchmarks.decoding.run

Generated photos of 2 to 12 megapixels are stored without a profile, which costs as much as code that assumes sRGB, and
with one: sRGB, and a profile with the primaries of Adobe RGB. The variants take turns photo by photo. A JPEG is
converted after it was scaled to its page, a PNG with transparency before, at its full size.
"""

import argparse
import struct
from io import BytesIO
from statistics import median
from time import process_time

import numpy as np
from PIL import Image, ImageCms

from benchmarks.results import record
from enrich.photos.decode import Preparation, prepare
from enrich.settings.photos import PhotoLimits

LIMITS = PhotoLimits()
HOW = Preparation(num_crops=4, image_size=336)
SIZES = {2: (1224, 1632), 4: (1732, 2309), 8: (2448, 3264), 12: (3000, 4000)}  # megapixels -> pixels
# Columns of Adobe RGB's matrix to XYZ under D50, as profiles have it.
ADOBE = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    profiles = {"sRGB": srgb(), "Adobe RGB": adobe()}
    rows = []
    for megapixels, size in SIZES.items():
        photo = scene(size)
        for kind, format in (("JPEG", "JPEG"), ("PNG with transparency", "PNG")):
            if format == "PNG":
                photo.putalpha(Image.linear_gradient("L").resize(size))
            ways = {name: encoded(photo, format, icc) for name, icc in {"none": None, **profiles}.items()}
            took = measure(ways, rounds)
            rows.append(
                {
                    "photo": kind,
                    "megapixels": megapixels,
                    "no profile, ms": took["none"] * 1000,
                    **{f"{name}, ms": took[name] * 1000 for name in profiles},
                    **{f"{name}, ratio": took[name] / took["none"] for name in profiles},
                }
            )
    record("decoding", {"": rows})


def measure(ways: dict[str, bytes], rounds: int) -> dict[str, float]:
    """Median CPU seconds of `prepare` by way."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, data in ways.items():
            started = process_time()
            prepare(data, LIMITS, HOW)
            if number:  # the first round builds the transforms
                took[name].append(process_time() - started)
    return {name: median(times) for name, times in took.items()}


def scene(size: tuple[int, int]) -> Image.Image:
    """Noise whose amplitude falls with frequency as in photos, so that a JPEG of it is about as hard to decode."""
    rng = np.random.default_rng(0)
    width, height = size
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / width) ** -1.2
    channels = [np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (height, width))] * 3
    pixels = np.stack([128 + 40 * channel / channel.std() for channel in channels], axis=-1)
    return Image.fromarray((pixels + np.array([0, 12, -30])).clip(0, 255).astype(np.uint8))


def encoded(photo: Image.Image, format: str, icc: bytes | None) -> bytes:
    file = BytesIO()
    options = {"quality": 85} if format == "JPEG" else {"compress_level": 1}
    photo.save(file, format, **options, icc_profile=icc)
    return file.getvalue()


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def adobe() -> bytes:
    """The sRGB profile with the primaries of Adobe RGB."""
    data = bytearray(srgb())
    for number in range(int.from_bytes(data[128:132], "big")):
        name, at, _ = struct.unpack_from(">4sII", data, 132 + 12 * number)
        if name in ADOBE:
            struct.pack_into(">3i", data, at + 8, *(round(value * 65536) for value in ADOBE[name]))
    return bytes(data)


if __name__ == "__main__":
    main()
