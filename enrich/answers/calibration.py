"""Price intervals with known coverage, and category probabilities that match how often the category is right.

Intervals are split-conformal (Papadopoulos et al. 2002; Lei et al. 2018) on absolute log residuals, normalised by the
spread that the digits' log-probabilities show. Photos of one design share its error, so a design counts as one
observation (Dunn et al. 2018; Lee et al. 2023). Categories with enough calibration rows have their own quantiles
(Vovk 2012), narrower than the overall ones only as far as their number of designs supports it.

Confidence is Platt scaling (Platt 1999) of the probability of the answer's tokens, with an intercept for each label.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

CALIBRATION_FILE = "calibration.json"
LEVEL = 0.9  # of price_low..price_high
LEVELS = (0.8, 0.9)
OUT_OF_RANGE = 10.0  # a price this many times beyond the catalog's range counts as a mistake
FAR = 100.0  # a price at least this many times from the median counts only if others are as far ...
FEW = 0.01  # ... and more than this share of them: one mistyped price does not set the range
CATEGORY_ROWS = 100  # a category with as many has quantiles of its own: coverage then varies by 3 points
CATEGORY_DESIGNS = 8  # with as many, its quantiles are narrowed half of the way from everyone's to its own
FLOOR_ROWS = 200  # choosing among six floors costs two points of coverage with 30 rows, and nothing measurable with 200
FLOORS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)  # times the median spread; the last one makes nearly all intervals alike
DISTRIBUTION = 49  # quantiles kept of the signed residuals: enough for a CRPS to two digits
MISSED = 0.9  # share of the wrong labels that review should get ...
REVIEWED = 0.18  # ... in no more than this share of the rows; other reasons add to it
CATEGORY_SPREAD = 1.0  # log odds; prior standard deviation of the labels' intercepts
Floats = Sequence[float] | np.ndarray
Bools = Sequence[bool] | np.ndarray


class _Fitted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PriceCalibration(_Fitted):
    """The errors of predicted prices. Interval at a level: price * exp(±quantile * (spread + floor))."""

    quantiles: dict[str, float]  # level -> quantile of |log residual| / (spread + floor)
    by_category: dict[str, dict[str, float]] = {}  # category -> the same, for those with CATEGORY_ROWS
    floor: float  # log units; keeps a confident model's interval from closing
    residuals: tuple[float, ...] = ()  # quantiles k / (n + 1) of log residual / (spread + floor), signed
    lowest: float  # of the training prices without a few far ones (`price_range`), in units of the currency
    highest: float
    rows: int
    designs: int  # shown in those rows


class CategoryCalibration(_Fitted):
    """P(label right) = sigmoid(slope * logit(p) + intercept + by_category[label]), p of title and label's tokens."""

    slope: float
    intercept: float
    by_category: dict[str, float] = {}  # log odds that this predicted label is right more often than others are
    review_below: float = 0.6  # confidence under which a person should look
    rows: int


class Calibration(_Fitted):
    """An adapter's calibration.json, fitted on the calibration split only. Files of other versions are refused."""

    version: Literal[2] = 2  # 1 also named one of three price estimates, and could hold isotonic steps
    price: PriceCalibration | None  # None where the catalog has no prices
    category: CategoryCalibration
    attributes: dict[str, CategoryCalibration] = {}  # of the fields beyond title, category and price, by name
    levels: tuple[CategoryCalibration, ...] = ()  # where categories are paths: of the levels above the last, by depth
    folded: Self | None = None  # for products answered in several prompts; None if no such products were known
    first: "FirstLook | None" = None  # None: every product is looked at once, closely

    @classmethod
    def uncalibrated(cls) -> Self:
        """For a model that was never calibrated: probabilities as the model gives them, no price intervals."""
        return cls(price=None, category=CategoryCalibration(slope=1.0, intercept=0.0, rows=0))

    @property
    def first_squares(self) -> int | None:
        """Crops of a first look's page; None if products are looked at once."""
        return self.first.squares if self.first else None

    def after(self, looks: int) -> "Calibration":
        """The calibration of answers after that many looks."""
        return self.first.calibration if self.first and looks == 1 else self


class FirstLook(_Fitted):
    """A quick look before the close one, and when the close one follows: see `enrich.answers.looks`."""

    squares: int  # of the main photo's page at most
    calibration: Calibration  # of answers after this look alone
    least_doubt: float  # from this `looks.doubt` on there is a second look; 0: always


