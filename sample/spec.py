"""What can be drawn: kinds of products, their attributes, colours; and what a retailer's dialect is made of.

A product is a kind and a value for each of the kind's attributes; everything in this file is visible in the photo.
A `Dialect` (dialects.py has two, japanese.py a third) holds what a retailer adds: its names for categories, colours and
details, its title order, its prices. Two dialects over the same drawings are two retailers: a base is pretrained on one
and fine-tuned on the other.
"""

import difflib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

# Bumped whenever the same seed no longer gives the same bytes.
VERSION = 2

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
    """One kind of product. A value that is listed twice is drawn twice as often.

    `finish` are attributes that may differ between the photos of one design.
    """

    attributes: Mapping[str, tuple[str, ...]]
    finish: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weight: int = 2


KINDS: Mapping[str, Kind] = {
    # For women.
    "dress": Kind(
        {
            "fabric": ("plain", "plain", "striped", "checked", "dotted", "floral"),
            "sleeve": ("none", "short", "long"),
            "length": ("mini", "midi"),
        },
        weight=3,
    ),
    "blouse": Kind({"fabric": ("plain", "plain", "dotted", "floral", "striped"), "neck": ("bow", "ruffle")}),
    "skirt": Kind(
        {"fabric": ("plain", "checked", "dotted", "denim", "leather"), "cut": ("pleated", "flared", "pencil")}
    ),
    "cardigan": Kind({"fabric": ("knit", "cable", "striped")}, {"pocket": ("no", "yes")}),
    "coat": Kind(
        {
            "fabric": ("plain", "plain", "checked", "leather"),
            "closure": ("single", "double"),
            "belt": ("no", "yes"),
        },
        weight=3,
    ),
    "pump": Kind({"heel": ("kitten", "stiletto", "block"), "strap": ("no", "ankle")}),
    "sandal": Kind({"sole": ("flat", "platform")}, {"metal": ("gold", "silver")}),
    "boot": Kind({"height": ("ankle", "knee")}, {"heel": ("flat", "block")}),
    "tote_bag": Kind(
        {"fabric": ("plain", "leather", "leather", "striped", "checked")}, {"handles": ("short", "long")}, weight=3
    ),
    "shoulder_bag": Kind(
        {"fabric": ("leather", "leather", "quilted", "checked"), "strap": ("plain", "chain")}, weight=3
    ),
    "scarf": Kind({"fabric": ("plain", "striped", "checked", "checked", "dotted"), "fringe": ("no", "yes")}),
    "sun_hat": Kind({"fabric": ("straw",)}, {"band": ("tonal", "contrast")}),
    # For men.
    "t_shirt": Kind(
        {"fabric": ("plain", "plain", "striped", "dotted"), "neck": ("crew", "v")}, {"pocket": ("no", "yes")}
    ),
    "polo": Kind({"fabric": ("plain", "plain", "striped"), "tipping": ("no", "yes")}),
    "shirt": Kind(
        {
            "fabric": ("plain", "pinstriped", "checked", "checked", "dotted", "denim"),
            "sleeve": ("long", "long", "short"),
        },
        {"pocket": ("no", "yes")},
        weight=3,
    ),
    "sweater": Kind({"fabric": ("knit", "cable", "striped"), "neck": ("crew", "v", "turtle")}, weight=3),
    "blazer": Kind(
        {"fabric": ("plain", "checked", "pinstriped"), "closure": ("single", "double")}, {"square": ("no", "yes")}
    ),
    "jacket": Kind({"fabric": ("plain", "quilted", "denim", "leather"), "hood": ("no", "yes")}, weight=3),
    "trousers": Kind({"fabric": ("plain", "plain", "checked", "pinstriped", "denim"), "leg": ("slim", "wide")}),
    "sneaker": Kind({"top": ("low", "high"), "stripe": ("no", "yes")}, {"sole": ("white", "gum")}),
    "backpack": Kind({"fabric": ("plain", "checked", "leather"), "closure": ("zip", "flap")}),
    "belt": Kind({"fabric": ("leather", "braided"), "buckle": ("square", "round")}, {"metal": ("gold", "silver")}),
    "wallet": Kind({"fabric": ("leather", "quilted", "checked"), "style": ("bifold", "zip", "card")}),
    "tie": Kind({"fabric": ("plain", "striped", "dotted", "checked"), "shape": ("tie", "bow")}),
    "cap": Kind({"fabric": ("plain", "checked", "denim", "striped")}, {"brim": ("tonal", "contrast")}),
    # For children.
    "kids_tee": Kind({"fabric": ("plain", "plain", "striped"), "motif": ("star", "heart", "dino")}),
    "hoodie": Kind({"fabric": ("plain", "plain", "striped"), "ears": ("no", "yes")}),
    "dungarees": Kind({"fabric": ("denim", "denim", "plain", "checked"), "leg": ("long", "short")}),
    "welly": Kind({"fabric": ("plain", "dotted", "striped")}, {"tab": ("no", "yes")}),
    "socks": Kind({"fabric": ("plain", "striped", "dotted"), "length": ("ankle", "knee")}),
    "beanie": Kind({"fabric": ("knit", "striped", "checked"), "bobble": ("no", "yes")}),
    "mittens": Kind({"fabric": ("knit", "cable", "striped")}, {"string": ("no", "yes")}),
}

