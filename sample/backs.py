"""Garments from behind, as parts: what the front has is closed, and seams, vents and pockets of the back show."""

from sample import garments
from sample.garments import NAPE, Attributes, blouse_arms, pocket, sleeves, torso
from sample.silhouette import Part, both, box, ellipse, mirrored, path


def _yoke(y: float = -0.56, material: str = "stitch") -> Part:
    """The seam from shoulder to shoulder."""
    return Part(path((-0.43, y), (0.0, y + 0.05, 0.43, y)), material, width=0.016)


def _stand(material: str = "plain") -> Part:
    """A collar that stands around the neck."""
    high = mirrored((0.0, -1.02), (0.17, -1.02, 0.21, -0.92), (0.21, -0.86), (0.1, -0.82, 0.0, -0.82))
    return Part(high, material, shade=0.92, relief=0.4, lift=0.5)


def _turned_collar() -> Part:
    """A shirt's collar turned down."""
    leaf = mirrored((0.0, -1.0), (0.16, -1.0, 0.21, -0.93), (0.27, -0.76), (0.12, -0.79, 0.0, -0.79))
    return Part(leaf, "plain", shade=0.97, relief=0.4, lift=0.6)


def dress(a: Attributes) -> list[Part]:
    """A zip down to the waist."""
    hem, flare = (0.75, 0.56) if a["length"] == "mini" else (1.45, 0.66)
    shoulder: tuple[tuple[float, ...], ...] = ((0.40, -0.86), (0.46, -0.80, 0.41, -0.36))
    if a["sleeve"] == "none":
        shoulder = ((0.30, -0.88), (0.28, -0.50, 0.39, -0.36))
    bodice = mirrored(*NAPE, *shoulder, (0.34, -0.10, 0.29, 0.05), (0, 0.07))
    flared = mirrored((0.0, 0.0), (0.29, 0.02), (0.42, 0.25, flare, hem), (0.3, hem + 0.07, 0.0, hem + 0.07))
    parts = [*sleeves(a["sleeve"]), Part(flared, shade=0.97), Part(bodice)]
    parts.append(Part(path((-0.295, 0.0), (0.295, 0.0), (0.30, 0.075), (-0.30, 0.075)), "plain", shade=0.78, lift=0.3))
    parts.append(Part(path((0.0, -0.88), (0.0, 0.22)), "shadow", width=0.02))
    for x in (0.10, 0.24):
        parts += both(Part(path((x * 0.8, 0.12), (x * 1.6, hem - 0.05)), "fold", width=0.03))
    return parts


def blouse(a: Attributes) -> list[Part]:
    """A yoke with gathers below it; of the neck its band."""
    parts = [
        *blouse_arms(),
        *torso("back", hem=0.66, waist=0.36, width=0.46),
        _yoke(),
        *both(Part(path((0.07, -0.50), (0.09, 0.05)), "fold", width=0.025)),
    ]
    if a["neck"] == "bow":
        return [*parts, _stand()]
    frill = mirrored(
        (0.0, -1.0), (0.2, -1.0), (0.34, -0.90), (0.36, -0.74, 0.24, -0.74), (0.16, -0.66, 0.08, -0.72), (0.0, -0.68)
    )
    return [*parts, Part(frill, "plain", shade=0.96, relief=0.5, lift=0.7)]


def skirt(a: Attributes) -> list[Part]:
    """The front's outline, and a zip below the waistband."""
    parts = [part for part in garments.skirt(a) if part.material not in ("stitch", "horn")]
    parts.append(Part(path((0.0, -0.58), (0.0, -0.18)), "shadow", width=0.024))
    if a["fabric"] == "denim":
        parts += both(pocket(0.10, -0.40, 0.20))
    return parts


def cardigan(a: Attributes) -> list[Part]:
    return [
        *sleeves("long", "rib"),
        *torso("back", hem=0.84, width=0.47),
        Part(path((-0.47, 0.72), (0.47, 0.72), (0.45, 0.90), (-0.45, 0.90)), "rib", shade=0.9),
        Part(mirrored(*NAPE), "rib", width=0.10, shade=0.92, lift=0.3),
    ]


