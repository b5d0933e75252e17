"""Shoes, bags and accessories from behind, as parts: heels, seams and plain sides."""

from collections.abc import Sequence
from dataclasses import replace

from sample import accessories, bags
from sample.garments import Attributes
from sample.silhouette import Part, both, box, ellipse, mirrored, moved, path

PAIR = 0.46  # how far the two of a pair are from the middle


def _pair(one: Sequence[Part]) -> list[Part]:
    """The part of one shoe, sock or mitten, and its mirror image next to it."""
    side = [replace(part, outline=moved(part.outline, PAIR, 0.0)) for part in one]
    return [other for part in side for other in both(part)]


def _heel(top: float, width: float, floor: float) -> Part:
    """The back of a shoe: from the opening at `top` to the sole at `floor`, `width` half its width."""
    outline = mirrored(
        (0.0, top), (0.7 * width, top - 0.03, 0.75 * width, top + 0.06), (1.05 * width, floor - 0.25, width, floor),
        (0.0, floor + 0.02),
    )  # fmt: skip
    return Part(outline, relief=0.5, lift=0.3)


def _seam(top: float, floor: float) -> Part:
    return Part(path((0.0, top), (0.0, floor)), "stitch", width=0.022)


def sneaker(a: Attributes) -> list[Part]:
    top = -0.88 if a["top"] == "high" else -0.34
    return _pair(
        [
            Part(ellipse(0.0, top + 0.02, 0.20, 0.07), "lining", shade=0.6),
            _heel(top, 0.34, 0.42),
            Part(path((-0.16, 0.14), (0.16, 0.14), (0.22, 0.42), (-0.22, 0.42)), "plain", shade=0.8, lift=0.3),
            Part(box(-0.06, top, 0.06, top + 0.26, 0.03), "trim", lift=0.4),
            Part(box(-0.37, 0.38, 0.37, 0.62, 0.08), "gum" if a["sole"] == "gum" else "rubber", lift=0.3),
        ]
    )


def boot(a: Attributes) -> list[Part]:
    top, floor = (-1.45 if a["height"] == "knee" else -0.62), (1.02 if a["heel"] == "block" else 0.84)
    return _pair(
        [
            Part(box(-0.20, 0.66, 0.20, floor, 0.03), "rubber_dark", relief=0.3),
            Part(ellipse(0.0, top + 0.02, 0.26, 0.07), "lining", shade=0.6),
            _heel(top, 0.33, 0.72),
            _seam(top + 0.04, 0.70),
            Part(box(-0.31, 0.70, 0.31, 0.76), "rubber_dark", relief=0.2),
        ]
    )


def pump(a: Attributes) -> list[Part]:
    """The upper at one height, on a heel of its own length."""
    floor = {"kitten": 0.36, "stiletto": 0.84, "block": 0.66}[a["heel"]]
    thin = {"kitten": 0.06, "stiletto": 0.03, "block": 0.17}[a["heel"]]
    heel = mirrored((0.0, -0.05), (0.20, -0.05), (thin, 0.16, thin, floor), (0.0, floor))
    one = [
        Part(ellipse(0.0, -0.40, 0.19, 0.06), "insole", shade=0.75, relief=0.1),
        Part(heel, "trim" if a["heel"] == "block" else "rubber_dark", relief=0.35),
        _heel(-0.42, 0.25, 0.04),
        _seam(-0.38, 0.02),
    ]
    if a["strap"] == "ankle":
        one.insert(0, Part(ellipse(0.0, -0.72, 0.20, 0.06, 0, 375), width=0.06, shade=0.8))
        one.append(Part(box(-0.04, -0.70, 0.04, -0.36, 0.02), lift=0.3))
    return _pair(one)


def sandal(a: Attributes) -> list[Part]:
    floor = 0.78 if a["sole"] == "platform" else 0.52
    strap = mirrored((0.0, -0.14), (0.30, -0.18, 0.32, -0.06), (0.34, 0.12), (0.2, 0.11, 0.0, 0.12))
    return _pair(
        [
            *both(Part(path((0.30, 0.0), (0.33, 0.36)), width=0.12, shade=0.8)),
            Part(box(-0.36, 0.30, 0.36, 0.40, 0.04), "insole", relief=0.2),
            Part(box(-0.36, 0.36, 0.36, floor, 0.06), "cork" if a["sole"] == "platform" else "gum", relief=0.35),
            Part(strap, relief=0.45, lift=0.5),
            Part(box(0.20, -0.12, 0.34, 0.09, 0.03), a["metal"], width=0.05, relief=0.3, lift=0.4),
        ]
    )


