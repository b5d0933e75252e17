"""Bags, hats, belts, shoes and wallets as parts."""

from enrich.catalog.sample.garments import Attributes
from enrich.catalog.sample.silhouette import Part, both, box, ellipse, mirrored, moved, path


def tote_bag(a: Attributes) -> list[Part]:
    drop = -1.15 if a["handles"] == "long" else -0.62
    handle = path((-0.34, -0.10), (-0.30, drop, 0.0, drop), (0.30, drop, 0.34, -0.10))
    parts = [Part(handle * (0.9, 1.0) + (0.03, -0.04), "trim", width=0.07, shade=0.6)]
    body = mirrored((0.0, -0.22), (0.74, -0.24), (0.70, 0.4, 0.64, 0.84), (0.62, 0.90, 0.0, 0.90))
    parts.append(Part(body, relief=0.35))
    parts.append(Part(path((-0.735, -0.235), (0.735, -0.235), (0.73, -0.15), (-0.73, -0.15)), "trim", shade=0.9))
    parts.append(Part(handle, "trim", width=0.075, lift=0.5))
    parts += both(Part(box(0.27, -0.18, 0.41, 0.10, 0.03), "trim", shade=0.9, lift=0.5))
    parts += both(Part(ellipse(0.34, 0.04, 0.03, 0.03), "gold", relief=0.2))
    return parts


