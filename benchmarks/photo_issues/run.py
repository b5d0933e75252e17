"""What measuring the issues of photos costs, how often it is wrong, and which copies of a photo are taken for alike.

    taskset -c 1 python -m benchmarks.photo_issues.run
    taskset -c 1 python -m benchmarks.photo_issues.run --photos DIR --photos ANOTHER

Times are CPU time on generated photos of 1.3 megapixels, as in benchmarks/image_processor. False alarms and misses are
of a sample catalog and of the JPEGs in each DIR, which are taken to be free of all issues: as they are, and made worse.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import combinations
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.image_processor.run import jpeg, scene
from benchmarks.results import record
from enrich.models.base import Preparation
from enrich.photos.decode import decode, inspect, prepare, squeeze
from enrich.photos.issues import issues_of
from enrich.photos.likeness import SIDE, alike, look
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import PhotoIssue
from sample.dialects import DEMO
from sample.draw import render
from sample.products import sample_product

LIMITS = PhotoLimits()
PHOTOS = 300  # of a set at most, spread over it
ROUNDS = 60

Change = Callable[[Image.Image], Image.Image]


def blurred(share: float) -> Change:
    """A Gaussian blur whose radius is a share of the longer side."""
    return lambda photo: photo.filter(ImageFilter.GaussianBlur(share * max(photo.size)))


def scaled(share: float) -> Change:
    return lambda photo: photo.resize((round(photo.width * share), round(photo.height * share)))


def cropped(share: float) -> Change:
    return lambda photo: photo.crop(
        (round(photo.width * share), round(photo.height * share), round(photo.width * (1 - share)),
         round(photo.height * (1 - share)))
    )  # fmt: skip


def marked(photo: Image.Image) -> Image.Image:
    """With a shop's name across it."""
    photo = photo.copy()
    at = (photo.width * 0.1, photo.height * 0.45)
    ImageDraw.Draw(photo).text(
        at, "example.com", "white", font_size=photo.width / 10, stroke_width=1, stroke_fill="black"
    )
    return photo


WORSE: dict[str, tuple[PhotoIssue | None, Change]] = {
    "as it is": (None, lambda photo: photo),
    "blurred by 0.3 % of the longer side": (PhotoIssue.BLURRED, blurred(0.003)),
    "blurred by 0.6 %": (PhotoIssue.BLURRED, blurred(0.006)),
    "blurred by 1 %": (PhotoIssue.BLURRED, blurred(0.01)),
    "blurred by 2 %": (PhotoIssue.BLURRED, blurred(0.02)),
    "a quarter of its brightness": (PhotoIssue.DARK, lambda photo: photo.point(lambda value: value * 0.25)),
    "half of its brightness": (PhotoIssue.DARK, lambda photo: photo.point(lambda value: value * 0.5)),
    "95 pixels wide": (PhotoIssue.TINY, lambda photo: photo.resize((95, round(95 * photo.height / photo.width)))),
    "one colour": (PhotoIssue.BLANK, lambda photo: Image.new("RGB", photo.size, photo.getpixel((0, 0)))),
}
COPIES: dict[str, tuple[Change, int]] = {  # with the quality of the JPEG
    "saved again": (lambda photo: photo, 50),
    "60 % of its size": (scaled(0.6), 85),
    "a name across it": (marked, 85),
    "cropped by 1 %": (cropped(0.01), 85),
    "cropped by 3 %": (cropped(0.03), 85),
    "mirrored": (lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 85),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, action="append", default=[], help="a directory of JPEGs without issues")
    sets = {"sample catalog": [render(sample_product(0, index, DEMO), index) for index in range(PHOTOS)]}
    for number, folder in enumerate(parser.parse_args().photos, start=1):
        paths = sorted(folder.rglob("*.jp*g"))
        sets[f"directory {number}"] = [Image.open(path).convert("RGB") for path in paths[:: -(-len(paths) // PHOTOS)]]
    record("photo_issues", {
        "Cost": [cost()],
        "Photos with an issue, of those made worse": worse(sets),
        "Copies that are alike, and pairs of other photos": copies(sets),
    })  # fmt: skip


def cost() -> dict[str, float]:
    """CPU milliseconds a photo: of the issues, of what a run does with it, and of `catalog check`."""
    photos = [jpeg(scene(seed), (1000, 1333)) for seed in range(4)]
    how = Preparation(num_crops=4, image_size=336)
    took: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = process_time()
        result = work()
        took.setdefault(name, []).append((process_time() - started) * 1000)
        return result

    for number in range(ROUNDS):
        data = photos[number % len(photos)]
        image = decode(data, LIMITS)
        timed("issues, ms", partial(issues_of, image, image.size))  # of pixels that were just decoded, as in a run
        timed("page and issues, ms", partial(prepare, data, LIMITS, how))
        picture = timed("squeezed and issues, ms", partial(squeeze, data, LIMITS, SIDE)).page
        timed("hash and colours, ms", partial(look, picture))
    found = {name: median(times[len(photos) :]) for name, times in took.items()}
    return {
        **found,
        "issues, share of page": found["issues, ms"] / (found["page and issues, ms"] - found["issues, ms"]),
    }


def worse(sets: Mapping[str, Sequence[Image.Image]]) -> list[dict[str, str]]:
    """How many photos have the issue that they were given; of those as they are, how many have any."""
    rows = []
    for change, (issue, make) in WORSE.items():
        row = {"photo": change}
        for name, photos in sets.items():
            found = [inspect(encoded(make(photo)), LIMITS).issues for photo in photos]
            hits = sum(issue in one if issue else bool(one) for one in found)
            row[name] = f"{hits} of {len(photos)}"
        rows.append(row)
    return rows


def copies(sets: Mapping[str, Sequence[Image.Image]]) -> list[dict[str, str]]:
    """How many copies of photos look like their originals, and how many pairs of other photos look alike."""
    looks = {name: [seen(photo, 95) for photo in photos] for name, photos in sets.items()}
    rows = []
    for change, (make, quality) in COPIES.items():
        row = {"copy": change}
        for name, photos in sets.items():
            pairs = ((one, seen(make(photo), quality)) for one, photo in zip(looks[name], photos, strict=True))
            row[name] = f"{sum(len(alike(pair)) for pair in pairs)} of {len(photos)}"
        rows.append(row)
    pairs = {
        name: f"{sum(len(alike(pair)) for pair in combinations(found, 2)):,} of {len(found) * (len(found) - 1) // 2:,}"
        for name, found in looks.items()
    }
    return [*rows, {"copy": "pairs of the photos themselves", **pairs}]


def seen(photo: Image.Image, quality: int) -> np.ndarray:
    return look(squeeze(encoded(photo, quality), LIMITS, SIDE).page)


def encoded(photo: Image.Image, quality: int = 90) -> bytes:
    file = BytesIO()
    photo.save(file, "JPEG", quality=quality)
    return file.getvalue()


if __name__ == "__main__":
    main()
