"""Price intervals with known coverage, and category probabilities that mean what they say.

Interval: split-conformal (Papadopoulos et al. 2002; Lei et al. 2018) on absolute log residuals, normalised by the
spread that the digit log-probabilities show. Probability: Platt scaling (Platt 1999) of the label's token probability.
"""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

CALIBRATION_FILE = "calibration.json"
LEVEL = 0.9  # of price_low..price_high
LEVELS = (0.8, 0.9)
OUT_OF_RANGE = 10.0  # a price this many times beyond the catalog's range is no price


class PriceCalibration(BaseModel):
    """How far prices miss. Interval at a level: price * exp(±quantile * (spread + floor))."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantiles: dict[str, float]  # level -> quantile of |log residual| / (spread + floor)
    floor: float  # log units; keeps a confident model's interval from closing
    lowest: float  # of the training prices, in units of the currency
    highest: float
    rows: int


class CategoryCalibration(BaseModel):
    """P(label right) = sigmoid(slope * logit(p) + intercept), p the probability of the label's tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float
    intercept: float
    rows: int


class Calibration(BaseModel):
    """An adapter's calibration.json, fitted on the calibration split only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    price: PriceCalibration | None  # None where the catalog has no prices
    category: CategoryCalibration

    @classmethod
    def uncalibrated(cls) -> Self:
        """For a model that was never calibrated: probabilities as they come, no price interval."""
        return cls(price=None, category=CategoryCalibration(slope=1.0, intercept=0.0, rows=0))


def fit_price(
    prices: Sequence[float], predicted: Sequence[float], spreads: Sequence[float], catalog_prices: Sequence[float]
) -> PriceCalibration | None:
    """Conformal quantiles from rows whose price is known and whose predicted price is positive.

    `spreads` are log units, one a row; `catalog_prices` (the training split's) set the plausible range.
    With too few rows for a level, (n + 1) * level > n, the largest score stands in and coverage falls short.
    None without rows.
    """
    if not len(prices):
        return None
    spread = np.asarray(spreads, dtype=np.float64)
    residuals = np.abs(np.log(np.asarray(prices, dtype=np.float64)) - np.log(np.asarray(predicted, dtype=np.float64)))
    floor = max(float(np.median(spread)), 0.01)
    scores = np.sort(residuals / (spread + floor))
    quantiles = {}
    for level in LEVELS:
        rank = min(math.ceil((len(scores) + 1) * level), len(scores))
        quantiles[str(level)] = float(scores[rank - 1])
    known = np.asarray(catalog_prices if len(catalog_prices) else prices, dtype=np.float64)
    return PriceCalibration(
        quantiles=quantiles, floor=floor, lowest=float(known.min()), highest=float(known.max()), rows=len(scores)
    )


def price_interval(
    calibration: PriceCalibration, price: float, spread: float, level: float = LEVEL
) -> tuple[float, float]:
    """Low and high, in units of the currency, that hold the true price with probability `level`."""
    factor = math.exp(min(calibration.quantiles[str(level)] * (spread + calibration.floor), 20.0))
    return price / factor, price * factor


def is_out_of_range(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` is so far outside the catalog's prices that it cannot be one."""
    return not calibration.lowest / OUT_OF_RANGE <= price <= calibration.highest * OUT_OF_RANGE


def is_outlier(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` lies outside the catalog's prices, though it could be one."""
    return not calibration.lowest <= price <= calibration.highest


def fit_category(probabilities: Sequence[float], right: Sequence[bool]) -> CategoryCalibration:
    """Platt scaling, with a Gaussian prior around the identity that stands for about one row.

    Newton's method with step halving: sure and wrong answers have hardly any curvature, so a full step overshoots.
    """
    x = _logit(np.asarray(probabilities, dtype=np.float64))
    y = np.asarray(right, dtype=np.float64)
    design = np.stack([x, np.ones_like(x)], axis=1)
    prior = np.array([1.0, 0.0])

    def loss(weights: np.ndarray) -> float:
        scores = design @ weights
        return float(np.logaddexp(0, scores).sum() - y @ scores + ((weights - prior) ** 2).sum() / 2)

    weights = prior.copy()
    for _ in range(50):
        p = np.exp(-np.logaddexp(0, -design @ weights))
        gradient = design.T @ (p - y) + (weights - prior)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(weights - step) > loss(weights) and float(np.abs(step).max()) >= 1e-9:
            step = step / 2
        weights = weights - step
        if float(np.abs(step).max()) < 1e-9:
            break
    if weights[0] > 0:
        return CategoryCalibration(slope=float(weights[0]), intercept=float(weights[1]), rows=len(x))
    # A negative slope would rank sure answers last: only the base rate is known, with one row more of even odds.
    return CategoryCalibration(slope=0.0, intercept=float(_logit((y.sum() + 0.5) / (len(y) + 1))), rows=len(x))


def category_confidence(calibration: CategoryCalibration, probability: float) -> float:
    """Calibrated probability, 0..1, that the label is right."""
    score = calibration.slope * float(_logit(np.asarray(probability))) + calibration.intercept
    return 1 / (1 + math.exp(-max(min(score, 50.0), -50.0)))


def _logit(p: np.ndarray) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))
