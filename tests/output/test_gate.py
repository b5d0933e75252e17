from dataclasses import asdict, replace
from typing import Any

import polars as pl
import pytest

from enrich.output import parquet
from enrich.output.gate import FEW, judge_gone, judge_run, run_stats
from enrich.output.run_record import Changes, RunStats
from enrich.output.schema import ROW_SCHEMA
from enrich.scores.worth import Worth
from enrich.settings.run import GateSettings
from enrich.vocabulary import ErrorKind
from tests.testing.rows import make_row, make_run

RUN = make_run()
GOOD = RunStats(
    rows=100,
    ok=90,
    failed=10,
    failed_by_kind={"empty": 4, "engine_failed": 6},
    unknown_category=5,
    review=40,
    category_mix={"Bags": 0.25, "Coats": 0.75},
    price_median=100.0,
)


def test_statistics_of_a_run() -> None:
    rows = [
        make_row(RUN, "a.jpg", price=10.0),
        make_row(RUN, "b.jpg", price=30.0, needs_review=True, review_reasons=("wide_price", "category_unknown")),
        make_row(RUN, "c.jpg", price=None, category="Bags", needs_review=True, review_reasons=("low_confidence",)),
        make_row(RUN, "d.jpg", price=50.0, category=None),
        make_row(RUN, "e.jpg", error_kind=ErrorKind.CATEGORY_UNKNOWN),
        make_row(RUN, "f.jpg", error_kind=ErrorKind.EMPTY),
        make_row(RUN, "g.jpg", error_kind=ErrorKind.EMPTY, price=1e9),
    ]
    assert run_stats(parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA)) == RunStats(
        rows=7,
        ok=4,
        failed=3,
        failed_by_kind={"category_unknown": 1, "empty": 2},
        unknown_category=2,
        review=2,
        category_mix={"Bags": 0.25, "Coats": 0.5},
        price_median=30.0,
    )


def test_statistics_of_no_rows() -> None:
    assert run_stats(parquet.empty(ROW_SCHEMA)) == RunStats(0, 0, 0, {}, 0, 0, {}, None)


def test_a_run_like_the_last_one_passes() -> None:
    assert judge_run(GOOD, GOOD, GateSettings()) == ()
    assert judge_run(GOOD, None, GateSettings()) == ()


def test_the_mix_of_categories_is_compared_where_both_runs_have_one() -> None:
    without, moved = replace(GOOD, category_mix={}), replace(GOOD, category_mix={"Hats": 1.0})
    assert judge_run(without, GOOD, GateSettings()) == judge_run(GOOD, without, GateSettings()) == ()
    assert [one.limit for one in judge_run(moved, GOOD, GateSettings())] == ["max_category_shift"]


@pytest.mark.parametrize(
    ("change", "limit", "value", "message"),
    [
        ({"failed": 30}, "max_failed", 0.3,
         "30 of 100 products failed, most often with engine_failed: 0.30 is above 0.2"),
        ({"unknown_category": 11}, "max_unknown_category", 0.11,
         "11 of 100 products got no category from the taxonomy: 0.11 is above 0.1"),
        ({"review": 71}, "max_review_rise", 0.31, "71 of 100 products need review, 71% after 40%: 0.31 is above 0.3"),
        ({"category_mix": {"Bags": 0.2, "Hats": 0.8}}, "max_category_shift", 0.8,
         "the category mix changed, most in 'Hats' (0% to 80%): 0.80 is above 0.5"),
        ({"price_median": 30.0}, "max_price_shift", 1.203973, "the median price went from 100 to 30: 1.20 is above 1"),
    ],
)  # fmt: skip
def test_each_limit_is_found_and_says_what_to_change(
    change: dict[str, Any], limit: str, value: float, message: str
) -> None:
    (finding,) = judge_run(replace(GOOD, **change), GOOD, GateSettings())
    assert (finding.limit, finding.value) == (limit, value)
    assert finding.message == f"{message}; fix the cause, or raise gate.{limit} if this is right"
    assert finding.allowed == getattr(GateSettings(), limit)
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    "change",
    [
        {"failed": 20},
        {"unknown_category": 10},
        {"review": 70},
        {"category_mix": {"Bags": 0.25, "Coats": 0.25, "Hats": 0.3, "Scarves": 0.2}},
        {"price_median": 271.8281},
        {"price_median": None},
        {"price_median": 0.0},
        {"category_mix": {}},
    ],
)
def test_a_limit_that_is_only_reached_is_not_passed(change: dict[str, Any]) -> None:
    assert judge_run(replace(GOOD, **change), GOOD, GateSettings()) == ()


