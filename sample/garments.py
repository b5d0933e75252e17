"""Garments as parts: the attributes of a kind become outlines."""

from collections.abc import Mapping

from sample.silhouette import Part, both, box, ellipse, mirrored, path

Attributes = Mapping[str, str]

NECK = 0.19  # half the width of a neckline
TOP = -0.92
NAPE = ((0.0, -0.89), (0.12, -0.89, NECK, TOP))  # the neckline of a back, its right half


def sleeves(length: str, cuff: str | None = None) -> list[Part]:
    """Two sleeves set into a torso with its shoulder at (0.46, -0.80) and its armpit at (0.42, -0.36)."""
    if length == "none":
        return []
    if length == "short":
        arm = path((0.36, -0.84), (0.52, -0.80, 0.62, -0.62), (0.82, -0.30), (0.58, -0.12), (0.38, -0.34))
        hem = path((0.81, -0.32), (0.57, -0.14))
        return [*both(Part(arm, shade=0.93)), *both(Part(hem, "stitch", width=0.012))]
    arm = path(
        (0.36, -0.84), (0.56, -0.80, 0.62, -0.58), (0.76, -0.05, 0.86, 0.58), (0.66, 0.63), (0.54, 0.10, 0.38, -0.30)
    )
    parts = both(Part(arm, shade=0.93))
    if cuff:
        parts += both(Part(path((0.845, 0.46), (0.87, 0.62), (0.66, 0.67), (0.635, 0.51)), cuff, shade=0.9))
    return parts


def neckline(neck: str) -> tuple[tuple[float, ...], ...]:
    """A neckline's right half, from its middle to the shoulder; `torso` mirrors it."""
    if neck == "back":
        return NAPE
    if neck == "v":
        return ((0.0, -0.50), (NECK, TOP))
    return ((0.0, -0.74), (0.17, -0.74, NECK, TOP))


def torso(neck: str, hem: float = 0.88, waist: float = 0.42, width: float = 0.45) -> list[Part]:
    """Back of the neck, then the front."""
    inside = mirrored((0.0, TOP - 0.05), (0.1, TOP - 0.05, NECK, TOP), (0.0, -0.44))
    front = mirrored(
        *neckline(neck), (0.40, -0.86), (0.46, -0.80, 0.43, -0.36),
        (waist, 0.2, width, hem), (0.2, hem + 0.02, 0, hem + 0.02),
    )  # fmt: skip
    return [Part(inside, "plain", shade=0.55, relief=0.1), Part(front, lift=0.2)]


def t_shirt(a: Attributes) -> list[Part]:
    rim = mirrored(*neckline(a["neck"]))
    parts = [*sleeves("short"), *torso(a["neck"], hem=0.80), Part(rim, "plain", width=0.055, shade=0.88)]
    parts += [Part(path((-0.44, 0.74), (0, 0.77, 0.44, 0.74)), "stitch", width=0.012)]
    if a["pocket"] == "yes":
        parts.append(pocket(0.10, -0.40, 0.26))
    return parts


def pocket(x: float, y: float, size: float, material: str = "main") -> Part:
    outline = path((x, y), (x + size, y), (x + size, y + size), (x + size / 2, y + 1.25 * size), (x, y + size))
    return Part(outline, material, shade=0.9, relief=0.5, lift=0.55)


def _buttons(x: float, top: float, bottom: float, count: int, material: str = "button", r: float = 0.028) -> list[Part]:
    step = (bottom - top) / (count - 1)
    return [Part(ellipse(x, top + i * step, r, r), material, relief=0.2, lift=0.5) for i in range(count)]


def _collar() -> list[Part]:
    leaf = path((0.0, -0.72), (0.07, -0.93), (NECK, -0.99, 0.22, -0.90), (0.30, -0.68), (0.12, -0.60))
    band = mirrored((0.0, -0.98), (0.16, -0.98, 0.2, -0.88), (0.0, -0.70))
    return [Part(band, "plain", shade=0.6), *both(Part(leaf, "plain", shade=0.97, relief=0.4, lift=0.6))]


