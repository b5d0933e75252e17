"""Changed settings take effect on existing rows without a new answer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from enrich.output import history, manifest, parquet, publish
from enrich.output.listing import write_listing
from enrich.output.products import read_products
from enrich.output.restate import Rules, judged_again, restated
from enrich.output.run_record import PublishedRun, RunInfo
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, Row
from enrich.pipeline import reviewing
from enrich.settings.review import ReviewSettings, TitleRules
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo, Store, open_store
from enrich.storage.scratch import scratch
from enrich.vocabulary import ManifestItem
from tests.testing.rows import answer, make_row, make_run, plan, source_table

RUN = make_run("r1", review_below=0.5)
RUNS = {"r1": PublishedRun.of(RUN)}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def judged(reviewed_by: str | None = None, review: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Return the review reasons of one row under other settings."""
    row = make_row(RUN, **changes)
    table = parquet.from_records([{**asdict(row), "in_source": True, "reviewed_by": reviewed_by}], PRODUCTS_SCHEMA)
    rules = Rules(product_id_pattern="(?P<product_id>.*)", review=ReviewSettings.model_validate(review or {}))
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
    rows = [make_row(make_run(run), f"{run}.jpg", product_id="old") for run in ("r1", "r2")]
    table = parquet.from_records([{**asdict(row), "in_source": True} for row in rows], PRODUCTS_SCHEMA)
    rules = Rules.of(RunSettings())
    found = restated(table, rules, RUNS, ["r2"])
    assert dict(found.select("run_id", "product_id").iter_rows()) == {"r1": "old", "r2": "r2"}


def night(
    output: Store, name: str, minutes: float, keys: str, settings: RunSettings, **changes: Any
) -> publish.Published:
    """Do a run from listing to publish, with the settings recorded beside its listing."""
    run = make_run(name, minutes, shard_size=100, review_below=0.5, **changes)
    listed = source_table(ObjectInfo(f"00{key}.jpg", 10, "e1") for key in keys.split())
    with scratch() as folder:
        infos = [ObjectInfo(*row) for row in listed.iter_rows()]
        write_listing(folder / "source", infos, run, Rules.of(settings))
        todo = plan(listed, read_products(output), run)
        parquet.write(folder / "plan", [todo], MANIFEST_SCHEMA, {parquet.RUN_KEY: run.to_json()})
        begun = manifest.create_manifest(output, run, folder / "source", folder / "plan")
    for shard in begun.shards:
        items = manifest.items(begun, shard)
        history.commit_shard(output, run, shard, [row_of(run, item) for item in items], [item.key for item in items])
    return publish.publish(output, run)


def row_of(run: RunInfo, item: ManifestItem) -> Row:
    return replace(
        answer(run, item, 1), category_confidence=0.6, title=f"Coat {item.key[:5]}", price_low=90.0, price_high=110.0
    )


PATTERN = r"00(?P<product_id>\d{3})\.jpg"


def test_a_changed_product_id_pattern_takes_effect_without_answering_again(output: Store) -> None:
    night(output, "n1", 0, "101 103 105", RunSettings())
    assert sorted(read_products(output).table["product_id"]) == ["00101", "00103", "00105"]
    changed = RunSettings(product_id_pattern=PATTERN)
    assert night(output, "n2", 10, "101 103", changed).changed
    table = read_products(output).table
    assert sorted(table["product_id"]) == ["101", "103", "105"]  # including the photo that is gone
    assert table["run_id"].unique().to_list() == ["n1"]
    assert not night(output, "n3", 20, "101 103", changed).changed
    night(output, "n4", 30, "101 103 107", changed)
    assert sorted(read_products(output).table["product_id"]) == ["101", "103", "105", "107"]


def test_changed_review_rules_take_effect_without_answering_again(output: Store) -> None:
    night(output, "n1", 0, "101 103", RunSettings())
    assert not read_products(output).table["needs_review"].any()
    strict = ReviewSettings(min_confidence=0.7, titles=TitleRules(forbidden_words=("00103",)))
    assert night(output, "n2", 10, "101 103", RunSettings(review=strict)).changed
    rows = dict(read_products(output).table.select("image_key", "review_reasons").iter_rows())
    assert rows == {"00101.jpg": ["low_confidence"], "00103.jpg": ["low_confidence", "title_rule"]}
    assert night(output, "n3", 20, "101 103", RunSettings()).changed
    assert not read_products(output).table["needs_review"].any()


def test_a_changed_place_of_the_photos_takes_effect_on_those_that_are_there(output: Store) -> None:
    night(output, "n1", 0, "101 103", RunSettings())
    assert night(output, "n2", 10, "103", RunSettings(), images_uri="s3://moved").changed
    uris = dict(read_products(output).table.select("image_key", "image_uri").iter_rows())
    assert uris == {"00101.jpg": "s3://photos/00101.jpg", "00103.jpg": "s3://moved/00103.jpg"}


@pytest.mark.parametrize("order", ["012", "210", "120", "0212"])
def test_the_rules_of_the_run_created_last_hold_in_whatever_order_runs_are_published(
    output: Store, tmp_path: Path, order: str
) -> None:
    nights = [
        ("n0", 0, "101 103", RunSettings(review=ReviewSettings(min_confidence=0.9))),
        ("n1", 10, "101 103 105", RunSettings(product_id_pattern=PATTERN)),
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
    assert set(found["product_id"]) == {"00101", "00103", "00105", "00107"}
    assert found["needs_review"].all()


def test_photos_are_shown_from_where_the_last_run_saw_them(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "output"), create=True)
    night(output, "n1", 0, "101", RunSettings(), images_uri=str(tmp_path / "before"))
    night(output, "n2", 10, "101", RunSettings(), images_uri=str(tmp_path / "moved"))
    assert reviewing._images(output, read_products(output)).uri == str(tmp_path / "moved")
