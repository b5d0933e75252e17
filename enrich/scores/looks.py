"""The value of a second look: the doubt from which it pays, and the quality and cost with and without it."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from enrich.answers.looks import doubt
from enrich.answers.postprocess import Prediction
from enrich.scores.metrics import METRICS, Columns, comparison, mean_of
from enrich.vocabulary import Product, same_design

RESAMPLES = 400
STEPS = 20  # shares of second looks that are tried: 100 %, 95 % ... 0 %
# A way of looking is not worse if it is as good, or LITTLE behind, in this share of the resamples: it lost no more than
# 0.8 standard errors and LITTLE. With a half, chance alone would fail ways that are equal in four scores; at 2.5 %, a
# small calibration split would let every loss pass.
AS_GOOD = 0.2
LITTLE = 0.005  # half a point; without it, two of the most confident products could require close looks at all

# Larger is better, except for the price.
_SCORES: dict[str, Callable[[Columns], float]] = {
    "category_accuracy": METRICS["category_accuracy"],
    "title_exact": METRICS["title_exact"],
    "price_mdape": METRICS["price_mdape"],
    "fields_accuracy": mean_of("fields"),  # of all fields beyond title, category and price
}
_SMALLER_IS_BETTER = {"price_mdape"}
_COLUMNS = ("right", "title_exact", "absolute", "price", "fields")


def choose_least_doubt(products: Sequence[Product], first: Sequence[Prediction], close: Sequence[Prediction]) -> float:
    """The doubt from which a second look pays.

    It gives the fewest second looks with which no score is worse than if every product were looked at closely. Larger
    shares must not be worse either, so that no share is picked by chance among bad ones. 0: all are needed.

    Args:
        first: calibrated answers at the first look, in the order of the products.
        close: at a close look.
    """
    doubts, draws = np.array([doubt(one) for one in first]), _draws(products)
    quick, closely = _columns(products, first), _columns(products, close)
    finite = doubts[np.isfinite(doubts)]
    none = float(np.nextafter(finite.max(initial=0.0), math.inf))  # only products without an answer reach it
    descending, least = np.sort(doubts)[::-1], 0.0
    for step in range(STEPS - 1, -1, -1):
        count = round(len(doubts) * step / STEPS)
        tried = min(float(descending[count - 1]), none) if count else none
        if not _as_good(_mixed(quick, closely, doubts >= tried), closely, draws):
            break
        least = tried
    return least


def sweep(
    products: Sequence[Product],
    squares: tuple[int, int],
    first: Sequence[Prediction],
    close: Sequence[Prediction],
    served: Sequence[Prediction],
) -> list[dict[str, Any]]:
    """Scores and cost of the first look only, of close looks only, and of both.

    Returns:
        For each way `looks` (squares of each look), `second_looks` (share, 0..1), `prompt_tokens` (a product; all but
        some twenty are its photos') and the scores, each with `value` and with the 95 % interval of its `difference`
        from close looks on the same products.
    """
    closely, draws = _columns(products, close), _draws(products)
    ways = (([squares[0]], first), ([squares[1]], close), (list(squares), served))
    return [
        {
            "looks": looks,
            "second_looks": fmean(one.looks == 2 for one in found),
            "prompt_tokens": fmean(one.prompt_tokens or 0 for one in found),
            "scores": _beside(_columns(products, found), closely, draws),
        }
        for looks, found in ways
    ]


def _columns(products: Sequence[Product], found: Sequence[Prediction]) -> dict[str, np.ndarray]:
    answers = [one.answer for one in found]
    fields = [
        fmean(answer is not None and answer.attributes.get(name) == value for name, value in product.attributes.items())
        if product.attributes
        else math.nan
        for product, answer in zip(products, answers, strict=True)
    ]
    columns = {**comparison(products, answers), "fields": np.array(fields)}
    return {name: columns[name] for name in _COLUMNS}


def _mixed(quick: Columns, closely: Columns, again: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.where(again, closely[name], quick[name]) for name in _COLUMNS}


def _draws(products: Sequence[Product]) -> list[np.ndarray]:
    """Rows of each resample: designs are drawn, because photos of one share their error."""
    _, design = np.unique([same_design(product.title) for product in products], return_inverse=True)
    rows = [np.flatnonzero(design == one) for one in range(design.max() + 1)]
    drawn = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    return [np.concatenate([rows[one] for one in own]) for own in drawn]


def _gains(ways: Columns, closely: Columns, draws: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Of each score that these products have: what it gains on close looks in each resample."""
    gains = {}
    for name, score in _SCORES.items():
        if math.isnan(score(closely)):
            continue
        pairs = [
            tuple(score({name: one[rows] for name, one in way.items()}) for way in (ways, closely)) for rows in draws
        ]
        gains[name] = np.array([way - close for way, close in pairs])
    return gains


def _as_good(ways: Columns, closely: Columns, draws: Sequence[np.ndarray]) -> bool:
    return all(
        np.mean((-gained if name in _SMALLER_IS_BETTER else gained) >= -LITTLE) >= AS_GOOD
        for name, gained in _gains(ways, closely, draws).items()
    )


def _beside(ways: Columns, closely: Columns, draws: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    found = {}
    for name, gained in _gains(ways, closely, draws).items():
        value = _SCORES[name](ways)
        low, high = np.nanquantile(gained, [0.025, 0.975])
        difference = value - _SCORES[name](closely)
        found[name] = {"value": value, "difference": difference, "low": float(low), "high": float(high)}
    return found