def shirt(a: Attributes) -> list[Part]:
    parts = [*sleeves(a["sleeve"], "plain"), *torso("crew")]
    parts.append(Part(box(-0.055, -0.72, 0.055, 0.89), shade=1.03, relief=0.5, lift=0.4))
    parts += _collar()
    if a["fabric"] == "denim":
        parts += both(Part(path((0.055, -0.62), (0.055, 0.86)), "stitch", width=0.018))
        parts += both(Part(path((0.055, -0.50), (0.42, -0.56)), "stitch", width=0.018))
    parts += _buttons(0.0, -0.54, 0.74, 7)
    if a["pocket"] == "yes":
        parts.append(pocket(0.13, -0.42, 0.22))
    return parts


def sweater(a: Attributes) -> list[Part]:
    parts = [*sleeves("long", "rib"), *torso("v" if a["neck"] == "v" else "crew", hem=0.82, width=0.47)]
    parts.append(Part(path((-0.455, 0.74), (0.455, 0.74), (0.43, 0.90), (-0.43, 0.90)), "rib", shade=0.9))
    if a["neck"] == "turtle":
        roll = mirrored((0.0, -1.10), (0.16, -1.10, 0.18, -1.06), (0.23, -0.86), (0.1, -0.76, 0.0, -0.76))
        parts.append(Part(roll, "rib", shade=1.0, relief=0.45, lift=0.6))
    else:
        parts.append(Part(mirrored(*neckline(a["neck"])), "rib", width=0.085, shade=0.85))
    return parts


def coat(a: Attributes) -> list[Part]:
    parts = [*sleeves("long", "main"), *torso("crew", hem=1.45, waist=0.40, width=0.56)]
    double = a["closure"] == "double"
    edge = 0.12 if double else 0.0
    parts.append(Part(path((edge, -0.30), (edge + 0.02, 1.46)), "shadow", width=0.022))
    lapel = path((0.0, -0.22), (0.10, -0.93), (0.24, -0.95), (0.36, -0.62), (0.26, -0.56), (0.32, -0.46))
    parts += both(Part(lapel, shade=0.94, relief=0.45, lift=0.6))
    parts.append(Part(mirrored((0.0, -0.98), (0.16, -0.98, 0.20, -0.90), (0.0, -0.40)), "lining", shade=0.7))
    parts += both(Part(path((0.0, -0.20), (0.02, -0.62), (0.13, -0.95), (0.25, -0.94), (0.34, -0.60)), lift=0.5))
    for x in (-0.14, 0.17) if double else (0.0,):
        parts += _buttons(x, -0.08, 0.62, 3 if double else 4, "horn", 0.042)
    parts += both(Part(path((0.22, 0.50), (0.42, 0.44), (0.43, 0.50), (0.23, 0.56)), shade=0.9, lift=0.5))
    if a["belt"] == "yes":
        parts.append(Part(path((-0.42, 0.16), (0.42, 0.16), (0.42, 0.29), (-0.42, 0.29)), "plain", shade=0.8, lift=0.7))
        parts.append(Part(path((-0.02, 0.25), (0.12, 0.24), (0.20, 0.66), (0.08, 0.68)), "plain", shade=0.85, lift=0.6))
        parts.append(Part(box(-0.10, 0.14, 0.10, 0.31, 0.03), "horn", width=0.035, lift=0.4))
    return parts


def jacket(a: Attributes) -> list[Part]:
    parts: list[Part] = []
    if a["hood"] == "yes":
        hood = mirrored((0.0, -1.28), (0.34, -1.28, 0.36, -0.98), (0.36, -0.80, 0.22, -0.74), (0.0, -0.70))
        parts += [Part(hood, shade=0.95), Part(ellipse(0, -0.95, 0.22, 0.24), "lining", shade=0.6, lift=0.3)]
    parts += [*sleeves("long", "rib"), *torso("crew", hem=0.56, waist=0.46, width=0.47)]
    parts.append(Part(path((-0.46, 0.50), (0.46, 0.50), (0.44, 0.66), (-0.44, 0.66)), "rib", shade=0.88))
    if a["hood"] == "no":
        stand = mirrored((0.0, -1.00), (0.17, -1.00, 0.21, -0.90), (0.20, -0.78), (0.1, -0.70, 0.0, -0.70))
        parts.append(Part(stand, "plain", shade=0.85, lift=0.5))
    parts.append(Part(path((0.0, -0.72), (0.0, 0.64)), "shadow", width=0.07))
    parts.append(Part(path((0.0, -0.72), (0.0, 0.64)), "silver", width=0.032))
    if a["fabric"] == "denim":
        parts += both(pocket(0.12, -0.40, 0.22))
        parts += both(Part(path((0.04, -0.48), (0.42, -0.52)), "stitch", width=0.02))
        parts += both(Part(path((0.14, 0.48), (0.18, -0.08)), "stitch", width=0.02))
    else:
        parts += both(Part(path((0.16, 0.36), (0.32, 0.10)), "shadow", width=0.035))
    return parts


