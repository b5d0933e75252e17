"""Scores of answers against the catalog, and of baselines that see no photo."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TypedDict

import numpy as np

from enrich.answers.parse import Answer
from enrich.vocabulary import Product


class PriceScores(TypedDict):
    """Over rows with a known price. A missing answer counts as 100 % off, and is left out of RMSLE and bias."""

    rows: int
    answered: float
    mae: float  # units of the currency
    mdae: float
    mdape: float  # 0..1
    rmsle: float
    within_20_percent: float
    log_bias: float  # mean of log(predicted / true)


class Scores(TypedDict):
    """Shares are 0..1 over all rows; a row without an answer is wrong everywhere."""

    rows: int
    parse_rate: float
    category_accuracy: float
    category_macro_f1: float
    title_exact: float
    title_token_f1: float
    title_chrf: float
    price: PriceScores | None


def score(products: Sequence[Product], answers: Sequence[Answer | None]) -> Scores:
    """Compare answers (None where there is none) with products, row by row."""
    pairs = list(zip(products, answers, strict=True))
    if not pairs:
        raise ValueError("there is nothing to score: no rows")
    return Scores(
        rows=len(pairs),
        parse_rate=_mean([a is not None for _, a in pairs]),
        category_accuracy=_mean([a is not None and a.category == p.category for p, a in pairs]),
        category_macro_f1=macro_f1([p.category for p, _ in pairs], [a.category if a else None for _, a in pairs]),
        title_exact=_mean([a is not None and _words(a.title) == _words(p.title) for p, a in pairs]),
        title_token_f1=_mean([token_f1(p.title, a.title) if a else 0.0 for p, a in pairs]),
        title_chrf=_mean([chrf(p.title, a.title) if a else 0.0 for p, a in pairs]),
        price=score_prices(
            [p.price for p, _ in pairs if p.price],
            [float(a.price) if a and a.price else None for p, a in pairs if p.price],
        ),
    )


def score_prices(true: Sequence[float], predicted: Sequence[float | None]) -> PriceScores | None:
    """Errors of positive prices; None where no true price is known."""
    if not true:
        return None
    errors = [abs((p or 0.0) - t) for t, p in zip(true, predicted, strict=True)]
    relative = [error / t for error, t in zip(errors, true, strict=True)]
    logs = [math.log(p / t) for t, p in zip(true, predicted, strict=True) if p]
    return PriceScores(
        rows=len(true),
        answered=len(logs) / len(true),
        mae=_mean(errors),
        mdae=float(median(errors)),
        mdape=float(median(relative)),
        rmsle=math.sqrt(_mean([log**2 for log in logs])) if logs else math.inf,
        within_20_percent=_mean([r <= 0.2 for r in relative]),
        log_bias=_mean(logs) if logs else math.nan,
    )


def baselines(train: Sequence[Product], test: Sequence[Product]) -> dict[str, Scores]:
    """Scores without a photo: the most frequent category and the median price; the median price of the TRUE category.

    The second is harder to beat: it is given the category that a model has to find.
    """
    majority = Counter(p.category for p in train).most_common(1)[0][0]
    titles = Counter(p.title for p in train).most_common(1)[0][0]
    prices = [p.price for p in train if p.price]
    overall = median(prices) if prices else None
    by_category = {
        category: median([p.price for p in train if p.price and p.category == category])
        for category in {p.category for p in train if p.price}
    }

    def answer(category: str, price: float | None) -> Answer:
        return Answer(titles, category, None if price is None else round(price))

    return {
        "majority_class": score(test, [answer(majority, overall) for _ in test]),
        "category_median": score(test, [answer(majority, by_category.get(p.category, overall)) for p in test]),
    }


def token_f1(true: str, predicted: str) -> float:
    """Harmonic mean of the precision and recall of words, case folded, counted with repetition (SQuAD's F1)."""
    a, b = Counter(_words(true)), Counter(_words(predicted))
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if shared else 0.0


def chrf(true: str, predicted: str, longest: int = 6, beta: float = 2.0) -> float:
    """F-score of character n-grams of 1 to 6 without white space; recall counts twice (chrF2, Popovic 2015)."""
    a, b = "".join(true.split()), "".join(predicted.split())
    precisions, recalls = [], []
    for n in range(1, longest + 1):
        grams_a, grams_b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        if grams_a and grams_b:
            shared = sum((grams_a & grams_b).values())
            precisions.append(shared / sum(grams_b.values()))
            recalls.append(shared / sum(grams_a.values()))
    if not precisions or not (precision := _mean(precisions)) + (recall := _mean(recalls)):
        return 0.0
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def risk_coverage(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (1/n .. 1) and risk (share of wrong rows) when only the most confident rows are answered."""
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    wrong = ~np.asarray(right, dtype=bool)[order]
    n = np.arange(1, len(wrong) + 1)
    return n / max(len(wrong), 1), np.cumsum(wrong) / n


def macro_f1(true: list[str], predicted: list[str | None]) -> float:
    """Mean over the true labels of each label's F1."""
    scores = []
    for label in sorted(set(true)):
        hits = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        scores.append(2 * hits / (true.count(label) + predicted.count(label)))
    return _mean(scores)


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray, bins: int = 10
) -> float:
    """Mean gap between confidence and accuracy over equally wide bins, weighted by rows (Guo et al. 2017)."""
    confidence, hits = np.asarray(confidences), np.asarray(right, dtype=np.float64)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[index == b].mean() - hits[index == b].mean()) * (index == b).mean()
        for b in range(bins)
        if (index == b).any()
    ]
    return float(sum(gaps))


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
