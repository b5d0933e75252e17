"""Test whether one adapter is at least as good as another, by their paired answers about the same products."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from enrich.answers.parse import Answer
from enrich.scores.metrics import Columns, comparison
from enrich.vocabulary import Product, same_design

# Up to eight intervals are looked at, and one beyond 0 decides: at 99 % equals lose by luck once in 25 times.
ENDS = (0.005, 0.995)
RESAMPLES = 2_000
# Student's t at ENDS for 1, 2 ... 9 degrees of freedom, and the normal distribution's.
_STUDENT = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250)
_NORMAL = 2.576
MOVED = 0.2  # relative change of a price from which on it counts as another price


def _closeness(columns: Columns) -> np.ndarray:
    """The smaller of answered and true price as a share of the larger; 0 without an answer, NaN without a true one."""
    return np.where(np.isnan(columns["price"]), np.nan, np.nan_to_num(np.exp(-np.abs(columns["log_error"]))))


# Each is one number a product, larger is better; their means are compared.
_MEASURES: dict[str, tuple[str, Callable[[Columns], np.ndarray]]] = {
    "category": ("categories right", lambda columns: columns["right"].astype(float)),
    "title": ("titles' score (chrF)", lambda columns: columns["title_chrf"]),
    "price": ("closeness of prices", _closeness),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Difference(_Frozen):
    """One measure of both adapters, with the 99 % bootstrap interval of the new one's less the standing one's."""

    measure: str
    what: str  # for people
    new: float  # 0..1, larger is better
    standing: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """Whether the new adapter is worse by more than chance."""
        return self.high < 0

    @property
    def text(self) -> str:
        """`categories right: 0.912 after 0.955 (-0.061 to -0.025)`."""
        return f"{self.what}: {self.new:.3f} after {self.standing:.3f} ({self.low:+.3f} to {self.high:+.3f})"


class Contest(_Frozen):
    """Two adapters on the same labelled products."""

    labels: str  # whose labels, for people
    products: int
    differences: tuple[Difference, ...]

    @property
    def lost(self) -> tuple[Difference, ...]:
        """The measures in which the new adapter is worse by more than chance."""
        return tuple(one for one in self.differences if one.worse)


def contest(
    labels: str,
    products: Sequence[Product],
    new: Sequence[Answer | None],
    standing: Sequence[Answer | None],
    but: str | None = None,
) -> Contest:
    """Compare two adapters' answers (None where there is none) about `products`, at least one.

    The bootstrap draws designs, not rows, because photos of one design share their error, and takes both adapters'
    answers about each: what is hard for both cancels out. Of few designs its interval is too short, so it is widened as
    Student's is (Hesterberg 2015, What Teachers Should Know About the Bootstrap); one design says nothing. A measure
    without rows, as of prices in a catalog that has none, is left out, and so is `but`.
    """
    mine, theirs = comparison(products, new), comparison(products, standing)
    _, design = np.unique([same_design(product.title) for product in products], return_inverse=True)
    draws = np.random.default_rng(0).integers(0, design.max() + 1, (RESAMPLES, design.max() + 1))
    differences = []
    for name, (what, measure) in _MEASURES.items():
        ours, others = measure(mine), measure(theirs)
        known = ~np.isnan(ours)
        if name == but or not known.any():
            continue
        gained = np.bincount(design, np.where(known, ours - others, 0.0))
        rows = np.bincount(design, known)
        means = gained[draws].sum(1) / np.maximum(rows[draws].sum(1), 1)
        ends = np.quantile(means, ENDS)
        low, high = _widened(gained.sum() / rows.sum(), ends[0], ends[1], int(np.count_nonzero(rows)))
        differences.append(
            Difference(
                measure=name, what=what, new=float(ours[known].mean()), standing=float(others[known].mean()),
                low=float(low), high=float(high),
            )
        )  # fmt: skip
    return Contest(labels=labels, products=len(products), differences=tuple(differences))


def _widened(mean: float, low: float, high: float, designs: int) -> tuple[float, float]:
    """The ends of a bootstrap interval around `mean`, made longer for how few designs it rests on."""
    if designs == 1:
        return -1.0, 1.0  # all that a difference of shares can be
    free = designs - 1
    many = _NORMAL + 4.917 / free + 8.84 / free**2  # Student's t from 10 on within 1 % (Abramowitz, Stegun 26.7.5)
    student = _STUDENT[free - 1] if free <= len(_STUDENT) else many
    factor = student / _NORMAL * (designs / free) ** 0.5
    return max(-1.0, mean + factor * (low - mean)), min(1.0, mean + factor * (high - mean))


def share_changed(new: Sequence[Answer | None], standing: Sequence[Answer | None]) -> float:
    """The share, 0..1, of products for which two adapters' answers differ: in title or category, or in price by
    MOVED."""
    return sum(_differ(*pair) for pair in zip(new, standing, strict=True)) / max(len(new), 1)


def _differ(one: Answer | None, other: Answer | None) -> bool:
    if one is None or other is None:
        return one is not other
    prices = [one.price or 0.0, other.price or 0.0]
    moved = max(prices) - min(prices) > MOVED * max(prices)
    return moved or any(
        same_design(a) != same_design(b) for a, b in ((one.title, other.title), (one.category, other.category))
    )
