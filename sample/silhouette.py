"""Outlines: curves in product coordinates, x to the right and y down, both about -1 to 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # (n, 2) float64

_CURVE_STEPS = np.linspace(0.0, 1.0, 9)[1:, None]


@dataclass(frozen=True)
class Part:
    """One piece of a product, painted over the pieces before it.

    `material` names a texture of the fabric module. `width` above 0 draws the outline as a line of that width instead
    of filling it. `shade` scales its light, `relief` is how much darker its edges are, `lift` how dark a shadow it
    casts on what is below it (all 0..1, shade may pass 1).
    """

    outline: Points
    material: str = "main"
    width: float = 0.0
    shade: float = 1.0
    relief: float = 0.3
    lift: float = 0.0


def path(*nodes: Sequence[float]) -> Points:
    """Points along nodes: (x, y) is a straight line to x, y; (cx, cy, x, y) a quadratic curve with that control."""
    points = [np.array([nodes[0]], dtype=np.float64)]
    for node in nodes[1:]:
        end = np.array([node[-2:]])
        if len(node) == 4:
            start, control = points[-1][-1:], np.array([node[:2]])
            t = _CURVE_STEPS
            points.append((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end)
        else:
            points.append(end)
    return np.concatenate(points)


def flip(points: Points) -> Points:
    """The mirror image about the vertical axis."""
    return points[::-1] * (-1.0, 1.0)


def mirrored(*nodes: Sequence[float]) -> Points:
    """A symmetric outline from its right half, given from top to bottom."""
    half = path(*nodes)
    return np.concatenate([half, flip(half)])


def both(part: Part) -> list[Part]:
    """The part and its mirror image."""
    return [part, Part(flip(part.outline), part.material, part.width, part.shade, part.relief, part.lift)]


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    """An ellipse or, between two angles in degrees (0 is right, 90 is down), an arc of it."""
    angle = np.radians(np.linspace(start, end, 33))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Points:
    """A rectangle with corners of radius r."""
    if r == 0.0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return path(
        (x0 + r, y0), (x1 - r, y0), (x1, y0, x1, y0 + r), (x1, y1 - r), (x1, y1, x1 - r, y1),
        (x0 + r, y1), (x0, y1, x0, y1 - r), (x0, y0 + r), (x0, y0, x0 + r, y0),
    )  # fmt: skip


def moved(points: Points, dx: float, dy: float, degrees: float = 0.0) -> Points:
    """Rotated about the origin, then moved."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]]) + (dx, dy)
