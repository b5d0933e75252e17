"""A product as a photo: fabric cut to outlines, folds, edge shading and shadows, in front of a studio background."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from sample import accessories, bags, children, garments, shoes
from sample.fabric import RGB, Grid, brightness, contrast, scaled, texture
from sample.products import SampleProduct
from sample.silhouette import Part
from sample.spec import COLOURS

OUTLINES: Mapping[str, Callable[[Mapping[str, str]], list[Part]]] = {
    "dress": garments.dress,
    "blouse": garments.blouse,
    "skirt": garments.skirt,
    "cardigan": garments.cardigan,
    "coat": garments.coat,
    "pump": shoes.pump,
    "sandal": shoes.sandal,
    "boot": shoes.boot,
    "tote_bag": bags.tote_bag,
    "shoulder_bag": bags.shoulder_bag,
    "scarf": accessories.scarf,
    "sun_hat": accessories.sun_hat,
    "t_shirt": garments.t_shirt,
    "polo": garments.polo,
    "shirt": garments.shirt,
    "sweater": garments.sweater,
    "blazer": garments.blazer,
    "jacket": garments.jacket,
    "trousers": garments.trousers,
    "sneaker": shoes.sneaker,
    "backpack": bags.backpack,
    "belt": accessories.belt,
    "wallet": bags.wallet,
    "tie": accessories.tie,
    "cap": accessories.cap,
    "kids_tee": children.kids_tee,
    "hoodie": children.hoodie,
    "dungarees": children.dungarees,
    "welly": shoes.welly,
    "socks": accessories.socks,
    "beanie": accessories.beanie,
    "mittens": accessories.mittens,
}
# On a floor, not laid flat.
_STANDING = frozenset(
    {
        "tote_bag",
        "shoulder_bag",
        "backpack",
        "sun_hat",
        "cap",
        "beanie",
        "belt",
        "sneaker",
        "boot",
        "pump",
        "sandal",
        "welly",
    }
)
_STIFF = _STANDING - {"beanie"} | {"wallet", "tie"}  # hardly a fold
# How much of the lamp a fabric mirrors, or a kind whatever its fabric.
_SHEEN: Mapping[str, float] = {"leather": 0.9, "quilted": 0.35}
_SHINY: Mapping[str, float] = {"belt": 0.5, "wallet": 0.5, "pump": 0.8, "boot": 0.5, "welly": 1.0, "sandal": 0.4}
_CANVAS = frozenset({"tote_bag", "backpack"})  # where plain cloth is coarse
_RIBBED = frozenset({"sweater", "cardigan", "jacket", "beanie", "hoodie", "mittens", "socks"})

_SOLID: Mapping[str, RGB] = {
    "gold": (206, 168, 84),
    "silver": (186, 189, 196),
    "rubber": (236, 234, 228),
    "rubber_dark": (42, 36, 34),
    "gum": (186, 128, 74),
    "cork": (202, 164, 116),
    "insole": (206, 176, 140),
    "lace": (240, 238, 232),
    "paper": (236, 234, 226),
}
_SHADED: Mapping[str, float] = {"shadow": 0.50, "fold": 0.82}  # materials that only darken what they cross
_VIEW_STREAM = 3
# Pixels of the longer side, from and to: most photos are made for a list, a few for zooming in.
_SIDES = (*((400, 640),) * 12, *((640, 1000),) * 3, (1000, 2000))
_FORMATS = ((3, 4), (3, 4), (1, 1), (1, 1), (4, 5), (4, 3))  # width : height
_NEUTRAL = 160  # the value of the shade canvas that leaves a colour as it is; leaves room for highlights up to 1.6


@dataclass(frozen=True)
class View:
    """How product coordinates become pixels: pixel = scale x rotation(point) + offset."""

    width: int
    height: int
    scale: float
    offset: tuple[float, float]
    rotation: np.ndarray  # (2, 2)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        return points @ self.rotation * self.scale + self.offset


def render(product: SampleProduct, view_seed: int, side: int | None = None) -> Image.Image:
    """An RGB photo: a pure function of its arguments.

    `side` is the length in pixels of its longer side, 400 to 2,000 where left out; the cost goes with its square.
    """
    rng = np.random.default_rng((_VIEW_STREAM, view_seed, int(product.product_code)))
    standing = product.kind in _STANDING
    fabric = product.attributes.get("fabric", "plain")
    parts = OUTLINES[product.kind](product.attributes)
    view = _view(rng, parts, standing, side)
    colour = _dyed(rng, COLOURS[product.attributes["colour"]])
    folds = _folds(rng, view, 0.05 if product.kind in _STIFF else 0.20)
    materials = _materials(product, colour, view, folds)
    canvas = _backdrop(rng, view, parts, standing)
    shade = Image.new("L", canvas.size, _NEUTRAL)
    covered = Image.new("L", canvas.size, 0)
    for part in parts:
        _paint(part, view, materials, canvas, shade, covered)
    sheen = _SHINY.get(product.kind, _SHEEN.get(fabric, 0.0))
    return _lit(rng, canvas, shade, covered, folds, 0.10 if fabric == "denim" else 0.02, sheen)


def _view(rng: np.random.Generator, parts: list[Part], standing: bool, side: int | None) -> View:
    wide, high = _FORMATS[rng.integers(len(_FORMATS))]
    low, above = _SIDES[rng.integers(len(_SIDES))]
    drawn = int(rng.integers(low, above + 1))
    side = side or drawn
    width, height = (side, side * high // wide) if wide >= high else (side * wide // high, side)
    angle = np.radians(rng.normal(0.0, 1.5 if standing else 4.0))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = np.concatenate([part.outline for part in parts]) @ rotation
    low, high_point = points.min(axis=0), points.max(axis=0)
    span = high_point - low
    scale = rng.uniform(0.72, 0.92) * min(width / span[0], height / span[1])
    spare = np.array((width, height)) - scale * span
    offset = spare * rng.uniform(0.38, 0.62, 2) - scale * low
    return View(width, height, float(scale), (float(offset[0]), float(offset[1])), rotation)


def _dyed(rng: np.random.Generator, rgb: RGB) -> RGB:
    """The colour of this piece: dye lots differ a little, in depth more than in hue."""
    r, g, b = (np.array(rgb) * rng.normal(1, 0.035) * rng.normal(1, 0.012, 3)).clip(0, 255).astype(int).tolist()
    return r, g, b


def _folds(rng: np.random.Generator, view: View, strength: float) -> np.ndarray:
    """Relative light, about -strength to strength, (height, width): drapes, creases, and light from one side."""
    coarse = np.repeat(rng.uniform(-1, 1, (4, 11)), 2, axis=0) + rng.uniform(-0.6, 0.6, (8, 11))
    lamp = np.linspace(-1, 1, 96) * rng.choice([-0.07, 0.07])
    drapes = _enlarged(strength * 0.6 * coarse, 96, 96)
    ridges = 1 - np.abs(_enlarged(rng.uniform(-1, 1, (7, 9)), 96, 96)) * 5  # thin where the noise crosses zero
    creases = np.clip(ridges, 0, 1) - np.roll(
        np.clip(ridges, 0, 1), (1, 2), axis=(0, 1)
    )  # lit on one side, dark behind
    return _enlarged(drapes + 0.6 * strength * creases + lamp, view.width, view.height)


def _enlarged(small: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(small.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _materials(product: SampleProduct, colour: RGB, view: View, folds: np.ndarray) -> Mapping[str, Image.Image | RGB]:
    """What parts are made of: textures for the fabrics of this product, one colour for the rest."""
    pattern = product.attributes.get("fabric", "plain")
    dark, bright, denim = brightness(colour) < 60, brightness(colour) > 150, pattern == "denim"
    if denim:
        colour = scaled(colour, 0.85, 26)
    materials: dict[str, Image.Image | RGB] = {
        **_SOLID,
        "main": colour,
        "plain": colour,
        "trim": scaled(colour, 1.0, 26) if dark else scaled(colour, 0.70),
        "lining": scaled(colour, 0.6, 20),
        "contrast": contrast(colour),
        "button": (96, 76, 58) if bright else (236, 230, 216),
        "horn": (74, 50, 32) if not dark else (176, 140, 92),
        "stitch": (226, 150, 60) if denim else scaled(colour, 0.72, 18 if dark else 0),
    }
    ribbed = product.kind in _RIBBED
    coarse = pattern == "plain" and product.kind in _CANVAS
    if pattern != "plain" or ribbed or coarse:
        grid = _grid(view, folds)
        if pattern != "plain" or coarse:
            materials["main"] = texture("canvas" if coarse else pattern, colour, grid)
        if ribbed:
            materials["rib"] = texture("rib", colour, grid)
    return materials


def _grid(view: View, folds: np.ndarray) -> Grid:
    half = min(view.width, view.height) / 2
    x = (np.arange(view.width, dtype=np.float32) / half)[None, :]
    y = (np.arange(view.height, dtype=np.float32) / half)[:, None]
    (cos, sin), _ = view.rotation.astype(np.float32)
    warp = 0.10 * folds  # the pattern follows the folds
    return Grid(u=x * cos + y * sin + warp, v=y * cos - x * sin + warp, pixels=half)


def _lit(
    rng: np.random.Generator,
    canvas: Image.Image,
    shade: Image.Image,
    covered: Image.Image,
    folds: np.ndarray,
    grain: float,
    sheen: float,
) -> Image.Image:
    """The colours under the light: part shading everywhere; folds, weave, grain and sheen on the product; the lamp."""
    height, width = folds.shape
    speckle = np.frombuffer(rng.bytes(folds.size), np.uint8).reshape(folds.shape)
    threads = np.sin(np.arange(height, dtype=np.float32) * 2.1)[:, None] * np.sin(
        np.arange(width, dtype=np.float32) * 2.1
    )
    on_product = np.asarray(covered, np.float32) / 255
    relief = folds + grain * (speckle.astype(np.float32) / 128 - 1)
    if sheen:
        shine = _highlights(rng, width, height)
        relief -= 0.25 * sheen * (1 - shine)  # around a reflection it is darker: on white, all that shows
    else:
        relief += 0.022 * threads
    light = np.asarray(shade, np.float32) * (1.0 + relief * on_product) / _NEUTRAL
    photo = np.multiply(np.asarray(canvas), light[..., None], dtype=np.float32)
    if sheen:
        photo += (sheen * 120 * shine * on_product * np.minimum(light, 1.0))[..., None]
    np.minimum(photo, 255, out=photo)
    lamp = rng.uniform(0.95, 1.04) * (1 + rng.uniform(-0.012, 0.012) * np.array((1, 0, -1)))
    table = np.minimum(np.arange(256)[None, :] * lamp[:, None], 255).astype(int).ravel().tolist()
    return Image.fromarray(photo.astype(np.uint8)).point(table)


def _highlights(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Reflections of a lamp on something smooth, 0..1: upright patches with soft edges, most of the surface without."""
    broad = _enlarged(rng.uniform(-1, 1, (6, 12)), 96, 96)
    return _enlarged(np.clip(1.5 * broad - 0.25, 0, 1) ** 1.5, width, height).clip(0, 1)


