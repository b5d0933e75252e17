"""Bags and wallets as parts."""

from sample.garments import Attributes
from sample.silhouette import Part, both, box, ellipse, mirrored, path


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


def backpack(a: Attributes) -> list[Part]:
    """From the front, shoulder straps showing at its sides."""
    straps = path((-0.50, -0.66), (-0.98, -0.55, -0.92, 0.20), (-0.90, 0.62, -0.66, 0.74))
    handle = path((-0.16, -0.92), (-0.16, -1.16, 0.0, -1.16), (0.16, -1.16, 0.16, -0.92))
    body = mirrored(
        (0.0, -0.98), (0.40, -0.98), (0.68, -0.96, 0.70, -0.62), (0.74, 0.78), (0.74, 0.94, 0.56, 0.94), (0.0, 0.94)
    )
    pocket = mirrored(
        (0.0, 0.14), (0.44, 0.14), (0.54, 0.14, 0.54, 0.26), (0.54, 0.68), (0.54, 0.80, 0.44, 0.80), (0.0, 0.80)
    )
    parts = [
        *both(Part(straps, "trim", width=0.13, shade=0.75, relief=0.35)),
        Part(handle, "trim", width=0.07),
        Part(body, relief=0.4, lift=0.4),
        Part(pocket, shade=0.96, relief=0.5, lift=0.7),
    ]
    if a["closure"] == "zip":
        arc = path((-0.60, -0.12), (-0.62, -0.80, 0.0, -0.80), (0.62, -0.80, 0.60, -0.12))
        parts += [Part(arc, "shadow", width=0.07), Part(arc, "silver", width=0.03)]
        parts += [Part(path((-0.46, 0.24), (0.46, 0.24)), "silver", width=0.03)]
        parts += [Part(box(0.38, 0.22, 0.44, 0.40, 0.02), "silver", relief=0.2, lift=0.4)]
        return parts
    flap = mirrored((0.0, -1.0), (0.44, -1.0), (0.74, -0.98, 0.75, -0.60), (0.72, -0.02), (0.60, 0.08, 0.0, 0.10))
    parts.append(Part(flap, shade=1.0, relief=0.45, lift=0.8))
    for x in (-0.36, 0.24):
        parts.append(Part(box(x, -0.40, x + 0.12, 0.52, 0.03), "trim", shade=0.9, lift=0.6))
        parts.append(Part(box(x - 0.04, 0.16, x + 0.16, 0.34, 0.03), "gold", width=0.04, relief=0.3, lift=0.4))
    return parts
