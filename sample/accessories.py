"""Scarves, hats, belts and ties as parts."""

from sample.garments import Attributes
from sample.silhouette import Part, both, box, ellipse, mirrored, moved, path


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


def scarf(a: Attributes) -> list[Part]:
    """Hung in a loop: a ring at the neck and two ends, the left one longer."""
    left = path((-0.30, -0.62), (-0.02, -0.55), (0.04, 0.2, 0.02, 0.86), (-0.42, 0.90), (-0.40, 0.2, -0.30, -0.62))
    right = path((0.02, -0.60), (0.32, -0.64), (0.42, 0.0, 0.48, 0.56), (0.08, 0.62), (0.08, 0.1, 0.02, -0.60))
    parts = []
    for outline, x0, x1, y in ((left, -0.42, 0.02, 0.88), (right, 0.08, 0.48, 0.59)):
        if a["fringe"] == "yes":
            step = (x1 - x0) / 9
            strands = [path((x0 + (i + 0.5) * step, y - 0.05), (x0 + (i + 0.5) * step, y + 0.22)) for i in range(9)]
            parts += [Part(strand, "plain", width=0.026, shade=0.85) for strand in strands]
        parts.append(Part(outline, lift=0.5, relief=0.4))
    parts.append(Part(ellipse(0, -0.62, 0.33, 0.17), "lining", shade=0.5, relief=0.1))
    ring = mirrored((0.0, -0.60), (0.28, -0.62, 0.30, -0.78), (0.48, -0.70), (0.44, -0.30, 0.0, -0.30))
    parts.append(Part(ring, lift=0.6, relief=0.45))
    return parts


def cap(a: Attributes) -> list[Part]:
    """From the side, its brim to the right."""
    crown = path((-0.66, 0.22), (-0.72, -0.62, 0.0, -0.64), (0.62, -0.62, 0.60, 0.16), (0.0, 0.30, -0.66, 0.22))
    brim = path(
        (0.02, 0.14), (0.40, 0.02, 0.62, 0.10), (1.16, 0.20, 1.22, 0.40), (0.9, 0.36, 0.10, 0.34),
        (0.0, 0.3, 0.02, 0.14),
    )  # fmt: skip
    seams = [path((0.0, -0.62), (0.30, -0.30, 0.24, 0.14)), path((0.0, -0.62), (-0.36, -0.30, -0.32, 0.2))]
    shade = "contrast" if a["brim"] == "contrast" else "plain"
    return [
        Part(crown, relief=0.45),
        *[Part(seam, "shadow", width=0.02) for seam in seams],
        *[Part(ellipse(x, -0.36, 0.022, 0.022), "lining", relief=0.1) for x in (-0.40, 0.06)],
        Part(ellipse(0, -0.63, 0.06, 0.035), shade, shade=0.9),
        Part(brim, shade, shade=0.93, relief=0.4, lift=0.7),
        Part(path((0.10, 0.29), (0.52, 0.27, 1.08, 0.36)), "stitch", width=0.014),
    ]


def sun_hat(a: Attributes) -> list[Part]:
    """A wide brim around a low crown with a ribbon."""
    brim = ellipse(0, 0.22, 1.18, 0.50)
    crown = mirrored((0.0, -0.66), (0.46, -0.68, 0.52, -0.40), (0.60, 0.16), (0.34, 0.34, 0.0, 0.34))
    ribbon = mirrored((0.0, 0.04), (0.34, 0.04, 0.565, -0.12), (0.60, 0.16), (0.34, 0.34, 0.0, 0.34))
    band = "contrast" if a["band"] == "contrast" else "trim"
    return [
        Part(brim, relief=0.35),
        Part(ellipse(0, 0.22, 1.02, 0.42), "stitch", width=0.012),
        Part(crown, relief=0.45, lift=0.6),
        Part(ribbon, band, shade=0.9, relief=0.3, lift=0.4),
        Part(path((0.40, -0.02), (0.62, 0.02, 0.66, 0.24), (0.50, 0.18), (0.42, 0.20)), band, lift=0.5),
    ]


def beanie(a: Attributes) -> list[Part]:
    dome = mirrored((0.0, -0.78), (0.66, -0.76, 0.64, 0.30), (0.0, 0.36))
    cuff = mirrored((0.0, 0.16), (0.66, 0.12), (0.74, 0.14, 0.72, 0.34), (0.70, 0.56, 0.62, 0.56), (0.0, 0.62))
    parts = [Part(dome, relief=0.45), Part(cuff, "rib", relief=0.4, lift=0.6)]
    if a["bobble"] == "yes":
        fluff = ellipse(0, -0.92, 0.30, 0.28, 0, 360 * 32 / 33)
        fluff[::2] = fluff[::2] * 0.93 + (0.0, -0.92 * 0.07)
        parts.append(Part(fluff, "contrast", relief=0.5, lift=0.5))
    return parts


