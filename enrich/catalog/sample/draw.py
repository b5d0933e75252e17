"""A product as a photo: fabric cut to outlines, folds, edge shading and shadows, in front of a studio background."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from enrich.catalog.sample import accessories, garments
from enrich.catalog.sample.fabric import RGB, Grid, brightness, contrast, scaled, texture
from enrich.catalog.sample.products import SampleProduct
from enrich.catalog.sample.silhouette import Part
from enrich.catalog.sample.spec import COLOURS

OUTLINES: Mapping[str, Callable[[Mapping[str, str]], list[Part]]] = {
    "t_shirt": garments.t_shirt,
    "shirt": garments.shirt,
    "sweater": garments.sweater,
    "coat": garments.coat,
    "jacket": garments.jacket,
    "dress": garments.dress,
    "skirt": garments.skirt,
    "trousers": garments.trousers,
    "scarf": garments.scarf,
    "tote_bag": accessories.tote_bag,
    "shoulder_bag": accessories.shoulder_bag,
    "hat": accessories.hat,
    "belt": accessories.belt,
    "sneaker": accessories.sneaker,
    "boot": accessories.boot,
    "wallet": accessories.wallet,
}
_STANDING = frozenset({"tote_bag", "shoulder_bag", "hat", "belt", "sneaker", "boot"})  # on a floor, not laid flat
_STIFF = frozenset({"tote_bag", "shoulder_bag", "belt", "sneaker", "boot", "wallet"})  # leather: hardly a fold

_SOLID: Mapping[str, RGB] = {
    "gold": (206, 168, 84),
    "silver": (186, 189, 196),
    "rubber": (236, 234, 228),
    "rubber_dark": (42, 36, 34),
    "gum": (186, 128, 74),
    "lace": (240, 238, 232),
    "paper": (236, 234, 226),
}
_SHADED: Mapping[str, float] = {"shadow": 0.50, "fold": 0.82}  # materials that only darken what they cross
_VIEW_STREAM = 3
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


def render(product: SampleProduct, view_seed: int) -> Image.Image:
    """An RGB photo of 256 to 640 pixels on its longer side: a pure function of the product and the view's seed."""
    rng = np.random.default_rng((_VIEW_STREAM, view_seed, int(product.product_code)))
    parts = OUTLINES[product.kind](product.attributes)
    view = _view(rng, parts, standing=product.kind in _STANDING)
    colour = _dyed(rng, COLOURS[product.attributes["colour"]])
    folds = _folds(rng, view, 0.05 if product.kind in _STIFF else 0.17)
    materials = _materials(product, colour, view, folds)
    canvas = _backdrop(rng, view, parts, standing=product.kind in _STANDING)
    shade = Image.new("L", canvas.size, _NEUTRAL)
    covered = Image.new("L", canvas.size, 0)
    for part in parts:
        _paint(part, view, materials, canvas, shade, covered)
    grain = 0.10 if product.attributes.get("pattern") == "denim" else 0.025
    return _lit(rng, canvas, shade, covered, folds, grain)


def _view(rng: np.random.Generator, parts: list[Part], standing: bool) -> View:
    wide, high = _FORMATS[rng.integers(len(_FORMATS))]
    side = int(rng.integers(256, 641))
    width, height = (side, side * high // wide) if wide >= high else (side * wide // high, side)
    angle = np.radians(rng.normal(0.0, 1.2 if standing else 3.0))
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = np.concatenate([part.outline for part in parts]) @ rotation
    low, high_point = points.min(axis=0), points.max(axis=0)
    span = high_point - low
    scale = rng.uniform(0.76, 0.90) * min(width / span[0], height / span[1])
    spare = np.array((width, height)) - scale * span
    offset = spare * rng.uniform(0.38, 0.62, 2) - scale * low
    return View(width, height, float(scale), (float(offset[0]), float(offset[1])), rotation)


def _dyed(rng: np.random.Generator, rgb: RGB) -> RGB:
    """The colour of this piece: dye lots differ a little, in depth more than in hue."""
    r, g, b = (np.array(rgb) * rng.normal(1, 0.035) * rng.normal(1, 0.012, 3)).clip(0, 255).astype(int).tolist()
    return r, g, b


def _folds(rng: np.random.Generator, view: View, strength: float) -> np.ndarray:
    """Relative light, about -strength to strength, (height, width): mostly upright folds, and light from one side."""
    coarse = np.repeat(rng.uniform(-1, 1, (4, 11)), 2, axis=0) + rng.uniform(-0.6, 0.6, (8, 11))
    lamp = np.linspace(-1, 1, 11) * rng.choice([-0.06, 0.06])
    small = Image.fromarray((strength * 0.75 * coarse + lamp).astype(np.float32))
    return np.asarray(small.resize((view.width, view.height), Image.Resampling.BICUBIC))


def _materials(product: SampleProduct, colour: RGB, view: View, folds: np.ndarray) -> Mapping[str, Image.Image | RGB]:
    """What parts are made of: textures for the fabrics of this product, one colour for the rest."""
    pattern = product.attributes.get("pattern", "plain")
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
    ribbed = product.kind in ("sweater", "jacket", "hat")
    if pattern != "plain" or ribbed:
        grid = _grid(view, folds)
        if pattern != "plain":
            materials["main"] = texture(pattern, colour, grid)
        if ribbed:
            materials["rib"] = texture("rib", colour, grid)
    return materials


def _grid(view: View, folds: np.ndarray) -> Grid:
    half = min(view.width, view.height) / 2
    x = (np.arange(view.width, dtype=np.float32) / half)[None, :]
    y = (np.arange(view.height, dtype=np.float32) / half)[:, None]
    (cos, sin), _ = view.rotation.astype(np.float32)
    warp = 0.12 * folds  # the pattern follows the folds
    return Grid(u=x * cos + y * sin + warp, v=y * cos - x * sin + warp, pixels=half)


def _lit(
    rng: np.random.Generator,
    canvas: Image.Image,
    shade: Image.Image,
    covered: Image.Image,
    folds: np.ndarray,
    grain: float,
) -> Image.Image:
    """The colours under the light: part shading everywhere, folds and grain on the product, the lamp's own tint."""
    speckle = np.frombuffer(rng.bytes(folds.size), np.uint8).reshape(folds.shape)
    on_product = (folds + grain * (speckle.astype(np.float32) / 128 - 1)) * (np.asarray(covered, np.float32) / 255)
    light = np.asarray(shade, np.float32) * (1.0 + on_product) / _NEUTRAL
    photo = np.multiply(np.asarray(canvas), light[..., None], dtype=np.float32)
    np.minimum(photo, 255, out=photo)
    lamp = rng.uniform(0.95, 1.04) * (1 + rng.uniform(-0.012, 0.012) * np.array((1, 0, -1)))
    table = np.minimum(np.arange(256)[None, :] * lamp[:, None], 255).astype(int).ravel().tolist()
    return Image.fromarray(photo.astype(np.uint8)).point(table)


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