def coat(a: Attributes) -> list[Part]:
    """A seam down the middle that opens into a vent."""
    parts = [*sleeves("long", "main"), *torso("back", hem=1.45, waist=0.40, width=0.56)]
    parts.append(Part(path((0.0, -0.80), (0.0, 0.80)), "shadow", width=0.012))
    parts.append(Part(path((0.0, 0.80), (0.03, 1.46)), "shadow", width=0.035))
    parts.append(Part(mirrored((0.0, -1.0), (0.18, -1.0, 0.25, -0.93), (0.30, -0.78), (0.0, -0.72)), lift=0.6))
    if a["belt"] == "yes":
        parts.append(Part(path((-0.42, 0.16), (0.42, 0.16), (0.42, 0.29), (-0.42, 0.29)), "plain", shade=0.8, lift=0.7))
        parts += both(Part(box(0.30, 0.12, 0.35, 0.33), shade=0.9, lift=0.5))
    return parts


def t_shirt(a: Attributes) -> list[Part]:
    return [
        *sleeves("short"),
        *torso("back", hem=0.80),
        Part(mirrored(*NAPE), "plain", width=0.055, shade=0.88),
        Part(path((-0.44, 0.74), (0, 0.77, 0.44, 0.74)), "stitch", width=0.012),
    ]


def polo(a: Attributes) -> list[Part]:
    parts = [*sleeves("short"), *torso("back", hem=0.80), _turned_collar()]
    if a["tipping"] == "yes":
        parts.append(Part(path((-0.26, -0.78), (0.0, -0.82, 0.26, -0.78)), "contrast", width=0.034))
        parts += both(Part(path((0.80, -0.29), (0.58, -0.13)), "contrast", width=0.05))
    return parts


def shirt(a: Attributes) -> list[Part]:
    """A yoke, and a box pleat below it."""
    parts = [*sleeves(a["sleeve"], "plain"), *torso("back"), _yoke()]
    parts += both(Part(path((0.05, -0.52), (0.05, 0.10)), "shadow", width=0.014))
    return [*parts, _turned_collar()]


def sweater(a: Attributes) -> list[Part]:
    parts = [*sleeves("long", "rib"), *torso("back", hem=0.82, width=0.47)]
    parts.append(Part(path((-0.455, 0.74), (0.455, 0.74), (0.43, 0.90), (-0.43, 0.90)), "rib", shade=0.9))
    if a["neck"] == "turtle":
        roll = mirrored((0.0, -1.10), (0.16, -1.10, 0.18, -1.06), (0.23, -0.86), (0.1, -0.80, 0.0, -0.80))
        return [*parts, Part(roll, "rib", relief=0.45, lift=0.6)]
    return [*parts, Part(mirrored(*NAPE), "rib", width=0.085, shade=0.85)]


def blazer(a: Attributes) -> list[Part]:
    """One vent or, double-breasted, two."""
    parts = [*sleeves("long", "main"), *torso("back", hem=0.76, waist=0.40, width=0.49)]
    parts.append(Part(path((0.0, -0.78), (0.0, 0.77)), "shadow", width=0.012))
    vents = (-0.28, 0.28) if a["closure"] == "double" else (0.01,)
    parts += [Part(path((x, 0.36), (x, 0.78)), "shadow", width=0.032) for x in vents]
    parts.append(Part(mirrored((0.0, -1.0), (0.17, -1.0, 0.24, -0.93), (0.28, -0.80), (0.0, -0.76)), lift=0.6))
    return parts


def jacket(a: Attributes) -> list[Part]:
    parts = [*sleeves("long", "rib"), *torso("back", hem=0.56, waist=0.46, width=0.47), _yoke()]
    parts.append(Part(path((-0.46, 0.50), (0.46, 0.50), (0.44, 0.66), (-0.44, 0.66)), "rib", shade=0.88))
    if a["fabric"] == "denim":
        parts += both(Part(path((0.20, 0.48), (0.26, -0.52)), "stitch", width=0.02))
    if a["hood"] == "no":
        return [*parts, _stand()]
    hood = mirrored((0.0, -1.10), (0.30, -1.10, 0.34, -0.90), (0.34, -0.60, 0.0, -0.48))
    return [*parts, Part(hood, shade=0.97, relief=0.45, lift=0.7), Part(path((0.0, -1.1), (0.0, -0.5)), "fold", 0.03)]


