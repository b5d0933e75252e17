"""Numbers with error bars, checked against values computed by hand, DuckDB, and known distributions."""

import base64
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from enrich.answers.calibration import quantile_crps
from enrich.output.parquet import encode
from enrich.output.schema import SCORE_SCHEMA
from enrich.scores.assess import assess
from enrich.scores.figures import FIGURES, draw_all
from enrich.scores.metrics import chrf, risk_coverage
from enrich.scores.shares import wilson
from tests.testing.scores import scored


def test_metrics_are_those_that_duckdb_finds(tmp_path: Path) -> None:
    table = scored(300)
    (tmp_path / "scores.parquet").write_bytes(encode(table, SCORE_SCHEMA, {}))

    found = assess(table)["estimates"]

    names = (
        "category_accuracy", "price_coverage_90%", "price_width_90%", "price_mdape", "price_mae", "review_share",
        "review_catches_wrong_categories", "price_within_20_percent", "price_rmsle", "price_log_bias",
    )  # fmt: skip
    expected = duckdb.execute(f"""
        SELECT avg((category = answered_category)::int), avg((price BETWEEN price_low AND price_high)::int),
               avg(ln(price_high / price_low)), median(abs(answered_price / price - 1)),
               avg(abs(answered_price - price)), avg(needs_review::int),
               avg(needs_review::int) FILTER (category <> answered_category),
               avg((abs(answered_price / price - 1) <= 0.2)::int), sqrt(avg(ln(answered_price / price) ** 2)),
               avg(ln(answered_price / price))
        FROM '{tmp_path}/scores.parquet'
    """).fetchall()[0]
    assert [found[name]["value"] for name in names] == pytest.approx(expected)
    for one in found.values():
        assert one["low"] <= one["value"] <= one["high"] or math.isclose(one["low"], one["high"])


def test_error_bars_hold_what_they_are_of() -> None:
    """Check the 95 % interval of an accuracy over 24 catalogs whose true accuracy is 0.9."""
    held = [
        one["low"] <= 0.9 <= one["high"]
        for seed in range(24)
        for one in [assess(scored(120, seed=seed))["estimates"]["category_accuracy"]]
    ]

    assert np.mean(held) >= 0.8  # the chance of fewer is below 1 %


def test_photos_of_one_design_are_not_independent_evidence() -> None:
    alone, copies = scored(60), pl.concat([scored(60)] * 9)

    widths = [
        one["high"] - one["low"]
        for table in (alone, copies)
        for one in [assess(table)["estimates"]["category_accuracy"]]
    ]

    assert widths[1] == pytest.approx(widths[0], rel=0.2)  # nine times the rows, but no new information


def test_a_shift_is_said_and_not_hidden() -> None:
    kept, broke = (assess(scored(300, error=error))["verdicts"] for error in (0.15, 0.6))

    assert kept[0]["ok"]
    assert "are inside their 90% intervals" in kept[0]["text"]
    first = broke[0]
    assert not first["ok"]
    assert first["text"].startswith("Coverage broke: ")
    assert "of the true prices are inside their 90% intervals" in first["text"]
    assert "do not rely on the intervals" in first["text"]


def test_a_calibration_on_few_designs_may_cover_less_by_chance() -> None:
    table = scored(300, error=0.18)
    assert not assess(table)["verdicts"][0]["ok"]
    assert assess(table, calibrated_on=40)["verdicts"][0]["ok"]


def test_a_category_that_falls_short_is_named() -> None:
    table = scored(400, error=0.1)
    wide = pl.when(pl.col("category") == "Hats").then(pl.col("price") * 3).otherwise(pl.col("price"))

    texts = [verdict["text"] for verdict in assess(table.with_columns(price=wide))["verdicts"] if not verdict["ok"]]

    assert any("Hats 0% of 200" in text and "Bags" not in text for text in texts)


def test_products_without_a_price_say_nothing_about_its_interval() -> None:
    table = scored(300)
    half = table.with_columns(price=pl.when(pl.int_range(300) % 2 == 0).then("price"))

    found, even = (assess(one)["estimates"]["price_coverage_90%"]["value"] for one in (half, table.gather_every(2)))

    assert found == pytest.approx(even)


