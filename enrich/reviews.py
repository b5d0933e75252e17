"""What people decided about rows: a history of its own, laid over products.parquet at every publish.

Decisions are append-only like rows: a file under reviews/ is created once, named by its content. Whatever run answers a
photo later, and under whatever key, the newest decision about its bytes stands; new bytes are the model's again.
"""

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from enrich import parquet
from enrich.errors import RunFailed, UsageError
from enrich.parse import MAX_TITLE, holds_control_characters
from enrich.schema import REVIEW_SCHEMA
from enrich.storage import Store

REVIEWS = "reviews"
FILE_FORMAT = "enrich-review-1"
REJECTED = "rejected"  # in review_reasons of a row that has no title, category and price any more


class Decision(BaseModel):
    """What a person made of one suggestion. Title, category and price are the outcome."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_key: str
    image_etag: str
    image_sha256: str | None = None
    run_id: str
    decision: Literal["accepted", "edited", "rejected"]
    title: str | None = None
    category: str | None = None
    price: float | None = Field(default=None, gt=0)
    currency: str | None = None
    suggested_title: str | None = None
    suggested_category: str | None = None
    suggested_price: float | None = None
    reviewed_at: datetime

    @field_validator("title", "category")
    @classmethod
    def _one_visible_line(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or len(text) > MAX_TITLE or holds_control_characters(text)):
            raise ValueError(f"one line of 1 to {MAX_TITLE} characters is wanted")
        return text.strip() if text else text

    @field_validator("price")
    @classmethod
    def _finite(cls, price: float | None) -> float | None:
        if price is not None and not math.isfinite(price):
            raise ValueError("a price is a number")
        return price

    @field_validator("reviewed_at")
    @classmethod
    def _in_utc(cls, moment: datetime) -> datetime:
        if moment.tzinfo is None:
            raise ValueError("a time needs its zone")
        return moment.astimezone(UTC)

    @model_validator(mode="after")
    def _says_what_is_right(self) -> "Decision":
        if self.decision == REJECTED:
            if self.title or self.category or self.price:
                raise ValueError("a rejected row has no title, category or price")
        elif not self.title or not self.category:
            raise ValueError("an accepted or edited row needs a title and a category")
        return self


class DecisionFile(BaseModel):
    """What the review page saves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["enrich-review-1"]
    output: str
    reviewed_by: str = Field(min_length=1, max_length=200)
    decisions: tuple[Decision, ...] = Field(min_length=1)


def read_decisions(path: Path) -> DecisionFile:
    """The file that a review page saved; UsageError if it cannot be read or is none."""
    try:
        return DecisionFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name the file that the review page saved") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}; save it again from the review page") from error


def write_reviews(output: Store, decided: DecisionFile) -> str:
    """Add decisions to history, once however often it is called. Returns the key of their file."""
    rows = [{**one.model_dump(), "reviewed_by": decided.reviewed_by} for one in decided.decisions]
    digest = hashlib.sha256(decided.model_dump_json().encode()).hexdigest()
    first = min(one.reviewed_at for one in decided.decisions)
    key = f"{REVIEWS}/{first:%Y%m%dT%H%M%SZ}-{digest[:16]}.parquet"
    output.create(key, parquet.encode(parquet.from_records(rows, REVIEW_SCHEMA), REVIEW_SCHEMA, {}))
    return key


def read_reviews(output: Store) -> pl.DataFrame:
    """Every decision ever made (REVIEW_SCHEMA)."""
    tables = [parquet.empty(REVIEW_SCHEMA)]
    for info in output.list(REVIEWS):
        file = parquet.read(output, info.key, REVIEW_SCHEMA)
        if file is None:
            raise RunFailed(f"{output.uri_of(info.key)} was there a moment ago; start again")
        tables.append(file.table)
    return pl.concat(tables)


def lay_over(products: pl.DataFrame, reviews: pl.DataFrame) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with the newest decision about a photo's bytes in place of the model's answer.

    The same table whatever the order of decisions and runs. An accepted or edited row is certain and needs no review;
    a rejected one loses title, category and price, so that nobody uses them.
    """
    if not reviews.height:
        return products
    newest = (
        reviews.select(
            _photo(),
            *(pl.col(name).alias(f"_{name}") for name in ("decision", *_OUTCOME, *_WHO)),
        )
        .sort("_reviewed_at", "_reviewed_by", "_decision", "_title", "_category", "_price")
        .unique("_photo", keep="last")
    )
    answered = pl.col("_decision").is_not_null() & (pl.col("status") == "ok")
    rejected = pl.col("_decision") == REJECTED
    reasons = pl.when(rejected).then(pl.lit([REJECTED])).otherwise(pl.lit([], pl.List(pl.String)))
    said: dict[str, pl.Expr] = {
        **{name: pl.col(f"_{name}") for name in (*_OUTCOME, *_WHO)},
        # What a person stands for is no estimate: it is certain, and has no interval.
        "price_low": pl.lit(None, pl.Float64),
        "price_high": pl.lit(None, pl.Float64),
        "category_confidence": pl.when(rejected).then(None).otherwise(pl.lit(1.0, pl.Float32)),
        "category_alternatives": pl.col("category_alternatives").list.head(0),
        "needs_review": pl.lit(False),
        "review_reasons": reasons,
    }
    joined = products.with_columns(_photo()).join(newest, on="_photo", how="left", maintain_order="left")
    return joined.with_columns(
        pl.when(answered).then(value).otherwise(pl.col(name)).alias(name) for name, value in said.items()
    ).select(products.columns)


_OUTCOME = ("title", "category", "price", "currency")
_WHO = ("reviewed_by", "reviewed_at")


def _photo() -> pl.Expr:
    """What makes a photo the same: its bytes, under whatever key; where they were never hashed, key and version."""
    return pl.coalesce("image_sha256", pl.concat_str("image_key", "image_etag", separator="\0")).alias("_photo")


def outdated(products: pl.DataFrame, decisions: Sequence[Decision]) -> list[Decision]:
    """Decisions about bytes that are no longer the ones shown; they wait in history."""
    shown = dict(products.select("image_key", _photo()).iter_rows())
    return [one for one in decisions if shown.get(one.image_key) != _bytes_of(one)]


def _bytes_of(decision: Decision) -> str:
    return decision.image_sha256 or f"{decision.image_key}\0{decision.image_etag}"
