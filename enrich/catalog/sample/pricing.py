"""Prices: log-linear in what is visible, plus noise of a known size, on a price ladder."""

import math
from collections.abc import Mapping

from enrich.catalog.sample.spec import Prices

# Median of |N(0, 1)|: the error that is left in the median when everything visible is known.
MEDIAN_ABS_NORMAL = 0.6745


def noiseless_price(kind: str, attributes: Mapping[str, str], prices: Prices) -> float:
    """The median price of products that look like this, in the dialect's currency, before the ladder."""
    log_price = math.log(prices.base[kind])
    for attribute, value in attributes.items():
        name = f"{attribute}={value}"
        log_price += prices.effects.get(f"{kind}.{name}", prices.effects.get(name, 0.0))
    return math.exp(log_price)


def on_ladder(price: float, ladder: tuple[tuple[float, int], ...]) -> float:
    """`price` at the nearest multiple of the ladder's step there, at least one step."""
    step = next((step for below, step in ladder if price < below), ladder[-1][1])
    return float(max(step, round(price / step) * step))


def best_mdape(sigma: float) -> float:
    """The median absolute percentage error that no estimate from photos can beat, as a share of the price.

    Approximately 0.6745 sigma: the median of |exp(sigma z) - 1| to first order, the ladder's rounding left out.
    """
    return MEDIAN_ABS_NORMAL * sigma
