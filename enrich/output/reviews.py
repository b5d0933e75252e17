"""Review decisions: a separate history, applied to products.parquet at every publish.

Decisions are append-only like rows: a file under reviews/ is created once, named by its content. The newest decision
about a product holds for every later run until its photos change; then the model's answer applies again. Photos are the
same if all their bytes are, under any etag, key and product_id; where some were never read, if product_id, keys and
etags are. Newest means applied last: files have a sequence number, because clocks of browsers and machines differ.
"""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from enrich.errors import RunFailed
from enrich.output import parquet
from enrich.output.decisions import REJECTED, Decision
from enrich.output.photos_etag import photos_etags
from enrich.output.schema import REVIEW_SCHEMA
from enrich.storage import Store

REVIEWS = "reviews"
_WHO = ("reviewed_by", "reviewed_at")
_OUTCOME = ("title", "category", "category_path", "category_id")
_SAID = ("number", "sequence", "decision", *_OUTCOME, "price", "currency", "attributes", "confirmed", *_WHO)


def review_key(digest: str) -> str:
    """The key for the decisions of a file, derived from its content, so that a file counts once."""
    return f"{REVIEWS}/{digest[:32]}.parquet"


def read_reviews(output: Store) -> pl.DataFrame:
    """Every decision ever made (REVIEW_SCHEMA)."""
    tables = [parquet.empty(REVIEW_SCHEMA)]
    for info in output.list(REVIEWS):
        if not info.key.endswith(".parquet"):  # such as .DS_Store
            continue
        file = parquet.read(output, info.key, REVIEW_SCHEMA, "restore it, or move it away and lose its decisions")
        if file is None:
            raise RunFailed(f"{output.uri_of(info.key)} has just been deleted; run again")
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


def standing(reviews: pl.DataFrame, products: pl.DataFrame) -> pl.DataFrame:
    """The combined decisions about those of `products` (columns product_id and photos) that have any: columns row (its
    number), decision, title, category, category_path, category_id, price, currency, priced, attributes, emptied,
    reviewed_by, reviewed_at.

    Each field is from the newest decision that settles it. A rejection settles all of them (`emptied`); for a price
    that nobody confirmed (`priced` is False), and for a declared field that is not in `attributes`, the model's answer
    still counts.
    """
    decided = with_identity(reviews).with_row_index("number")
    rows = products.select("product_id", "photos").with_row_index("row")
    # Few rows are decided on, and hashing the etags of all of them would take seconds a million.
    near = with_identity(
        rows.filter(
            pl.col("product_id").is_in(decided["product_id"].implode())
            | _bytes().is_in(decided["bytes"].drop_nulls().implode())
        )
    )
    about = pl.concat(
        near.select("row", name).drop_nulls().join(decided, on=name).select("row", *_SAID)
        for name in ("bytes", "version")
    ).unique(["row", "number"])
    ordered = about.sort("sequence", "reviewed_at", "reviewed_by", "decision", "title", "category", "price", "number")
    settled = (pl.col("decision") == REJECTED) | pl.col("confirmed").list.contains("price")
    prices = ordered.filter(settled).unique("row", keep="last", maintain_order=True)
    return (
        ordered.unique("row", keep="last", maintain_order=True)
        .select("row", "decision", *_OUTCOME, *_WHO)
        .join(prices.select("row", "price", "currency", priced=True), on="row", how="left")
        .join(_settled_attributes(ordered), on="row")
        .with_columns(pl.col("priced").fill_null(False))
        .sort("row")
    )


def _settled_attributes(ordered: pl.DataFrame) -> pl.DataFrame:
    """What decisions, the oldest first, say of each row's `attributes` since the last rejection (null: nothing), and
    whether there was one, which `emptied` them."""
    placed = ordered.with_columns(place=pl.int_range(pl.len()), rejected=pl.col("decision") == REJECTED)
    placed = placed.with_columns(since=pl.col("place").filter("rejected").max().over("row"))
    later = placed.filter(pl.col("since").is_null() | (pl.col("place") > pl.col("since")))
    rows = placed.group_by("row").agg(emptied=pl.col("rejected").any())
    return rows.join(_newest(_entries(later), ordered.schema["attributes"]), on="row", how="left")


