"""Intervals cover what they promise, confidences mean what they say."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from enrich.answers.calibration import (
    CATEGORY_DESIGNS,
    CATEGORY_ROWS,
    Calibration,
    CategoryCalibration,
    PriceCalibration,
    beyond,
    category_confidence,
    fit_category,
    fit_platt,
    fit_price,
    is_out_of_range,
    is_outlier,
    price_crps,
    price_interval,
    price_range,
)

KNOWN = PriceCalibration(
    quantiles={"0.8": 1.0, "0.9": 2.0}, floor=0.1, lowest=10.0, highest=1000.0, rows=50, designs=20
)


def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True prices, predictions, and spreads that say something about the miss."""
    true = np.exp(rng.normal(4, 1, rows))
    spread = rng.gamma(2, 0.1, rows)
    return true, true * np.exp(rng.standard_t(3, rows) * (spread + 0.05)), spread


@pytest.mark.parametrize("level", [0.8, 0.9])
@pytest.mark.parametrize("rows", [30, 200])
def test_intervals_cover_exchangeable_prices(level: float, rows: int) -> None:
    rng = np.random.default_rng(rows)
    covered = []
    for _ in range(200):
        calibration = fit_price(*draw(rng, rows), [1.0])
        assert calibration is not None
        for true, predicted, spread in zip(*draw(rng, 25), strict=True):
            low, high = price_interval(calibration, predicted, spread, level)
            covered.append(low <= true <= high)

    # Between level and level + 1 / (n + 1) in expectation; 5,000 draws in groups of 25 leave about 0.01 of noise.
    assert level - 0.015 <= np.mean(covered) <= level + 1 / (rows + 1) + 0.015


def test_quantiles_by_hand() -> None:
    # Nine rows that miss by 0.1 .. 0.9 log units; spread 0.5 and floor 0.5 make the scores the misses themselves.
    misses = np.arange(1, 10) / 10
    calibration = fit_price(list(np.exp(misses)), [1.0] * 9, [0.5] * 9, [5.0, 80.0])

    assert calibration is not None
    # ceil(10 * 0.8) = 8th and ceil(10 * 0.9) = 9th smallest
    assert calibration.quantiles == pytest.approx({"0.8": 0.8, "0.9": 0.9})
    assert (calibration.floor, calibration.lowest, calibration.highest, calibration.rows) == (0.5, 5.0, 80.0, 9)


def test_a_design_counts_as_one_however_often_it_was_photographed() -> None:
    # Nine designs that miss by 0.1 .. 0.9; the first one's 91 photos would make of 0.1 the 90 % quantile of all rows.
    misses = np.array([*[0.1] * 91, *np.arange(2, 10) / 10])
    designs = [f"{miss}" for miss in misses]
    calibration = fit_price(list(np.exp(misses)), [1.0] * 99, [0.5] * 99, [5.0], designs=designs)

    assert calibration is not None
    assert calibration.quantiles == pytest.approx({"0.8": 0.8, "0.9": 0.9})
    assert (calibration.rows, calibration.designs) == (99, 9)


def test_intervals_cover_a_design_that_is_to_come() -> None:
    """Photos of a design share its miss: 9 designs are 9 draws, whatever the photos."""
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(2000):
        designs = np.repeat(np.arange(9), rng.integers(1, 20, 9))
        prices, ones = np.exp(rng.normal(0, 0.5, 9))[designs], np.ones(len(designs))
        calibration = fit_price(prices, ones, 0 * ones, [1.0], designs=designs)
        assert calibration is not None
        low, high = price_interval(calibration, 1.0, 0.0)
        covered.append(low <= np.exp(rng.normal(0, 0.5)) <= high)

    # 2,000 draws leave 0.007 of noise; with rows for designs it is 0.85.
    assert 0.9 - 0.014 <= np.mean(covered) <= 0.9 + 0.014


def test_too_few_rows_take_the_largest_miss() -> None:
    calibration = fit_price([math.e, math.e**2], [1.0, 1.0], [0.0, 0.0], [])

    assert calibration is not None
    assert calibration.floor == 0.01
    assert calibration.quantiles == pytest.approx({"0.8": 200.0, "0.9": 200.0})
    assert (calibration.lowest, calibration.highest) == pytest.approx((math.e, math.e**2))


