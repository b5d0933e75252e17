"""Review decisions: a separate history, applied to products.parquet at every publish.

Decisions are append-only like rows: a file under reviews/ is created once, named by its content. The newest decision
about a photo's bytes holds for every later run and under every key; for new bytes the model's answer counts again.
Newest means applied last: files have a sequence number, because clocks of browsers and machines differ.
"""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from enrich.errors import RunFailed
from enrich.output import parquet
from enrich.output.decisions import REJECTED, Decision
from enrich.output.schema import REVIEW_SCHEMA
from enrich.storage import Store

REVIEWS = "reviews"
_LATER_COLUMNS = ("confirmed", "sequence")  # missing in files of the first version
_WHO = ("reviewed_by", "reviewed_at")


def review_key(digest: str) -> str:
    """The key for the decisions of a file, derived from its content, so that a file counts once."""
    return f"{REVIEWS}/{digest[:32]}.parquet"


def read_reviews(output: Store) -> pl.DataFrame:
    """Every decision ever made (REVIEW_SCHEMA)."""
    tables = [parquet.empty(REVIEW_SCHEMA)]
    for info in output.list(REVIEWS):
        file = parquet.read(output, info.key, REVIEW_SCHEMA, optional=_LATER_COLUMNS)
        if file is None:
            raise RunFailed(f"{output.uri_of(info.key)} was there a moment ago; start again")
        tables.append(file.table)
    both = ["title", "category"]
    own_price = pl.col("price").ne_missing(pl.col("suggested_price"))
    confirmed = (
        pl.when(pl.col("decision") == REJECTED).then(pl.lit([], pl.List(pl.String)))
        .when(own_price).then(pl.lit([*both, "price"], pl.List(pl.String))).otherwise(pl.lit(both, pl.List(pl.String)))
    )  # fmt: skip
    return pl.concat(tables).with_columns(
        confirmed=pl.coalesce("confirmed", confirmed), sequence=pl.col("sequence").fill_null(0)
    )


def next_reviews(
    reviews: pl.DataFrame, decisions: Sequence[Decision], reviewed_by: str, reviewed_at: datetime
) -> pl.DataFrame:
    """Decisions as rows that follow all of `reviews` (both REVIEW_SCHEMA)."""
    sequence = 1 + (reviews["sequence"].max() or 0)  # type: ignore[operator]  # of an int column
    who = {"reviewed_by": reviewed_by, "reviewed_at": reviewed_at, "sequence": sequence}
    return parquet.from_records([{**one.model_dump(), **who} for one in decisions], REVIEW_SCHEMA)


def write_reviews(output: Store, digest: str, rows: pl.DataFrame) -> bool:
    """Add the decisions of a file to history; idempotent. Returns False if they were already there."""
    return output.create(review_key(digest), parquet.encode(rows, REVIEW_SCHEMA, {}))


def standing(reviews: pl.DataFrame) -> pl.DataFrame:
    """The combined decisions about each photo: columns photo, decision, title, category, price, currency, priced,
    reviewed_by, reviewed_at.

    Each field is from the newest decision that settles it. A rejection settles all of them; for a price that
    nobody confirmed (`priced` is False), the model's answer still counts.
    """
    ordered = reviews.with_columns(photo=photo()).sort(
        "sequence", "reviewed_at", "reviewed_by", "decision", "title", "category", "price"
    )
    settled = (pl.col("decision") == REJECTED) | pl.col("confirmed").list.contains("price")
    prices = ordered.filter(settled).unique("photo", keep="last").select("photo", "price", "currency", priced=True)
    return (
        ordered.unique("photo", keep="last")
        .select("photo", "decision", "title", "category", *_WHO)
        .join(prices, on="photo", how="left")
        .with_columns(pl.col("priced").fill_null(False))
    )


def apply_reviews(products: pl.DataFrame, reviews: pl.DataFrame) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with decisions about a photo's bytes in place of the model's answer.

    The result does not depend on the order of decisions and runs. An accepted or edited row is certain and needs no
    review, except that a price that nobody confirmed is still an estimate with an interval. A rejected row loses title,
    category and price, so that nobody uses them.
    """
    if not reviews.height:
        return products
    said = standing(reviews).rename(lambda name: name if name == "photo" else f"_{name}")
    answered = pl.col("_decision").is_not_null() & (pl.col("status") == "ok")
    rejected = pl.col("_decision") == REJECTED
    reasons = pl.when(rejected).then(pl.lit([REJECTED])).otherwise(pl.lit([], pl.List(pl.String)))
    certain: dict[str, pl.Expr] = {
        **{name: pl.col(f"_{name}") for name in ("title", "category", *_WHO)},
        "category_confidence": pl.when(rejected).then(None).otherwise(pl.lit(1.0, pl.Float32)),
        "category_alternatives": pl.col("category_alternatives").list.head(0),
        "needs_review": pl.lit(False),
        "review_reasons": reasons,
    }
    priced: dict[str, pl.Expr] = {  # a confirmed price is not an estimate: it has no interval
        **{name: pl.col(f"_{name}") for name in ("price", "currency")},
        **{name: pl.lit(None, pl.Float64) for name in ("price_low", "price_high")},
    }
    joined = products.with_columns(photo=photo()).join(said, on="photo", how="left", maintain_order="left")
    return joined.with_columns(
        *(pl.when(answered).then(value).otherwise(pl.col(name)).alias(name) for name, value in certain.items()),
        *(
            pl.when(answered & pl.col("_priced")).then(value).otherwise(pl.col(name)).alias(name)
            for name, value in priced.items()
        ),
    ).select(products.columns)


def photo() -> pl.Expr:
    """The identity of a photo: its bytes, under any key; key and version if the bytes were never hashed."""
    return pl.coalesce("image_sha256", pl.concat_str("image_key", "image_etag", separator="\0"))


def photo_of(decision: Decision) -> str:
    """`photo` for a decision."""
    return decision.image_sha256 or f"{decision.image_key}\0{decision.image_etag}"