def _backdrop(rng: np.random.Generator, view: View, parts: list[Part], standing: bool) -> Image.Image:
    """A light studio wall, brighter where the lamp points, with the product's soft shadow on it."""
    small = (max(8, view.width // 8), max(8, view.height // 8))
    y, x = np.mgrid[0 : small[1], 0 : small[0]].astype(np.float32)
    x, y = x / small[0] - rng.uniform(0.3, 0.7), y / small[1] - rng.uniform(0.1, 0.6)
    fall = rng.uniform(0.05, 0.25)
    light = rng.uniform(222, 252) * (1 - fall * (x * x + y * y))
    if standing:  # the wall meets the floor in a soft curve
        light = light * (1 - rng.uniform(0.02, 0.08) / (1 + np.exp(-(y - 0.35) * 14)))
    tint = 1 + rng.normal(0, 0.012, 3)
    wall = np.clip(light[..., None] * tint, 0, 255)

    shadow = Image.new("L", small, 0)
    pen = ImageDraw.Draw(shadow)
    shift = np.array((rng.uniform(-0.05, 0.05), rng.uniform(0.02, 0.06)))
    for part in parts:
        spots = [tuple(point) for point in view.pixels(part.outline + shift) / 8]
        if part.width:
            pen.line(spots, fill=255, width=max(1, round(part.width * view.scale / 8)))
        else:
            pen.polygon(spots, fill=255)
    soft = shadow.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.2)))
    if standing:
        points = view.pixels(np.concatenate([part.outline for part in parts])) / 8
        (left, _), (right, floor) = points.min(axis=0), points.max(axis=0)
        ground = Image.new("L", small, 0)
        ImageDraw.Draw(ground).ellipse((left - 1, floor - 2.5, right + 1, floor + 1.5), fill=255)
        soft = ImageChops.lighter(soft, ground.filter(ImageFilter.GaussianBlur(1.6)))
    wall = wall * (1 - rng.uniform(0.22, 0.42) * np.asarray(soft, np.float32)[..., None] / 255)
    return Image.fromarray(wall.astype(np.uint8)).resize((view.width, view.height), Image.Resampling.BICUBIC)