def test_no_rows_give_no_calibration() -> None:
    assert fit_price([], [], [], [3.0]) is None


def test_an_interval_by_hand() -> None:
    low, high = price_interval(KNOWN, 100.0, 0.2)

    assert (low, high) == pytest.approx((100 / math.exp(0.6), 100 * math.exp(0.6)))
    assert price_interval(KNOWN, 100.0, 0.2, level=0.8)[1] == pytest.approx(100 * math.exp(0.3))


@given(st.floats(1, 1e9), st.floats(0, 50), st.floats(0, 50))
def test_intervals_hold_the_price_and_widen_with_the_spread(price: float, one: float, other: float) -> None:
    narrow, wide = (price_interval(KNOWN, price, spread) for spread in sorted((one, other)))

    assert 0 < wide[0] <= narrow[0] <= price <= narrow[1] <= wide[1] < math.inf


@pytest.mark.parametrize(
    ("price", "outlier", "out_of_range"),
    [(0.5, True, True), (1, True, False), (9, True, False), (10, False, False), (1000, False, False),
     (1001, True, False), (10_000, True, False), (10_001, True, True)],
)  # fmt: skip
def test_prices_far_from_the_catalogs_are_reported(price: float, outlier: bool, out_of_range: bool) -> None:
    assert (is_outlier(KNOWN, price), is_out_of_range(KNOWN, price)) == (outlier, out_of_range)


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, -0.5), (1.0, 0.0), (2.0, 0.7)])
def test_platt_scaling_recovers_what_made_the_data(slope: float, intercept: float) -> None:
    rng = np.random.default_rng(7)
    score = rng.normal(0.5, 2, 20_000)
    right = rng.random(len(score)) < 1 / (1 + np.exp(-(slope * score + intercept)))

    fitted = fit_platt(1 / (1 + np.exp(-score)), right)

    assert (fitted.slope, fitted.intercept) == (pytest.approx(slope, abs=0.06), pytest.approx(intercept, abs=0.06))
    assert fitted.rows == 20_000


def test_without_rows_probabilities_stay_as_they_are() -> None:
    fitted = fit_category([], [], [])

    assert fitted == CategoryCalibration(slope=1.0, intercept=0.0, rows=0)
    assert category_confidence(fitted, 0.3) == pytest.approx(0.3)
    assert fitted == Calibration.uncalibrated().category


@pytest.mark.parametrize(
    ("right", "rows"), [(0, 50), (20, 50), (45, 50), (50, 50), (0, 1), (1, 1), (3000, 5000), (0, 5000)]
)
def test_sure_answers_are_worth_how_often_they_are_right(right: int, rows: int) -> None:
    fitted = fit_category([0.9999] * rows, [i < right for i in range(rows)], ["A"] * rows)

    # One row's worth of prior pulls towards the probability as it came, or towards even odds.
    assert right / (rows + 1.1) <= category_confidence(fitted, 0.9999) <= (right + 1.1) / (rows + 1.1)


def test_a_label_that_is_often_wrongly_said_is_doubted_more() -> None:
    rng = np.random.default_rng(5)
    labels = [*["Shirts", "Polos", "Coats"] * 1000, "Rare"]
    odds = {"Shirts": 3.0, "Polos": 1.5, "Coats": 3.0, "Rare": 2.5}
    right = [*(rng.random() < 1 / (1 + math.exp(-odds[label])) for label in labels[:-1]), True]
    fitted = fit_category([0.95] * len(labels), right, labels)

    for label in ("Shirts", "Polos", "Coats"):
        share = np.mean([hit for hit, said in zip(right, labels, strict=True) if said == label])
        assert category_confidence(fitted, 0.95, label) == pytest.approx(share, abs=0.01)
    # One row says little: near what is true of all labels, as is one that was never seen.
    assert abs(fitted.by_category["Rare"]) < 0.3
    between = category_confidence(fitted, 0.95, "Polos"), category_confidence(fitted, 0.95, "Coats")
    assert min(between) < category_confidence(fitted, 0.95, "never seen") < max(between)


