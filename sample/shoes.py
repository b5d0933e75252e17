"""Shoes as parts, from the side, toe to the right."""

from sample.garments import Attributes
from sample.silhouette import Part, box, ellipse, moved, path


def sneaker(a: Attributes) -> list[Part]:
    """One shoe from its outer side, toe to the right."""
    sole = path(
        (-0.98, 0.36), (-1.02, 0.62, -0.90, 0.62), (0.86, 0.62), (1.08, 0.60, 1.06, 0.40), (0.2, 0.46, -0.98, 0.36)
    )
    if a["top"] == "high":
        ankle: tuple[tuple[float, ...], ...] = ((-0.90, -0.92), (-0.60, -0.98, -0.28, -0.92))
        throat = ((-0.20, -0.46, 0.02, -0.24),)
    else:
        ankle = ((-0.88, -0.34), (-0.76, -0.42, -0.62, -0.30), (-0.46, -0.18, -0.28, -0.34))
        throat = ((-0.14, -0.30, 0.04, -0.16),)
    upper = path(
        (-0.96, 0.42),
        (-1.00, 0.0, ankle[0][0], ankle[0][1]),
        *ankle[1:],
        *throat,
        (0.40, 0.0, 0.74, 0.06),
        (1.04, 0.14, 1.03, 0.44),
    )
    parts = [
        Part(upper),
        Part(
            path((0.56, 0.03), (0.80, 0.06), (1.04, 0.16, 1.03, 0.44), (0.58, 0.46), (0.44, 0.2, 0.56, 0.03)),
            "plain",
            shade=0.85,
        ),
    ]
    parts.append(Part(path((-0.96, 0.42), (-0.99, 0.1, -0.93, -0.1), (-0.66, -0.1, -0.60, 0.42)), "plain", shade=0.8))
    if a["stripe"] == "yes":
        for x in (-0.44, -0.22, 0.0):
            parts.append(
                Part(path((x, 0.40), (x + 0.12, 0.40), (x + 0.24, 0.02), (x + 0.12, 0.02)), "contrast", relief=0.1)
            )
    laces = (
        ((-0.22, -0.56), (-0.16, -0.42), (-0.08, -0.28), (0.04, -0.17))
        if a["top"] == "high"
        else ((-0.18, -0.27), (-0.06, -0.21), (0.06, -0.13))
    )
    parts += [Part(path((x - 0.14, y + 0.12), (x + 0.05, y + 0.01)), "lace", width=0.05, lift=0.4) for x, y in laces]
    material = "gum" if a["sole"] == "gum" else "rubber"
    parts.append(Part(sole, material, relief=0.3, lift=0.3))
    return parts


def boot(a: Attributes) -> list[Part]:
    """A pair from the side, the near one in front, toe to the right."""
    knee = a["height"] == "knee"
    top = -1.45 if knee else -0.62
    shaft = 0.06 if knee else 0.0
    upper = path(
        (-0.56, 0.62), (-0.60, 0.1, -0.52 - shaft, top), (-0.2, top - 0.05, 0.10 + shaft, top),
        (0.04, -0.2, 0.10, 0.10),        (0.30, 0.26, 0.58, 0.34), (0.86, 0.42, 0.84, 0.70), (-0.56, 0.70),
    )  # fmt: skip
    sole = path((-0.58, 0.70), (0.85, 0.70), (0.86, 0.76), (-0.58, 0.76))
    heel = (
        path((-0.58, 0.70), (-0.18, 0.70), (-0.22, 1.02), (-0.54, 1.02))
        if a["heel"] == "block"
        else box(-0.58, 0.70, -0.20, 0.84)
    )
    one = [
        Part(heel, "rubber_dark", relief=0.3),
        Part(upper, relief=0.45, lift=0.4),
        Part(sole, "rubber_dark", relief=0.2),
        Part(path((-0.52 - shaft, top + 0.02), (-0.2, top - 0.03, 0.10 + shaft, top + 0.02)), "shadow", width=0.05),
    ]
    if knee:
        one.append(Part(path((-0.10, top + 0.10), (-0.12, 0.0, -0.10, 0.20)), "fold", width=0.03))
    else:
        one.append(
            Part(path((-0.34, top + 0.05), (-0.06, top + 0.05), (-0.12, -0.02), (-0.28, -0.02)), "lining", shade=0.8)
        )

    return _pair(one, 0.34, -0.10)


def _pair(one: list[Part], dx: float, dy: float) -> list[Part]:
    """The shoe twice: a darker one behind."""
    far = [Part(moved(p.outline, dx, dy), p.material, p.width, p.shade * 0.72, p.relief, p.lift) for p in one]
    return far + [Part(moved(p.outline, -dx / 2, 0.0), p.material, p.width, p.shade, p.relief, p.lift) for p in one]