def test_without_a_run_to_compare_with_only_absolute_limits_hold() -> None:
    shifted = replace(GOOD, review=100, category_mix={"Hats": 1.0}, price_median=1.0)
    assert judge_run(shifted, None, GateSettings()) == ()
    assert [finding.limit for finding in judge_run(shifted, GOOD, GateSettings())] == [
        "max_review_rise",
        "max_category_shift",
        "max_price_shift",
    ]


def test_a_run_that_is_too_small_for_shares_is_not_judged_by_them() -> None:
    awful = RunStats(49, 1, 48, {"engine_failed": 48}, 48, 49, {"Hats": 1.0}, 1.0)
    assert judge_run(awful, GOOD, GateSettings()) == ()
    assert len(judge_run(replace(awful, rows=50), GOOD, GateSettings())) == 5


def test_a_small_run_of_which_nothing_came_is_held() -> None:
    nothing = RunStats(FEW, 0, FEW, {"engine_failed": FEW}, 0, 0, {}, None)
    assert [finding.limit for finding in judge_run(nothing, None, GateSettings())] == ["max_failed"]
    assert judge_run(nothing, None, GateSettings(max_failed=1.0)) == ()
    assert judge_run(replace(nothing, rows=FEW - 1, failed=FEW - 1), None, GateSettings()) == ()


def test_a_small_run_whose_answers_all_have_one_title_is_held_unless_told_otherwise() -> None:
    same = RunStats(20, 20, 0, {}, 0, 0, {"Coats": 1.0}, 10.0, same_title="Price")
    (finding,) = judge_run(same, None, GateSettings())
    assert finding.limit == "allow_same_title"
    assert finding.message.startswith("all 20 products with an answer got the title 'Price'; ")
    assert judge_run(same, None, GateSettings(allow_same_title=True)) == ()
    assert judge_run(replace(same, rows=FEW - 1, ok=FEW - 1), None, GateSettings()) == ()


def test_one_title_for_photos_of_one_product_is_allowed() -> None:
    rows = [make_row(RUN, f"{n}.jpg", title="Wool coat", product_id=product) for n, product in enumerate("aaab")]
    table = parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA)
    assert run_stats(table).same_title == "Wool coat"
    assert run_stats(table.head(3)).same_title is None
    assert run_stats(table.with_columns(title=pl.Series(["Wool coat", "Hat"] * 2))).same_title is None


@pytest.mark.parametrize("rows", [1, 20, 5000])
def test_a_run_of_a_weak_adapter_is_held_whatever_its_size_unless_told_otherwise(rows: int) -> None:
    stats = replace(GOOD, rows=rows, ok=rows, failed=0, unknown_category=0, review=0)
    weak = Worth("weak", ("0.0% of the categories are right",))
    (finding,) = judge_run(stats, None, GateSettings(), weak)
    assert finding.limit == "allow_weak_adapter"
    assert finding.message == (
        "The adapter is no better than guessing without a photo: 0.0% of the categories are right; "
        "use a better adapter, or set gate.allow_weak_adapter if this is right"
    )
    assert judge_run(stats, None, GateSettings(allow_weak_adapter=True), weak) == ()
    assert judge_run(stats, None, GateSettings(enabled=False), weak) == ()
    assert judge_run(stats, None, GateSettings(), Worth("unknown")) == ()
    assert judge_run(replace(stats, rows=0, ok=0), None, GateSettings(), weak) == ()


def test_a_gate_that_is_off_lets_everything_pass() -> None:
    awful = RunStats(50, 0, 50, {"engine_failed": 50}, 50, 50, {"Hats": 1.0}, 1.0)
    assert judge_run(awful, GOOD, GateSettings(enabled=False)) == ()


def gone(count: int, answered: int) -> Changes:
    return Changes(0, 0, 0, 0, {}, 0, gone=count + 3, gone_answered=count, answered=answered, examples=())


@pytest.mark.parametrize(
    ("count", "answered", "held"),
    [(93, 96, True), (20, 100, False), (21, 100, True), (5, 6, True), (3, 6, False), (0, 0, False), (1, 1, True)],
)
def test_a_run_is_held_where_many_photos_left_the_source(count: int, answered: int, held: bool) -> None:
    findings = judge_gone(gone(count, answered), GateSettings())
    assert [finding.limit for finding in findings] == ["max_gone"] * held


def test_how_many_photos_may_leave_the_source_is_a_setting() -> None:
    assert judge_gone(gone(93, 96), GateSettings(max_gone=1.0)) == ()
    assert judge_gone(gone(5, 6), GateSettings(max_gone=0.9)) == ()
    assert judge_gone(gone(93, 96), GateSettings(enabled=False)) == ()
    [finding] = judge_gone(gone(93, 96), GateSettings())
    assert finding.message == (
        "93 of 96 answered products are gone from the source: 0.97 is above 0.2; "
        "fix the cause, or raise gate.max_gone if this is right"
    )