def test_intercepts_of_labels_are_where_the_penalised_loss_is_least() -> None:
    rng = np.random.default_rng(6)
    p, labels = rng.uniform(0.3, 0.999, 400), rng.integers(0, 30, 400).astype(str)
    right = rng.random(400) < p
    fitted = fit_platt(p, right, labels)

    x = np.log(p / (1 - p))
    names = sorted(set(labels))
    design = np.stack([x, np.ones(400), *((labels == name).astype(float) for name in names)], axis=1)
    at = np.array([fitted.slope, fitted.intercept, *(fitted.by_category[name] for name in names)])
    penalty = at - np.array([1.0, *np.zeros(31)])
    gradient = design.T @ (1 / (1 + np.exp(-design @ at)) - right) + penalty
    assert np.abs(gradient).max() < 1e-4


def test_answers_that_are_worse_the_surer_they_are_get_the_base_rate() -> None:
    probabilities, right = [0.2] * 50 + [0.9] * 50, [True] * 40 + [False] * 10 + [False] * 40 + [True] * 10

    fitted = fit_category(probabilities, right, ["A"] * len(right))

    assert (fitted.slope, fitted.intercept) == (0.0, pytest.approx(0.0))
    assert category_confidence(fitted, 0.99) == pytest.approx(0.5)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40), st.lists(st.floats(0, 1), min_size=2))
def test_confidence_is_a_probability_and_keeps_the_order(rows: list[tuple[float, bool]], asked: list[float]) -> None:
    fitted = fit_category([probability for probability, _ in rows], [right for _, right in rows], ["A"] * len(rows))

    confidences = [category_confidence(fitted, probability) for probability in sorted(asked)]

    assert all(0 <= confidence <= 1 for confidence in confidences)
    assert confidences == sorted(confidences)


def test_a_calibration_is_read_back() -> None:
    calibration = Calibration(price=KNOWN, category=CategoryCalibration(slope=0.5, intercept=-1.0, rows=3))

    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


@pytest.mark.parametrize(
    "older", [{"version": 1}, {"category": {"slope": 1.0, "intercept": 0.0, "steps": [[0.1, 0.2]], "rows": 3}}]
)
def test_a_calibration_of_an_older_form_is_refused(older: dict[str, Any]) -> None:
    current = Calibration(price=KNOWN, category=CategoryCalibration(slope=0.5, intercept=-1.0, rows=3))

    with pytest.raises(ValidationError):
        Calibration.model_validate(current.model_dump() | older)


def test_crps_is_that_of_the_residuals_around_the_price() -> None:
    rng = np.random.default_rng(2)
    true = np.exp(rng.normal(4, 1, 300))
    predicted = true * np.exp(rng.normal(0, 0.4, 300))
    fitted = fit_price(true, predicted, np.full(300, 0.2), true)

    assert fitted is not None
    crps = np.mean([price_crps(fitted, *row, 0.2) for row in zip(true, predicted, strict=True)])
    assert crps == pytest.approx(0.4 / math.sqrt(math.pi), rel=0.15)


def test_a_category_with_enough_rows_has_quantiles_of_its_own() -> None:
    rng = np.random.default_rng(1)
    labels = ["Steady"] * CATEGORY_ROWS + ["Wild"] * CATEGORY_ROWS + ["Rare"] * (CATEGORY_ROWS - 1)
    noise = np.where(np.array(labels) == "Wild", 0.5, 0.1)

    def draw_labelled() -> tuple[np.ndarray, np.ndarray]:
        true = np.exp(rng.normal(4, 1, len(labels)))
        return true, true * np.exp(rng.normal(0, noise))

    true, predicted = draw_labelled()
    fitted = fit_price(true, predicted, np.zeros(len(labels)), true, labels)
    assert fitted is not None
    assert set(fitted.by_category) == {"Steady", "Wild"}
    true, predicted = draw_labelled()
    for name, least, most in (("Steady", 0.82, 0.97), ("Wild", 0.82, 0.97)):
        inside = [
            low <= one <= high
            for one, said, label in zip(true, predicted, labels, strict=True)
            if label == name
            for low, high in [price_interval(fitted, said, 0.0, category=label)]
        ]
        assert least <= np.mean(inside) <= most
    assert price_interval(fitted, 100.0, 0.0, category="Rare") == price_interval(fitted, 100.0, 0.0)


