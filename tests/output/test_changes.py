"""What a run changes in an existing table, and what its machine costs."""

from dataclasses import asdict
from typing import Any

import polars as pl
import pytest

from enrich.output.changes import compare, newest_outcomes
from enrich.output.parquet import from_records
from enrich.output.run_record import Change
from enrich.output.schema import PRODUCTS_SCHEMA, ROW_SCHEMA, Attribute, Row
from enrich.pipeline.run.finish import cost
from enrich.settings.run import RunSettings
from enrich.vocabulary import ErrorKind
from tests.testing.rows import make_row, make_run

OLD, NEW = make_run("night-1"), make_run("night-2", 100)


def before(*rows: Row, **changes: Any) -> pl.DataFrame:
    return from_records([{**asdict(row), "in_source": True, **changes} for row in rows], PRODUCTS_SCHEMA)


def after(*rows: Row) -> pl.DataFrame:
    return from_records([asdict(row) for row in rows], ROW_SCHEMA)


def test_changes_are_counted_with_their_reason() -> None:
    old = before(
        *(
            make_row(OLD, key, title="Coat")
            for key in ("same.jpg", "category.jpg", "price.jpg", "fails.jpg", "gone.jpg")
        ),
        make_row(OLD, "repaired.jpg", error_kind=ErrorKind.ENGINE_FAILED),
        make_row(OLD, "unknown.jpg", title="Coat", price=None),
    )
    new = after(
        make_row(NEW, "same.jpg", title="Coat", price=119.0),
        make_row(NEW, "category.jpg", title="Hat", category="Hats"),
        make_row(NEW, "price.jpg", title="Coat", price=121.0),
        make_row(NEW, "fails.jpg", error_kind=ErrorKind.TRUNCATED),
        make_row(NEW, "repaired.jpg"),
        make_row(NEW, "unknown.jpg", title="Coat", price=50.0),
        make_row(NEW, "first.jpg"),
    )
    keys = new["product_id"]
    reasons = pl.DataFrame({"product_id": keys, "reason": ["model"] * 2 + ["changed"] * 4 + ["new"]})

    found = compare(new, old.lazy(), reasons.lazy(), pl.LazyFrame({"product_id": keys}))

    assert (found.compared, found.title, found.category, found.price) == (4, 1, 1, 2)
    assert found.by_reason == {"changed": 2, "model": 1}
    assert (found.now_failing, found.repaired, found.gone) == (1, 1, 1)
    assert (found.gone_answered, found.answered) == (1, 6)
    assert found.examples[0] == Change("category.jpg", "model", "Coat, Coats, 100", "Hat, Hats, 100")
    assert found.examples[2].before == "Coat, Coats, no price"


def test_other_values_of_declared_fields_are_counted_and_new_fields_are_not() -> None:
    sure, unsure = Attribute("navy", 0.9), Attribute("navy", 0.2)
    old = before(
        make_row(OLD, "same.jpg", title="Coat", attributes={"colour": sure}),
        make_row(OLD, "other.jpg", title="Coat", attributes={"colour": sure, "title": Attribute(None, 0.5)}),
        make_row(OLD, "new field.jpg", title="Coat"),
    )
    new = after(
        make_row(NEW, "same.jpg", title="Coat", attributes={"colour": unsure, "fabric": sure}),
        make_row(NEW, "other.jpg", title="Coat", attributes={"colour": Attribute(None, 0.5), "title": sure}),
        make_row(NEW, "new field.jpg", title="Coat", attributes={"colour": sure}),
    )
    reasons = pl.DataFrame({"product_id": new["product_id"], "reason": ["model"] * 3})

    found = compare(new, old.lazy(), reasons.lazy(), pl.LazyFrame({"product_id": new["product_id"]}))

    assert (found.compared, found.title, found.attributes) == (3, 0, {"colour": 1, "fabric": 0, "title": 1})
    assert found.by_reason == {"model": 1}
    assert found.examples == (
        Change(
            "other.jpg", "model", "Coat, Coats, 100, colour navy, title unknown",
            "Coat, Coats, 100, colour unknown, title navy",
        ),
    )  # fmt: skip


def test_an_output_that_was_empty_has_nothing_to_compare() -> None:
    manifest = pl.LazyFrame({"product_id": ["a.jpg"], "reason": ["new"]})
    found = compare(after(make_row(NEW, "a.jpg")), before().lazy(), manifest, manifest.select("product_id"))

    assert (found.compared, found.gone, found.examples) == (0, 0, ())


def test_cost_of_a_thousand_photos() -> None:
    found = cost(RunSettings(machine_price_per_hour=3.6), seconds=500, products=2000)

    assert found is not None
    assert (found.per_1000_photos, found.per_hour) == (pytest.approx(0.25), 3.6)
    assert cost(RunSettings(), 500, 2000) is None
    assert cost(RunSettings(machine_price_per_hour=3.6), 500, 0) is None


def test_newest_outcomes_are_of_the_photos_that_are_there() -> None:
    good = make_row(OLD, "good.jpg")
    table = pl.concat(
        [
            before(good, make_row(OLD, "newer bytes failed.jpg"), last_status="ok"),
            before(make_row(OLD, "gone.jpg"), last_status="failed", last_error_kind="empty", in_source=False),
            before(make_row(OLD, "large.jpg"), last_status="failed", last_error_kind="too_large"),
            before(make_row(OLD, "huge.jpg"), last_status="failed", last_error_kind="too_large"),
        ]
    )
    assert newest_outcomes(table.lazy()) == (2, {"too_large": 2})