def _entries(rows: pl.DataFrame) -> pl.DataFrame:
    """The column attributes of `rows` as columns row, key and value."""
    entries = rows.select("row", entry=pl.col("attributes").map.entries()).explode("entry")
    return entries.drop_nulls("entry").unnest("entry")


def _newest(entries: pl.DataFrame, kind: pl.DataType) -> pl.DataFrame:
    """Columns row and attributes, with the last of the `entries` of each key, in the order of the first ones."""
    newest = entries.group_by("row", "key", maintain_order=True).agg(pl.col("value").last())
    return (
        newest.group_by("row", maintain_order=True)
        .agg(attributes=pl.struct("key", "value"))
        .with_columns(pl.col("attributes").cast(kind))
    )


def apply_reviews(products: pl.DataFrame, reviews: pl.DataFrame) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with decisions about their photos in place of the model's answer.

    The result does not depend on the order of decisions and runs. An accepted or edited row is certain and needs no
    review, except that a price that nobody confirmed is still an estimate with an interval, and a declared field that
    nobody decided still the model's answer. A rejected row loses title, category, price and attributes, so that nobody
    uses them.
    """
    if not reviews.height:
        return products
    said = standing(reviews, products).rename(lambda name: name if name == "row" else f"_{name}")
    if said.is_empty():
        return products
    answered = pl.col("_decision").is_not_null() & (pl.col("status") == "ok")
    rejected = pl.col("_decision") == REJECTED
    reasons = pl.when(rejected).then(pl.lit([REJECTED])).otherwise(pl.lit([], pl.List(pl.String)))
    certain: dict[str, pl.Expr] = {
        **{name: pl.col(f"_{name}") for name in (*_OUTCOME, *_WHO)},
        "category_confidence": pl.when(rejected).then(None).otherwise(pl.lit(1.0, pl.Float32)),
        "category_alternatives": pl.col("category_alternatives").list.head(0),
        "attributes": pl.col("_attributes"),
        "needs_review": pl.lit(False),
        "review_reasons": reasons,
    }
    priced: dict[str, pl.Expr] = {  # a confirmed price is not an estimate: it has no interval
        **{name: pl.col(f"_{name}") for name in ("price", "currency")},
        **{name: pl.lit(None, pl.Float64) for name in ("price_low", "price_high")},
    }
    rows = products.with_row_index("row")
    said = said.drop("_attributes", "_emptied").join(_decided_attributes(rows, said), on="row")
    joined = rows.join(said, on="row", how="left", maintain_order="left")
    columns = _where(answered, certain) + _where(answered & pl.col("_priced"), priced)
    return joined.with_columns(columns).select(products.columns)


def _decided_attributes(rows: pl.DataFrame, said: pl.DataFrame) -> pl.DataFrame:
    """Columns row and _attributes: those of `rows`, with what was `said` about them in place of the model's answers."""
    kept = _entries(rows.join(said.filter(~pl.col("_emptied")), on="row", how="semi"))
    decided = _entries(said.select("row", attributes="_attributes")).with_columns(
        value=pl.struct("value", confidence=pl.lit(1.0, pl.Float32))
    )
    kind = rows.schema["attributes"]
    merged = _newest(pl.concat([kept, decided]), kind)
    nothing = pl.lit(pl.Series([{}], dtype=kind)).first()
    return (
        said.select("row")
        .join(merged, on="row", how="left")
        .select("row", _attributes=pl.coalesce("attributes", nothing))
    )


def _where(condition: pl.Expr, values: dict[str, pl.Expr]) -> list[pl.Expr]:
    """Columns with new values in some rows."""
    return [pl.when(condition).then(value).otherwise(name).alias(name) for name, value in values.items()]


def with_identity(table: pl.DataFrame) -> pl.DataFrame:
    """`table` (columns product_id and photos) with columns that show whether photos changed: `bytes`, null if some were
    never read, and `version`."""
    version = pl.concat_str(pl.col("product_id"), pl.lit("\0"), photos_etags(table["photos"]))
    return table.with_columns(bytes=_bytes(), version=version)


def _bytes() -> pl.Expr:
    digests = pl.col("photos").list.eval(pl.element().struct.field("sha256")).list.join(" ", ignore_nulls=False)
    return pl.when(pl.col("photos").list.len() > 0).then(digests)