def fit_price(
    prices: Sequence[float],
    predicted: Sequence[float],
    spreads: Sequence[float],
    catalog_prices: Sequence[float],
    categories: Sequence[str] = (),
    designs: Sequence[str] = (),
) -> PriceCalibration | None:
    """Conformal quantiles of rows with a known, positive price. None without rows.

    With at least FLOOR_ROWS rows, the floor under the spreads is the one that makes intervals narrowest on average,
    else the median spread. With too few designs for a level, (n + 1) * level > n, the largest score is used, and
    coverage falls short.

    Args:
        prices: true prices, units of the currency.
        predicted: predicted prices, all positive.
        spreads: log units (`PriceFeatures.spread`).
        catalog_prices: those of the training split; they set the plausible range.
        categories: predicted ones, since inference knows no others; empty: no quantiles by category.
        designs: equal for photos of one design (`same_design`); empty: each row is its own.
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
            name: _shrunk(_quantiles(scores[rows], np.arange(len(rows))), quantiles, len(set(owners[rows])))
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


def price_interval(
    calibration: PriceCalibration, price: float, spread: float, level: float = LEVEL, category: str | None = None
) -> tuple[float, float]:
    """Low and high, in units of the currency; the true price is between them with probability `level`."""
    quantiles = calibration.by_category.get(category or "", calibration.quantiles)
    factor = math.exp(min(quantiles[str(level)] * (spread + calibration.floor), 20.0))
    return price / factor, price * factor


def price_crps(calibration: PriceCalibration, true: float, price: float, spread: float) -> float:
    """CRPS of the distribution around `price` at the true price; log units, 0 is best."""
    scale = spread + calibration.floor
    return quantile_crps(math.log(true / price), [residual * scale for residual in calibration.residuals])


def _quantiles(scores: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Quantiles of the absolute scores. Each of the owners 0 .. n - 1 has 1 / (n + 1) of the mass, divided among its
    rows; the extra 1 / (n + 1), at infinity, covers a new design."""
    order = np.argsort(np.abs(scores), kind="stable")
    mass = np.cumsum(1 / np.bincount(owners)[owners[order]]) / (owners.max() + 2)
    places = {level: min(int(np.searchsorted(mass, level - 1e-9)), len(order) - 1) for level in LEVELS}
    return {str(level): float(abs(scores[order[place]])) for level, place in places.items()}


def _shrunk(own: dict[str, float], everyones: dict[str, float], designs: int) -> dict[str, float]:
    """A category's quantiles if they exceed the overall ones, else between the two: few designs prove little."""
    share = designs / (designs + CATEGORY_DESIGNS)
    return {level: max(one, share * one + (1 - share) * everyones[level]) for level, one in own.items()}


def _mean_width(residuals: np.ndarray, spread: np.ndarray, floor: float, owners: np.ndarray) -> float:
    """Mean half width at LEVEL, log units, to three digits so that the first of equally good floors wins."""
    scale = spread + floor
    return float(f"{_quantiles(residuals / scale, owners)[str(LEVEL)] * scale.mean():.3g}")


def price_range(prices: Floats) -> tuple[float, float]:
    """The lowest and the highest of positive prices, without a few distant ones.

    A price is far if its log is five standard deviations (from the median absolute deviation) from the median, and the
    price itself FAR times. Far prices of one end count if they are more than FEW of all, and more than two (of fewer
    than 10: more than a fifth).
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
    """Those of a catalog's positive prices that are OUT_OF_RANGE times beyond the others' range: mistakes."""
    if not prices:
        return frozenset()
    lowest, highest = price_range(prices)
    return frozenset(one for one in prices if not lowest / OUT_OF_RANGE <= one <= highest * OUT_OF_RANGE)


def is_out_of_range(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` is so far outside the catalog's prices that it cannot be one."""
    return not calibration.lowest / OUT_OF_RANGE <= price <= calibration.highest * OUT_OF_RANGE


def is_outlier(calibration: PriceCalibration, price: float) -> bool:
    """Whether `price` is outside the catalog's prices, however plausible."""
    return not calibration.lowest <= price <= calibration.highest


