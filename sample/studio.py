"""The studio of a photo: where the camera stands, the light that falls on folds, the wall behind."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from sample.silhouette import Part

# Pixels of the longer side, from and to: most photos are made for a list, a few for zooming in.
_SIDES = (*((400, 640),) * 12, *((640, 1000),) * 3, (1000, 2000))
_FORMATS = ((3, 4), (3, 4), (1, 1), (1, 1), (4, 5), (4, 3))  # width : height
_ZOOM = (2.0, 3.0)
# Walls of another place than the studio: light and tint of red, green and blue.
_PLACES = ((196, (1.04, 1.0, 0.93)), (178, (0.97, 1.0, 1.04)), (206, (0.98, 1.02, 0.97)), (168, (1.0, 1.0, 1.0)))


@dataclass(frozen=True)
class Frame:
    """How product coordinates become pixels: pixel = scale x rotation(point) + offset."""

    width: int
    height: int
    scale: float
    offset: tuple[float, float]
    rotation: np.ndarray  # (2, 2)
    zoom: float = 1.0  # how much larger than where all of the product is seen

    def pixels(self, points: np.ndarray) -> np.ndarray:
        return points @ self.rotation * self.scale + self.offset


def framed(
    rng: np.random.Generator,
    parts: list[Part],
    standing: bool,
    side: int | None,
    middle: tuple[float, float] | None = None,
) -> Frame:
    """All parts within the photo or, given its middle, a close-up at 2 to 3 times the size."""
    wide, high = _FORMATS[rng.integers(len(_FORMATS))]
    low, above = _SIDES[rng.integers(len(_SIDES))]
    drawn = int(rng.integers(low, above + 1))
    side = side or drawn
    width, height = (side, side * high // wide) if wide >= high else (side * wide // high, side)
    angle = np.radians(rng.normal(0.0, 1.5 if standing else 4.0))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = np.concatenate([part.outline for part in parts]) @ rotation
    low, high_point = points.min(axis=0), points.max(axis=0)
    span = high_point - low
    scale = rng.uniform(0.72, 0.92) * min(width / span[0], height / span[1])
    if middle is not None:
        zoom = float(rng.uniform(*_ZOOM))
        centre = np.array((width, height)) * rng.uniform(0.42, 0.58, 2) - scale * zoom * (np.array(middle) @ rotation)
        return Frame(width, height, float(scale * zoom), (float(centre[0]), float(centre[1])), rotation, zoom)
    spare = np.array((width, height)) - scale * span
    offset = spare * rng.uniform(0.38, 0.62, 2) - scale * low
    return Frame(width, height, float(scale), (float(offset[0]), float(offset[1])), rotation)


def draped(rng: np.random.Generator, frame: Frame, strength: float) -> np.ndarray:
    """Relative light, about -strength to strength, (height, width): drapes, creases, and light from one side."""
    coarse = np.repeat(rng.uniform(-1, 1, (4, 11)), 2, axis=0) + rng.uniform(-0.6, 0.6, (8, 11))
    lamp = np.linspace(-1, 1, 96) * rng.choice([-0.07, 0.07])
    drapes = _enlarged(strength * 0.6 * coarse, 96, 96)
    ridges = 1 - np.abs(_enlarged(rng.uniform(-1, 1, (7, 9)), 96, 96)) * 5  # thin where the noise crosses zero
    creases = np.clip(ridges, 0, 1) - np.roll(
        np.clip(ridges, 0, 1), (1, 2), axis=(0, 1)
    )  # lit on one side, dark behind
    return _enlarged(drapes + 0.6 * strength * creases + lamp, frame.width, frame.height)


def _enlarged(small: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(small.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def highlights(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Reflections of a lamp on something smooth, 0..1: upright patches with soft edges, most of the surface without."""
    broad = _enlarged(rng.uniform(-1, 1, (6, 12)), 96, 96)
    return _enlarged(np.clip(1.5 * broad - 0.25, 0, 1) ** 1.5, width, height).clip(0, 1)


def backdrop(
    rng: np.random.Generator, frame: Frame, parts: list[Part], standing: bool, *, another: bool = False
) -> Image.Image:
    """A light studio wall, brighter where the lamp points, with the product's soft shadow on it; or a wall of another
    place, darker and tinted."""
    small = (max(8, frame.width // 8), max(8, frame.height // 8))
    y, x = np.mgrid[0 : small[1], 0 : small[0]].astype(np.float32)
    x, y = x / small[0] - rng.uniform(0.3, 0.7), y / small[1] - rng.uniform(0.1, 0.6)
    fall = rng.uniform(0.05, 0.25)
    light = rng.uniform(222, 252) * (1 - fall * (x * x + y * y))
    if standing:  # the wall meets the floor in a soft curve
        light = light * (1 - rng.uniform(0.02, 0.08) / (1 + np.exp(-(y - 0.35) * 14)))
    tint = 1 + rng.normal(0, 0.012, 3)
    if another:
        level, tint_of_place = _PLACES[rng.integers(len(_PLACES))]
        light, tint = light * level / 237, tint * tint_of_place
    wall = np.clip(light[..., None] * tint, 0, 255)

    shadow = Image.new("L", small, 0)
    pen = ImageDraw.Draw(shadow)
    shift = np.array((rng.uniform(-0.05, 0.05), rng.uniform(0.02, 0.06)))
    for part in parts:
        spots = [tuple(point) for point in frame.pixels(part.outline + shift) / 8]
        if part.width:
            pen.line(spots, fill=255, width=max(1, round(part.width * frame.scale / 8)))
        else:
            pen.polygon(spots, fill=255)
    soft = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.2)))
    if standing:
        points = frame.pixels(np.concatenate([part.outline for part in parts])) / 8
        (left, _), (right, floor) = points.min(axis=0), points.max(axis=0)
        ground = Image.new("L", small, 0)
        ImageDraw.Draw(ground).ellipse((left - 1, floor - 2.5, right + 1, floor + 1.5), fill=255)
        soft = ImageChops.lighter(soft, ground.filter(ImageFilter.GaussianBlur(1.6)))
    wall = wall * (1 - rng.uniform(0.22, 0.42) * np.asarray(soft, np.float32)[..., None] / 255)
    return Image.fromarray(wall.astype(np.uint8)).resize((frame.width, frame.height), Image.Resampling.BICUBIC)
