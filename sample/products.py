"""Products out of a seed: each one a pure function of the seed, its index and the dialect."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sample.fields import field_values
from sample.pricing import noiseless_price, on_ladder
from sample.spec import HIDDEN, KINDS, VIEWS, Dialect, colours_of, held_out
from sample.titles import title

# The hold-out's products are those from this index on: colour x fabric x kind that no other index ever shows.
HOLDOUT_START = 50_000_000

# Six consecutive products are three designs, photographed once, twice and three times.
_DESIGN_OF = (0, 1, 1, 2, 2, 2)
# Coprime to 10^8, so that distinct indices get distinct codes of eight digits.
_CODE_STEP = 61_803_399
_CODES = 10**8
# What a stream of random numbers is for, so that no two purposes share one.
_DESIGN_STREAM, _PRODUCT_STREAM, _VIEWS_STREAM = 1, 2, 5
_KIND_DRAWN = tuple(name for name, kind in KINDS.items() for _ in range(kind.weight))


@dataclass(frozen=True)
class SampleProduct:
    """A product and its truth. `category` is what a reader of the catalog makes of category1 to category3.

    `views` are what its photos show, in their order, and `attributes` what is visible in any of them. `fields` are the
    further columns of the catalog.
    """

    product_code: str
    title: str
    category: str
    category1: str
    category2: str
    category3: str
    price: float
    noiseless_price: float
    kind: str
    attributes: Mapping[str, str]
    fields: Mapping[str, str]
    views: tuple[str, ...] = VIEWS[:1]


def sample_product(seed: int, index: int, dialect: Dialect, photos: int = 1) -> SampleProduct:
    """Product `index` of catalog `seed`, told in `dialect`, with 1 to `photos` photos. The same in every process.

    Dialects share the drawing: the same seed and index have the same kind, attributes and product code in each. Photos
    of one design differ in its finish at most.
    """
    block, position = divmod(index, len(_DESIGN_OF))
    rng = np.random.default_rng((_PRODUCT_STREAM, seed, index))
    kind, attributes = _design(seed, 3 * block + _DESIGN_OF[position], index >= HOLDOUT_START)
    attributes |= {name: _one_of(rng, values) for name, values in KINDS[kind].finish.items()}
    views, hidden = _photographed(seed, index, photos)
    attributes |= hidden
    median = noiseless_price(kind, attributes, dialect.prices)
    price = median * float(np.exp(rng.normal(0.0, dialect.prices.sigma)))
    category1, category2, category3 = dialect.category(kind, attributes)
    told = category3
    if category2 == category3:  # such rows say so in three ways, as real tables do
        told = _one_of(rng, ("N.A.", "", category3))
    return SampleProduct(
        product_code=f"{(index * _CODE_STEP + seed * 7919 + 12_345_678) % _CODES:08d}",
        title=title(kind, attributes, dialect),
        category=category3,
        category1=category1,
        category2=category2,
        category3=told,
        price=on_ladder(price, dialect.prices.ladder),
        noiseless_price=round(median, 4),
        kind=kind,
        attributes=attributes,
        fields=field_values(kind, attributes, dialect, photos),
        views=views,
    )


def views_of(seed: int, index: int, photos: int) -> tuple[str, ...]:
    """The `views` of this product."""
    return _photographed(seed, index, photos)[0]


def _photographed(seed: int, index: int, photos: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """What the photos show: the front and some of the other views, as many equally likely; and the attributes that
    only they show. A product that lacks the photo lacks the attribute."""
    if photos == 1:
        return VIEWS[:1], {}
    rng = np.random.default_rng((_VIEWS_STREAM, seed, index))
    further = rng.permutation(len(VIEWS) - 1)[: rng.integers(photos)] + 1
    views = tuple(view for number, view in enumerate(VIEWS) if number == 0 or number in further)
    return views, {name: _one_of(rng, values) for view in views[1:] for name, values in HIDDEN.get(view, {}).items()}


def _design(seed: int, design: int, of_holdout: bool) -> tuple[str, dict[str, str]]:
    """Kind and attributes; colour and fabric are drawn again until they belong on this side of the hold-out."""
    rng = np.random.default_rng((_DESIGN_STREAM, seed, design))
    kind = _one_of(rng, _KIND_DRAWN)
    while True:
        attributes = {name: _one_of(rng, values) for name, values in KINDS[kind].attributes.items()}
        attributes = {"colour": _one_of(rng, colours_of(attributes.get("fabric", "plain"))), **attributes}
        if held_out(kind, attributes) == of_holdout:
            return kind, attributes


def _one_of(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]
