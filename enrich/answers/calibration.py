"""Price intervals with known coverage, and category probabilities that mean what they say.

Interval: split-conformal (Papadopoulos et al. 2002; Lei et al. 2018) on absolute log residuals, normalised by the
spread that the digit log-probabilities show. Photos of one design share what is wrong of it, so a design counts as one
(Dunn et al. 2018; Lee et al. 2023). By category (Vovk 2012) where the calibration split has enough of it, and narrower
than elsewhere only as far as its designs vouch for that.
Probability: Platt scaling (Platt 1999) of the tokens' probability with an intercept for each label that is said, or
isotonic regression where that says more.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

CALIBRATION_FILE = "calibration.json"
LEVEL = 0.9  # of price_low..price_high
LEVELS = (0.8, 0.9)
OUT_OF_RANGE = 10.0  # a price this many times beyond the catalog's range is no price
FAR = 100.0  # a price at least this many times from the median counts only where others are as far ...
FEW = 0.01  # ... and more than this share of them: one mistyped price sets no range
CATEGORY_ROWS = 100  # a category with as many has quantiles of its own: coverage then varies by 3 points
CATEGORY_DESIGNS = 8  # with as many, half of what its quantiles are below everyone's is believed
FLOOR_ROWS = 200  # with 30, choosing among six floors costs two points of coverage; with 200, none to be measured
FLOORS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)  # times the median spread; the last one makes nearly all intervals alike
DISTRIBUTION = 49  # quantiles kept of the signed residuals: enough for a CRPS to two digits
MISSED = 0.9  # share of the wrong labels that review should get ...
REVIEWED = 0.18  # ... in no more than this share of the rows; other reasons add to it
ISOTONIC_ROWS = 200  # below, steps say more about the sample than about the model
CATEGORY_SPREAD = 1.0  # log odds, one standard deviation: how much surer one label is thought to be than another
Point = Literal["greedy", "expectation", "median"]
Floats = Sequence[float] | np.ndarray
Bools = Sequence[bool] | np.ndarray


class PriceCalibration(BaseModel):
    """How far prices miss. Interval at a level: price * exp(±quantile * (spread + floor))."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    point: Point = "greedy"  # which estimate is the price
    quantiles: dict[str, float]  # level -> quantile of |log residual| / (spread + floor)
    by_category: dict[str, dict[str, float]] = {}  # category -> the same, for those with CATEGORY_ROWS
    floor: float  # log units; keeps a confident model's interval from closing
    residuals: tuple[float, ...] = ()  # quantiles k / (n + 1) of log residual / (spread + floor), signed
    crps: dict[str, float] = {}  # point -> on the calibration split, log units: why it is `point`
    lowest: float  # of the training prices but for a few far ones (`price_range`), in units of the currency
    highest: float
    rows: int
    designs: int  # that the rows are photos of


class CategoryCalibration(BaseModel):
    """P(label right) = sigmoid(slope * logit(p) + intercept + by_category[label]), p that of title and label's tokens.

    With `steps`, pairs (p, probability) ascending, it is the line through them instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float
    intercept: float
    by_category: dict[str, float] = {}  # log odds that a label which was said is right more often than others are
    steps: tuple[tuple[float, float], ...] = ()
    review_below: float = 0.6  # confidence under which a person should look
    rows: int


class Calibration(BaseModel):
    """An adapter's calibration.json, fitted on the calibration split only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = 1
    price: PriceCalibration | None  # None where the catalog has no prices
    category: CategoryCalibration

    @classmethod
    def uncalibrated(cls) -> Self:
        """For a model that was never calibrated: probabilities as they come, no price interval."""
        return cls(price=None, category=CategoryCalibration(slope=1.0, intercept=0.0, rows=0))


