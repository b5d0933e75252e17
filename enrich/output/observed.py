"""Estimate the error rate of answers from people's decisions about randomly picked products.

Only random picks count: rows that were picked for their low confidence are wrong more often than others.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import polars as pl

from enrich.answers.calibration import LEVEL
from enrich.output.decisions import REJECTED
from enrich.output.reviews import with_identity
from enrich.output.run_record import FieldErrors, Observed
from enrich.scores.shares import wilson
from enrich.vocabulary import same_design

FEWEST = 30  # decisions about a field: of fewer, the interval of a rate is wider than 0.2 or so
_Row = Mapping[str, Any]
_Seen = tuple[bool, float | None]  # whether an answer was wrong, and how probable its confidence says that is


def observe(reviews: pl.DataFrame, adapter: str) -> Observed | None:
    """The error rates of an adapter's answers from its `reviews` (REVIEW_SCHEMA); None if too few were random picks.

    A rejected row counts as wrong in every field that it had. A price counts only if a person confirmed one, and a
    declared field only if it was decided.
    """
    random = with_identity(reviews.filter(pl.col("picked") == "random", pl.col("adapter") == adapter))
    rows = random.sort("sequence").unique(pl.coalesce("bytes", "version"), keep="last").sort("product_id").to_dicts()
    names = sorted({name for row in rows for name in row["suggested_attributes"] or {}})
    seen: dict[str, list[_Seen]] = {
        "title": [(_differ(row, "title"), None) for row in rows],
        "category": [(_differ(row, "category"), _doubt(row["suggested_confidence"])) for row in rows],
        "price": list(_prices(rows)),
        **{name: list(_attributes(rows, name)) for name in names},
    }
    fields = tuple(_errors(name, some) for name, some in seen.items() if len(some) >= FEWEST)
    return Observed(len(rows), fields) if fields else None


def _errors(field: str, seen: Sequence[_Seen]) -> FieldErrors:
    wrong, claims = sum(one for one, _ in seen), [claim for _, claim in seen if claim is not None]
    return FieldErrors(
        field, len(seen), wrong / len(seen), *wilson(wrong, len(seen)), fmean(claims) if claims else None
    )


def _differ(row: _Row, name: str) -> bool:
    return row["decision"] == REJECTED or same_design(row[name] or "") != same_design(row[f"suggested_{name}"] or "")


def _doubt(confidence: float | None) -> float | None:
    return None if confidence is None else 1 - confidence


def _prices(rows: Sequence[_Row]) -> Iterator[_Seen]:
    for row in rows:
        low, high, price = row["suggested_price_low"], row["suggested_price_high"], row["price"]
        if low is None or high is None:
            continue
        if row["decision"] == REJECTED:
            yield True, 1 - LEVEL
        elif price is not None and "price" in row["confirmed"]:
            yield not low <= price <= high, 1 - LEVEL


def _attributes(rows: Sequence[_Row], name: str) -> Iterator[_Seen]:
    for row in rows:
        suggested, decided = row["suggested_attributes"] or {}, row["attributes"] or {}
        if name in suggested and (row["decision"] == REJECTED or name in decided):
            same = same_design(suggested[name] or "") == same_design(decided.get(name) or "")
            doubt = _doubt((row["suggested_confidences"] or {}).get(name))
            yield row["decision"] == REJECTED or not same, doubt
