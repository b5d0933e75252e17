"""Apply current settings to existing rows: their ids and URIs, and which of them need review.

The answers do not change, so changed settings take effect without answering any photo again.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from enrich.answers.title_rules import breaks_rules
from enrich.output.product_ids import product_id
from enrich.output.run_record import PublishedRun
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.vocabulary import ReviewReason

RULES_KEY = "enrich.rules"  # metadata of a listing: Rules as JSON


class Rules(BaseModel):
    """The settings that a run used for this."""

    model_config = ConfigDict(frozen=True)

    product_id_pattern: str
    review: ReviewSettings

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """The rules in `settings`."""
        return cls(product_id_pattern=settings.product_id_pattern, review=settings.review)

    @classmethod
    def read(cls, text: str | bytes) -> Self | None:
        """The rules of a listing; None if a version with other settings wrote it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    @property
    def digest(self) -> str:
        """A hash that identifies the rules, 16 hex digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def restated(
    products: pl.DataFrame, rules: Rules, runs: Mapping[str, PublishedRun], only: Collection[str] | None = None
) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) under `rules`; with `only`, just the rows of these runs change."""
    chosen = pl.lit(True) if only is None else pl.col("run_id").is_in(list(only))
    rows = with_ids(products.filter(chosen), rules)
    return pl.concat([products.filter(~chosen), judged_again(rows, rules, runs)])


def with_uris(products: pl.DataFrame, runs: Mapping[str, PublishedRun], images_uri: str) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with the URI at which each photo was last seen.

    Args:
        runs: the runs in run_id; a row of any other run keeps its URI.
        images_uri: the location of the photos that are in the source.
    """
    named = [name for name, run in runs.items() if run.images_uri]
    answered = pl.col("run_id").replace_strict(
        named, [runs[name].images_uri for name in named], default=None, return_dtype=pl.String
    )
    place = pl.when("in_source").then(pl.lit(images_uri)).otherwise(answered)
    uri = pl.concat_str(place, pl.col("image_key"), separator="/")
    return products.with_columns(image_uri=pl.coalesce(uri, "image_uri"))


def with_ids(rows: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """`rows` with the product_id of each image_key."""
    keys = rows["image_key"]
    ids = pl.Series([product_id(rules.product_id_pattern, key) for key in keys], dtype=pl.String)
    return rows.with_columns(product_id=ids)


def judged_again(products: pl.DataFrame, rules: Rules, runs: Mapping[str, PublishedRun]) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with those review reasons recomputed that depend only on the rows.

    The others (`category_unknown`, `price_outlier`, `title_ungrounded`) need the tokens of the answer or the adapter's
    calibration and do not change, and neither do reviewed rows.

    Args:
        runs: the runs in run_id, for the confidence limits of their adapters.
    """
    named = list(runs)
    own = pl.col("run_id").replace_strict(
        named, [runs[name].review_below for name in named], default=None, return_dtype=pl.Float64
    )
    review = rules.review
    least = own if review.min_confidence is None else pl.lit(review.min_confidence)
    titles = products["title"].unique().drop_nulls()
    broken = titles.filter(pl.Series([breaks_rules(title, review.titles) for title in titles], dtype=pl.Boolean))
    was = {reason: pl.col("review_reasons").list.contains(reason.value) for reason in ReviewReason}
    unsure = pl.coalesce(pl.col("category_confidence").cast(pl.Float64) < least, was[ReviewReason.LOW_CONFIDENCE])
    now = {  # in the order of `answers.postprocess`
        ReviewReason.CATEGORY_UNKNOWN: was[ReviewReason.CATEGORY_UNKNOWN],
        ReviewReason.LOW_CONFIDENCE: unsure,
        ReviewReason.WIDE_PRICE: (pl.col("price_high") / pl.col("price_low") > review.max_price_ratio).fill_null(False),
        ReviewReason.PRICE_OUTLIER: was[ReviewReason.PRICE_OUTLIER],
        ReviewReason.TITLE_RULE: pl.col("title").is_in(broken.implode()).fill_null(False),
        ReviewReason.TITLE_UNGROUNDED: was[ReviewReason.TITLE_UNGROUNDED],
    }
    reasons = pl.concat_list(
        pl.when(applies).then(pl.lit(reason.value)).otherwise(pl.lit(None, pl.String))
        for reason, applies in now.items()
    ).list.drop_nulls()
    models = (pl.col("status") == "ok") & pl.col("reviewed_by").is_null()
    judged = products.with_columns(review_reasons=pl.when(models).then(reasons).otherwise(pl.col("review_reasons")))
    needs = pl.when(models).then(pl.col("review_reasons").list.len() > 0).otherwise(pl.col("needs_review"))
    return judged.with_columns(needs_review=needs)