def welly(a: Attributes) -> list[Part]:
    one = [
        Part(ellipse(0.0, -0.66, 0.30, 0.08), "lining", shade=0.6),
        _heel(-0.66, 0.36, 0.68),
        Part(path((-0.31, -0.66), (0.31, -0.66), (0.32, -0.48), (-0.32, -0.48)), "contrast", relief=0.3, lift=0.4),
        Part(box(-0.38, 0.64, 0.38, 0.84, 0.04), "rubber", relief=0.3, lift=0.3),
    ]
    if a["tab"] == "yes":
        one.insert(0, Part(ellipse(0.0, -0.74, 0.12, 0.13, 0, 375), "contrast", width=0.06))
    return _pair(one)


def socks(a: Attributes) -> list[Part]:
    top = -1.15 if a["length"] == "knee" else -0.28
    leg = mirrored((0.0, top), (0.24, top), (0.26, 0.2, 0.25, 0.84), (0.16, 0.98, 0.0, 0.98))
    heel = mirrored((0.0, 0.50), (0.18, 0.52), (0.25, 0.84), (0.16, 0.98, 0.0, 0.98))
    return _pair(
        [
            Part(leg, relief=0.4, lift=0.5),
            Part(heel, "contrast", relief=0.35),
            Part(
                path((-0.25, top - 0.02), (0.25, top - 0.02), (0.25, top + 0.20), (-0.25, top + 0.20)), "rib", lift=0.3
            ),
        ]
    )


def mittens(a: Attributes) -> list[Part]:
    """Backs of the hands: the thumbs point away from each other."""
    thumb = path((0.24, 0.24), (0.38, 0.10, 0.46, -0.14), (0.50, -0.32, 0.34, -0.32), (0.26, -0.22, 0.14, -0.02))
    hand = mirrored((0.0, -0.86), (0.32, -0.86, 0.32, -0.30), (0.32, 0.1, 0.27, 0.46), (0.0, 0.48))
    cuff = path((-0.29, 0.42), (0.29, 0.42), (0.31, 0.84), (-0.31, 0.84))
    parts = _pair(
        [
            Part(thumb, shade=0.88, relief=0.4),
            Part(hand, relief=0.45, lift=0.3),
            Part(cuff, "rib", shade=0.92, relief=0.4, lift=0.5),
        ]
    )
    if a["string"] == "yes":
        string = path((0.42, 0.80), (0.30, 1.25, 0.0, 1.10), (-0.30, 1.25, -0.42, 0.80))
        parts.insert(0, Part(string, "trim", width=0.045))
    return parts


def tote_bag(a: Attributes) -> list[Part]:
    """The front's outline with a slip pocket."""
    pocket = box(-0.34, 0.16, 0.34, 0.66, 0.04)
    return [*bags.tote_bag(a), Part(pocket, shade=0.94, relief=0.5, lift=0.5)]


def shoulder_bag(a: Attributes) -> list[Part]:
    """No flap: a plain side with a slip pocket."""
    front = bags.shoulder_bag(a)
    straps = front[: next(i for i, part in enumerate(front) if part.material == "main")]
    body = mirrored(
        (0.0, -0.16), (0.66, -0.16), (0.76, -0.12, 0.76, 0.1), (0.76, 0.66), (0.76, 0.78, 0.62, 0.78), (0.0, 0.78)
    )
    return [
        *straps,
        Part(body, relief=0.4, lift=0.4),
        *both(Part(ellipse(0.66, -0.06, 0.05, 0.05), "gold", width=0.03)),
        Part(path((-0.52, 0.06), (0.0, 0.10, 0.52, 0.06)), "shadow", width=0.03),
    ]


def backpack(a: Attributes) -> list[Part]:
    """The padded straps, from the handle down to the corners."""
    front = bags.backpack(a)
    strap = path((0.16, -0.86), (0.52, -0.70, 0.50, -0.10), (0.48, 0.50, 0.64, 0.80))
    return [
        *front[2:4],  # handle and body
        Part(box(-0.30, -0.62, 0.30, 0.72, 0.10), shade=0.92, relief=0.5, lift=0.3),
        *both(Part(strap, "trim", width=0.15, relief=0.45, lift=0.7)),
        *both(Part(box(0.44, 0.20, 0.58, 0.30, 0.02), "silver", width=0.03, lift=0.4)),
    ]


