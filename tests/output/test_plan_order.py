"""The order of work: what has no answer first, then what an older adapter answered, by what another answer is worth."""

from dataclasses import asdict, replace
from typing import Any

import polars as pl
import pytest

from enrich.output import parquet, plan, spill
from enrich.output.plan import write_plan
from enrich.output.products import Products, StoredProducts, fold
from enrich.output.run_record import RunInfo
from enrich.output.schema import PRODUCTS_SCHEMA, ROW_SCHEMA, SOURCE_SCHEMA, Row
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo
from enrich.storage.scratch import scratch
from enrich.vocabulary import ErrorKind
from tests.testing.rows import listing, make_photo, make_row, make_run, products_table
from tests.testing.rows import plan as planned

OLD, NOW = make_run("old"), make_run("now", 10, fingerprint="f2", shard_size=3)


def products_of(*rows: Row, run: RunInfo = OLD) -> Products:
    table = parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA)
    return fold(Products(), [run], table, None)


def older(key: str, confidence: float | None, price: float | None) -> Row:
    return make_row(OLD, key, category_confidence=confidence, price=price)


ROWS = (
    older("sure", 0.9, 10.0), older("sure and dear", 0.9, 500.0), older("unsure", 0.4, 10.0),
    older("unknown", None, 1.0), older("sure without price", 0.9, None), older("unsure and dear", 0.4, 20.0),
    older("b as sure", 0.9, 10.0),
)  # fmt: skip
ORDER = [
    "unknown", "unsure and dear", "unsure", "sure and dear", "b as sure", "sure", "sure without price",
]  # fmt: skip


def ids(table: pl.DataFrame) -> list[str]:
    return table["product_id"].to_list()


def test_the_least_certain_and_most_valuable_are_refreshed_first() -> None:
    keys = [row.product_id for row in ROWS]
    table = planned(listing(*keys), products_of(*ROWS), NOW)
    assert ids(table) == ORDER
    assert set(table["reason"]) == {"model"}
    assert table["shard"].to_list() == [0, 0, 0, 1, 1, 1, 2]


def test_new_changed_and_failed_products_do_not_wait_for_them() -> None:
    failed = make_row(OLD, "z failed", error_kind=ErrorKind.NOT_AN_IMAGE)
    products = products_of(*ROWS, failed, make_row(OLD, "y changed", etag="e0"))
    keys = [row.product_id for row in ROWS]
    table = planned(listing(*keys, "z failed", "y changed", "x new"), products, NOW)
    assert ids(table) == ["x new", "y changed", "z failed", *ORDER]
    assert table["reason"].to_list()[:3] == ["new", "changed", "retry"]


@pytest.mark.parametrize(
    ("refresh", "limit", "done", "left"),
    [
        (None, None, ["x new", *ORDER], 0),
        (0, None, ["x new"], 7),
        (2, None, ["x new", *ORDER[:2]], 5),
        (None, 3, ["x new", *ORDER[:2]], 5),
        (5, 2, ["x new", *ORDER[:1]], 6),
        (1, 9, ["x new", *ORDER[:1]], 6),
        (None, 1, ["x new"], 7),
        (99, 99, ["x new", *ORDER], 0),
    ],
)
@pytest.mark.parametrize("piece", [100_000, 2])
def test_refresh_and_limit_cut_the_order_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch, refresh: int | None, limit: int | None, done: list[str], left: int, piece: int
) -> None:
    for module in (plan, spill):
        monkeypatch.setattr(module, "SAMPLE_EVERY", 1 if piece == 2 else 500)
    monkeypatch.setattr(spill, "PARTITION_ROWS", piece)
    source = listing(*(row.product_id for row in ROWS), "x new")
    with scratch() as folder:
        parquet.write(folder / "source", [source], SOURCE_SCHEMA, {})
        products = products_of(*ROWS)
        parquet.write(folder / "products", [products.table], PRODUCTS_SCHEMA, {})
        stored = StoredProducts(folder / "products", 0, products.runs, products.last)
        settings = RunSettings(refresh=refresh)
        found = write_plan(folder / "plan", folder / "source", stored, NOW, settings, folder, limit)
        table = pl.read_parquet(folder / "plan")
    assert ids(table) == done
    assert (found.todo, found.older) == (len(done), left)
    assert table["shard"].to_list() == [number // 3 for number in range(len(done))]


def test_a_thousand_products_are_refreshed_a_hundred_a_night() -> None:
    rows = [older(f"{number:04}", (number * 7919 % 1000) / 1000, float(number % 50)) for number in range(1000)]
    by_worth = sorted(rows, key=lambda row: (row.category_confidence, -(row.price or 0), row.product_id))
    products, source = products_of(*rows), listing(*(row.product_id for row in rows), "new")
    for night in range(2):
        run = make_run(f"night-{night}", 10 + night, fingerprint="f2")
        table = planned(source, products, run, refresh=100)
        wanted = [row.product_id for row in by_worth[100 * night :][:100]]
        assert ids(table) == (["new"] if night == 0 else []) + wanted
        answers = [make_row(run, name, category_confidence=0.99, minutes=11 + night) for name in ids(table)]
        products = fold(products, [run], parquet.from_records([asdict(row) for row in answers], ROW_SCHEMA), None)


def test_a_product_is_changed_when_a_photo_comes_goes_changes_or_moves() -> None:
    first, second, third = (ObjectInfo(f"{number}.jpg", 1, "e1") for number in (1, 2, 3))
    photos = tuple(make_photo(OLD, one.key) for one in (first, second))
    known = products_of(make_row(OLD, product_id="p", photos=photos))

    def why(*listed: ObjectInfo) -> list[Any]:
        return planned(products_table({"p": list(listed)}), known, OLD)["reason"].to_list()

    assert why(first, second) == []
    other = ObjectInfo("2.jpg", 1, "e2")
    for changed in ((first,), (second, first), (first, second, third), (first, other), (first, third)):
        assert why(*changed) == ["changed"]


@pytest.mark.parametrize(
    ("kind", "attempt", "reasons"),
    [
        (ErrorKind.DOWNLOAD_FAILED, 1, ["retry"]),
        (ErrorKind.DOWNLOAD_FAILED, 3, []),  # tried often enough
        (ErrorKind.NOT_AN_IMAGE, 1, []),  # would fail again
        (None, 1, []),
    ],
)
def test_a_product_answered_without_a_photo_that_may_be_read_later_is_retried(
    kind: ErrorKind | None, attempt: int, reasons: list[str]
) -> None:
    listed = [ObjectInfo(f"{number}.jpg", 1, "e1") for number in (1, 2)]
    broken, good = (make_photo(OLD, one.key) for one in listed)
    row = make_row(OLD, product_id="p", photos=(replace(broken, error_kind=kind), good), attempt=attempt)
    again = planned(products_table({"p": listed}), products_of(row), OLD)
    assert again["reason"].to_list() == reasons
    assert again["attempt"].to_list() == [attempt + 1] * len(reasons)