def fit_category(
    probabilities: Floats, right: Bools, categories: Sequence[str], reviewed: float = REVIEWED
) -> CategoryCalibration:
    """Platt scaling, and the confidence under which a person should look.

    That threshold is chosen on confidences of rows that the scaling was not fitted on (5 folds): as high as needed to
    get MISSED of the wrong labels, as low as needed to ask about no more than `reviewed` of the rows.

    Args:
        probabilities: of title and label, 0..1, one a row.
        right: whether the predicted label is the true one.
        categories: the predicted labels.
    """
    p, y, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=bool), np.asarray(categories)
    fitted = fit_platt(p, y, labels)
    if not len(p):
        return fitted
    folds = np.random.default_rng(0).permutation(len(p)) % 5
    held_out = np.empty(len(p))
    for fold in range(5):
        own = folds == fold
        others = fit_platt(p[~own], y[~own], labels[~own])
        held_out[own] = [category_confidence(others, *row) for row in zip(p[own], labels[own], strict=True)]
    return fitted.model_copy(update={"review_below": _review_below(held_out, y, reviewed)})


def _review_below(confidence: np.ndarray, right: np.ndarray, reviewed: float) -> float:
    order = np.argsort(confidence, kind="stable")
    caught = np.cumsum(~right[order])
    wanted = int(np.searchsorted(caught, MISSED * caught[-1])) + 1 if caught[-1] else 0
    rows = min(wanted, int(reviewed * len(right)))
    return float(confidence[order[rows]]) if rows < len(right) else 1.0


def fit_platt(probabilities: Floats, right: Bools, categories: Sequence[str] | np.ndarray = ()) -> CategoryCalibration:
    """Platt scaling, with a Gaussian prior around the identity that is worth about one row.

    Each of `categories`, if they are given, has its own intercept under a prior of CATEGORY_SPREAD: a label that is
    often wrong is doubted more, and one with few rows as much as the others.
    """
    import torch  # 1 s; commands that only read a calibration do not need it

    names, group = np.unique(np.asarray(categories, dtype=str), return_inverse=True)
    by_name = len(names) > 1  # the intercept of a single label would only repeat the common one
    x = torch.from_numpy(_logit(np.asarray(probabilities, dtype=np.float64)))
    y = torch.from_numpy(np.asarray(right, dtype=np.float64))
    index = torch.from_numpy(group) if by_name else torch.zeros(len(x), dtype=torch.long)
    identity = torch.tensor([1.0, 0.0], dtype=torch.float64)
    weights = identity.clone().requires_grad_()  # slope, intercept
    own = torch.zeros(max(len(names), 1), dtype=torch.float64, requires_grad=by_name)
    optimizer = torch.optim.LBFGS(
        [weights, own] if by_name else [weights], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = weights[0] * x + weights[1] + own[index]
        prior = (weights - identity).square().sum() + own.square().sum() / CATEGORY_SPREAD**2
        total = torch.nn.functional.binary_cross_entropy_with_logits(odds, y, reduction="sum") + prior / 2
        total.backward()
        return total

    optimizer.step(loss)
    slope, intercept = weights.tolist()
    if slope > 0:
        each = zip(names.tolist(), own.tolist(), strict=True) if by_name else ()
        by_category = {name: round(odds, 6) for name, odds in each}
        return CategoryCalibration(slope=slope, intercept=intercept, by_category=by_category, rows=len(x))
    # A negative slope would rank sure answers last: only the base rate is known, with one more row of even odds.
    base_rate = (float(y.sum()) + 0.5) / (len(y) + 1)
    return CategoryCalibration(slope=0.0, intercept=logit(base_rate), rows=len(x))


def category_confidence(calibration: CategoryCalibration, probability: float, category: str = "") -> float:
    """Calibrated probability, 0..1, that the predicted label `category`, whose tokens had `probability`, is right."""
    score = calibration.slope * logit(probability) + calibration.intercept
    score += calibration.by_category.get(category, 0.0)
    return sigmoid(score)


def sigmoid(odds: float) -> float:
    """The probability that belongs to log-odds, which are clipped at 50."""
    return 1 / (1 + math.exp(-max(min(odds, 50.0), -50.0)))


def logit(probability: float) -> float:
    """The log-odds of a probability, which is clipped to 1e-6 .. 1 - 1e-6."""
    return float(_logit(np.asarray(probability)))


def _logit(p: np.ndarray) -> np.ndarray:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def quantile_crps(true: float, quantiles: Sequence[float]) -> float:
    """Continuous ranked probability score of a distribution given by its evenly spaced quantiles k / (n + 1).

    In units of `true`, 0 is best. Twice the mean pinball loss over the quantiles, which approaches the CRPS as they get
    dense (Gneiting and Ranjan 2011); for a single quantile it is the absolute error.
    """
    q = np.asarray(quantiles, dtype=np.float64)
    levels = np.arange(1, len(q) + 1) / (len(q) + 1)
    return float(2 * np.mean(np.maximum(levels * (true - q), (levels - 1) * (true - q))))