def fit_price(
    prices: Sequence[float],
    predicted: Sequence[float],
    spreads: Sequence[float],
    catalog_prices: Sequence[float],
    categories: Sequence[str] = (),
    designs: Sequence[str] = (),
) -> PriceCalibration | None:
    """Conformal quantiles from rows whose price is known and whose predicted price is positive.

    `spreads` are log units, one a row; `catalog_prices` (the training split's) set the plausible range; `categories`,
    where given, are the predicted ones, since inference has nothing else; `designs` tell which of the rows are
    photos of one design (see `same_design`), and without them each is its own. The floor under the spreads is the one
    that makes intervals narrowest on average, where there are FLOOR_ROWS to choose it on, else the median spread.
    With too few designs for a level, (n + 1) * level > n, the largest score stands in and coverage falls short.
    None without rows.
    """
    if not len(prices):
        return None
    spread = np.asarray(spreads, dtype=np.float64)
    residuals = np.log(np.asarray(prices, dtype=np.float64)) - np.log(np.asarray(predicted, dtype=np.float64))
    unit = max(float(np.median(spread)), 0.01)
    floors = [unit * times for times in FLOORS] if len(prices) >= FLOOR_ROWS else [unit]
    owners = np.unique(designs, return_inverse=True)[1] if len(designs) else np.arange(len(prices))
    floor = min(floors, key=lambda floor: _mean_width(residuals, spread, floor, owners))
    scores = residuals / (spread + floor)
    quantiles = _quantiles(scores, owners)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, category in enumerate(categories):
        groups[category].append(row)
    lowest, highest = price_range(catalog_prices if len(catalog_prices) else prices)
    return PriceCalibration(
        quantiles=quantiles,
        by_category={
            name: _vouched(_quantiles(scores[rows], np.arange(len(rows))), quantiles, len(set(owners[rows])))
            for name, rows in sorted(groups.items())
            if len(rows) >= CATEGORY_ROWS
        },
        floor=floor,
        residuals=tuple(np.quantile(scores, np.arange(1, DISTRIBUTION + 1) / (DISTRIBUTION + 1)).tolist()),
        lowest=lowest,
        highest=highest,
        rows=len(scores),
        designs=int(owners.max()) + 1,
    )


def choose_price(
    prices: Sequence[float],
    predicted: Mapping[Point, Sequence[float]],
    spreads: Sequence[float],
    catalog_prices: Sequence[float],
    categories: Sequence[str] = (),
    designs: Sequence[str] = (),
) -> PriceCalibration | None:
    """`fit_price` for the estimate with the smallest CRPS on these rows; the earlier one where two are alike."""
    fitted: dict[Point, PriceCalibration] = {}
    for name, values in predicted.items():
        calibration = fit_price(prices, values, spreads, catalog_prices, categories, designs)
        if calibration is None:
            return None
        fitted[name] = calibration
    crps = {
        name: float(np.mean([price_crps(one, *row) for row in zip(prices, predicted[name], spreads, strict=True)]))
        for name, one in fitted.items()
    }
    best = min(fitted, key=lambda name: round(crps[name], 4))
    return fitted[best].model_copy(update={"point": best, "crps": dict(crps)})


def price_interval(
    calibration: PriceCalibration, price: float, spread: float, level: float = LEVEL, category: str | None = None
) -> tuple[float, float]:
    """Low and high, in units of the currency, that hold the true price with probability `level`."""
    quantiles = calibration.by_category.get(category or "", calibration.quantiles)
    factor = math.exp(min(quantiles[str(level)] * (spread + calibration.floor), 20.0))
    return price / factor, price * factor


def price_crps(calibration: PriceCalibration, true: float, price: float, spread: float) -> float:
    """How far the whole distribution around `price` is from the true one; log units, 0 is best."""
    scale = spread + calibration.floor
    return quantile_crps(math.log(true / price), [residual * scale for residual in calibration.residuals])