def trousers(a: Attributes) -> list[Part]:
    """Two pockets below the waistband, as patches on denim and as slits else."""
    wide = a["leg"] == "wide"
    outer, inner, thigh = (0.62, 0.14, 0.60) if wide else (0.37, 0.13, 0.44)
    leg = path(
        (0.0, -1.05), (0.36, -1.05), (0.46, -0.70, thigh, -0.2), (outer, 1.05), (inner, 1.05), (0.06, 0.0, 0.0, -0.36)
    )
    band = path((-0.365, -1.06), (0.365, -1.06), (0.385, -0.93), (-0.385, -0.93))
    parts = [
        *both(Part(leg)),
        Part(band, "plain", shade=0.85, lift=0.3),
        Part(path((0.0, -0.94), (0.0, -0.36)), "shadow", width=0.03),
    ]
    if a["fabric"] == "denim":
        return [*parts, _yoke(-0.80), *both(pocket(0.11, -0.68, 0.22))]
    parts += both(Part(path((0.10, -0.72), (0.32, -0.70)), "shadow", width=0.03))
    return [*parts, *both(Part(path((0.22, -0.50), ((outer + inner) / 2, 1.0)), "fold", width=0.03))]


def kids_tee(a: Attributes) -> list[Part]:
    nape = ((0.0, -0.62), (0.14, -0.62, 0.25, -0.66))
    inside = mirrored((0.0, -0.71), (0.14, -0.71, 0.25, -0.66), (0.0, -0.56))
    back = mirrored(*nape, (0.50, -0.60), (0.56, -0.54, 0.54, -0.14), (0.56, 0.30, 0.60, 0.66), (0.3, 0.69, 0.0, 0.69))
    arm = path((0.44, -0.62), (0.62, -0.56, 0.72, -0.40), (0.98, 0.0), (0.72, 0.18), (0.50, -0.10))
    return [
        *both(Part(arm, shade=0.93)),
        *both(Part(path((0.95, -0.02), (0.71, 0.14)), "contrast", width=0.06)),
        Part(inside, "plain", shade=0.55, relief=0.1),
        Part(back, lift=0.2),
        Part(mirrored(*nape), "contrast", width=0.075, shade=0.95),
        Part(path((-0.59, 0.60), (0, 0.63, 0.59, 0.60)), "stitch", width=0.012),
    ]


def hoodie(a: Attributes) -> list[Part]:
    """The hood up, seen from behind: a seam where the front has its opening."""
    parts = []
    if a["ears"] == "yes":
        parts += both(Part(ellipse(0.30, -1.10, 0.17, 0.17), relief=0.4))
    hood = mirrored((0.0, -1.22), (0.42, -1.22, 0.44, -0.86), (0.44, -0.62, 0.26, -0.52), (0.0, -0.48))
    arm = path(
        (0.40, -0.62), (0.62, -0.58, 0.70, -0.36), (0.86, 0.10, 0.92, 0.46), (0.68, 0.54), (0.58, 0.14, 0.46, -0.14)
    )
    cuff = path((0.90, 0.38), (0.95, 0.56), (0.70, 0.64), (0.65, 0.46))
    back = mirrored((0.0, -0.58), (0.26, -0.60), (0.46, -0.60), (0.56, -0.54, 0.54, -0.14), (0.56, 0.56), (0.0, 0.58))
    return [
        *parts,
        *both(Part(arm, shade=0.93)),
        *both(Part(cuff, "rib", shade=0.9)),
        Part(back, lift=0.3),
        Part(path((-0.55, 0.50), (0.55, 0.50), (0.52, 0.70), (-0.52, 0.70)), "rib", shade=0.9),
        Part(hood, shade=0.97, relief=0.4, lift=0.6),
        Part(path((0.0, -1.20), (0.0, -0.50)), "stitch", width=0.02),
    ]


def dungarees(a: Attributes) -> list[Part]:
    """The straps cross on the back."""
    hem, outer = (1.10, 0.50) if a["leg"] == "long" else (0.42, 0.56)
    leg = path((0.0, -0.16), (0.42, -0.16), (0.54, 0.10, outer, hem), (0.10, hem), (0.06, 0.40, 0.0, 0.30))
    band = mirrored((0.0, -0.34), (0.20, -0.34), (0.44, -0.16), (0.44, -0.04), (0.0, -0.02))
    return [
        *both(Part(path((-0.16, -0.30), (0.10, -0.90), (0.26, -1.20)), "plain", width=0.12, shade=0.85, relief=0.35)),
        *both(Part(leg)),
        Part(path((0.0, 0.0), (0.0, 0.32)), "shadow", width=0.02),
        Part(band, lift=0.3),
        Part(path((-0.43, -0.06), (0.43, -0.06)), "stitch", width=0.02),
        *both(pocket(0.12, 0.04, 0.20)),
        *both(Part(box(0.10, hem - 0.12, outer + 0.01, hem + 0.01), "lining", shade=1.1, relief=0.3, lift=0.3)),
    ]
