"""How wrong answers are by decisions about products picked at random, and by no others."""

from typing import Any

import polars as pl
import pytest

from enrich.output.observed import observe
from enrich.output.parquet import from_records
from enrich.output.schema import REVIEW_SCHEMA


def decided(number: int, **changes: Any) -> dict[str, Any]:
    """An answer that was right and 90 % sure, of a product picked at random, as it was accepted."""
    said = {"title": "Hat", "category": "Hats", "price": 10.0, "attributes": {"colour": "Red"}}
    return {
        "product_id": str(number), "photos": [{"key": f"{number}.jpg", "etag": "e", "sha256": f"of {number}"}],
        "run_id": "night", "decision": "accepted", "picked": "random", "adapter": "a1", "sequence": 1, **said,
        **{f"suggested_{name}": value for name, value in said.items()}, "suggested_confidence": 0.9,
        "suggested_price_low": 8.0, "suggested_price_high": 12.0, "suggested_confidences": {"colour": 0.75},
        "confirmed": ["title", "category", "price"],
    } | changes  # fmt: skip


def reviews(*rows: dict[str, Any]) -> pl.DataFrame:
    return from_records(rows, REVIEW_SCHEMA)


def errors(*rows: dict[str, Any]) -> dict[str, tuple[int, float]]:
    found = observe(reviews(*rows), "a1")
    return {one.field: (one.decisions, one.wrong) for one in found.fields} if found else {}


RIGHT = [decided(number) for number in range(40)]


def test_rates_stand_next_to_what_the_confidences_say() -> None:
    wrong = [
        decided(100, category="Caps", decision="edited"), decided(101, title="HAT ", price=13.0),
        decided(102, attributes={"colour": None}),
    ]  # fmt: skip
    found = observe(reviews(*RIGHT[3:], *wrong), "a1")
    assert found is not None
    assert found.decisions == 40
    by_name = {one.field: one for one in found.fields}
    assert {name: one.wrong for name, one in by_name.items()} == {
        "title": 0.0, "category": 1 / 40, "price": 1 / 40, "colour": 1 / 40,
    }  # fmt: skip
    assert (by_name["category"].low, by_name["category"].high) == pytest.approx((0.0044, 0.1288), abs=1e-3)
    claims = {name: one.claimed for name, one in by_name.items()}
    assert claims == {
        "title": None, "category": pytest.approx(0.1), "price": pytest.approx(0.1), "colour": pytest.approx(0.25)
    }  # fmt: skip


def test_only_random_decisions_about_this_adapters_answers_count() -> None:
    others = [
        decided(100, category="Caps", picked="chosen"), decided(101, category="Caps", picked=None),
        decided(102, category="Caps", adapter="a2"), decided(103, category="Caps", adapter=None),
    ]  # fmt: skip
    assert errors(*RIGHT, *others)["category"] == (40, 0.0)


def test_too_few_say_nothing() -> None:
    assert observe(reviews(*RIGHT[:29]), "a1") is None
    assert observe(reviews(), "a1") is None
    assert errors(*RIGHT[:30])["category"] == (30, 0.0)
    unconfirmed = [decided(number, confirmed=["title", "category"]) for number in range(20)]
    assert set(errors(*unconfirmed, *RIGHT[20:])) == {"title", "category", "colour"}


def test_what_was_rejected_was_wrong_in_all_that_it_had() -> None:
    gone = dict.fromkeys(("title", "category", "price", "attributes")) | {"decision": "rejected", "confirmed": []}
    found = errors(*RIGHT[1:], decided(0, **gone))
    assert found == dict.fromkeys(("title", "category", "price", "colour"), (40, 1 / 40))


def test_a_product_counts_once_with_its_last_decision() -> None:
    again = decided(0, category="Caps", sequence=2)
    assert errors(again, *RIGHT)["category"] == (40, 1 / 40)
    renamed = decided(0, category="Caps", sequence=2, product_id="new name")
    assert errors(*RIGHT, renamed)["category"] == (40, 1 / 40)
