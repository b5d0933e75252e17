"""Children's garments as parts: short bodies, wide necks, motifs."""

import numpy as np

from sample.garments import Attributes
from sample.silhouette import Part, both, box, ellipse, mirrored, path


def kids_tee(a: Attributes) -> list[Part]:
    """As wide as it is long, with a motif on the chest."""
    neck = ((0.0, -0.42), (0.22, -0.44, 0.25, -0.66))
    inside = mirrored((0.0, -0.70), (0.14, -0.70, 0.25, -0.66), (0.0, -0.30))
    front = mirrored(*neck, (0.50, -0.60), (0.56, -0.54, 0.54, -0.14), (0.56, 0.30, 0.60, 0.66), (0.3, 0.69, 0.0, 0.69))
    arm = path((0.44, -0.62), (0.62, -0.56, 0.72, -0.40), (0.98, 0.0), (0.72, 0.18), (0.50, -0.10))
    hem = path((0.95, -0.02), (0.71, 0.14))
    return [
        *both(Part(arm, shade=0.93)),
        *both(Part(hem, "contrast", width=0.06)),
        Part(inside, "plain", shade=0.55, relief=0.1),
        Part(front, lift=0.2),
        Part(mirrored(*neck), "contrast", width=0.075, shade=0.95),
        Part(path((-0.59, 0.60), (0, 0.63, 0.59, 0.60)), "stitch", width=0.012),
        Part(ellipse(0, 0.08, 0.45, 0.43), "plain", relief=0.1),  # so that no stripe crosses the motif
        *_motif(a["motif"]),
    ]


def _motif(motif: str) -> list[Part]:
    if motif == "star":
        angle = np.radians(np.arange(10) * 36 - 90)
        radius = np.where(np.arange(10) % 2, 0.13, 0.33)
        return [
            Part(np.stack([radius * np.cos(angle), 0.10 + radius * np.sin(angle)], axis=1), "contrast", relief=0.15)
        ]
    if motif == "heart":
        heart = mirrored((0.0, -0.06), (0.06, -0.26, 0.22, -0.22), (0.42, -0.14, 0.26, 0.14), (0.0, 0.42))
        return [Part(heart, "contrast", relief=0.15)]
    back = path(
        (-0.44, 0.28), (-0.30, 0.16, -0.22, 0.02), (-0.06, -0.20, 0.08, -0.06), (0.14, -0.10),
        (0.16, -0.30, 0.30, -0.28),
        (0.44, -0.26, 0.42, -0.14), (0.28, -0.10), (0.26, 0.10, 0.18, 0.20), (0.20, 0.40), (0.08, 0.40), (0.06, 0.26),
        (-0.10, 0.26), (-0.10, 0.40), (-0.22, 0.40), (-0.22, 0.20), (-0.34, 0.28, -0.44, 0.28),
    )  # fmt: skip
    spikes = [
        path((x - 0.05, y + 0.05), (x, y - 0.07), (x + 0.05, y + 0.03))
        for x, y in ((-0.22, 0.0), (-0.12, -0.1), (0.0, -0.12))
    ]
    return [
        *[Part(spike, "contrast") for spike in spikes],
        Part(back, "contrast", relief=0.1),
        Part(ellipse(0.33, -0.21, 0.022, 0.022), "plain", relief=0.0),
    ]


def hoodie(a: Attributes) -> list[Part]:
    """A sweatshirt with its hood up, a pouch and strings."""
    parts = []
    if a["ears"] == "yes":
        parts += both(Part(ellipse(0.30, -1.10, 0.17, 0.17), relief=0.4))
        parts += both(Part(ellipse(0.30, -1.09, 0.09, 0.09), "contrast", relief=0.2))
    hood = mirrored((0.0, -1.22), (0.42, -1.22, 0.44, -0.86), (0.44, -0.62, 0.26, -0.52), (0.0, -0.48))
    arm = path(
        (0.40, -0.62), (0.62, -0.58, 0.70, -0.36), (0.86, 0.10, 0.92, 0.46), (0.68, 0.54), (0.58, 0.14, 0.46, -0.14)
    )
    cuff = path((0.90, 0.38), (0.95, 0.56), (0.70, 0.64), (0.65, 0.46))
    front = mirrored((0.0, -0.56), (0.26, -0.60), (0.46, -0.60), (0.56, -0.54, 0.54, -0.14), (0.56, 0.56), (0.0, 0.58))
    pouch = mirrored((0.0, 0.10), (0.24, 0.10), (0.40, 0.34), (0.40, 0.52), (0.0, 0.52))
    parts += [
        Part(hood, shade=0.97),
        Part(ellipse(0, -0.84, 0.27, 0.30), "lining", shade=0.7, relief=0.3, lift=0.3),
        *both(Part(arm, shade=0.93)),
        *both(Part(cuff, "rib", shade=0.9)),
        Part(front, lift=0.3),
        Part(path((-0.55, 0.50), (0.55, 0.50), (0.52, 0.70), (-0.52, 0.70)), "rib", shade=0.9),
        Part(pouch, shade=0.95, relief=0.5, lift=0.6),
    ]
    parts += both(Part(path((0.10, -0.54), (0.13, -0.34, 0.11, -0.14)), "lace", width=0.035, lift=0.4))
    return parts


def dungarees(a: Attributes) -> list[Part]:
    """A bib and trousers in one, on two buttoned straps."""
    hem = 1.10 if a["leg"] == "long" else 0.42
    outer = 0.50 if a["leg"] == "long" else 0.56
    leg = path((0.0, -0.10), (0.42, -0.12), (0.54, 0.10, outer, hem), (0.10, hem), (0.06, 0.40, 0.0, 0.26))
    bib = mirrored((0.0, -0.78), (0.30, -0.78), (0.36, -0.30), (0.46, -0.14), (0.44, 0.0), (0.0, 0.02))
    straps = path((-0.24, -0.70), (-0.30, -1.16, -0.12, -1.20), (0.0, -1.20, 0.12, -0.96))
    pocket = mirrored((0.0, -0.58), (0.20, -0.58), (0.20, -0.32), (0.0, -0.24))
    seam = "stitch"
    return [
        *both(Part(straps, "plain", width=0.12, shade=0.85, relief=0.35)),
        *both(Part(leg)),
        Part(path((0.0, 0.0), (0.0, 0.28)), "shadow", width=0.02),
        Part(bib, lift=0.3),
        Part(path((-0.43, -0.02), (0.43, -0.02)), seam, width=0.02),
        Part(pocket, shade=0.93, relief=0.5, lift=0.6),
        Part(mirrored((0.0, -0.56), (0.18, -0.56), (0.18, -0.33), (0.0, -0.26)), seam, width=0.016),
        *both(Part(ellipse(0.24, -0.68, 0.055, 0.055), "gold", relief=0.4, lift=0.5)),
        *both(Part(path((0.16, 0.04), (0.20, 0.22, 0.44, 0.22)), seam, width=0.02)),
        *both(Part(box(0.10, hem - 0.12, outer + 0.01, hem + 0.01), "lining", shade=1.1, relief=0.3, lift=0.3)),
    ]