def _quantiles(scores: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Quantiles of the absolute scores. Each of the owners 0 .. n - 1 has 1 / (n + 1) of the mass, shared by its rows;
    the extra 1 / (n + 1), at infinity, covers a new design."""
    order = np.argsort(np.abs(scores), kind="stable")
    mass = np.cumsum(1 / np.bincount(owners)[owners[order]]) / (owners.max() + 2)
    places = {level: min(int(np.searchsorted(mass, level - 1e-9)), len(order) - 1) for level in LEVELS}
    return {str(level): float(abs(scores[order[place]])) for level, place in places.items()}


def _vouched(own: dict[str, float], everyones: dict[str, float], designs: int) -> dict[str, float]:
    """A category's quantiles where they are the larger ones, else between them and everyone's: 13 designs whose prices
    were easy to tell do not say that the next 13 are."""
    share = designs / (designs + CATEGORY_DESIGNS)
    return {level: max(one, share * one + (1 - share) * everyones[level]) for level, one in own.items()}


def _mean_width(residuals: np.ndarray, spread: np.ndarray, floor: float, owners: np.ndarray) -> float:
    """Mean half width of the intervals at LEVEL in log units, to a tenth of a percent: ties go to the first floor."""
    scale = spread + floor
    return float(f"{_quantiles(residuals / scale, owners)[str(LEVEL)] * scale.mean():.3g}")


def price_range(prices: Floats) -> tuple[float, float]:
    """The lowest and the highest of positive prices, a few far ones left out.

    Far is five standard deviations from the median of their logs, by the median absolute deviation, and FAR times. Far
    prices of one end count where they are more than FEW of all, or more than two (of fewer than 10: more than a fifth).
    """
    logs = np.log(np.asarray(prices, dtype=np.float64))
    middle = np.median(logs)
    reach = max(5 * 1.4826 * float(np.median(np.abs(logs - middle))), math.log(FAR))
    few = max(int(FEW * len(logs)), min(2, len(logs) // 5))
    kept = np.ones(len(logs), dtype=bool)
    for far in (logs < middle - reach, logs > middle + reach):
        if far.sum() <= few:
            kept &= ~far
    known = np.asarray(prices, dtype=np.float64)[kept]
    return float(known.min()), float(known.max())


def beyond(prices: Sequence[float]) -> frozenset[float]:
    """Those of a catalog's positive prices that are OUT_OF_RANGE times beyond the others' range, and so mistakes."""
    if not prices:
        return frozenset()
    lowest, highest = price_range(prices)
    return frozenset(one for one in prices if not lowest / OUT_OF_RANGE <= one <= highest * OUT_OF_RANGE)


def is_out_of_range(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` is so far outside the catalog's prices that it cannot be one."""
    return not calibration.lowest / OUT_OF_RANGE <= price <= calibration.highest * OUT_OF_RANGE


def is_outlier(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` lies outside the catalog's prices, though it could be one."""
    return not calibration.lowest <= price <= calibration.highest


def fit_category(probabilities: Floats, right: Bools, categories: Sequence[str]) -> CategoryCalibration:
    """Platt scaling or isotonic regression, whichever has the smaller log loss on rows it was not fitted on (5 folds).

    `categories` are those that the model said. The confidence below which a person should look is chosen on what the
    folds said of rows they were not fitted on: as high as needed to get MISSED of the wrong labels, as low as needed to
    ask about no more than REVIEWED of the rows.
    """
    p, y, said = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=bool), np.asarray(categories)

    def platt(rows: np.ndarray) -> CategoryCalibration:
        return fit_platt(p[rows], y[rows], said[rows])

    def isotonic(rows: np.ndarray) -> CategoryCalibration:
        return fit_isotonic(p[rows], y[rows])

    everything = np.ones(len(p), dtype=bool)
    fitted, held_out = platt(everything), _held_out(platt, p, said)
    if len(p) >= ISOTONIC_ROWS and _log_loss(steps := _held_out(isotonic, p, said), y) < _log_loss(held_out, y):
        fitted, held_out = isotonic(everything), steps
    return fitted.model_copy(update={"review_below": _review_below(held_out, y)}) if len(p) else fitted


def _review_below(confidence: np.ndarray, right: np.ndarray) -> float:
    order = np.argsort(confidence, kind="stable")
    caught = np.cumsum(~right[order])
    wanted = int(np.searchsorted(caught, MISSED * caught[-1])) + 1 if caught[-1] else 0
    rows = min(wanted, int(REVIEWED * len(right)))
    return float(confidence[order[rows]]) if rows < len(right) else 1.0


def _held_out(fit: Callable[[np.ndarray], CategoryCalibration], p: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Confidence of each fifth of the rows under what `fit` makes of the others, which it is told as a mask."""
    folds = np.random.default_rng(0).permutation(len(p)) % 5
    confidence = np.empty(len(p))
    for fold in range(5):
        calibration, own = fit(folds != fold), folds == fold
        confidence[own] = [category_confidence(calibration, *one) for one in zip(p[own], categories[own], strict=True)]
    return confidence


def _log_loss(confidence: np.ndarray, right: np.ndarray) -> float:
    sure = np.clip(confidence, 1e-4, 1 - 1e-4)
    return float(-np.mean(np.log(np.where(right, sure, 1 - sure))))


def fit_isotonic(probabilities: Floats, right: Bools) -> CategoryCalibration:
    """The best ascending steps (pool adjacent violators, Ayer et al. 1955), joined by lines so that order is kept.

    Each step stands for its rows and one more of even odds, so that none is certain.
    """
    order = np.argsort(probabilities, kind="stable")
    p, y = np.asarray(probabilities, dtype=np.float64)[order], np.asarray(right, dtype=np.float64)[order]
    blocks: list[list[float]] = []  # [rows, right ones, sum of p]
    for one, hit in zip(p, y, strict=True):
        blocks.append([1.0, hit, one])
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][0] >= blocks[-1][1] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    steps = [(total / rows, (hits + 0.5) / (rows + 1)) for rows, hits, total in blocks]
    values = np.maximum.accumulate([value for _, value in steps])
    platt = fit_platt(probabilities, right)
    return platt.model_copy(
        update={"steps": tuple((where, float(value)) for (where, _), value in zip(steps, values, strict=True))}
    )


def fit_platt(probabilities: Floats, right: Bools, categories: Sequence[str] | np.ndarray = ()) -> CategoryCalibration:
    """Platt scaling, with a Gaussian prior around the identity that stands for about one row.

    Each of `categories`, where they are given, has an intercept of its own under a prior of CATEGORY_SPREAD: a label
    that is often wrongly said is doubted more, and one with few rows as much as the others.

    Newton's method with step halving: sure and wrong answers have hardly any curvature, so a full step overshoots.
    """
    x = _logit(np.asarray(probabilities, dtype=np.float64))
    y = np.asarray(right, dtype=np.float64)
    names, group = np.unique(np.asarray(categories, dtype=str), return_inverse=True)
    if len(names) < 2:  # nothing to tell apart
        names, group = names[:0], np.zeros(len(x), dtype=int)
    design = np.stack([x, np.ones_like(x)], axis=1)
    prior = np.array([1.0, 0.0])
    precision = CATEGORY_SPREAD**-2

    def by_name(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, values, len(names))[: len(names)]

    def scores(weights: np.ndarray, own: np.ndarray) -> np.ndarray:
        return design @ weights + (own[group] if len(names) else 0.0)

    def loss(weights: np.ndarray, own: np.ndarray) -> float:
        odds = scores(weights, own)
        penalty = ((weights - prior) ** 2).sum() + precision * (own**2).sum()
        return float(np.logaddexp(0, odds).sum() - y @ odds + penalty / 2)

    weights, own = prior.copy(), np.zeros(len(names))
    for _ in range(50):
        p = np.exp(-np.logaddexp(0, -scores(weights, own)))
        curvature = p * (1 - p)
        gradient = design.T @ (p - y) + (weights - prior)
        hessian = design.T @ (design * curvature[:, None]) + np.eye(2)
        # The categories' part of the Hessian is diagonal, so they are eliminated, however many there are (Schur).
        gradient_own = by_name(p - y) + precision * own
        diagonal = by_name(curvature) + precision
        mixed = np.stack([by_name(curvature * c) for c in design.T])
        step = np.linalg.solve(hessian - (mixed / diagonal) @ mixed.T, gradient - mixed @ (gradient_own / diagonal))
        step_own = (gradient_own - step @ mixed) / diagonal
        largest = float(np.abs(np.concatenate([step, step_own])).max())
        while loss(weights - step, own - step_own) > loss(weights, own) and largest >= 1e-9:
            step, step_own, largest = step / 2, step_own / 2, largest / 2
        weights, own = weights - step, own - step_own
        if largest < 1e-9:
            break
    if weights[0] > 0:
        return CategoryCalibration(
            slope=float(weights[0]),
            intercept=float(weights[1]),
            by_category={str(name): round(float(odds), 6) for name, odds in zip(names, own, strict=True)},
            rows=len(x),
        )
    # A negative slope would rank sure answers last: only the base rate is known, with one row more of even odds.
    return CategoryCalibration(slope=0.0, intercept=float(_logit((y.sum() + 0.5) / (len(y) + 1))), rows=len(x))


def category_confidence(calibration: CategoryCalibration, probability: float, category: str = "") -> float:
    """Calibrated probability, 0..1, that the label `category`, said with `probability`, is right."""
    if calibration.steps:
        places, values = zip(*calibration.steps, strict=True)
        return float(np.interp(probability, places, values))
    score = calibration.slope * float(_logit(np.asarray(probability))) + calibration.intercept
    score += calibration.by_category.get(category, 0.0)
    return 1 / (1 + math.exp(-max(min(score, 50.0), -50.0)))


def _logit(p: np.ndarray) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def quantile_crps(true: float, quantiles: Sequence[float]) -> float:
    """Continuous ranked probability score of a distribution given by its evenly spaced quantiles k / (n + 1).

    Twice the mean pinball loss over the quantiles, which it approaches as they get dense (Gneiting and Ranjan 2011); in
    units of `true`. 0 is best; for a point it is the absolute error.
    """
    q = np.asarray(quantiles, dtype=np.float64)
    levels = np.arange(1, len(q) + 1) / (len(q) + 1)
    return float(2 * np.mean(np.maximum(levels * (true - q), (levels - 1) * (true - q))))