def dress(a: Attributes) -> list[Part]:
    hem = 0.75 if a["length"] == "mini" else 1.45
    flare = 0.56 if a["length"] == "mini" else 0.66
    sleeveless = a["sleeve"] == "none"
    inside = mirrored((0.0, TOP + 0.02), (0.1, TOP, NECK, TOP), (0.0, -0.50))
    shoulder: tuple[tuple[float, ...], ...] = ((0.40, -0.86), (0.46, -0.80, 0.41, -0.36))
    if sleeveless:
        shoulder = ((0.30, -0.88), (0.28, -0.50, 0.39, -0.36))
    bodice = mirrored(*neckline("crew"), *shoulder, (0.34, -0.10, 0.29, 0.05), (0, 0.07))
    skirt_part = mirrored((0.0, 0.0), (0.29, 0.02), (0.42, 0.25, flare, hem), (0.3, hem + 0.07, 0.0, hem + 0.07))
    parts = [*sleeves(a["sleeve"]), Part(inside, "plain", shade=0.55), Part(skirt_part, shade=0.97), Part(bodice)]
    parts.append(Part(path((-0.295, 0.0), (0.295, 0.0), (0.30, 0.075), (-0.30, 0.075)), "plain", shade=0.78, lift=0.3))
    for x in (0.10, 0.24):
        parts += both(Part(path((x * 0.8, 0.12), (x * 1.6, hem - 0.05)), "fold", width=0.03))
    return parts


def skirt(a: Attributes) -> list[Part]:
    hem, top, waist = 0.75, -0.70, 0.36
    if a["cut"] == "pencil":
        side: tuple[tuple[float, ...], ...] = ((0.54, -0.30, 0.50, 0.1), (0.47, 0.5, 0.43, hem + 0.1))
    elif a["cut"] == "flared":
        side = ((0.46, -0.30, 0.86, hem - 0.08), (0.45, hem + 0.12, 0.0, hem + 0.12))
    else:
        side = (
            (0.50, -0.30, 0.74, hem),
            (0.62, hem + 0.05),
            (0.49, hem),
            (0.37, hem + 0.05),
            (0.25, hem),
            (0.12, hem + 0.05),
        )
    parts = [Part(mirrored((0.0, top), (waist, top), *side, (0.0, hem + (0.1 if a["cut"] != "pleated" else 0.0))))]
    if a["cut"] == "pleated":
        for low, high in ((0.0, 0.0), (0.25, 0.13), (0.49, 0.25)):
            line = path((high, top + 0.16), (low, hem + 0.01))
            parts += both(Part(line, "shadow", width=0.028))
    elif a["cut"] == "flared":
        for low, high in ((0.16, 0.10), (0.50, 0.24)):
            parts += both(Part(path((high, top + 0.3), (low, hem)), "fold", width=0.05))
    else:
        parts.append(Part(path((0.0, hem - 0.25), (0.0, hem + 0.1)), "shadow", width=0.025))
    band = path((-waist, top), (waist, top), (waist + 0.02, top + 0.13), (-waist - 0.02, top + 0.13))
    parts.append(Part(band, "plain", shade=0.82, lift=0.3))
    if a["fabric"] == "denim":
        parts += both(Part(path((0.16, top + 0.14), (0.20, top + 0.34, 0.42, top + 0.36)), "stitch", width=0.022))
        parts.append(Part(path((-0.02, top + 0.14), (-0.02, top + 0.55)), "stitch", width=0.022))
        parts.append(Part(ellipse(0.0, top + 0.065, 0.035, 0.035), "horn", relief=0.2, lift=0.5))
    return parts