def wallet(a: Attributes) -> list[Part]:
    """The plain side."""
    if a["style"] == "zip":
        return bags.wallet(a)
    if a["style"] == "card":
        return [Part(box(-0.56, -0.50, 0.56, 0.62, 0.07), relief=0.4, lift=0.5)]
    return [
        Part(box(-0.80, -0.54, 0.80, 0.60, 0.09), "trim", shade=0.6),
        Part(box(-0.80, -0.62, 0.80, 0.52, 0.09), relief=0.4, lift=0.5),
        Part(path((0.77, -0.56), (0.77, 0.47)), "stitch", width=0.02),
    ]


def scarf(a: Attributes) -> list[Part]:
    """Off the hook and folded to a rectangle."""
    parts = []
    if a["fringe"] == "yes":
        strands = [path((-0.50 + 0.1 * i, 0.80), (-0.50 + 0.1 * i, 1.06)) for i in range(11)]
        parts += [Part(strand, "plain", width=0.026, shade=0.85) for strand in strands]
    return [
        *parts,
        Part(box(-0.60, -0.80, 0.52, 0.80, 0.03), shade=0.8, relief=0.4),
        Part(box(-0.54, -0.86, 0.58, 0.84, 0.03), relief=0.4, lift=0.5),
        Part(path((-0.54, -0.02), (0.58, 0.0)), "fold", width=0.04),
    ]


def sun_hat(a: Attributes) -> list[Part]:
    """The ribbon goes around; its bow is on the other side."""
    return accessories.sun_hat(a)[:-1]


def belt(a: Attributes) -> list[Part]:
    """The roll without its buckle: the far side, stitched along both edges."""
    inner, front, *_ = accessories.belt(a)
    edges = [path((-0.94, y), (-0.90, y + 0.55, 0.0, y + 0.55), (0.90, y + 0.55, 0.94, y)) for y in (-0.12, 0.05)]
    loop = Part(box(-0.07, 0.22, 0.07, 0.66, 0.03), "trim", lift=0.5)
    return [inner, front, *[Part(edge, "stitch", width=0.014) for edge in edges], loop]


def tie(a: Attributes) -> list[Part]:
    """The seam down the blade and the loop that keeps the tail; of a bow tie its hooked band."""
    if a["shape"] == "bow":
        front = accessories.tie(a)
        band = path((-0.98, -0.05), (0.0, 0.02, 0.98, -0.05))
        hook = Part(box(0.30, -0.08, 0.44, 0.08, 0.02), "silver", width=0.035, lift=0.4)
        return [*front[1:], Part(band, "plain", width=0.10, shade=0.85, relief=0.4, lift=0.5), hook]
    blade = path((-0.10, -0.98), (0.10, -0.98), (0.25, 0.92), (0.0, 1.18), (-0.25, 0.92))
    loop = path((-0.12, -0.98), (-0.52, -1.30, 0.0, -1.42), (0.52, -1.30, 0.12, -0.98))
    return [
        Part(loop, width=0.13, relief=0.4),
        Part(blade, relief=0.35, lift=0.5),
        Part(path((0.0, -0.95), (0.0, 0.86)), "shadow", width=0.02),
        Part(path((-0.22, 0.96), (0.0, 0.86), (0.22, 0.96)), "stitch", width=0.016),
    ]


def cap(a: Attributes) -> list[Part]:
    """The opening above the strap; the brim is on the other side."""
    crown = mirrored((0.0, -0.64), (0.66, -0.64, 0.68, 0.24), (0.36, 0.32, 0.0, 0.32))
    shade = "contrast" if a["brim"] == "contrast" else "plain"
    return [
        Part(crown, relief=0.45, lift=0.3),
        *both(Part(path((0.0, -0.62), (0.34, -0.40, 0.40, 0.28)), "shadow", width=0.018)),
        Part(ellipse(0, -0.63, 0.06, 0.035), shade, shade=0.9),
        Part(mirrored((0.0, 0.02), (0.24, 0.02, 0.26, 0.24), (0.0, 0.24)), "lining", shade=0.5, relief=0.1),
        Part(box(-0.30, 0.20, 0.30, 0.32, 0.03), shade=0.95, lift=0.4),
        Part(box(-0.05, 0.18, 0.05, 0.34, 0.02), "silver", width=0.03, lift=0.3),
    ]


def beanie(a: Attributes) -> list[Part]:
    """A seam from the crown to the cuff."""
    return [*accessories.beanie(a), Part(path((0.02, -0.76), (0.0, 0.60)), "shadow", width=0.016)]