def test_a_wrong_confidence_is_said() -> None:
    verdicts = assess(scored(300, category_confidence=0.5))["verdicts"]

    assert any(verdict["text"].startswith("Confidence broke: ") and not verdict["ok"] for verdict in verdicts)


def test_the_best_possible_stands_alongside() -> None:
    ideal = assess(scored(2000), sigma=0.15)["ideal"]

    assert ideal["price_mdape"] == pytest.approx(0.6745 * 0.15, rel=0.1)
    assert ideal["price_width_90%"] == pytest.approx(2 * 1.645 * 0.15)
    assert ideal["price_coverage_90%"] == pytest.approx(0.9, abs=0.03)
    assert ideal["price_crps"] == pytest.approx(0.15 / math.sqrt(math.pi))
    assert assess(scored(20))["ideal"] is None
    assert assess(scored(20), sigma=0.15, ideal_width=0.5)["ideal"]["price_width_90%"] == 0.5


def test_without_prices_and_without_answers() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("price", "best_price", "answered_title", "answered_category", "answered_price", "category_confidence",
         "price_low", "price_high", "price_low_80", "price_high_80", "price_crps")
    )  # fmt: skip
    found = assess(scored(10, **nothing, needs_review=False, review_reasons=[]), sigma=0.1)

    assert found["estimates"]["parse_rate"]["value"] == 0
    assert not [name for name in found["estimates"] if name.startswith("price")]
    assert found["verdicts"] == []
    assert draw_all(scored(10, **nothing)) == []


def test_every_figure_is_drawn_the_same_every_time() -> None:
    table = scored(80).with_columns(category=pl.lit("A $very$ <long> & odd name of a category"))

    drawn = draw_all(table)

    assert [caption for caption, _ in drawn] == [caption for caption, _ in FIGURES.values()]
    assert draw_all(table) == drawn
    assert all(picture.startswith("data:image/svg+xml;base64,") for _, picture in drawn)


# matplotlib's own font lacks these letters, a browser finds them. An earlier test may have left a socket open.
@pytest.mark.filterwarnings("error", "default::ResourceWarning")
def test_figures_name_categories_in_any_script_and_cut_them_by_their_width() -> None:
    names = {"Hats": "婦人用ウールコート・フード付き", "Bags": "Belted coats and jackets"}
    table = scored(200).with_columns(pl.col("category", "answered_category").replace(names))

    pictures = dict(draw_all(table))
    coverage, confusion = (
        base64.b64decode(pictures[FIGURES[name][0]].partition(",")[2]).decode() for name in ("coverage", "confusion")
    )

    assert "婦人用ウールコート… (" in coverage
    assert "Belted coats and ja… (" in coverage
    for name in ("婦人用ウールコート…", "Belted coats and ja…"):
        assert confusion.count(f">{name}<") == 2


def test_risk_and_coverage_by_hand() -> None:
    coverage, risk = risk_coverage([0.9, 0.2, 0.8, 0.5], [True, False, True, False])

    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    # "abc" in "abd": 2 of 3 letters, 1 of 2 pairs, 0 of 1 triple: 7/18 either way
    [("abc", "abc", 1.0), ("a b c", "abc", 1.0), ("abc", "abd", 7 / 18), ("abc", "xyz", 0.0), ("abc", "", 0.0)],
)
def test_chrf(true: str, predicted: str, expected: float) -> None:
    assert chrf(true, predicted) == pytest.approx(expected)


def test_crps_of_a_point_is_its_error_and_of_a_normal_what_is_known() -> None:
    assert quantile_crps(3.0, [1.0]) == pytest.approx(2.0)
    rng = np.random.default_rng(0)
    quantiles = np.quantile(rng.normal(0, 1, 200_000), np.arange(1, 200) / 200)
    mean = np.mean([quantile_crps(true, quantiles.tolist()) for true in rng.normal(0, 1, 4000)])
    assert mean == pytest.approx(1 / math.sqrt(math.pi), rel=0.03)


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"), [(9, 10, 0.596, 0.982), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0)]
)
def test_wilson(hits: int, rows: int, low: float, high: float) -> None:
    assert wilson(hits, rows) == pytest.approx((low, high), abs=0.001)
