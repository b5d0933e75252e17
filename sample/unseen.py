"""The best possible score from the main photo alone, for products that have further photos."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np

from sample.fields import field_columns, field_values
from sample.pricing import NOISES, Optimum, noiseless_price, optimum
from sample.products import SampleProduct
from sample.spec import HIDDEN, VIEWS, Dialect
from sample.titles import title

_OPTIMUM_STREAM = 6


def from_main_photo(products: Sequence[SampleProduct], dialect: Dialect, photos: int) -> tuple[float, Optimum]:
    """The best share of exact titles and the optimum of prices for an estimator that sees each product's front alone.

    It knows how likely everything that it does not see is, and not how many photos the product has: that would tell it
    more of them.
    """
    rng = np.random.default_rng((_OPTIMUM_STREAM, photos))
    combined = list(_combined(photos))
    ends = np.cumsum([probability for _, probability in combined])
    exact, medians = 0.0, []
    raised = np.empty((len(products), NOISES))
    for row, shown in enumerate(products):
        front = on_main_photo(shown)
        medians.append(noiseless_price(shown.kind, front, dialect.prices))
        titles: dict[str, float] = defaultdict(float)
        for hidden, probability in combined:
            titles[title(shown.kind, front | hidden, dialect)] += probability
        exact += max(titles.values())
        factors = [noiseless_price(shown.kind, front | hidden, dialect.prices) / medians[-1] for hidden, _ in combined]
        # Each as often as it is likely, in an order that has nothing to do with the noise.
        drawn = np.searchsorted(ends, (np.arange(NOISES) + rng.random()) / NOISES).clip(max=len(combined) - 1)
        raised[row] = rng.permutation(np.array(factors)[drawn])
    return round(exact / len(products), 4), optimum(medians, dialect.prices, raised)


def fields_from_main_photo(products: Sequence[SampleProduct], dialect: Dialect, photos: int) -> dict[str, float]:
    """The best share of right values in each further column, for the same estimator."""
    combined = list(_combined(photos))
    right = dict.fromkeys(field_columns(dialect, photos), 0.0)
    for shown in products:
        front = on_main_photo(shown)
        told: dict[str, dict[str, float]] = {name: defaultdict(float) for name in right}
        for hidden, probability in combined:
            for name, value in field_values(shown.kind, front | hidden, dialect, photos).items():
                told[name][value] += probability
        right = {name: share + max(told[name].values()) for name, share in right.items()}
    return {name: round(share / len(products), 4) for name, share in right.items()}


def on_main_photo(shown: SampleProduct) -> dict[str, str]:
    """The attributes that the front shows."""
    hidden = {name for attributes in HIDDEN.values() for name in attributes}
    return {name: value for name, value in shown.attributes.items() if name not in hidden}


def _combined(photos: int) -> Iterator[tuple[dict[str, str], float]]:
    """What the further photos of a product may show together, and its probability; as `sample_product` draws it."""
    further = VIEWS[1:]
    for count in range(photos):
        for views in combinations(further, count):
            drawn = [(name, values) for view in views for name, values in HIDDEN.get(view, {}).items()]
            share = 1 / photos / math.comb(len(further), count) / math.prod(len(values) for _, values in drawn)
            for values in product(*(values for _, values in drawn)):
                yield dict(zip((name for name, _ in drawn), values, strict=True)), share