def pump(a: Attributes) -> list[Part]:
    """A court shoe: low cut, pointed, on one of three heels."""
    lift = {"kitten": 0.30, "stiletto": 0.78, "block": 0.60}[a["heel"]]
    back = 0.42 - lift  # where the heel meets the upper
    heel = {
        "kitten": path((-0.94, back), (-0.62, back + 0.04), (-0.78, 0.48), (-0.86, 0.48)),
        "stiletto": path((-0.94, back), (-0.58, back + 0.06), (-0.82, 0.48), (-0.885, 0.48)),
        "block": path((-0.95, back), (-0.52, back + 0.05), (-0.56, 0.48), (-0.92, 0.48)),
    }[a["heel"]]
    upper = path(
        (-0.96, back + 0.02), (-1.0, back - 0.22, -0.90, back - 0.42), (-0.72, back - 0.36, -0.52, back - 0.10),
        (-0.10, 0.26, 0.30, 0.10), (0.40, 0.10, 0.60, 0.26), (0.90, 0.36, 1.08, 0.46), (0.56, 0.49), (0.24, 0.48),
        (-0.20, 0.44, -0.52, back + 0.08),
    )  # fmt: skip
    opening = path(
        (-0.88, back - 0.38), (-0.70, back - 0.40, -0.50, back - 0.16), (-0.10, 0.18, 0.30, 0.11),
        (-0.08, 0.28, -0.52, back - 0.08), (-0.72, back - 0.34, -0.88, back - 0.38),
    )  # fmt: skip
    sole = path((0.16, 0.485), (1.06, 0.475))
    parts = [
        Part(opening, "insole", shade=0.75, relief=0.1),
        Part(heel, "rubber_dark" if a["heel"] != "block" else "trim", relief=0.35),
        Part(upper, relief=0.5, lift=0.3),
        Part(sole, "rubber_dark", width=0.035),
    ]
    if a["strap"] == "ankle":
        parts.append(
            Part(
                path((-0.90, back - 0.42), (-0.98, back - 0.72), (-0.30, back - 0.72), (-0.22, back - 0.62)), width=0.07
            )
        )
        parts.append(Part(path((-0.94, back - 0.70), (-0.56, back - 0.78, -0.24, back - 0.64)), width=0.08, lift=0.4))
        parts.append(Part(box(-0.66, back - 0.82, -0.52, back - 0.64, 0.02), "gold", width=0.03, lift=0.3))
    return _pair(parts, 0.30, -0.14)


def sandal(a: Attributes) -> list[Part]:
    """An open shoe: a sole, two bands over the foot and a strap around the heel with its buckle."""
    platform = a["sole"] == "platform"
    floor = 0.78 if platform else 0.52
    sole = path(
        (-0.98, 0.34), (-0.60, 0.38), (-0.10, 0.46, 0.30, 0.44), (0.80, 0.40, 1.02, 0.36), (1.10, 0.44, 1.02, floor),
        (-0.94, floor), (-1.04, floor, -0.98, 0.34),
    )  # fmt: skip
    bed = path((-0.98, 0.34), (-0.60, 0.36), (-0.10, 0.42, 0.30, 0.40), (0.80, 0.34, 1.03, 0.33))
    toe_band = path((0.22, 0.44), (0.36, 0.06, 0.54, 0.06), (0.76, 0.12, 0.86, 0.37), (0.60, 0.44))
    instep = path((-0.34, 0.42), (-0.26, -0.10, -0.02, -0.10), (0.22, -0.04, 0.20, 0.44), (0.0, 0.46))
    heel = path((-0.90, 0.36), (-0.96, -0.02), (-0.92, -0.10), (-0.56, -0.14, -0.20, -0.06))
    parts = [
        Part(sole, "cork" if platform else "gum", relief=0.35),
        Part(bed, "insole", width=0.06, relief=0.1),
        Part(heel, width=0.13, relief=0.35, lift=0.4),
        Part(toe_band, relief=0.45, lift=0.5),
        Part(path((0.34, 0.40), (0.44, 0.14, 0.56, 0.13)), "stitch", width=0.018),
        Part(instep, relief=0.45, lift=0.5),
        Part(path((-0.22, 0.40), (-0.16, 0.0, -0.02, -0.02)), "stitch", width=0.018),
        Part(box(-0.62, -0.24, -0.36, 0.04, 0.03), a["metal"], width=0.06, relief=0.3, lift=0.5),
    ]
    return _pair(parts, 0.26, -0.16)


def welly(a: Attributes) -> list[Part]:
    """A child's rubber boot: short, wide and shiny, with a rim and a ribbed sole."""
    upper = path(
        (-0.52, 0.62), (-0.56, 0.0, -0.50, -0.66), (0.12, -0.66), (0.08, -0.10), (0.10, 0.10, 0.36, 0.14),
        (0.86, 0.20, 0.82, 0.66), (-0.52, 0.66),
    )  # fmt: skip
    rim = path((-0.53, -0.70), (0.15, -0.70), (0.14, -0.48), (-0.52, -0.48))
    sole = path(
        (-0.56, 0.64),
        (0.84, 0.62),
        (0.88, 0.84),
        (0.20, 0.84),
        (0.16, 0.78),
        (-0.04, 0.78),
        (-0.10, 0.84),
        (-0.58, 0.84),
    )
    parts = [
        Part(upper, relief=0.5, lift=0.3),
        Part(
            path((0.46, 0.18), (0.88, 0.24, 0.82, 0.66), (0.42, 0.66), (0.36, 0.40, 0.46, 0.18)),
            "contrast",
            relief=0.35,
        ),
        Part(rim, "contrast", relief=0.3, lift=0.4),
        Part(sole, "rubber", relief=0.3, lift=0.3),
        *[Part(path((x, 0.70), (x, 0.82)), "shadow", width=0.03) for x in (-0.40, -0.22, 0.34, 0.52, 0.70)],
    ]
    if a["tab"] == "yes":
        parts.append(Part(ellipse(-0.50, -0.78, 0.13, 0.13, 0, 375), "contrast", width=0.06, lift=0.3))
    return _pair(parts, 0.42, -0.10)
