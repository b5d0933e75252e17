"""A product as a photo: fabric cut to outlines, folds, edge shading and shadows, in front of a studio background."""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from sample import accessories, bags, children, garments, shoes
from sample.fabric import RGB, Grid, brightness, contrast, scaled, texture
from sample.products import SampleProduct
from sample.silhouette import Part
from sample.spec import COLOURS, VIEWS
from sample.studio import Frame, backdrop, draped, framed, highlights
from sample.views import from_behind, label, spot, turned

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
    "label": (30, 28, 30),
    "ink": (70, 70, 74),
}
_SHADED: Mapping[str, float] = {"shadow": 0.50, "fold": 0.82}  # materials that only darken what they cross
_VIEW_STREAM = 3
_LABEL = 0.15  # half the width of the label in a close-up, as a share of the photo's shorter side
_NEUTRAL = 160  # the value of the shade canvas that leaves a colour as it is; leaves room for highlights up to 1.6


def render(product: SampleProduct, view_seed: int, side: int | None = None, view: str = "front") -> Image.Image:
    """An RGB photo: a pure function of its arguments.

    `side` is the length in pixels of its longer side, 400 to 2,000 where left out; the cost goes with its square.
    `view` is one of VIEWS.
    """
    seed = (_VIEW_STREAM, view_seed, int(product.product_code))
    rng = np.random.default_rng(seed if view == "front" else (*seed, VIEWS.index(view)))
    standing = product.kind in _STANDING
    fabric = product.attributes.get("fabric", "plain")
    front = OUTLINES[product.kind](product.attributes)
    parts = front
    if view == "back":
        parts = from_behind(product.kind, product.attributes)
    elif view == "angle":
        parts = turned(rng, front, standing)
    middle = spot(product.kind, product.attributes) if view == "detail" else None
    frame = framed(rng, parts, standing, side, middle)
    dyer = rng if view == "front" else _after_framing(seed, front, standing)  # of one piece, so of one colour
    colour = _dyed(dyer, COLOURS[product.attributes["colour"]])
    folds = draped(rng, frame, 0.05 if product.kind in _STIFF else 0.20)
    materials = _materials(product, colour, frame, folds)
    canvas = backdrop(rng, frame, parts, standing, another=view == "angle")
    shade = Image.new("L", canvas.size, _NEUTRAL)
    covered = Image.new("L", canvas.size, 0)
    if middle is not None:
        width = _LABEL * min(frame.width, frame.height) / frame.scale
        parts = parts + label(rng, product.attributes.get("label", "basic"), middle, width)
    for part in parts:
        _paint(part, frame, materials, canvas, shade, covered)
    sheen = _SHINY.get(product.kind, _SHEEN.get(fabric, 0.0))
    return _lit(rng, canvas, shade, covered, folds, 0.10 if fabric == "denim" else 0.02, sheen)


def _after_framing(seed: tuple[int, ...], front: list[Part], standing: bool) -> np.random.Generator:
    """The generator of the front photo where it draws the dye."""
    rng = np.random.default_rng(seed)
    framed(rng, front, standing, None)
    return rng


def _dyed(rng: np.random.Generator, rgb: RGB) -> RGB:
    """The colour of this piece: dye lots differ a little, in depth more than in hue."""
    r, g, b = (np.array(rgb) * rng.normal(1, 0.035) * rng.normal(1, 0.012, 3)).clip(0, 255).astype(int).tolist()
    return r, g, b


def _materials(product: SampleProduct, colour: RGB, frame: Frame, folds: np.ndarray) -> Mapping[str, Image.Image | RGB]:
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
        grid = _grid(frame, folds)
        if pattern != "plain" or coarse:
            materials["main"] = texture("canvas" if coarse else pattern, colour, grid)
        if ribbed:
            materials["rib"] = texture("rib", colour, grid)
    return materials


def _grid(frame: Frame, folds: np.ndarray) -> Grid:
    half = frame.zoom * min(frame.width, frame.height) / 2
    x = (np.arange(frame.width, dtype=np.float32) / half)[None, :]
    y = (np.arange(frame.height, dtype=np.float32) / half)[:, None]
    (cos, sin), _ = frame.rotation.astype(np.float32)
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
        shine = highlights(rng, width, height)
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


def _paint(
    part: Part,
    frame: Frame,
    materials: Mapping[str, Image.Image | RGB],
    canvas: Image.Image,
    shade: Image.Image,
    covered: Image.Image,
) -> None:
    """Cut the part's outline out of its material and lay it on the canvas, with its edges and its shadow."""
    points = frame.pixels(part.outline)
    stroke = max(1.0, part.width * frame.scale) if part.width else 0.0
    soft = 0.030 * frame.scale  # how far edges and shadows reach, in pixels
    margin = int(stroke + 3 * soft + 2)
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + margin, (frame.width, frame.height))
    if left >= right or top >= bottom:
        return  # a close-up leaves it out
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
        down = round(soft * 0.8)
        cast = ImageChops.offset(blurred, 0, down)
        cast.paste(0, (0, 0, cast.width, down))  # what came in from below, where a close-up cuts the part off
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
