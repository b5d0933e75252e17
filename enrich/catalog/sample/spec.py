"""What can be drawn, and in whose words it is told.

A product is a kind and a value for each of the kind's attributes; everything in this file is visible in the photo.
A `Dialect` holds what a retailer adds: its names for categories, colours and details, its title order, its prices.
Two dialects over the same drawings are two retailers: a base is pretrained on one and fine-tuned on the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Bumped whenever the same seed no longer gives the same bytes.
VERSION = 1

# sRGB. Far enough apart to be told from each other on a 112-pixel crop.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "black": (34, 34, 37),
    "ivory": (243, 239, 226),
    "grey": (136, 138, 141),
    "navy": (31, 43, 88),
    "sky": (128, 180, 224),
    "red": (190, 32, 42),
    "olive": (98, 103, 48),
    "camel": (196, 152, 98),
    "brown": (95, 58, 36),
    "pink": (236, 158, 178),
    "yellow": (236, 190, 52),
    "teal": (18, 128, 126),
}
DENIM_COLOURS = ("black", "grey", "navy", "sky")


@dataclass(frozen=True)
class Kind:
    """One kind of product. A value that is listed twice is drawn twice as often."""

    attributes: Mapping[str, tuple[str, ...]]
    weight: int = 2


KINDS: Mapping[str, Kind] = {
    "t_shirt": Kind(
        {"pattern": ("plain", "plain", "striped", "dotted"), "neck": ("crew", "v"), "pocket": ("no", "yes")}, 3
    ),
    "shirt": Kind(
        {
            "pattern": ("plain", "plain", "pinstriped", "checked", "checked", "dotted", "denim"),
            "sleeve": ("long", "long", "short"),
            "pocket": ("no", "yes"),
        },
        3,
    ),
    "sweater": Kind({"pattern": ("knit", "cable", "striped"), "neck": ("crew", "v", "turtle")}, 3),
    "coat": Kind({"pattern": ("plain", "plain", "checked"), "closure": ("single", "double"), "belt": ("no", "yes")}),
    "jacket": Kind({"pattern": ("plain", "quilted", "quilted", "denim"), "hood": ("no", "yes")}),
    "dress": Kind(
        {
            "pattern": ("plain", "plain", "striped", "checked", "dotted"),
            "sleeve": ("none", "short", "long"),
            "length": ("mini", "midi"),
        },
        3,
    ),
    "skirt": Kind({"pattern": ("plain", "checked", "dotted", "denim"), "cut": ("pleated", "flared", "pencil")}),
    "trousers": Kind({"pattern": ("plain", "plain", "checked", "pinstriped", "denim"), "leg": ("slim", "wide")}),
    "scarf": Kind({"pattern": ("plain", "striped", "checked", "checked", "dotted"), "fringe": ("no", "yes")}),
    "tote_bag": Kind({"pattern": ("plain", "plain", "striped", "checked", "quilted"), "handles": ("short", "long")}),
    "shoulder_bag": Kind({"pattern": ("plain", "quilted", "checked"), "strap": ("leather", "chain")}),
    "hat": Kind({"pattern": ("plain", "striped", "checked"), "style": ("beanie", "bobble", "cap", "bucket")}),
    "belt": Kind({"pattern": ("plain", "braided"), "buckle": ("square", "round"), "metal": ("gold", "silver")}),
    "sneaker": Kind({"top": ("low", "high"), "stripe": ("no", "yes"), "sole": ("white", "gum")}),
    "boot": Kind({"height": ("ankle", "knee"), "heel": ("flat", "block")}),
    "wallet": Kind({"pattern": ("plain", "quilted", "checked"), "style": ("bifold", "zip", "card")}),
}


@dataclass(frozen=True)
class Prices:
    """Median price = base x exp(sum of effects); price = median x exp(N(0, sigma)), put on the ladder.

    `effects` are in log units, named `attribute=value` or, for one kind only, `kind.attribute=value`.
    `ladder` gives (below this price, round to multiples of this step), ascending; the last step also holds above.
    """

    base: Mapping[str, float]
    effects: Mapping[str, float]
    ladder: tuple[tuple[float, int], ...]
    sigma: float = 0.15


@dataclass(frozen=True)
class Dialect:
    """One retailer: the names it gives to what the photos show.

    `categories` holds (category2, category3) of each kind; where both are the same, rows may leave category3 out.
    `words` name attribute values as `effects` are named, and kinds by their own name; a value without a word is
    left out of titles. `title` is the order of attributes, "kind" and, after a colon, literal words.
    """

    name: str
    website: str
    brand: str
    country: str
    currency: str
    to_eur: float
    categories: Mapping[str, tuple[str, str]]
    words: Mapping[str, str]
    title: tuple[str, ...]
    prices: Prices = field(repr=False)

    def category(self, kind: str) -> str:
        """The category that a photo of this kind is taught."""
        return self.categories[kind][1]


DEMO = Dialect(
    name="demo",
    website="Example Store",
    brand="EXAMPLE",
    country="FRA",
    currency="EUR",
    to_eur=1.0,
    categories={
        "t_shirt": ("TOPS", "T-SHIRTS"),
        "shirt": ("TOPS", "SHIRTS"),
        "sweater": ("TOPS", "SWEATERS"),
        "coat": ("OUTERWEAR", "COATS"),
        "jacket": ("OUTERWEAR", "JACKETS"),
        "dress": ("DRESSES", "DRESSES"),
        "skirt": ("BOTTOMS", "SKIRTS"),
        "trousers": ("BOTTOMS", "TROUSERS"),
        "scarf": ("SCARVES", "SCARVES"),
        "tote_bag": ("BAGS", "TOTE BAGS"),
        "shoulder_bag": ("BAGS", "SHOULDER BAGS"),
        "hat": ("HATS", "HATS"),
        "belt": ("ACCESSORIES", "BELTS"),
        "sneaker": ("SHOES", "SNEAKERS"),
        "boot": ("SHOES", "BOOTS"),
        "wallet": ("ACCESSORIES", "WALLETS"),
    },
    words={
        **{f"colour={colour}": colour.capitalize() for colour in COLOURS},
        "pattern=striped": "Stripes",
        "pattern=pinstriped": "Pinstripe",
        "pattern=checked": "Check",
        "pattern=dotted": "Dots",
        "pattern=cable": "Cable Knit",
        "pattern=denim": "Denim",
        "pattern=quilted": "Quilting",
        "pattern=braided": "Braid",
        "neck=v": "V-Neck",
        "neck=turtle": "Turtleneck",
        "t_shirt.pocket=yes": "Pocket",
        "sleeve=short": "Short-Sleeve",
        "dress.sleeve=none": "Sleeveless",
        "dress.sleeve=long": "Long-Sleeve",
        "length=mini": "Mini",
        "length=midi": "Midi",
        "closure=double": "Double-Breasted",
        "belt=yes": "Belted",
        "hood=yes": "Hooded",
        "cut=pleated": "Pleated",
        "cut=pencil": "Pencil",
        "leg=wide": "Wide-Leg",
        "fringe=yes": "Fringed",
        "strap=chain": "Chain",
        "buckle=square": "Square-Buckle",
        "buckle=round": "Round-Buckle",
        "top=high": "High-Top",
        "height=ankle": "Ankle",
        "height=knee": "Knee",
        "style=beanie": "Beanie",
        "style=bobble": "Bobble Beanie",
        "style=cap": "Cap",
        "style=bucket": "Bucket Hat",
        "style=bifold": "Wallet",
        "style=zip": "Zip Wallet",
        "style=card": "Card Case",
        "t_shirt": "T-Shirt",
        "shirt": "Shirt",
        "sweater": "Sweater",
        "coat": "Coat",
        "jacket": "Jacket",
        "dress": "Dress",
        "skirt": "Skirt",
        "trousers": "Trousers",
        "scarf": "Scarf",
        "tote_bag": "Tote Bag",
        "shoulder_bag": "Shoulder Bag",
        "belt": "Belt",
        "sneaker": "Sneakers",
        "boot": "Boots",
    },
    title=(
        "hood", "closure", "belt", "fringe", "strap", "buckle", "top", "height", "cut", "leg", "neck", "sleeve",
        "pocket", "length", "style", "kind", ":in", "colour", "pattern",
    ),
    prices=Prices(
        base={
            "t_shirt": 240, "shirt": 420, "sweater": 640, "coat": 1900, "jacket": 1150, "dress": 900, "skirt": 560,
            "trousers": 480, "scarf": 360, "tote_bag": 1250, "shoulder_bag": 1600, "hat": 260, "belt": 310,
            "sneaker": 560, "boot": 900, "wallet": 340,
        },
        effects={
            "pattern=striped": 0.13, "pattern=pinstriped": 0.18, "pattern=checked": 0.40, "pattern=dotted": 0.11,
            "pattern=cable": 0.48, "pattern=denim": -0.22, "pattern=quilted": 0.33, "pattern=braided": 0.33,
            "neck=v": 0.09, "neck=turtle": 0.26, "pocket=yes": 0.13, "shirt.sleeve=short": -0.40,
            "dress.sleeve=long": 0.33, "dress.sleeve=none": -0.22, "length=midi": 0.44, "closure=double": 0.33,
            "belt=yes": 0.33, "hood=yes": 0.31, "cut=pleated": 0.44, "cut=pencil": -0.11, "leg=wide": 0.22,
            "fringe=yes": 0.33, "handles=long": 0.18, "strap=chain": 0.55, "style=bobble": 0.26, "style=cap": 0.11,
            "style=bucket": 0.44, "buckle=round": 0.11, "metal=gold": 0.26, "top=high": 0.33, "stripe=yes": 0.18,
            "sole=gum": 0.11, "height=knee": 0.88, "heel=block": 0.22, "style=zip": 0.77, "style=card": -0.55,
        },
        ladder=((500, 10), (2000, 50), (1e9, 100)),
    ),
)  # fmt: skip

BASE = Dialect(
    name="base",
    website="Sample Outlet",
    brand="SAMPLE",
    country="DEU",
    currency="EUR",
    to_eur=1.0,
    categories={
        "t_shirt": ("Tops", "Tops / Tees"),
        "shirt": ("Tops", "Tops / Button-Downs"),
        "sweater": ("Knitwear", "Knitwear"),
        "coat": ("Outer Layers", "Outer Layers / Long"),
        "jacket": ("Outer Layers", "Outer Layers / Short"),
        "dress": ("Gowns", "Gowns"),
        "skirt": ("Legs", "Legs / Skirting"),
        "trousers": ("Legs", "Legs / Pants"),
        "scarf": ("Wraps", "Wraps"),
        "tote_bag": ("Carry", "Carry / Shoppers"),
        "shoulder_bag": ("Carry", "Carry / Crossbody"),
        "hat": ("Headwear", "Headwear"),
        "belt": ("Extras", "Extras / Waist"),
        "sneaker": ("Footwear", "Footwear / Trainers"),
        "boot": ("Footwear", "Footwear / Winter"),
        "wallet": ("Extras", "Extras / Small Leather"),
    },
    words={
        "colour=black": "Ink",
        "colour=ivory": "Chalk",
        "colour=grey": "Slate",
        "colour=navy": "Midnight",
        "colour=sky": "Powder",
        "colour=red": "Cherry",
        "colour=olive": "Moss",
        "colour=camel": "Sand",
        "colour=brown": "Cocoa",
        "colour=pink": "Rose",
        "colour=yellow": "Honey",
        "colour=teal": "Lagoon",
        "pattern=striped": "Bands",
        "pattern=pinstriped": "Fine Lines",
        "pattern=checked": "Plaid",
        "pattern=dotted": "Spots",
        "pattern=cable": "Twist Knit",
        "pattern=denim": "Jean",
        "pattern=quilted": "Padding",
        "pattern=braided": "Weave",
        "neck=crew": "Round",
        "neck=turtle": "Roll",
        "sleeve=short": "Half-Arm",
        "dress.sleeve=none": "Strapless",
        "length=midi": "Long",
        "closure=double": "Two-Row",
        "belt=yes": "Tied",
        "hood=yes": "Parka-Style",
        "cut=pleated": "Folded",
        "cut=pencil": "Narrow",
        "leg=slim": "Tapered",
        "leg=wide": "Loose",
        "fringe=yes": "Tasselled",
        "handles=long": "Long-Handled",
        "strap=chain": "Link",
        "metal=gold": "Brass",
        "metal=silver": "Steel",
        "top=high": "Mid-Cut",
        "height=ankle": "Short",
        "height=knee": "Tall",
        "style=beanie": "Knit Hat",
        "style=bobble": "Pompom Hat",
        "style=cap": "Visor",
        "style=bucket": "Fisher Hat",
        "style=bifold": "Billfold",
        "style=zip": "Zip Purse",
        "style=card": "Card Sleeve",
        "t_shirt": "Tee",
        "shirt": "Button-Down",
        "sweater": "Pullover",
        "coat": "Overcoat",
        "jacket": "Blouson",
        "dress": "Gown",
        "skirt": "Wrap Skirt",
        "trousers": "Pants",
        "scarf": "Shawl",
        "tote_bag": "Shopper",
        "shoulder_bag": "Crossbody",
        "belt": "Strap",
        "sneaker": "Trainers",
        "boot": "Winter Boots",
    },
    title=(
        "hood", "closure", "belt", "fringe", "handles", "strap", "metal", "top", "height", "cut", "leg", "neck",
        "sleeve", "length", "style", "kind", ":in", "colour", "pattern",
    ),
    prices=Prices(
        base={
            "t_shirt": 14, "shirt": 31, "sweater": 38, "coat": 119, "jacket": 84, "dress": 52, "skirt": 33,
            "trousers": 41, "scarf": 17, "tote_bag": 46, "shoulder_bag": 58, "hat": 16, "belt": 19, "sneaker": 64,
            "boot": 92, "wallet": 24,
        },
        effects={
            "pattern=striped": 0.08, "pattern=pinstriped": 0.05, "pattern=checked": 0.12, "pattern=dotted": 0.04,
            "pattern=cable": 0.25, "pattern=denim": 0.06, "pattern=quilted": 0.20, "pattern=braided": 0.10,
            "neck=turtle": 0.15, "pocket=yes": 0.08, "sleeve=short": -0.12, "sleeve=long": 0.08, "length=midi": 0.15,
            "closure=double": 0.12, "belt=yes": 0.10, "hood=yes": 0.18, "cut=pleated": 0.16, "leg=wide": 0.08,
            "fringe=yes": 0.10, "handles=long": 0.05, "strap=chain": 0.18, "style=bobble": 0.10, "style=bucket": 0.15,
            "metal=gold": 0.08, "top=high": 0.12, "stripe=yes": 0.05, "height=knee": 0.35, "heel=block": 0.08,
            "style=zip": 0.25, "style=card": -0.30,
        },
        ladder=((50, 1), (200, 5), (1e9, 10)),
    ),
)  # fmt: skip