def _paint(
    part: Part,
    view: View,
    materials: Mapping[str, Image.Image | RGB],
    canvas: Image.Image,
    shade: Image.Image,
    covered: Image.Image,
) -> None:
    """Cut the part's outline out of its material and lay it on the canvas, with its edges and its shadow."""
    points = view.pixels(part.outline)
    stroke = max(1.0, part.width * view.scale) if part.width else 0.0
    soft = 0.030 * view.scale  # how far edges and shadows reach, in pixels
    margin = int(stroke + 3 * soft + 2)
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + margin, (view.width, view.height))
    region = (int(left), int(top), int(right), int(bottom))
    mask = _mask(points - (left, top), stroke, (int(right - left), int(bottom - top)))
    if part.material in _SHADED:
        factor = _SHADED[part.material]
        if part.material == "fold":
            mask = mask.filter(ImageFilter.BoxBlur(stroke / 2))
        darker = ImageChops.multiply(shade.crop(region), mask.point(_falling(1 - factor)))
        shade.paste(darker, region)
        return
    blurred = mask.filter(ImageFilter.BoxBlur(soft))
    if part.lift:
        cast = ImageChops.offset(blurred, 0, round(soft * 0.8))
        fall = cast.point(_falling(0.75 * part.lift))
        shade.paste(ImageChops.multiply(shade.crop(region), fall), region)
    material = materials[part.material]
    canvas.paste(material.crop(region) if isinstance(material, Image.Image) else material, region, mask)
    shade.paste(blurred.point(_edges(part.shade, part.relief)), region, mask)
    covered.paste(255, region, mask)


@lru_cache(maxsize=256)
def _falling(depth: float) -> list[int]:
    """A mask as a factor out of 255: 1 where the mask is 0, 1 - depth where it is 255."""
    return [int(255 - depth * i) for i in range(256)]


@lru_cache(maxsize=256)
def _edges(shade: float, relief: float) -> list[int]:
    """Light by blurred mask: `shade` inside, where the mask is 255, and `relief` less at the edge, where it is 128."""
    inside = np.clip((np.arange(256) - 127) / 128, 0, 1)
    return np.minimum(_NEUTRAL * shade * (1 - relief * (1 - inside)), 255).astype(int).tolist()


def _mask(points: np.ndarray, stroke: float, size: tuple[int, int]) -> Image.Image:
    """The outline filled, or drawn as a line, at twice the resolution and halved."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2), 0)
    pen = ImageDraw.Draw(mask)
    spots = [(x * 2, y * 2) for x, y in points.tolist()]
    if stroke:
        pen.line(spots, fill=255, width=max(2, round(stroke * 2)), joint="curve")
    else:
        pen.polygon(spots, fill=255)
    return mask.reduce(2)