def trousers(a: Attributes) -> list[Part]:
    wide = a["leg"] == "wide"
    outer, inner = (0.62, 0.14) if wide else (0.37, 0.13)
    thigh = 0.60 if wide else 0.44
    leg = path(
        (0.0, -1.05), (0.36, -1.05), (0.46, -0.70, thigh, -0.2), (outer, 1.05), (inner, 1.05), (0.06, 0.0, 0.0, -0.50)
    )
    parts = both(Part(leg))
    band = path((-0.365, -1.06), (0.365, -1.06), (0.385, -0.93), (-0.385, -0.93))
    parts.append(Part(band, "plain", shade=0.85, lift=0.3))
    parts.append(Part(path((0.0, -0.94), (0.04, -0.70, 0.01, -0.50)), "shadow", width=0.03))
    opening = path((0.20, -0.92), (0.24, -0.74, 0.42, -0.70))
    if a["fabric"] == "denim":
        parts += both(Part(opening, "stitch", width=0.024))
        parts += both(Part(path((0.39, -0.70), (thigh - 0.05, -0.2), (outer - 0.05, 1.03)), "stitch", width=0.02))
        parts += both(Part(path((inner, 1.0), (outer - 0.01, 1.0)), "stitch", width=0.02))
    else:
        parts += both(Part(opening, "shadow", width=0.025))
        parts += both(Part(path((0.22, -0.60), ((outer + inner) / 2, 1.0)), "fold", width=0.03))
    parts.append(Part(ellipse(0.0, -0.995, 0.03, 0.03), "horn", relief=0.2, lift=0.5))
    return parts


def blouse_arms() -> list[Part]:
    """Full sleeves and their cuffs, the same in front and behind."""
    arm = path(
        (0.34, -0.86), (0.60, -0.84, 0.68, -0.52), (0.98, 0.10, 0.90, 0.44), (0.78, 0.52), (0.66, 0.46),
        (0.56, 0.20, 0.40, -0.28),
    )  # fmt: skip
    cuff = path((0.88, 0.42), (0.86, 0.60), (0.68, 0.62), (0.66, 0.44))
    return [*both(Part(arm, shade=0.93, relief=0.4)), *both(Part(cuff, "plain", shade=0.85, lift=0.3))]


def blouse(a: Attributes) -> list[Part]:
    """Full sleeves gathered at the wrist; a bow at the neck, or a ruffle around it and down the front."""
    parts = [
        *blouse_arms(),
        *both(Part(path((0.70, 0.10), (0.78, 0.40)), "fold", width=0.03)),
        *torso("crew", hem=0.66, waist=0.36, width=0.46),
        Part(path((0.0, -0.60), (0.0, 0.66)), "shadow", width=0.018),
        *_buttons(0.0, -0.2, 0.56, 5, r=0.022),
    ]
    if a["neck"] == "bow":
        loop = path((0.03, -0.66), (0.20, -0.94, 0.42, -0.82), (0.46, -0.62, 0.36, -0.52), (0.14, -0.54, 0.03, -0.62))
        tail = path((0.0, -0.62), (0.10, -0.60), (0.22, -0.06), (0.06, -0.02))
        band = mirrored((0.0, -0.97), (0.18, -0.97, 0.21, -0.88), (0.06, -0.68), (0.0, -0.66))
        parts += [Part(band, "plain", shade=0.7), *both(Part(tail, "plain", shade=0.95, relief=0.45, lift=0.6))]
        parts += [
            *both(Part(loop, "plain", relief=0.5, lift=0.7)),
            Part(box(-0.06, -0.70, 0.06, -0.56, 0.03), "plain", lift=0.6),
        ]
        return parts
    for y in (-0.50, -0.66):
        frill = mirrored(
            (0.0, y - 0.16), (0.22, TOP - 0.02), (0.34, TOP + 0.02), (0.36, y + 0.04, 0.24, y),
            (0.20, y + 0.16, 0.10, y + 0.10), (0.06, y + 0.22, 0.0, y + 0.16),
        )  # fmt: skip
        parts.append(Part(frill, "plain", shade=0.96, relief=0.5, lift=0.7))
    wave = [(0.05 if i % 2 else 0.11, -0.44 + 0.1 * i) for i in range(10)]
    parts.append(Part(mirrored((0.0, -0.5), *wave, (0.0, 0.56)), "plain", shade=0.97, relief=0.5, lift=0.6))
    parts.append(Part(mirrored((0.0, -0.98), (0.16, -0.98, 0.2, -0.88), (0.0, -0.74)), "plain", shade=0.6))
    return parts


