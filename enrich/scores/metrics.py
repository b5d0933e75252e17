"""Scores of answers against the catalog, and of baselines that see no photo."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from statistics import fmean, median
from typing import Any, TypedDict, cast

import numpy as np
import polars as pl

from enrich.answers.lexicon import WITHOUT_BLANKS
from enrich.answers.parse import Answer
from enrich.vocabulary import Product, same_design

BINS = 10  # of confidence
_TOKEN = re.compile(f"[{WITHOUT_BLANKS}]|[^\\s{WITHOUT_BLANKS}]+")

Columns = Mapping[str, np.ndarray]

_COMPARED = {
    "title": pl.String, "category": pl.String, "price": pl.Float64,
    "answered_title": pl.String, "answered_category": pl.String, "answered_price": pl.Float64,
}  # fmt: skip


class PriceScores(TypedDict):
    """Over rows with a known price. A missing answer counts as 100 % off, and is left out of RMSLE and bias."""

    rows: int
    answered: float  # share of them, 0..1
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
    title_edit_similarity: float
    title_chrf: float
    price: PriceScores | None


def score(products: Sequence[Product], answers: Sequence[Answer | None]) -> Scores:
    """Compare answers (None where there is none) with products, row by row."""
    columns = comparison(products, answers)
    found = {name: metric(columns) for name, metric in METRICS.items()}
    prices = {name.removeprefix("price_"): found.pop(name) for name in METRICS if name.startswith("price_")}
    priced, answered = (int((~np.isnan(columns[name])).sum()) for name in ("price", "log_error"))
    if priced:
        prices = {"rows": priced, "answered": answered / priced, **prices}
    if not answered:
        prices["rmsle"] = math.inf
    return cast(Scores, {"rows": len(products), **found, "price": prices if priced else None})


def comparison(products: Sequence[Product], answers: Sequence[Answer | None]) -> dict[str, np.ndarray]:
    """What METRICS are computed from (see `compared`), of products and answers, None where there is none."""
    pairs = list(zip(products, answers, strict=True))
    if not pairs:
        raise ValueError("there is nothing to score: no rows")
    rows = [(p.title, p.category, p.price, *((a.title, a.category, a.price) if a else [None] * 3)) for p, a in pairs]
    return compared(pl.DataFrame(rows, schema=_COMPARED, orient="row"))


def compared(table: pl.DataFrame) -> dict[str, np.ndarray]:
    """What METRICS are computed from, one value a row; NaN where a price is unknown or was not answered.

    Args:
        table: title, category and price, and answered_title, answered_category and answered_price; null where unknown.
    """
    # A label that differs in case or spacing only is the same: adapters keep the spelling that their catalog had.
    true, said = table["category"].to_list(), table["answered_category"].to_list()
    design = {name: same_design(name) for name in {*true, *said} - {None}}
    places = {one: i for i, one in enumerate(sorted(set(design.values())))}
    category, answered_category = (
        np.array([-1 if name is None else places[design[name]] for name in names]) for names in (true, said)
    )
    titles = list(zip(table["title"], table["answered_title"].fill_null(""), strict=True))
    # A price of 0 is unknown, or no answer.
    price, answered = (
        table[name].cast(pl.Float64).replace(0.0, None).fill_null(math.nan).to_numpy()
        for name in ("price", "answered_price")
    )
    return {
        "category": category,
        "answered_category": answered_category,
        "answered": answered_category >= 0,
        "right": category == answered_category,
        "title_exact": np.array([_words(a) == _words(b) for a, b in titles]),
        "title_token_f1": np.array([token_f1(a, b) for a, b in titles]),
        "title_edit_similarity": np.array([edit_similarity(a, b) for a, b in titles]),
        "title_chrf": np.array([chrf(a, b) for a, b in titles]),
        "price": price,
        "log_error": np.log(answered / price),
        # A missing answer counts as an error of 100 %.
        "absolute": np.where(np.isnan(price), math.nan, np.abs(np.nan_to_num(answered) - price)),
    }


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
        return Answer(titles, category, price)

    return {
        "majority_class": score(test, [answer(majority, overall) for _ in test]),
        "category_median": score(test, [answer(majority, by_category.get(p.category, overall)) for p in test]),
    }


def token_f1(true: str, predicted: str) -> float:
    """Harmonic mean of the precision and recall of words, case folded, counted with repetition (SQuAD's F1).

    In scripts without blanks each character is a word, as CMRC 2018 and MLQA score Chinese (Cui et al. 2019, Lewis et
    al. 2020); otherwise two Japanese titles that differ in one character would share nothing.
    """
    a, b = (Counter(_TOKEN.findall(text.casefold())) for text in (true, predicted))
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if shared else 0.0


def edit_similarity(true: str, predicted: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in characters; case folded, one blank between words."""
    a, b = (" ".join(_words(text)) for text in (true, predicted))
    if a == b:
        return 1.0
    longest = max(len(a), len(b))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    a, b = a[same:], b[same:]
    row = list(range(len(b) + 1))  # distances of what is read of `a` to each beginning of `b`
    for i, letter in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return 1 - row[-1] / longest


def chrf(true: str, predicted: str) -> float:
    """F-score of character n-grams of 1 to 6 without white space; recall counts twice (chrF2, Popovic 2015)."""
    a, b = "".join(true.split()), "".join(predicted.split())
    precisions, recalls = [], []
    for n in range(1, 7):
        grams_a, grams_b = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        if grams_a and grams_b:
            shared = sum((grams_a & grams_b).values())
            precisions.append(shared / sum(grams_b.values()))
            recalls.append(shared / sum(grams_a.values()))
    if not precisions or not (precision := fmean(precisions)) + (recall := fmean(recalls)):
        return 0.0
    return 5 * precision * recall / (4 * precision + recall)


def risk_coverage(
    confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage (1/n .. 1) and risk (share of wrong rows) when only the most confident rows are answered."""
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    wrong = ~np.asarray(right, dtype=bool)[order]
    n = np.arange(1, len(wrong) + 1)
    return n / max(len(wrong), 1), np.cumsum(wrong) / n


def expected_calibration_error(confidences: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> float:
    """Mean gap between confidence and accuracy over BINS equally wide bins, weighted by rows (Guo et al. 2017)."""
    confidence, hits = np.asarray(confidences), np.asarray(right, dtype=np.float64)
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(confidence[index == b].mean() - hits[index == b].mean()) * (index == b).mean()
        for b in range(BINS)
        if (index == b).any()
    ]
    return float(sum(gaps))


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _macro_f1(columns: Columns) -> float:
    """Mean over the true labels of each label's F1."""
    true, said = columns["category"], columns["answered_category"]
    size = int(max(true.max(), said.max())) + 1
    hits = np.bincount(true[true == said], minlength=size)
    occurs = np.bincount(true, minlength=size)
    counts = occurs + np.bincount(said[said >= 0], minlength=size)
    return float(np.mean(2 * hits[occurs > 0] / counts[occurs > 0]))


def known(of: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """A statistic of the values that are not NaN; NaN if all are."""
    present = values[~np.isnan(values)]
    return float(of(present)) if len(present) else math.nan


def mean_of(name: str) -> Callable[[Columns], float]:
    """The metric that is the mean of a column."""
    return lambda columns: known(np.mean, columns[name].astype(np.float64))


def _relative(columns: Columns) -> np.ndarray:
    return columns["absolute"] / columns["price"]


METRICS: dict[str, Callable[[Columns], float]] = {
    "parse_rate": mean_of("answered"),
    "category_accuracy": mean_of("right"),
    "category_macro_f1": _macro_f1,
    "title_exact": mean_of("title_exact"),
    "title_token_f1": mean_of("title_token_f1"),
    "title_edit_similarity": mean_of("title_edit_similarity"),
    "title_chrf": mean_of("title_chrf"),
    "price_mae": mean_of("absolute"),
    "price_mdae": lambda columns: known(np.median, columns["absolute"]),
    "price_mdape": lambda columns: known(np.median, _relative(columns)),
    "price_rmsle": lambda columns: math.sqrt(known(np.mean, columns["log_error"] ** 2)),
    "price_within_20_percent": lambda columns: known(lambda error: np.mean(error <= 0.2), _relative(columns)),
    "price_log_bias": mean_of("log_error"),
}
