"""Fabrics as textures: one tone per pixel on a grid of fabric coordinates, coloured by a ramp of 256 colours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

RGB = tuple[int, int, int]
Field = np.ndarray  # (height, width) float32

_IVORY: RGB = (240, 236, 224)
_INK: RGB = (40, 42, 70)
_BRIGHTEST = 1.4  # what tone 1 of a relief multiplies the fabric's colour by


@dataclass(frozen=True)
class Grid:
    """The position of each pixel on the fabric. The photo's shorter side is 2 units, and `pixels` the length of one."""

    u: Field
    v: Field
    pixels: float


def brightness(rgb: RGB) -> float:
    """Rec. 601 luma, 0..255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def scaled(rgb: RGB, factor: float, lift: float = 0.0) -> RGB:
    """The colour times `factor` plus `lift`, within 0..255."""
    r, g, b = (int(min(255.0, max(0.0, channel * factor + lift))) for channel in rgb)
    return r, g, b


def contrast(rgb: RGB) -> RGB:
    """The second colour of a pattern: ink on light fabrics, ivory on the others."""
    return _INK if brightness(rgb) > 140 else _IVORY


def texture(pattern: str, rgb: RGB, grid: Grid) -> Image.Image:
    """The fabric all over the photo; parts cut their piece out of it."""
    share = np.linspace(0.0, 1.0, 256)[:, None]
    if pattern in _PRINTS:
        tone = _PRINTS[pattern](grid)
        ramp = (1 - share) * np.array(rgb) + share * np.array(contrast(rgb))
    else:
        tone = _RELIEFS[pattern](grid) / _BRIGHTEST
        ramp = share * _BRIGHTEST * np.array(rgb)
    tones = Image.fromarray((np.clip(tone, 0.0, 1.0) * 255.0).astype(np.uint8))
    tables = np.clip(ramp, 0, 255).astype(np.uint8)
    return Image.merge("RGB", [tones.point(tables[:, channel].tolist()) for channel in range(3)])


def _band(x: Field, period: float, width: float, grid: Grid) -> Field:
    """1 inside bands of that width, 0 between, with an anti-aliased edge of one pixel."""
    inside = width / 2 - np.abs(np.mod(x, period) - period / 2)
    return np.clip(inside * grid.pixels + 0.5, 0.0, 1.0)


def _stripes(grid: Grid) -> Field:
    return _band(grid.v, 0.22, 0.09, grid)


def _pinstripes(grid: Grid) -> Field:
    return 0.75 * _band(grid.u, 0.115, 0.024, grid)


def _tartan(grid: Grid) -> Field:
    period = 0.36
    wide = 0.40 * (_band(grid.u, period, 0.15, grid) + _band(grid.v, period, 0.15, grid))
    u, v = grid.u + period / 2, grid.v + period / 2
    thin = np.maximum(_band(u, period, 0.022, grid), _band(v, period, 0.022, grid))
    return wide + 0.8 * thin * (1 - wide)


def _dots(grid: Grid) -> Field:
    period, radius = 0.19, 0.048
    row = np.floor(grid.v / period)
    x = np.mod(grid.u + np.mod(row, 2) * (period / 2), period) - period / 2
    y = np.mod(grid.v, period) - period / 2
    return np.clip((radius - np.sqrt(x * x + y * y)) * grid.pixels + 0.5, 0.0, 1.0)


def _flowers(grid: Grid) -> Field:
    """Five petals around each point of a staggered lattice, every other row turned."""
    period = 0.30
    row = np.floor(grid.v / (period * 0.8))
    x = np.mod(grid.u + np.mod(row, 2) * (period / 2), period) - period / 2
    y = np.mod(grid.v, period * 0.8) - period * 0.4
    radius = np.sqrt(x * x + y * y)
    petals = 0.074 + 0.030 * np.cos(5 * np.arctan2(y, x) + np.mod(row, 2) * np.pi)
    return np.clip((petals - radius) * grid.pixels + 0.5, 0, 1) * np.clip((radius - 0.022) * grid.pixels + 0.5, 0, 1)


def _twill(grid: Grid) -> Field:
    worn = np.sin(grid.u * 5.0 + 1.3 * np.sin(grid.v * 3.0)) * np.sin(grid.v * 4.0 + 0.7)
    return 1.0 + 0.10 * np.sin((grid.u + grid.v) * (2 * np.pi / 0.04)) + 0.10 * worn


def _diamonds(grid: Grid) -> Field:
    period = 0.24
    a = np.abs(np.mod((grid.u + grid.v) / period, 1.0) - 0.5) * 2
    b = np.abs(np.mod((grid.u - grid.v) / period, 1.0) - 0.5) * 2
    a2, b2 = a * a, b * b
    return 0.52 + 0.54 * (1 - a2 * a2 * a2) * (1 - b2 * b2 * b2) + 0.10 * (b - a)


def _stitches(grid: Grid) -> Field:
    across = np.abs(np.mod(grid.u / 0.055, 1.0) - 0.5)
    return 0.92 + 0.16 * np.sin(2 * np.pi * (grid.v / 0.044 + across)) * (0.4 + across)


def _cables(grid: Grid) -> Field:
    x = np.mod(grid.u / 0.26, 1.0) * 2 - 1
    braid = (0.88 + 0.24 * np.cos(2 * np.pi * grid.v / 0.17 + 3.0 * x)) * (1.06 - 0.35 * x * x)
    gap = 0.72 + 0.10 * np.sin(grid.u * (2 * np.pi / 0.05))
    rope = np.clip((0.62 - np.abs(x)) * 8.0, 0.0, 1.0)
    return gap + rope * (braid - gap)


def _rib(grid: Grid) -> Field:
    return 0.90 + 0.14 * np.sin(grid.u * (2 * np.pi / 0.05))


def _pebbles(grid: Grid) -> Field:
    """Grain of leather: fine, without a direction."""
    a, b = grid.u * 150.0, grid.v * 150.0
    return 0.98 + 0.045 * np.sin(a + 1.7 * np.sin(b * 0.83)) * np.sin(b + 1.7 * np.sin(a * 0.71))


def _canvas(grid: Grid) -> Field:
    """Thick threads over and under, seen one by one."""
    return 0.93 + 0.15 * np.sin(grid.u * (2 * np.pi / 0.040)) * np.sin(grid.v * (2 * np.pi / 0.040))


def _plaited(grid: Grid) -> Field:
    """Straw: bands around, slanted strands within them."""
    band = np.mod(grid.v / 0.075, 1.0)
    row = np.floor(grid.v / 0.075)
    slant = np.where(np.mod(row, 2) > 0, 1.0, -1.0)
    strand = np.sin(2 * np.pi * (grid.u / 0.042 + slant * band * 0.7))
    return 0.86 + 0.16 * strand + 0.24 * np.sin(np.pi * band)


def _basket(grid: Grid) -> Field:
    a, b = (grid.u + grid.v) / 0.11, (grid.u - grid.v) / 0.11
    over = np.mod(np.floor(a) + np.floor(b), 2)
    fa, fb = np.mod(a, 1.0) - 0.5, np.mod(b, 1.0) - 0.5
    return 1.12 - over * 1.9 * fa * fa - (1 - over) * 1.9 * fb * fb - 0.10 * over


# A print is 0 in the fabric's own colour and 1 in the second; a relief is the light it throws back, about 1.
_PRINTS: Mapping[str, Callable[[Grid], Field]] = {
    "striped": _stripes,
    "pinstriped": _pinstripes,
    "checked": _tartan,
    "dotted": _dots,
    "floral": _flowers,
}
_RELIEFS: Mapping[str, Callable[[Grid], Field]] = {
    "denim": _twill,
    "quilted": _diamonds,
    "knit": _stitches,
    "cable": _cables,
    "rib": _rib,
    "braided": _basket,
    "leather": _pebbles,
    "canvas": _canvas,
    "straw": _plaited,
}
