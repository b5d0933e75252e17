"""Which products a person is shown: uncertain and expensive ones of many kinds, and some at random."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from enrich.output.parquet import from_records
from enrich.output.picks import Pick, pick, undecided
from enrich.output.schema import PRODUCTS_SCHEMA, Attribute
from tests.testing.rows import as_read, at, make_row, make_run

RUN = make_run()
WORDS = ("Abacus", "Bicycle", "Cupboard", "Doorknob", "Envelope", "Flagpole", "Guitar", "Hammock", "Igloo", "Jigsaw")


def product(key: str, **changes: Any) -> dict[str, Any]:
    """A row that is 99 % sure and has a usual price, except for `changes`."""
    usual: dict[str, Any] = {
        "category_confidence": 0.99,
        "price": 100.0,
        "price_low": 80.0,
        "price_high": 125.0,
        "sha256": f"of {key}",
    }
    title = f"{WORDS[hash_of(key) % 10]} {WORDS[hash_of(key) // 10 % 10]} {WORDS[hash_of(key) // 100 % 10]}"
    extra = {name: changes.pop(name) for name in ("in_source", "reviewed_at") if name in changes}
    row = as_read(make_row(RUN, key, **({"title": title} | usual | changes)))
    return {**row, "in_source": True, "reviewed_at": None} | extra


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode()[-4:]) * 7919 % 1000


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return undecided(from_records(rows, PRODUCTS_SCHEMA))


def ids(picks: list[Pick], picked: str = "chosen") -> list[str]:
    return [one.product_id for one in picks if one.picked == picked]


def test_what_is_doubtful_comes_first_and_says_why() -> None:
    fields = {"colour": Attribute("Red", 0.4)}
    rows = [product(f"sure {n}") for n in range(60)] + [
        product("category", category_confidence=0.3),
        product("dear", category_confidence=0.3, price=900.0, price_low=720.0, price_high=1125.0),
        product("wide", price_low=20.0, price_high=500.0),
        product("photos", review_reasons=("photos_disagree",), title="Yacht"),
        product("field", attributes=fields, title="Zeppelin"),
    ]
    picks = pick(table(*rows), 6)

    lots = [one for one in picks if one.picked == "random"]
    assert [one.why for one in lots] == [("picked at random",)]
    chosen = {one.product_id: one.why for one in picks if one.picked == "chosen"}
    assert next(iter(chosen)) in ("dear", *ids(picks, "random"))
    expected = {
        "category": ("category in doubt",), "dear": ("category in doubt", "expensive"), "wide": ("wide price",),
        "photos": ("its photos disagree",), "field": ("further field in doubt",),
    }  # fmt: skip
    assert chosen == {name: why for name, why in expected.items() if name not in ids(picks, "random")}


def test_all_are_random_while_the_model_knows_little() -> None:
    rows = [product(f"{n:03}", category_confidence=n % 7 / 20) for n in range(100)]  # 85 % of the categories are wrong
    assert len(ids(pick(table(*rows), 50), "random")) == 50
    better = [{**row, "category_confidence": row["category_confidence"] + 0.1} for row in rows]
    assert len(ids(pick(table(*better), 50), "random")) == 10


def test_no_category_gets_more_than_its_share_of_doubt() -> None:
    rows = [product(f"coat {n:03}", category="Coats", category_confidence=0.2) for n in range(100)]
    rows += [product(f"hat {n:03}", category="Hats", category_confidence=0.6) for n in range(200)]
    frame = table(*rows).with_columns(title=pl.col("product_id").map_elements(lambda one: f"{one} " * 3, pl.String))
    frame = frame.with_columns(title=pl.Series(_unlike(frame.height)))
    picks = ids(pick(frame, 50))

    counts = Counter(one.split()[0] for one in picks)
    assert len(picks) == 40
    assert abs(counts["coat"] - counts["hat"]) <= 2, "both have a doubt of 80, though coats are all more doubtful"


def _unlike(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(count)]


def test_the_budget_is_used_where_one_category_has_all_there_is_to_show() -> None:
    rows = [product(f"hat {n:03}", category="Hats", category_confidence=0.9, title="Hat") for n in range(50)]
    rows += [product(f"coat {n:03}", category="Coats", category_confidence=0.8) for n in range(50)]
    frame = table(*rows)
    titles = pl.when(pl.col("category") == "Hats").then(pl.lit("Hat")).otherwise(pl.Series(_unlike(frame.height)))
    assert len(pick(frame.with_columns(title=titles), 40)) == 40


def test_near_equal_titles_of_a_category_are_shown_once() -> None:
    titles = ["Wool Coat, 38", "wool coat 40", "Wool  Coats 42", "Linen Coat", "\u30a6\u30fc\u30eb\u30b3\u30fc\u30c8",
              "\u30a6\u30fc\u30eb\u30b3\u30fc\u30c8 M"]  # fmt: skip
    rows = [product(f"{n}", title=title, category_confidence=0.5 - n / 100) for n, title in enumerate(titles)]
    rows.append(product("other", title="Wool Coat", category="Jackets", category_confidence=0.45))
    found = pick(table(*rows), 2)
    assert len(found) == 2  # of so few, none is random
    assert {one.picked for one in found} == {"chosen"}
    shown = {one.product_id for one in pick(table(*rows), 2)}
    assert not {"5", "4"} <= shown
    assert not {"0", "1"} <= shown


def test_products_that_were_decided_on_failed_or_are_gone_are_left_out_and_copies_are_shown_once() -> None:
    rows = [
        product("here"), product("copy", sha256="of here"), product("reviewed", reviewed_at=at(5)),
        product("gone", in_source=False), product("failed", status="failed", title=None, category=None),
    ]  # fmt: skip
    assert table(*rows)["product_id"].to_list() == ["copy"]


def test_the_random_part_is_uniform_and_spread_and_stays_until_it_is_decided() -> None:
    rng = np.random.default_rng(1)
    rows = [product(f"{n:04}", category_confidence=float(rng.uniform())) for n in range(2000)]
    frame = table(*rows).with_columns(title=pl.Series(_unlike(2000)))
    picks = pick(frame, 500)

    lots = ids(picks, "random")
    assert len(lots) == 100
    doubt = {row["product_id"]: 1 - row["category_confidence"] for row in rows}
    means = {kind: np.mean([doubt[one] for one in ids(picks, kind)]) for kind in ("random", "chosen")}
    assert abs(means["random"] - 0.5) < 3 * 0.29 / 10
    assert means["chosen"] > 0.7
    half = [one.picked for one in picks[:250]].count("random")
    assert 45 <= half <= 55, "those who stop halfway have decided half of them"

    assert ids(pick(frame, 500), "random") == lots
    rest = frame.filter(~pl.col("product_id").is_in(lots[:10]))
    assert ids(pick(rest, 500), "random")[:90] == lots[10:]


def test_a_table_without_prices_and_confidences_is_fine() -> None:
    rows = [product(f"{n}", price=None, price_low=None, price_high=None, category_confidence=None) for n in range(5)]
    frame = table(*rows).with_columns(title=pl.Series(_unlike(5)))
    assert len(pick(frame, 10)) == 5
