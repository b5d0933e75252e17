"""Changed settings take effect on existing rows without a new answer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from enrich.output import history, manifest, parquet, publish
from enrich.output.listing import described
from enrich.output.products import read_products
from enrich.output.restate import Rules, judged_again, restated
from enrich.output.run_record import PublishedRun, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, SOURCE_SCHEMA, Attribute, Row
from enrich.pipeline import reviewing
from enrich.settings.review import ReviewSettings, TitleRules
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo, Store, open_store
from enrich.storage.scratch import scratch
from enrich.vocabulary import ManifestItem
from tests.testing.rows import answer, make_row, make_run, plan, source_table

RUN = make_run("r1", review_below=0.5, fields_review_below={"colour": 0.8, "fabric": 0.3})
RUNS = {"r1": PublishedRun.of(RUN)}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def judged(reviewed_by: str | None = None, review: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Return the review reasons of one row under other settings."""
    attributes = {name: Attribute(*found) for name, found in changes.pop("attributes", {}).items()}
    row = make_row(RUN, attributes=attributes, **changes)
    table = parquet.from_records([{**asdict(row), "in_source": True, "reviewed_by": reviewed_by}], PRODUCTS_SCHEMA)
    rules = Rules(review=ReviewSettings.model_validate(review or {}))
    [found] = judged_again(table, rules, RUNS).to_dicts()
    assert found["needs_review"] == bool(found["review_reasons"]) or reviewed_by
    return list(found["review_reasons"])


def test_rules_of_a_version_with_other_settings_are_not_applied() -> None:
    rules = Rules.of(RunSettings())
    assert Rules.read(rules.model_dump_json()) == rules
    assert Rules.read(rules.model_dump_json().replace('"titles":{', '"titles":{"min_words":1,')) is None


@pytest.mark.parametrize(
    ("row", "review", "reasons"),
    [
        ({"category_confidence": 0.6}, {"min_confidence": 0.7}, ["low_confidence"]),
        ({"category_confidence": 0.6, "review_reasons": ("low_confidence",)}, {"min_confidence": 0.3}, []),
        ({"category_confidence": 0.4}, {}, ["low_confidence"]),  # the adapter's own limit is 0.5
        ({"category_confidence": 0.6, "review_reasons": ("low_confidence",)}, {}, []),
        ({"attributes": {"colour": ("Red", 0.7)}}, {}, ["low_attribute_confidence"]),  # the adapter's own limit is 0.8
        ({"attributes": {"colour": (None, 0.9), "fabric": ("Denim", 0.2)}}, {}, ["low_attribute_confidence"]),
        ({"attributes": {"colour": ("Red", 0.7)}}, {"min_confidence": 0.6}, []),
        ({"attributes": {"fabric": ("Denim", 0.5)}, "review_reasons": ("low_attribute_confidence",)}, {}, []),
        ({"attributes": {"size": ("M", 0.1)}}, {}, []),  # of a run that did not say its limit
        ({"attributes": {"size": ("M", 0.1)}, "review_reasons": ("low_attribute_confidence",)}, {}, [
            "low_attribute_confidence"
        ]),
        ({"price_low": 10.0, "price_high": 50.0}, {"max_price_ratio": 4}, ["wide_price"]),
        ({"price_low": 10.0, "price_high": 50.0, "review_reasons": ("wide_price",)}, {"max_price_ratio": 9}, []),
        ({"title": "Best Coat"}, {"titles": {"forbidden_words": ["best"]}}, ["title_rule"]),
        ({"title": "Coat Sale", "review_reasons": ("title_rule",)}, {"titles": {"forbidden_words": []}}, []),
        ({"review_reasons": ("category_unknown", "price_outlier", "title_ungrounded")}, {}, [
            "category_unknown", "price_outlier", "title_ungrounded"
        ]),
    ],
)  # fmt: skip
def test_review_reasons_follow_the_settings_where_the_row_says_enough(
    row: dict[str, Any], review: dict[str, Any], reasons: list[str]
) -> None:
    values = {"category_confidence": 0.9, "price_low": 90.0, "price_high": 110.0} | row
    assert judged(review=review, **values) == reasons


def test_what_a_person_decided_and_what_failed_is_not_judged_again() -> None:
    assert judged(reviewed_by="Ann", category_confidence=0.1) == []
    assert judged(error_kind="empty", category_confidence=0.1) == []


