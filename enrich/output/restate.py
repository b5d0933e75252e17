"""Apply current settings to existing rows: the URIs of their photos, and which of them need review.

The answers do not change, so changed settings take effect without answering any product again.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from enrich.answers.title_rules import breaks_rules
from enrich.output.products import of_run
from enrich.output.run_record import PublishedRun
from enrich.output.schema import ROW_PHOTO
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.vocabulary import ReviewReason

RULES_KEY = "enrich.rules"  # metadata of a listing: Rules as JSON


class Rules(BaseModel):
    """The settings that a run used for this."""

    model_config = ConfigDict(frozen=True)

    review: ReviewSettings

    @classmethod
    def of(cls, settings: RunSettings) -> Self:
        """The rules in `settings`."""
        return cls(review=settings.review)

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
    return pl.concat([products.filter(~chosen), judged_again(products.filter(chosen), rules, runs)])


def with_uris(products: pl.DataFrame, runs: Mapping[str, PublishedRun], images_uri: str) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with the URIs at which the photos of each were last seen.

    They are below `images_uri` if the product is in the source, else where its run in `runs` saw it. Rows of others
    keep theirs.
    """
    answered = of_run("run_id", {name: run.images_uri or None for name, run in runs.items()}, pl.String())
    place = pl.when("in_source").then(pl.lit(images_uri)).otherwise(answered)
    first = pl.col("photos").list.first().struct
    wanted = pl.concat_str("place", first.field("key"), separator="/")
    rows = products.with_columns(place=place).with_row_index("row")
    moved = rows.filter(first.field("uri") != wanted).select("row", "place", "photos")
    if moved.is_empty():
        return products
    uri = pl.concat_str("place", "key", separator="/")
    fields = [field.name for field in ROW_PHOTO]
    again = moved.explode("photos").unnest("photos").with_columns(uri=uri)
    lists = again.group_by("row", maintain_order=True).agg(moved=pl.struct(fields))
    joined = rows.join(lists, on="row", how="left", maintain_order="left")
    return joined.with_columns(photos=pl.coalesce("moved", "photos")).select(products.columns)


def judged_again(products: pl.DataFrame, rules: Rules, runs: Mapping[str, PublishedRun]) -> pl.DataFrame:
    """`products` (PRODUCTS_SCHEMA) with those review reasons recomputed that depend only on the rows.

    The others (`category_unknown`, `price_outlier`, `title_ungrounded`, `photos_disagree`) need the tokens of
    the answers or the adapter's calibration and do not change. Neither do reviewed rows, nor the end of a path.
    `runs` know the confidence limits of their adapters, of the category and of each further field.
    """
    review = rules.review
    own = of_run("run_id", {name: run.review_below for name, run in runs.items()}, pl.Float64())
    least = own if review.min_confidence is None else pl.lit(review.min_confidence)
    titles = products["title"].unique().drop_nulls()
    broken = titles.filter(pl.Series([breaks_rules(title, review.titles) for title in titles], dtype=pl.Boolean))
    was = {reason: pl.col("review_reasons").list.contains(reason.value) for reason in ReviewReason}
    unsure = pl.coalesce(pl.col("category_confidence").cast(pl.Float64) < least, was[ReviewReason.LOW_CONFIDENCE])
    now = {  # in the order of `answers.postprocess`, those that it may add later at the end
        ReviewReason.CATEGORY_UNKNOWN: was[ReviewReason.CATEGORY_UNKNOWN],
        ReviewReason.LOW_CONFIDENCE: unsure,
        ReviewReason.LOW_ATTRIBUTE_CONFIDENCE: pl.coalesce(
            _unsure_field(products, review, runs), was[ReviewReason.LOW_ATTRIBUTE_CONFIDENCE]
        ),
        ReviewReason.WIDE_PRICE: (pl.col("price_high") / pl.col("price_low") > review.max_price_ratio).fill_null(False),
        ReviewReason.PRICE_OUTLIER: was[ReviewReason.PRICE_OUTLIER],
        ReviewReason.TITLE_RULE: pl.col("title").is_in(broken.implode()).fill_null(False),
    }
    now |= {reason: applied for reason, applied in was.items() if reason not in now}
    reasons = pl.concat_list(
        pl.when(applies).then(pl.lit(reason.value)).otherwise(pl.lit(None, pl.String))
        for reason, applies in now.items()
    ).list.drop_nulls()
    models = (pl.col("status") == "ok") & pl.col("reviewed_by").is_null()
    judged = products.with_columns(review_reasons=pl.when(models).then(reasons).otherwise(pl.col("review_reasons")))
    needs = pl.when(models).then(pl.col("review_reasons").list.len() > 0).otherwise(pl.col("needs_review"))
    return judged.with_columns(needs_review=needs)


def _unsure_field(products: pl.DataFrame, review: ReviewSettings, runs: Mapping[str, PublishedRun]) -> pl.Expr:
    """Whether a further field of a row is below its limit; null where a run's limits are not known."""
    names = products.select(pl.col("attributes").map.keys().explode().unique().drop_nulls()).to_series()
    below = [pl.lit(False)]
    for name in names:
        own = of_run("run_id", {run: of.fields_review_below.get(name) for run, of in runs.items()}, pl.Float64())
        least = own if review.min_confidence is None else pl.lit(review.min_confidence)
        confidence = pl.col("attributes").map.get(name).struct.field("confidence").cast(pl.Float64)
        below.append(pl.when(confidence.is_not_null()).then(confidence < least).otherwise(False))
    return pl.any_horizontal(below)