def tie(a: Attributes) -> list[Part]:
    """A necktie, knotted and hanging, or a bow tie."""
    if a["shape"] == "bow":
        wing = path((0.10, -0.10), (0.5, -0.40, 0.96, -0.36), (0.90, 0.0, 0.96, 0.36), (0.5, 0.40, 0.10, 0.10))
        neck = path((-0.98, -0.05), (0.0, -0.75, 0.98, -0.05))
        return [
            Part(neck, "plain", width=0.09, shade=0.6),
            *both(Part(wing, relief=0.45, lift=0.5)),
            *both(Part(path((0.16, 0.0), (0.4, -0.04, 0.62, -0.12)), "shadow", width=0.03)),
            *both(Part(path((0.16, 0.04), (0.4, 0.08, 0.56, 0.16)), "shadow", width=0.025)),
            Part(box(-0.15, -0.17, 0.15, 0.17, 0.06), shade=0.9, relief=0.5, lift=0.6),
        ]
    loop = path((-0.12, -0.98), (-0.52, -1.30, 0.0, -1.42), (0.52, -1.30, 0.12, -0.98))
    tail = path((-0.02, -0.85), (0.10, -0.85), (0.24, 0.84), (0.14, 0.94), (0.04, 0.84))
    blade = path((-0.10, -0.86), (0.10, -0.86), (0.25, 0.92), (0.0, 1.18), (-0.25, 0.92))
    knot = path((-0.17, -1.06), (0.17, -1.06), (0.10, -0.80), (0.0, -0.77), (-0.10, -0.80))
    return [
        Part(loop, width=0.13, shade=0.75, relief=0.4),
        Part(tail, shade=0.7),
        Part(blade, relief=0.35, lift=0.6),
        Part(path((0.0, -0.74), (0.03, -0.30)), "fold", width=0.05),
        Part(knot, shade=1.0, relief=0.5, lift=0.6),
    ]


def mittens(a: Attributes) -> list[Part]:
    """A pair side by side, thumbs inwards; a string may join them."""
    parts = []
    if a["string"] == "yes":
        parts.append(Part(path((0.42, 0.80), (0.30, 1.25, 0.0, 1.10), (-0.30, 1.25, -0.42, 0.80)), "trim", width=0.045))
    thumb = path((0.24, 0.24), (0.10, 0.10, 0.02, -0.14), (-0.02, -0.32, 0.14, -0.32), (0.22, -0.22, 0.34, -0.02))
    hand = path(
        (0.20, 0.46), (0.16, 0.0, 0.16, -0.36), (0.18, -0.86, 0.50, -0.86), (0.82, -0.86, 0.82, -0.30),
        (0.82, 0.1, 0.74, 0.46),
    )  # fmt: skip
    cuff = path((0.18, 0.42), (0.76, 0.42), (0.78, 0.84), (0.16, 0.84))
    for part in (
        Part(thumb, shade=0.92, relief=0.4),
        Part(hand, relief=0.45, lift=0.3),
        Part(cuff, "rib", shade=0.92, relief=0.4, lift=0.5),
    ):
        parts += both(part)
    return parts


def socks(a: Attributes) -> list[Part]:
    """A pair, one behind the other, toes to the right."""
    top = -1.15 if a["length"] == "knee" else -0.28
    leg = path(
        (-0.44, top), (0.0, top), (-0.02, 0.20), (0.06, 0.36, 0.34, 0.42), (0.80, 0.50, 0.78, 0.74),
        (0.74, 0.92, 0.44, 0.90), (-0.10, 0.90), (-0.52, 0.90, -0.50, 0.50), (-0.46, 0.1, -0.44, top),
    )  # fmt: skip
    toe = path((0.50, 0.46), (0.80, 0.52, 0.78, 0.74), (0.74, 0.92, 0.46, 0.90), (0.40, 0.66, 0.50, 0.46))
    heel = path((-0.22, 0.90), (-0.52, 0.90, -0.50, 0.50), (-0.49, 0.40), (-0.20, 0.52, -0.22, 0.90))
    cuff = path((-0.46, top - 0.02), (0.02, top - 0.02), (0.01, top + 0.20), (-0.45, top + 0.20))
    one = [
        Part(leg, relief=0.4, lift=0.5),
        Part(toe, "contrast", relief=0.35),
        Part(heel, "contrast", relief=0.35),
        Part(cuff, "rib", shade=0.95, relief=0.35, lift=0.3),
    ]
    far = [Part(moved(p.outline, 0.40, -0.12), p.material, p.width, p.shade * 0.85, p.relief, p.lift) for p in one]
    return far + [Part(moved(p.outline, -0.22, 0.05), p.material, p.width, p.shade, p.relief, p.lift) for p in one]
