"""The schemas of all files: one row type and a Parquet schema for each kind of file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from enrich.vocabulary import Alternative

SCHEMA_VERSION = 3  # 3: a row is about a product and all of its photos; `enrich.output.upgrade` reads version 2
DIGITAL_SOURCE_TYPE = "trained_algorithmic_media"  # what Google Merchant Center asks of generated titles


@dataclass(frozen=True, kw_only=True)
class RowPhoto:
    """A photo of a product, as its row has it. One that no prompt needed has key, uri and etag only."""

    key: str
    uri: str
    etag: str  # of the bytes that were read, else of the listing
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    error_kind: str | None = None
    photo_issues: tuple[str, ...] | None = None  # None where it was not decoded


@dataclass(frozen=True)
class Attribute:
    """The answer to a declared field beyond title, category and price."""

    value: str | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome for one product, ok or failed. Field order is column order."""

    product_id: str
    status: str
    title: str | None = None
    category: str | None = None
    category_path: tuple[str, ...] | None = None  # None where categories are leaves
    category_id: str | None = None
    category_confidence: float | None = None
    category_alternatives: tuple[Alternative, ...] = ()
    price: float | None = None
    price_low: float | None = None
    price_high: float | None = None
    currency: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    needs_review: bool = False
    review_reasons: tuple[str, ...] = ()
    photos: tuple[RowPhoto, ...]
    photos_answered: int = 0  # that the model was shown
    looks: int | None = None  # that the model took at them; None where it was shown none
    error_kind: str | None = None
    error_message: str | None = None
    attempt: int
    model: str
    adapter: str
    prompt_version: str
    fingerprint: str
    engine: str
    run_id: str
    shard: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    processed_at: datetime
    digital_source_type: str = DIGITAL_SOURCE_TYPE
    schema_version: int = SCHEMA_VERSION


_ALTERNATIVE = pa.struct([("category", pa.string()), ("confidence", pa.float32())])
_ATTRIBUTE = pa.struct([("value", pa.string()), ("confidence", pa.float32())])
ROW_PHOTO = pa.struct(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error_kind", pa.string()),
        ("photo_issues", pa.list_(pa.string())),  # last: files from before there was any are read too (`upgrade.forms`)
    ]
)

ROW_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("status", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("category_path", pa.list_(pa.string())),
        ("category_id", pa.string()),
        ("category_confidence", pa.float32()),
        ("category_alternatives", pa.list_(_ALTERNATIVE)),
        ("price", pa.float64()),
        ("price_low", pa.float64()),
        ("price_high", pa.float64()),
        ("currency", pa.string()),
        ("attributes", pa.map_(pa.string(), _ATTRIBUTE)),
        ("needs_review", pa.bool_()),
        ("review_reasons", pa.list_(pa.string())),
        ("photos", pa.list_(ROW_PHOTO)),
        ("photos_answered", pa.int16()),
        ("looks", pa.int8()),
        ("error_kind", pa.string()),
        ("error_message", pa.string()),
        ("attempt", pa.int16()),
        ("model", pa.string()),
        ("adapter", pa.string()),
        ("prompt_version", pa.string()),
        ("fingerprint", pa.string()),
        ("engine", pa.string()),
        ("run_id", pa.string()),
        ("shard", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("processed_at", pa.timestamp("us", tz="UTC")),
        ("digital_source_type", pa.string()),
        ("schema_version", pa.int16()),
    ]
)

# Files of history. Their folder repeats run_id, of which pandas.read_parquet and pyarrow.parquet.read_table make a
# dictionary: a plain string in the file would be refused as another type.
HISTORY_SCHEMA = pa.schema(
    field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.name == "run_id" else field for field in ROW_SCHEMA
)

# products.parquet: the row shown, whether its product is still there, and the newest outcome where that is another.
PRODUCTS_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field("in_source", pa.bool_()),
        pa.field("last_photos_etag", pa.string()),
        pa.field("last_status", pa.string()),
        pa.field("last_error_kind", pa.string()),
        pa.field("last_attempt", pa.int16()),
        pa.field("last_run_id", pa.string()),
        pa.field("reviewed_by", pa.string()),
        pa.field("reviewed_at", pa.timestamp("us", tz="UTC")),
    ]
)