def test_a_category_gets_narrower_intervals_only_as_far_as_its_designs_support_them() -> None:
    worst = {"Easy": 0.1, "Plain": 0.1, "Simple": 0.1, "Hard": 1.0}
    labels = [label for label in worst for _ in range(CATEGORY_ROWS)]
    true = np.full(len(labels), 100.0)
    misses = np.concatenate([np.linspace(0.01, miss, CATEGORY_ROWS) for miss in worst.values()])

    def quantiles(designs: int) -> tuple[float, float, float]:
        rows = [f"{label} {row % designs}" for row, label in enumerate(labels)]
        fitted = fit_price(true, true * np.exp(misses), np.zeros(len(labels)), true, labels, rows)
        assert fitted is not None
        return fitted.by_category["Easy"]["0.9"], fitted.by_category["Hard"]["0.9"], fitted.quantiles["0.9"]

    few, hard, everyones = quantiles(CATEGORY_DESIGNS)
    many, hard_too, of_many = quantiles(CATEGORY_ROWS)

    own = many - (of_many - many) * CATEGORY_DESIGNS / CATEGORY_ROWS
    assert few == pytest.approx((own + everyones) / 2)
    assert 0 < own < few < everyones < hard
    assert hard == hard_too  # what is wider is believed at once


def test_review_gets_most_mistakes_in_few_rows() -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(8, 1, 2000)
    right = rng.random(2000) < p
    fitted = fit_category(p, right, ["A"] * len(p))
    confidence = np.array([category_confidence(fitted, one) for one in p])

    asked = confidence < fitted.review_below

    assert 0.1 <= asked.mean() <= 0.19
    assert (~right)[asked].sum() >= 0.4 * (~right).sum()  # as many as these probabilities can tell
    sure = fit_category(np.full(100, 0.99), np.ones(100, dtype=bool), ["A"] * 100)
    assert category_confidence(sure, 0.99) >= sure.review_below  # nothing to find, nobody asked


def _usual(rows: int) -> list[float]:
    return [float(price) for price in np.exp(np.random.default_rng(5).normal(4.0, 0.8, rows)).round(2)]


@pytest.mark.parametrize("rows", [8, 12, 40, 300, 3000])
@pytest.mark.parametrize("odd", [[1e300], [1e-300], [1e300, 1e-300], [999_999_999.0, 0.01]])
def test_one_price_does_not_set_the_plausible_range(rows: int, odd: list[float]) -> None:
    usual = _usual(rows)
    assert price_range([*usual, *odd]) == (min(usual), max(usual))
    calibration = fit_price(usual, usual, [0.1] * rows, [*usual, *odd])
    assert calibration is not None
    assert is_out_of_range(calibration, 1e6)
    assert is_out_of_range(calibration, 0.001)
    assert not any(is_out_of_range(calibration, price) or is_outlier(calibration, price) for price in usual)


def test_a_tenth_of_a_percent_of_wrong_prices_does_not_either() -> None:
    usual = _usual(3000)
    assert price_range([*usual, *[5e8] * 3]) == (min(usual), max(usual))


def test_expensive_products_that_are_not_alone_belong_to_the_range() -> None:
    assert price_range([10.0] * 90 + [5000.0] * 10) == (10.0, 5000.0)
    assert price_range([*_usual(100), 2000.0])[1] == 2000.0  # forty times the median is still a price
    assert price_range([1.0, 1000.0]) == (1.0, 1000.0)  # of two, neither can be told


def test_a_catalogs_prices_far_beyond_the_others_are_named() -> None:
    usual = _usual(40)
    assert beyond([*usual, 9e8, 0.01]) == {9e8, 0.01}
    assert beyond(usual) == frozenset()
    assert beyond([]) == frozenset()