# What a photo may show of a product. The front is the main photo; a product has the others or not.
VIEWS = ("front", "back", "detail", "angle")
# Attributes of every kind that one further photo shows and no other: by photo, then by attribute.
HIDDEN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "back": {"back": ("plain", "plain", "plain", "plain", "emblem", "panel")},
    "detail": {"label": ("basic", "basic", "gold")},
}

_HELD_OUT = 7  # one in seven colours of each kind and fabric


def held_out(kind: str, attributes: Mapping[str, str]) -> bool:
    """Whether this colour x fabric x kind belongs to the hold-out: no other split ever shows it.

    Every kind, every fabric of a kind and every colour still occurs outside the hold-out.
    """
    fabric = attributes.get("fabric", "plain")
    palette = colours_of(fabric)
    turn = zlib.crc32(f"{kind}/{fabric}".encode())
    position = (palette.index(attributes["colour"]) + turn) % len(palette)
    return position % _HELD_OUT == 0


def colours_of(fabric: str) -> tuple[str, ...]:
    """The colours that a fabric is dyed in."""
    return DENIM_COLOURS if fabric == "denim" else tuple(COLOURS)


@dataclass(frozen=True)
class Prices:
    """Median price = base x exp(sum of effects); price = median x exp(N(0, sigma)), put on the ladder.

    `effects` are in log units, named `attribute=value` or, for one kind only, `kind.attribute=value`.
    `ladder` gives (below this price, round to multiples of this step), ascending; the last step also holds above.
    """

    base: Mapping[str, float]
    effects: Mapping[str, float]
    ladder: tuple[tuple[float, int], ...]
    sigma: float


@dataclass(frozen=True)
class Dialect:
    """One retailer: the names it gives to what the photos show.

    `categories` holds category1 to category3 of each kind or, named `kind.attribute=value`, of a part of it; where the
    last two are the same, rows may leave category3 out. `words` name attribute values as `effects` are named, and kinds
    by their own name; a value without a word is left out of titles. `title` is the order of attributes, "kind" and,
    after a colon, literal words, with `joint` between them. `fields` are further columns of the catalog by name: words
    named as `words` are, where the word of a kind holds for a product none of whose attributes has one.

    Raises:
        ValueError: a key names nothing that can be drawn, or a kind has no category or price.
    """

    name: str
    website: str
    brand: str
    country: str
    currency: str
    to_eur: float
    categories: Mapping[str, tuple[str, str, str]]
    words: Mapping[str, str]
    title: tuple[str, ...]
    prices: Prices = field(repr=False)
    joint: str = " "
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known, narrow = _names()
        self._check("words", self.words, known | narrow | set(KINDS))
        for column, words in self.fields.items():
            self._check(f"fields.{column}", words, known | narrow | set(KINDS))
        self._check("prices.effects", self.prices.effects, known | narrow)
        self._check("categories", self.categories, narrow | set(KINDS))
        self._check("prices.base", self.prices.base, set(KINDS))
        attributes = {name.partition("=")[0] for name in known}
        self._check("title", (slot for slot in self.title if not slot.startswith(":")), attributes | {"kind"})
        for kind in KINDS:
            if kind not in self.categories or kind not in self.prices.base:
                raise ValueError(f"dialect {self.name}: {kind} has no category or no base price; add it")

    def _check(self, where: str, keys: Iterable[str], known: set[str]) -> None:
        for key in keys:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are names such as {min(known)!r}"
                raise ValueError(f"dialect {self.name}: {where}: unknown key {key!r}{hint}")

    def category(self, kind: str, attributes: Mapping[str, str]) -> tuple[str, str, str]:
        """category1 to category3 of what looks like this; the last is what a photo of it is taught."""
        return lookup(self.categories, kind, attributes) or self.categories[kind]


T = TypeVar("T")


def lookup(named: Mapping[str, T], kind: str, attributes: Mapping[str, str]) -> T | None:
    """The first entry `kind.attribute=value` of this kind."""
    return next((named[key] for a, v in attributes.items() if (key := f"{kind}.{a}={v}") in named), None)


def _names() -> tuple[set[str], set[str]]:
    """All `attribute=value`, and all `kind.attribute=value`."""
    hidden = {name: values for attributes in HIDDEN.values() for name, values in attributes.items()}
    narrow = {
        f"{kind}.{name}={value}"
        for kind, spec in KINDS.items()
        for name, values in {"colour": tuple(COLOURS), **spec.attributes, **spec.finish, **hidden}.items()
        for value in values
    }
    return {name.partition(".")[2] for name in narrow}, narrow
