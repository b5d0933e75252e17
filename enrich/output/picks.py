"""Pick the products to review next: uncertain and valuable ones of many kinds, and some at random.

Only the random part shows how wrong the table is (`enrich.output.observed`): it is drawn first, from all undecided
products, independent of their answers.
"""

import hashlib
import math
import re
from collections import defaultdict
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from enrich.output.reviews import with_identity
from enrich.vocabulary import LONGEST_KEY, ReviewReason, same_design

RANDOM_SHARE = 0.2  # of a budget
# All of it while the mean confidence of the categories is below this: doubt then tells hardly any answers apart, and
# random products taught such a model more (benchmarks/labelling/README.md).
KNOWS_LITTLE = 0.2
NEAR = 0.8  # share of the pairs of letters that two titles have in common, from which on they are near-equal
_AHEAD = 10  # candidates of a category that are looked at for each one that it may have


class Pick(BaseModel):
    """A product to show, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product_id: str = Field(min_length=1, max_length=LONGEST_KEY)
    picked: Literal["chosen", "random"]
    why: tuple[str, ...] = Field(max_length=20)


MOST_PICKS = 100_000  # more than anybody decides on


class PickFile(BaseModel):
    """The products that `enrich label` writes and `enrich review` shows, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["enrich-label-1"]
    output: str = Field(max_length=2000)
    picks: tuple[Pick, ...] = Field(min_length=1, max_length=MOST_PICKS)


def undecided(products: pl.DataFrame) -> pl.DataFrame:
    """The rows of PRODUCTS_SCHEMA that have an answer, are in the source and were not decided on; those with the same
    photos once."""
    rows = products.filter(pl.col("status") == "ok", "in_source", pl.col("reviewed_at").is_null()).sort("product_id")
    identity = pl.coalesce("bytes", "version")
    return with_identity(rows).unique(identity, keep="first", maintain_order=True).drop("bytes", "version")


def pick(rows: pl.DataFrame, budget: int) -> list[Pick]:
    """At most `budget` products of `undecided` rows, the most useful first, the random ones spread evenly among them.

    No category gets more than its share of all doubt, unless others have nothing left to show, and no category shows
    two near-equal titles. So there may be fewer than `budget`. All are random while the model knows little.
    """
    sure = rows.select(pl.col("category_confidence").fill_null(0.0).mean()).item() or 0.0
    share = RANDOM_SHARE if sure >= KNOWS_LITTLE else 1.0
    random = sorted(rows["product_id"], key=_lot)[: round(share * budget)]
    drawn = rows.filter(pl.col("product_id").is_in(pl.Series(random).implode()))
    others = _judged(rows).filter(~pl.col("product_id").is_in(pl.Series(random, dtype=pl.String).implode()))
    chosen = [
        Pick(product_id=row["product_id"], picked="chosen", why=_why(row))
        for row in _chosen(others, drawn, budget - len(random))
    ]
    lots = [Pick(product_id=one, picked="random", why=("picked at random",)) for one in random]
    places = [(number + 0.5, 0, one) for number, one in enumerate(chosen)]
    step = max(len(chosen), 1) / max(len(lots), 1)
    places += [((number + 0.5) * step, 1, one) for number, one in enumerate(lots)]
    return [one for _, _, one in sorted(places, key=lambda place: place[:2])]


def _lot(product_id: str) -> bytes:
    """A product's position in the draw. It is fixed, so that nobody can redraw until easy products come up."""
    return hashlib.sha256(b"random\0" + product_id.encode("utf-8", "surrogatepass")).digest()


def _judged(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the doubt about each part of the answer, 0..1, `doubt` about all of it, and `score`, by which they
    are sorted."""
    sure = pl.col("attributes").map.entries()
    confidences = sure.list.eval(pl.element().struct.field("value").struct.field("confidence"))
    width = (pl.col("price_high") / pl.col("price_low")).log()
    doubts = rows.with_columns(
        of_category=1 - pl.col("category_confidence").fill_null(0.0),
        of_fields=1 - confidences.list.min().fill_null(1.0),
        # 0 for an interval of the usual width, 0.5 for one of twice that.
        of_price=(1 - width.median() / width).clip(0, 1).fill_nan(0.0).fill_null(0.0),
        of_photos=pl.col("review_reasons").list.contains(ReviewReason.PHOTOS_DISAGREE).cast(pl.Float64),
        # A product of four times the usual price counts twice.
        worth=(pl.col("price") / pl.col("price").median()).sqrt().clip(0.5, 2.0).fill_nan(1.0).fill_null(1.0),
    )
    certain = 1 - pl.col("of_category")
    for name in ("of_fields", "of_price", "of_photos"):  # not as bad as another category
        certain *= 1 - pl.col(name) / 2
    judged = doubts.with_columns(doubt=1 - certain).with_columns(score=pl.col("doubt") * pl.col("worth"))
    return judged.sort("score", "product_id", descending=[True, False])


def _chosen(judged: pl.DataFrame, drawn: pl.DataFrame, budget: int) -> list[dict[str, Any]]:
    """At most `budget` rows that were `judged`, the best first. Titles near those that were `drawn` are left out."""
    if budget < 1 or judged.is_empty():
        return []
    doubts = dict(judged.group_by("category").agg(pl.col("doubt").sum()).iter_rows())
    total = sum(doubts.values()) or 1.0
    quotas = {category: max(1, math.ceil(budget * doubt / total)) for category, doubt in doubts.items()}
    quota = pl.col("category").replace_strict(quotas, default=1, return_dtype=pl.Int64)
    ahead = judged.filter(pl.int_range(pl.len()).over("category") < _AHEAD * quota)
    shown: dict[str, list[frozenset[str]]] = defaultdict(list)
    for category, title in drawn.select("category", "title").iter_rows():
        shown[category].append(_pairs(title))
    counts: dict[str, int] = defaultdict(int)
    taken: list[dict[str, Any]] = []
    beyond = []
    for row in ahead.to_dicts():
        if counts[row["category"]] == quotas[row["category"]]:
            beyond.append(row)
        elif len(taken) < budget and _is_fresh(row, shown):
            counts[row["category"]] += 1
            taken.append(row)
    for row in beyond:
        if len(taken) < budget and _is_fresh(row, shown):
            taken.append(row)
    return sorted(taken, key=lambda row: (-row["score"], row["product_id"]))


def _is_fresh(row: dict[str, Any], shown: dict[str, list[frozenset[str]]]) -> bool:
    """Whether no title in `shown`, to which this one is added, is near the row's in its category."""
    mine, others = _pairs(row["title"]), shown[row["category"]]
    for other in others:
        common = len(mine & other)
        if common >= NEAR * (len(mine) + len(other) - common):
            return False
    others.append(mine)
    return True


def _pairs(title: str | None) -> frozenset[str]:
    """Pairs of letters, for any script; numbers such as sizes are ignored."""
    text = re.sub(r"[\W\d_]+", " ", f" {same_design(title or '')} ")
    return frozenset(text[place : place + 2] for place in range(len(text) - 1))


def _why(row: dict[str, Any]) -> tuple[str, ...]:
    """The reasons for picking a product, the strongest first."""
    reasons = [
        (row["of_category"], "category in doubt"),
        (row["of_photos"] / 2, "its photos disagree"),
        (row["of_price"] / 2, "wide price"),
        (row["of_fields"] / 2, "further field in doubt"),
    ]
    told = [text for doubt, text in sorted(reasons, key=lambda reason: -reason[0]) if doubt >= 0.1]
    return (*(told or ["less certain than others"]), *(["expensive"] if row["worth"] >= 1.5 else []))