def test_only_the_rows_that_may_be_under_other_rules_are_stated_anew() -> None:
    rows = [make_row(make_run(run), f"{run}.jpg", price_low=1.0, price_high=99.0) for run in ("r1", "r2")]
    table = parquet.from_records([{**asdict(row), "in_source": True} for row in rows], PRODUCTS_SCHEMA)
    rules = Rules.of(RunSettings())
    found = restated(table, rules, RUNS, ["r2"])
    assert dict(found.select("run_id", "needs_review").iter_rows()) == {"r1": False, "r2": True}


def night(
    output: Store, name: str, minutes: float, keys: str, settings: RunSettings, **changes: Any
) -> publish.Published:
    """Do a run from listing to publish, with the settings recorded with its listing."""
    run = make_run(name, minutes, shard_size=100, review_below=0.5, **changes)
    listed = source_table(ObjectInfo(f"00{key}.jpg", 10, "e1") for key in keys.split())
    with scratch() as folder:
        parquet.write(folder / "source", [listed], SOURCE_SCHEMA, described(run, Rules.of(settings)))
        todo = plan(listed, read_products(output), run)
        parquet.write(folder / "plan", [todo], MANIFEST_SCHEMA, {parquet.RUN_KEY: run.to_json()})
        started = manifest.create_manifest(output, run, folder / "source", folder / "plan")
    for shard in started.shards:
        items = manifest.items(started, shard)
        history.commit_shard(
            output, run, shard, [row_of(run, item) for item in items], [item.product_id for item in items]
        )
    return publish.publish(output, run)


def row_of(run: RunInfo, item: ManifestItem) -> Row:
    return replace(
        answer(run, item, 1),
        category_confidence=0.6,
        title=f"Coat {item.product_id[:5]}",
        price_low=90.0,
        price_high=110.0,
    )


def test_changed_review_rules_take_effect_without_answering_again(output: Store) -> None:
    night(output, "n1", 0, "101 103", RunSettings())
    assert not read_products(output).table["needs_review"].any()
    strict = ReviewSettings(min_confidence=0.7, titles=TitleRules(forbidden_words=("00103",)))
    assert night(output, "n2", 10, "101 103", RunSettings(review=strict)).changed
    rows = dict(read_products(output).table.select("product_id", "review_reasons").iter_rows())
    assert rows == {"00101.jpg": ["low_confidence"], "00103.jpg": ["low_confidence", "title_rule"]}
    assert night(output, "n3", 20, "101 103", RunSettings()).changed
    assert not read_products(output).table["needs_review"].any()


def test_a_changed_place_of_the_photos_takes_effect_on_those_that_are_there(output: Store) -> None:
    night(output, "n1", 0, "101 103", RunSettings())
    assert night(output, "n2", 10, "103", RunSettings(), images_uri="s3://moved").changed
    rows = read_products(output).table.to_dicts()
    uris = {row["product_id"]: row["photos"][0]["uri"] for row in rows}
    assert uris == {"00101.jpg": "s3://photos/00101.jpg", "00103.jpg": "s3://moved/00103.jpg"}


@pytest.mark.parametrize("order", ["012", "210", "120", "0212"])
def test_the_rules_of_the_run_created_last_hold_in_whatever_order_runs_are_published(
    output: Store, tmp_path: Path, order: str
) -> None:
    nights = [
        ("n0", 0, "101 103", RunSettings(review=ReviewSettings(min_confidence=0.9))),
        ("n1", 10, "101 103 105", RunSettings()),
        ("n2", 20, "103 105 107", RunSettings(review=ReviewSettings(min_confidence=0.7))),
    ]
    for name, minutes, keys, rules in nights:
        night(output, name, minutes, keys, rules, images_uri=f"s3://{name}")
    expected = read_products(output).table
    output.delete("products.parquet")
    for number in order:
        name, minutes, *_ = nights[int(number)]
        publish.publish(output, make_run(name, minutes, shard_size=100, review_below=0.5, images_uri=f"s3://{name}"))
    found = read_products(output).table
    assert found.equals(expected)
    assert set(found["product_id"]) == {"00101.jpg", "00103.jpg", "00105.jpg", "00107.jpg"}
    assert found["needs_review"].all()


def test_photos_are_shown_from_where_the_last_run_saw_them(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "output"), create=True)
    night(output, "n1", 0, "101", RunSettings(), images_uri=str(tmp_path / "before"))
    night(output, "n2", 10, "101", RunSettings(), images_uri=str(tmp_path / "moved"))
    assert reviewing._images(output, read_products(output)).uri == str(tmp_path / "moved")