def shoulder_bag(a: Attributes) -> list[Part]:
    strap = path((-0.66, -0.02), (-0.62, -1.30, 0.0, -1.30), (0.62, -1.30, 0.66, -0.02))
    if a["strap"] == "chain":
        links = strap[:: max(1, len(strap) // 16)]
        strap_parts = [Part(strap, "gold", width=0.03, shade=0.8)]
        strap_parts += [Part(ellipse(x, y, 0.055, 0.055), "gold", width=0.034) for x, y in links]
    else:
        strap_parts = [Part(strap, "trim", width=0.065)]
    body = mirrored(
        (0.0, -0.12), (0.66, -0.12), (0.76, -0.1, 0.76, 0.1), (0.76, 0.66), (0.76, 0.78, 0.62, 0.78), (0.0, 0.78)
    )
    flap = mirrored(
        (0.0, -0.16), (0.66, -0.16), (0.78, -0.14, 0.78, 0.06), (0.76, 0.34, 0.5, 0.42), (0.2, 0.50, 0.0, 0.50)
    )
    parts = [*strap_parts, Part(body, shade=0.85), Part(flap, relief=0.4, lift=0.7)]
    parts += both(Part(ellipse(0.66, -0.06, 0.05, 0.05), "gold", width=0.03))
    parts += [Part(box(-0.09, 0.36, 0.09, 0.60, 0.03), "gold", relief=0.4, lift=0.5)]
    parts += [Part(box(-0.035, 0.42, 0.035, 0.54, 0.01), "trim", shade=0.6)]
    return parts


def hat(a: Attributes) -> list[Part]:
    style = a["style"]
    if style in ("beanie", "bobble"):
        dome = mirrored((0.0, -0.78), (0.66, -0.76, 0.64, 0.30), (0.0, 0.36))
        cuff = mirrored((0.0, 0.16), (0.66, 0.12), (0.74, 0.14, 0.72, 0.34), (0.70, 0.56, 0.62, 0.56), (0.0, 0.62))
        parts = [Part(dome, relief=0.45), Part(cuff, "rib", relief=0.4, lift=0.6)]
        if style == "bobble":
            fluff = ellipse(0, -0.92, 0.28, 0.26, 0, 360 * 32 / 33)
            fluff[::2] = fluff[::2] * 0.93 + (0.0, -0.92 * 0.07)
            parts.append(Part(fluff, "plain", relief=0.5, lift=0.5))
        return parts
    if style == "cap":
        crown = path((-0.66, 0.22), (-0.70, -0.62, 0.0, -0.62), (0.62, -0.62, 0.60, 0.16), (0.0, 0.30, -0.66, 0.22))
        brim = path(
            (0.02, 0.14),
            (0.40, 0.02, 0.62, 0.10),
            (1.16, 0.20, 1.22, 0.40),
            (0.9, 0.36, 0.10, 0.34),
            (0.0, 0.3, 0.02, 0.14),
        )
        seams = [path((0.0, -0.60), (0.30, -0.30, 0.24, 0.14)), path((0.0, -0.60), (-0.36, -0.30, -0.32, 0.2))]
        return [
            Part(crown, relief=0.45),
            *[Part(seam, "shadow", width=0.02) for seam in seams],
            Part(ellipse(0, -0.62, 0.06, 0.035), "plain", shade=0.8),
            Part(brim, "plain", shade=0.9, relief=0.4, lift=0.7),
        ]
    crown = mirrored((0.0, -0.62), (0.38, -0.62), (0.46, -0.60, 0.48, -0.4), (0.54, 0.12), (0.0, 0.2))
    brim = mirrored((0.0, 0.02), (0.40, 0.02, 0.54, -0.02), (0.78, 0.16, 0.98, 0.46), (0.60, 0.66, 0.0, 0.66))
    rings = [path((-x, y), (0, y + 0.22, x, y)) for x, y in ((0.68, 0.14), (0.82, 0.30))]
    return [Part(crown), Part(brim, shade=0.93, lift=0.6), *[Part(ring, "stitch", width=0.014) for ring in rings]]


def belt(a: Attributes) -> list[Part]:
    """Rolled up: an oval loop, its end laid across the front, the buckle in the middle."""
    back = ellipse(0, -0.20, 0.92, 0.34, 0, 375)  # past the full turn, so that the line closes
    front = path(
        (-0.98, -0.22), (-0.94, 0.36, 0.0, 0.36), (0.94, 0.36, 0.98, -0.22),
        (1.0, 0.10), (0.92, 0.62, 0.0, 0.62), (-0.92, 0.62, -1.0, 0.10),
    )  # fmt: skip
    parts = [Part(back, width=0.20, shade=0.55, relief=0.2), Part(front, relief=0.4, lift=0.4)]
    parts += [Part(ellipse(x, y, 0.022, 0.030), "shadow") for x, y in ((0.42, 0.465), (0.55, 0.435), (0.67, 0.40))]
    square = box(-0.26, 0.24, 0.20, 0.74, 0.05)
    shape = square if a["buckle"] == "square" else ellipse(-0.03, 0.49, 0.28, 0.28, 0, 375)
    parts.append(Part(shape, a["metal"], width=0.095, relief=0.5, lift=0.6))
    parts.append(Part(path((-0.22, 0.49), (0.24, 0.48)), a["metal"], width=0.055, shade=0.9, lift=0.4))
    return parts


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
    far = [Part(moved(p.outline, 0.34, -0.10), p.material, p.width, p.shade * 0.72, p.relief, p.lift) for p in one]
    return far + [Part(moved(p.outline, -0.16, 0.0), p.material, p.width, p.shade, p.relief, p.lift) for p in one]


def wallet(a: Attributes) -> list[Part]:
    style = a["style"]
    if style == "card":
        parts = [
            Part(box(-0.52, -0.66, 0.52, -0.1, 0.05), "paper", shade=0.97),
            Part(box(-0.56, -0.50, 0.56, 0.62, 0.07), relief=0.4, lift=0.5),
        ]
        for y in (-0.20, 0.06):
            parts.append(
                Part(
                    path((-0.54, y), (-0.2, y), (-0.12, y + 0.09, 0, y + 0.09), (0.12, y + 0.09, 0.2, y), (0.54, y)),
                    "shadow",
                    width=0.032,
                )
            )
        return parts
    if style == "zip":
        return [
            Part(box(-0.98, -0.50, 0.98, 0.50, 0.10), "trim", shade=0.8, lift=0.3),
            Part(box(-0.91, -0.43, 0.91, 0.43, 0.07), relief=0.4),
            Part(path((-0.94, -0.465), (0.94, -0.465), (0.945, 0.46)), "gold", width=0.045),
            Part(box(0.80, 0.40, 0.88, 0.74, 0.03), "gold", relief=0.4, lift=0.5),
        ]
    return [
        Part(box(-0.80, -0.54, 0.80, 0.60, 0.09), "trim", shade=0.6),
        Part(box(-0.80, -0.62, 0.80, 0.52, 0.09), relief=0.4, lift=0.5),
        Part(path((-0.77, -0.56), (-0.77, 0.47)), "stitch", width=0.02),
        Part(
            path(
                (0.30, -0.16),
                (0.80, -0.16),
                (0.80, 0.10),
                (0.30, 0.10),
                (0.22, 0.10, 0.22, -0.03),
                (0.22, -0.16, 0.30, -0.16),
            ),
            "trim",
            shade=0.9,
            lift=0.6,
        ),
        Part(ellipse(0.36, -0.03, 0.07, 0.07), "gold", relief=0.4, lift=0.4),
    ]