# reviews/ID.parquet: what people decided, append-only. Title, category, price and attributes are the outcome, null
# where rejected.
REVIEW_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("photos", pa.list_(pa.struct([("key", pa.string()), ("etag", pa.string()), ("sha256", pa.string())]))),
        ("run_id", pa.string()),  # of the row that was decided on
        ("decision", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("category_path", pa.list_(pa.string())),  # as in a row, all levels of the category
        ("category_id", pa.string()),
        ("price", pa.float64()),
        ("currency", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),  # further fields that were decided; null: cannot be seen
        ("suggested_title", pa.string()),
        ("suggested_category", pa.string()),
        ("suggested_price", pa.float64()),
        ("suggested_attributes", pa.map_(pa.string(), pa.string())),
        ("reviewed_by", pa.string()),
        ("reviewed_at", pa.timestamp("us", tz="UTC")),
        ("confirmed", pa.list_(pa.string())),
        ("sequence", pa.int64()),  # orders decisions about a product, whatever clocks say
        ("picked", pa.string()),  # by `enrich label`: chosen or random
        ("adapter", pa.string()),  # this and the next four: of the row that was decided on, as the model answered it
        ("suggested_confidence", pa.float32()),
        ("suggested_price_low", pa.float64()),
        ("suggested_price_high", pa.float64()),
        ("suggested_confidences", pa.map_(pa.string(), pa.float32())),  # of the further fields
    ]
)

# A listing: the photos that are there. It is a local file and not kept.
LISTING_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
_LISTED_PHOTOS = pa.list_(pa.struct(list(LISTING_SCHEMA)))

# runs/ID/source.parquet: the products a run saw; what is in products.parquet and not here is gone.
SOURCE_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("photos", _LISTED_PHOTOS),  # in the product's order
        ("photos_etag", pa.string()),  # sha256 of the ordered (key, etag) pairs, 32 digits; see `versions`
    ]
)

MANIFEST_SCHEMA = pa.schema(
    [
        *SOURCE_SCHEMA,
        pa.field("reason", pa.string()),
        pa.field("attempt", pa.int16()),
        pa.field("shard", pa.int32()),
    ]
)


# `otherwise`: where value is null, the most probable one; `review`: a person should look.
_ANSWERED_ATTRIBUTE = pa.struct([*_ATTRIBUTE, ("otherwise", pa.string()), ("review", pa.bool_())])

# scores.parquet next to an adapter's or a run's metrics: what held-out products are, and what was answered.
SCORE_SCHEMA = pa.schema(
    [
        ("product_code", pa.string()),
        ("title", pa.string()),  # this and the next two: the catalog's
        ("category", pa.string()),
        ("price", pa.float64()),
        ("attributes", pa.map_(pa.string(), pa.string())),  # the catalog's values of the further fields
        ("best_price", pa.float64()),  # what an estimator who knows everything visible would say; sample catalogs only
        ("answered_title", pa.string()),
        ("answered_category", pa.string()),
        ("answered_price", pa.float64()),
        ("answered_attributes", pa.map_(pa.string(), _ANSWERED_ATTRIBUTE)),
        ("answered_path", pa.list_(pa.string())),  # null where categories are leaves; else the levels to rely on
        ("level_confidences", pa.list_(pa.float64())),  # of all levels of the answered category, the broadest first
        ("category_confidence", pa.float64()),
        ("price_low", pa.float64()),  # 90 %
        ("price_high", pa.float64()),
        ("price_low_80", pa.float64()),
        ("price_high_80", pa.float64()),
        ("price_crps", pa.float64()),  # log units
        ("needs_review", pa.bool_()),
        ("review_reasons", pa.list_(pa.string())),
        ("error_kind", pa.string()),
    ]
)


# The order of every table of rows; nulls last, so failed products come at the end.
ROW_ORDER = ("category", "product_id")
