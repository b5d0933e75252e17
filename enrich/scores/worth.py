"""Whether an adapter is worth using: its test scores compared with baselines that see no photo."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from enrich.scores.assess import Verdict

WORTH_KEY = "beats_baselines"  # in metrics.json, for people and other programs; runs judge the numbers themselves
ENOUGH_ROWS = 50  # from this many test rows on, "unclear" counts against an adapter: fewer are noise
_EXACT = 1e-9  # differences of shares below this are rounding


@dataclass(frozen=True)
class Worth:
    """The verdict on the test scores. `unknown`: scores are missing or incomplete."""

    state: Literal["beats", "weak", "unknown"]
    reasons: tuple[str, ...] = ()  # if weak: what is no better than a guess, with numbers

    @property
    def text(self) -> str:
        """One line without a full stop."""
        if self.state == "beats":
            return "The adapter is better than guessing without a photo"
        if self.state == "unknown":
            return "Whether the adapter is better than guessing without a photo is unknown: it has no such scores"
        return f"The adapter is no better than guessing without a photo: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class _Measure:
    """One metric and its baseline. `better`: the whole interval beats the baseline; `worse`: no part of it does."""

    verdict: Literal["better", "unclear", "worse"]
    ahead: bool  # the value itself is better than the baseline
    text: str


class _Price(BaseModel):
    mdape: float


class _Scores(BaseModel):
    rows: int
    category_accuracy: float
    category_macro_f1: float
    title_chrf: float | None = None  # None for adapters from before it was measured
    price: _Price | None = None


class _Estimate(BaseModel):
    value: float
    low: float
    high: float


class _Baselines(BaseModel):
    majority_class: _Scores


class _Metrics(BaseModel):
    """The part of metrics.json that is used."""

    test: _Scores
    baselines: _Baselines
    estimates: dict[str, _Estimate]


def judge_worth(metrics: Mapping[str, Any] | None) -> Worth:
    """Compare an adapter's metrics (metrics.json, None if missing) with its baselines, given their error bars.

    An adapter is weak if categories, prices or titles are clearly no better than their baseline, or if neither
    categories nor prices are clearly better. With fewer than ENOUGH_ROWS test rows no interval is narrow, so it is
    enough that either value is better. A perfect baseline (one category only) cannot be beaten and is ignored.
    """
    try:
        found = _Metrics.model_validate(metrics)
    except ValidationError:
        return Worth("unknown")
    answers = [measure for measure in (_category(found), _price(found)) if measure]
    title = _title(found)
    answers = answers or ([title] if title else [])
    if not answers:
        return Worth("unknown")
    if lost := [measure.text for measure in [*answers, title] if measure and measure.verdict == "worse"]:
        return Worth("weak", tuple(dict.fromkeys(lost)))
    few = found.test.rows < ENOUGH_ROWS
    if any(measure.verdict == "better" or (few and measure.ahead) for measure in answers):
        return Worth("beats")
    return Worth("weak", tuple(measure.text for measure in answers))


def tell(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` with the verdict on the adapter's worth: WORTH_KEY, and one more verdict if it is weak."""
    worth = judge_worth(metrics)
    told = [Verdict(ok=False, text=worth.text)] if worth.state == "weak" else []
    return {
        **metrics,
        WORTH_KEY: {"state": worth.state, "reasons": list(worth.reasons)},
        "verdicts": [*told, *metrics.get("verdicts", ())],
    }


def _category(metrics: _Metrics) -> _Measure | None:
    found, guess = metrics.estimates.get("category_accuracy"), metrics.baselines.majority_class
    if found is None:
        return None
    baseline = guess.category_accuracy
    # If one category has nearly all products, finding the others counts, even if accuracy does not rise.
    finds_others = metrics.test.category_macro_f1 > guess.category_macro_f1 + _EXACT
    text = f"{found.value:.1%} of the categories are right, {baseline:.1%} if it is always the most frequent one"
    return _judge(found, baseline, text, best=1.0, undecided_is_worse=not finds_others)


def _price(metrics: _Metrics) -> _Measure | None:
    found, guess = metrics.estimates.get("price_mdape"), metrics.baselines.majority_class.price
    if guess is None or found is None:
        return None
    text = f"prices are off by {found.value:.0%} (median), by {guess.mdape:.0%} if it is always the median price"
    return _judge(_Estimate(value=-found.value, low=-found.high, high=-found.low), -guess.mdape, text, best=0.0)


def _title(metrics: _Metrics) -> _Measure | None:
    found, baseline = metrics.estimates.get("title_chrf"), metrics.baselines.majority_class.title_chrf
    if baseline is None or found is None:
        return None
    text = f"titles score {found.value:.2f} (chrF), {baseline:.2f} if it is always the most frequent title"
    return _judge(found, baseline, text, best=1.0)


def _judge(
    found: _Estimate, baseline: float, text: str, *, best: float, undecided_is_worse: bool = False
) -> _Measure | None:
    """Larger is better. None if baseline and value are both perfect."""
    value, low, high = found.value, found.low, found.high
    if not all(map(math.isfinite, (value, low, high, baseline))):
        return None
    ahead = value > baseline + _EXACT
    if not ahead and min(value, baseline) >= best - _EXACT:
        return None
    if ahead and low > baseline + _EXACT:
        return _Measure("better", ahead, text)
    if high <= baseline + _EXACT or (undecided_is_worse and not ahead):
        return _Measure("worse", ahead, text)
    return _Measure("unclear", ahead, text)