def cardigan(a: Attributes) -> list[Part]:
    """Open at a deep V, a ribbed band with buttons down the front."""
    v = ((0.0, -0.10), (NECK + 0.02, TOP))
    inside = mirrored((0.0, TOP - 0.05), (0.1, TOP - 0.05, NECK, TOP), (0.0, -0.06))
    front = mirrored(*v, (0.40, -0.86), (0.46, -0.80, 0.43, -0.36), (0.42, 0.2, 0.48, 0.84), (0.2, 0.86, 0.0, 0.86))
    parts = [
        *sleeves("long", "rib"),
        Part(inside, "lining", shade=0.75, relief=0.1),
        Part(front, lift=0.2),
        Part(path((-0.47, 0.72), (0.47, 0.72), (0.45, 0.90), (-0.45, 0.90)), "rib", shade=0.9),
        Part(path((-NECK - 0.01, TOP), (0.0, -0.08), (NECK + 0.01, TOP)), "rib", width=0.11, shade=0.92, lift=0.3),
        Part(box(-0.065, -0.10, 0.065, 0.91), "rib", shade=0.97, relief=0.5, lift=0.4),
        *_buttons(0.0, 0.0, 0.82, 5, "horn", 0.042),
    ]
    if a["pocket"] == "yes":
        for x in (-0.40, 0.14):
            parts.append(Part(box(x, 0.26, x + 0.26, 0.62), relief=0.5, lift=0.55))
            parts.append(Part(box(x - 0.01, 0.24, x + 0.27, 0.33), "rib", shade=0.9, lift=0.3))
    return parts


def polo(a: Attributes) -> list[Part]:
    """A T-shirt with a collar and a short placket; tipping is a line of the contrast colour along the edges."""
    parts = [*sleeves("short"), *torso("crew", hem=0.80)]
    parts.append(Part(box(-0.065, -0.72, 0.065, -0.28), "plain", shade=1.02, relief=0.5, lift=0.5))
    parts += _buttons(0.0, -0.58, -0.36, 2)
    parts += _collar()
    if a["tipping"] == "yes":
        parts += both(Part(path((0.02, -0.69), (0.12, -0.61), (0.29, -0.68), (0.22, -0.88)), "contrast", width=0.034))
        parts += both(Part(path((0.80, -0.29), (0.58, -0.13)), "contrast", width=0.05))
    return parts


def blazer(a: Attributes) -> list[Part]:
    """To the hip, with lapels over a shirtless V, flap pockets and buttons on the cuffs."""
    double = a["closure"] == "double"
    low = 0.02 if double else 0.16
    inside = mirrored((0.0, TOP - 0.05), (0.1, TOP - 0.05, NECK, TOP), (0.30, -0.60), (0.0, low))
    front = mirrored(
        (0.0, low), (NECK, TOP), (0.42, -0.86), (0.49, -0.80, 0.46, -0.36), (0.40, 0.10, 0.50, 0.72),
        (0.30, 0.80, 0.10 if not double else 0.06, 0.78), (0.04, 0.66, 0.0, 0.40 if not double else 0.78),
    )  # fmt: skip
    lapel = path(
        (0.0, low), (0.06, -0.40), (0.15, TOP - 0.03), (0.27, TOP - 0.01), (0.38, -0.62), (0.27, -0.58), (0.35, -0.46)
    )
    parts = [
        *sleeves("long", "main"),
        *[
            part
            for y in (0.46, 0.53)
            for part in both(Part(ellipse(0.68 + 0.06 * (y - 0.46), y, 0.022, 0.022), "horn", lift=0.4))
        ],
        Part(inside, "lining", shade=0.7, relief=0.1),
        Part(front, lift=0.3),
        Part(path((0.0, low), (0.01, 0.46)), "shadow", width=0.022),
        *both(Part(lapel, shade=0.95, relief=0.45, lift=0.7)),
        *both(Part(path((0.18, 0.34), (0.42, 0.32), (0.43, 0.44), (0.19, 0.46)), shade=0.9, relief=0.4, lift=0.6)),
    ]
    if double:
        for x in (-0.13, 0.13):
            parts += _buttons(x, 0.10, 0.50, 3, "gold", 0.036)
    else:
        parts += _buttons(0.03, 0.20, 0.38, 2, "horn", 0.038)
    parts.append(Part(path((0.21, -0.36), (0.37, -0.40), (0.375, -0.35), (0.215, -0.31)), shade=0.85, lift=0.5))
    if a["square"] == "yes":
        parts.append(
            Part(path((0.22, -0.36), (0.23, -0.50), (0.28, -0.43), (0.31, -0.54), (0.36, -0.40)), "contrast", lift=0.5)
        )
    return parts
