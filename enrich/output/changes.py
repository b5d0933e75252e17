"""Compare a run's answers with the answers that its products had before."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from enrich.answers.amount import decimals
from enrich.output.run_record import Change, Changes

PRICE_MOVED = 0.2  # share of the previous price
EXAMPLES = 12  # kept in run.json
_FIELD = "field."  # before the name of a declared field, which may be that of another column


def compare(rows: pl.DataFrame, before: pl.LazyFrame, manifest: pl.LazyFrame, listing: pl.LazyFrame) -> Changes:
    """Compare a run with the table as it was before the run.

    Args:
        rows: the run's rows (ROW_SCHEMA).
        before: products.parquet (PRODUCTS_SCHEMA) before the run was published; of this table and those below, at most
            as many rows as `rows` has are loaded into memory.
        manifest: the run's manifest; columns product_id and reason are read.
        listing: the source as the run listed it, column product_id.
    """
    there, answered = before.filter("in_source"), (pl.col("status") == "ok").sum()
    gone = there.join(listing, on="product_id", how="anti").select(pl.len(), answered)
    all_gone, gone_answered = gone.collect(engine="streaming").row(0)
    ids = rows.lazy().select("product_id")
    known = before.join(ids, on="product_id", how="semi").collect(engine="streaming")
    reasons = manifest.select("reason", "product_id").join(ids, on="product_id", how="semi")
    pairs = rows.join(known, on="product_id", suffix="_before").join(
        reasons.collect(engine="streaming"), on="product_id", how="left"
    )
    was_good, is_good = pl.col("status_before") == "ok", pl.col("status") == "ok"
    good = pairs.filter(was_good, is_good).with_columns(
        other_title=pl.col("title").ne_missing(pl.col("title_before")),
        other_category=pl.col("category").ne_missing(pl.col("category_before")),
        other_price=pl.col("price").is_null().ne(pl.col("price_before").is_null())
        | ((pl.col("price") / pl.col("price_before") - 1).abs() > PRICE_MOVED).fill_null(False),
    )
    names = good.select(pl.col("attributes").map.keys().explode().unique(maintain_order=True).drop_nulls()).to_series()
    good = good.with_columns(_other_value(name).alias(f"other_{_FIELD}{name}") for name in names)
    changed = good.filter(pl.any_horizontal(r"^other_.*$"))
    first = changed.sort("other_category", "other_price", "product_id", descending=[True, True, False]).head(EXAMPLES)
    return Changes(
        compared=good.height,
        title=int(good["other_title"].sum()),
        category=int(good["other_category"].sum()),
        price=int(good["other_price"].sum()),
        by_reason=dict(changed["reason"].value_counts().sort("reason").iter_rows()),
        now_failing=pairs.filter(was_good, ~is_good).height,
        repaired=pairs.filter(~was_good, is_good).height,
        attributes={name: int(good[f"other_{_FIELD}{name}"].sum()) for name in names},
        gone=all_gone,
        gone_answered=gone_answered,
        answered=there.select(answered).collect(engine="streaming").item(),
        examples=tuple(
            Change(row["product_id"], row["reason"], _line(row, "_before", names), _line(row, "", names))
            for row in first.iter_rows(named=True)
        ),
    )


def _other_value(name: str) -> pl.Expr:
    """Whether a declared field has a different value than in an earlier answer."""
    now, before = (pl.col(column).map.get(name) for column in ("attributes", "attributes_before"))
    other = now.struct.field("value").ne_missing(before.struct.field("value"))
    return (other & now.is_not_null() & before.is_not_null()).fill_null(False)


def newest_outcomes(products: pl.LazyFrame) -> tuple[int, dict[str, int]]:
    """Count the products of products.parquet that are in the source: those answered, and the failures by kind."""
    counted = (
        products.filter("in_source")
        .group_by("last_status", "last_error_kind")
        .len()
        .collect(engine="streaming")
        .sort("last_error_kind")
    )
    failed = {kind: count for status, kind, count in counted.iter_rows() if status != "ok"}
    return counted["len"].sum() - sum(failed.values()), failed


def _price(price: float | None, currency: str | None) -> str:
    return "no price" if price is None else f"{round(price, decimals(currency)):,.15g}"


def _line(row: dict[str, Any], suffix: str, names: Iterable[str]) -> str:
    attributes = row[f"attributes{suffix}"]
    told = [row[f"title{suffix}"], row[f"category{suffix}"], _price(row[f"price{suffix}"], row[f"currency{suffix}"])]
    told += [f"{name} {attributes[name]['value'] or 'unknown'}" for name in names if row[f"other_{_FIELD}{name}"]]
    return ", ".join(map(str, told))
