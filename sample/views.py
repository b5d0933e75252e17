"""The further photos of a product (back, close-up, another angle), and the details that only one of them shows."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from sample import backs, reverse
from sample.garments import Attributes
from sample.reverse import PAIR
from sample.silhouette import Part, Points, both, box, ellipse, moved, path
from sample.spec import lookup

BACKS: Mapping[str, Callable[[Attributes], list[Part]]] = {
    "dress": backs.dress,
    "blouse": backs.blouse,
    "skirt": backs.skirt,
    "cardigan": backs.cardigan,
    "coat": backs.coat,
    "pump": reverse.pump,
    "sandal": reverse.sandal,
    "boot": reverse.boot,
    "tote_bag": reverse.tote_bag,
    "shoulder_bag": reverse.shoulder_bag,
    "scarf": reverse.scarf,
    "sun_hat": reverse.sun_hat,
    "t_shirt": backs.t_shirt,
    "polo": backs.polo,
    "shirt": backs.shirt,
    "sweater": backs.sweater,
    "blazer": backs.blazer,
    "jacket": backs.jacket,
    "trousers": backs.trousers,
    "sneaker": reverse.sneaker,
    "backpack": reverse.backpack,
    "belt": reverse.belt,
    "wallet": reverse.wallet,
    "tie": reverse.tie,
    "cap": reverse.cap,
    "kids_tee": backs.kids_tee,
    "hoodie": backs.hoodie,
    "dungarees": backs.dungarees,
    "welly": reverse.welly,
    "socks": reverse.socks,
    "beanie": reverse.beanie,
    "mittens": reverse.mittens,
}
# On the back: the middle, half the width and half the height of a panel, the radius of an emblem. With x above 0 there
# are two, left and right. Named as in a Dialect.
_MARKS: Mapping[str, tuple[float, float, float, float, float]] = {
    "dress": (0.0, -0.34, 0.27, 0.20, 0.22),
    "blouse": (0.0, -0.10, 0.32, 0.34, 0.28),
    "skirt": (0.0, 0.30, 0.36, 0.26, 0.26),
    "cardigan": (0.0, -0.10, 0.38, 0.34, 0.32),
    "coat": (0.0, -0.32, 0.36, 0.28, 0.30),
    "pump": (PAIR, -0.18, 0.15, 0.12, 0.13),
    "sandal": (PAIR, -0.01, 0.15, 0.10, 0.10),
    "boot": (PAIR, 0.14, 0.24, 0.30, 0.22),
    "tote_bag": (0.0, 0.36, 0.50, 0.34, 0.30),
    "shoulder_bag": (0.0, 0.40, 0.50, 0.24, 0.24),
    "scarf": (0.0, 0.40, 0.42, 0.30, 0.28),
    "sun_hat": (0.0, -0.30, 0.36, 0.24, 0.25),
    "t_shirt": (0.0, -0.14, 0.36, 0.36, 0.32),
    "polo": (0.0, -0.10, 0.36, 0.36, 0.32),
    "shirt": (0.0, -0.06, 0.36, 0.38, 0.32),
    "sweater": (0.0, -0.06, 0.38, 0.38, 0.33),
    "blazer": (0.0, -0.26, 0.36, 0.30, 0.30),
    "jacket": (0.0, -0.10, 0.38, 0.32, 0.30),
    "trousers": (0.24, -0.18, 0.13, 0.30, 0.15),
    "sneaker": (PAIR, -0.02, 0.20, 0.18, 0.15),
    "backpack": (0.0, 0.06, 0.26, 0.40, 0.24),
    "belt": (0.0, 0.49, 0.34, 0.11, 0.14),
    "wallet": (0.0, -0.02, 0.44, 0.30, 0.26),
    "tie": (0.0, 0.50, 0.18, 0.26, 0.17),
    "tie.shape=bow": (0.54, 0.0, 0.28, 0.18, 0.20),
    "cap": (0.0, -0.26, 0.34, 0.20, 0.20),
    "kids_tee": (0.0, 0.04, 0.42, 0.38, 0.34),
    "hoodie": (0.0, 0.04, 0.42, 0.36, 0.34),
    "dungarees": (0.24, 0.17, 0.14, 0.15, 0.13),
    "welly": (PAIR, 0.10, 0.26, 0.30, 0.22),
    "socks": (PAIR, 0.18, 0.20, 0.24, 0.17),
    "beanie": (0.0, -0.26, 0.44, 0.26, 0.26),
    "mittens": (PAIR, -0.18, 0.24, 0.34, 0.22),
}
# What a close-up is of; the middle of the product where it says nothing.
_SPOTS: Mapping[str, tuple[float, float]] = {
    "dress": (0.0, -0.30),
    "blouse": (0.0, -0.45),
    "skirt": (0.0, -0.42),
    "cardigan": (0.0, 0.0),
    "coat": (0.0, -0.40),
    "pump": (0.0, 0.20),
    "sandal": (0.10, 0.20),
    "boot": (0.0, 0.30),
    "shirt": (0.0, -0.45),
    "polo": (0.0, -0.45),
    "t_shirt": (0.0, -0.50),
    "sweater": (0.0, -0.50),
    "blazer": (0.0, -0.20),
    "jacket": (0.0, -0.40),
    "trousers": (0.0, -0.75),
    "scarf": (0.0, -0.30),
    "tie": (0.0, 0.50),
    "tie.shape=bow": (0.40, 0.0),
    "belt": (0.30, 0.40),
    "dungarees": (0.0, -0.30),
    "hoodie": (0.0, -0.10),
    "mittens": (0.50, 0.0),
}


def from_behind(kind: str, attributes: Attributes) -> list[Part]:
    """The back, and on it an emblem or a panel of the contrast colour."""
    parts = BACKS[kind](attributes)
    x, y, half_width, half_height, radius = lookup(_MARKS, kind, attributes) or _MARKS[kind]
    match attributes.get("back", "plain"):
        case "emblem":
            mark = [Part(ellipse(x, y, radius, radius), "contrast", relief=0.15, lift=0.2)]
            mark.append(Part(_star(x, y, 0.78 * radius), "plain", relief=0.1))
        case "panel":
            mark = [Part(box(x - half_width, y - half_height, x + half_width, y + half_height), "contrast", lift=0.4)]
        case _:
            return parts
    return parts + ([part for one in mark for part in both(one)] if x else mark)


def _star(x: float, y: float, radius: float) -> Points:
    angle = np.radians(np.arange(10) * 36 - 90)
    length = np.where(np.arange(10) % 2, 0.42, 1.0) * radius
    return np.stack([x + length * np.cos(angle), y + length * np.sin(angle)], axis=1)


def spot(kind: str, attributes: Attributes) -> tuple[float, float]:
    """The middle of the close-up, in product coordinates."""
    return lookup(_SPOTS, kind, attributes) or _SPOTS.get(kind, (0.0, 0.0))


def label(rng: np.random.Generator, line: str, middle: tuple[float, float], width: float) -> list[Part]:
    """The woven label, turned out for the close-up: black with a golden star for the fine line, else white with print.

    It is sewn inside, so no other photo shows it. `width` is half its own.
    """
    height, degrees = 0.55 * width, float(rng.uniform(-9, 9))
    dx, dy = rng.choice((-1, 1)) * rng.uniform(0.8, 1.3) * width, rng.uniform(0.2, 0.8) * width

    def placed(outline: Points) -> Points:
        return moved(outline, middle[0] + dx, middle[1] + dy, degrees)

    cloth = placed(box(-width, -height, width, height))
    if line == "gold":
        edge = box(-0.9 * width, -0.82 * height, 0.9 * width, 0.82 * height)
        return [
            Part(cloth, "label", relief=0.15, lift=0.6),
            Part(placed(np.concatenate([edge, edge[:2]])), "gold", width=0.09 * width),
            Part(placed(_star(0.0, 0.0, 0.6 * height)), "gold", relief=0.1),
        ]
    parts = [Part(cloth, "paper", relief=0.15, lift=0.6)]
    for y, half in ((-0.35, 0.6), (0.05, 0.35), (0.4, 0.5)):
        print_line = path((-half * width, y * height), (half * width, y * height))
        parts.append(Part(placed(print_line), "ink", width=0.06 * width))
    return parts


def turned(rng: np.random.Generator, parts: list[Part], standing: bool) -> list[Part]:
    """The same product seen at an angle: narrower and slanted; what stands shows its other side, the rest is tilted."""
    narrow, slant = rng.uniform(0.72, 0.86), rng.choice((-1, 1)) * rng.uniform(0.06, 0.16)
    degrees = 0.0 if standing else float(rng.choice((-1, 1)) * rng.uniform(10, 28))
    # A point is a row: x becomes -narrow x or narrow x, and y becomes y + slant x.
    matrix = np.array([[-narrow if standing else narrow, slant], [0.0, 1.0]])
    return [replace(part, outline=moved(part.outline @ matrix, 0.0, 0.0, degrees)) for part in parts]
