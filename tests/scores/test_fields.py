"""Scores of declared fields, against small tables done by hand."""

import math
from typing import Any

import pytest

from enrich.output import parquet
from enrich.output.schema import SCORE_SCHEMA
from enrich.pages.attributes import attribute_scores
from enrich.scores.assess import assess
from enrich.scores.fields import field_columns, field_metrics, field_names


def _row(true: str | None, said: str | None, sure: float = 1.0, otherwise: str | None = None) -> dict[str, Any]:
    answer = {"value": said, "confidence": sure, "otherwise": otherwise, "review": sure < 0.6}
    return {
        "product_code": "1", "title": f"Hat {true} {said} {sure}", "category": "HATS", "answered_title": "Hat",
        "answered_category": "HATS", "category_confidence": 0.9, "needs_review": False, "review_reasons": [],
        "attributes": {"heel_height": true}, "answered_attributes": {"heel_height": answer},
    }  # fmt: skip


ROWS = [
    _row("7", "7"),
    _row("7", "6", 0.5),
    _row("6", None, 0.5, otherwise="6"),
    _row("5", None, 0.9, otherwise="6"),
    _row(None, None, 0.9),
    _row(None, "7", 0.9),
]


def test_the_scores_of_a_field() -> None:
    failed = {**_row("7", "7"), "answered_attributes": None, "answered_category": None, "category_confidence": None}
    table = parquet.from_records([*ROWS, failed], SCORE_SCHEMA)
    assert field_names(table) == ("heel_height",)
    columns = field_columns(table)
    values = {name: metric(columns) for name, metric in field_metrics(["heel_height"]).items()}
    assert values == {
        "heel_height_accuracy": pytest.approx(2 / 7),  # a failed row is wrong
        "heel_height_accuracy_known": pytest.approx(1 / 5),
        "heel_height_accuracy_always": pytest.approx(2 / 5),  # and the forced answer about the third row is right
        "heel_height_unknown_precision": pytest.approx(1 / 3),
        "heel_height_unknown_recall": pytest.approx(1 / 2),
        "heel_height_ece": pytest.approx(0.45),
        "heel_height_review_share": pytest.approx(2 / 6),
    }


def test_confidence_that_keeps_its_word_has_no_calibration_error() -> None:
    rows = [_row("a", "a" if n < 80 else "b", 0.8) for n in range(100)]
    table = parquet.from_records(rows, SCORE_SCHEMA)
    assert field_metrics(["heel_height"])["heel_height_ece"](field_columns(table)) == pytest.approx(0.0, abs=1e-6)


def test_a_table_without_fields_has_none() -> None:
    rows = [{**row, "attributes": {}, "answered_attributes": {}} for row in ROWS]
    table = parquet.from_records(rows, SCORE_SCHEMA)
    assert field_names(table) == ()
    assert assess(table)["fields"] == []


def test_all_metrics_come_with_their_error_and_are_shown() -> None:
    found = assess(parquet.from_records(ROWS, SCORE_SCHEMA))
    assert found["fields"] == ["heel_height"]
    for name in field_metrics(["heel_height"]):
        one = found["estimates"][name]
        assert one["low"] <= one["value"] <= one["high"]
    (shown,) = attribute_scores(found)
    assert (shown["field"], shown["accuracy"], shown["unknown, recall"]) == ("heel height", "33.3%", "50.0%")
    assert not any(math.isnan(estimate["value"]) for estimate in found["estimates"].values())
