"""The vocabulary of the domain: closed lists of values, and the types of products and photos. Loads nothing."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

MOST_PHOTOS = 24  # of a product
LONGEST_KEY = 4096  # characters of a photo's key, and of a product_id: S3 takes 1,024 bytes, paths of Linux 4,096
Language = Literal["en", "ja", "de", "fr", "es", "zh"]  # of questions and answers
PriceUnit = Literal["whole", "cents"]  # of the numbers in answers: units of the currency, or hundredths
RECORD_FILE = "train.json"  # of an adapter, written last: a directory without it is not a whole adapter


class ErrorKind(StrEnum):
    """Why a product has no answer, or what is wrong with one of its photos."""

    NOT_FOUND = "not_found"
    ACCESS_DENIED = "access_denied"
    DOWNLOAD_FAILED = "download_failed"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_MODE = "unsupported_mode"
    EMPTY = "empty"
    ENGINE_FAILED = "engine_failed"
    ANSWER_TRUNCATED = "answer_truncated"
    ANSWER_MALFORMED = "answer_malformed"
    CATEGORY_UNKNOWN = "category_unknown"
    PRICE_OUT_OF_RANGE = "price_out_of_range"


# Failures that the same bytes and the same fingerprint may not repeat; the others would only fail again.
TRANSIENT = frozenset(
    {ErrorKind.NOT_FOUND, ErrorKind.ACCESS_DENIED, ErrorKind.DOWNLOAD_FAILED, ErrorKind.ENGINE_FAILED}
)


class PhotoIssue(StrEnum):
    """What may be wrong with a photo that can be decoded. No photo is left out because of it."""

    BLURRED = "blurred"
    DARK = "dark"
    TINY = "tiny"
    BLANK = "blank"


class Reason(StrEnum):
    """Why a product is in a manifest."""

    NEW = "new"
    CHANGED = "changed"
    MODEL = "model"
    RETRY = "retry"


class ReviewReason(StrEnum):
    """Why a row needs review."""

    LOW_CONFIDENCE = "low_confidence"
    LOW_ATTRIBUTE_CONFIDENCE = "low_attribute_confidence"
    WIDE_PRICE = "wide_price"
    CATEGORY_UNKNOWN = "category_unknown"
    PRICE_OUTLIER = "price_outlier"
    TITLE_RULE = "title_rule"
    TITLE_UNGROUNDED = "title_ungrounded"
    PHOTOS_DISAGREE = "photos_disagree"


@dataclass(frozen=True)
class Product:
    """A labelled product of a catalog: the answer that its photos are trained on."""

    product_code: str
    title: str
    category: str
    price: float | None  # in the catalog's currency; None where the catalog has none
    image_paths: tuple[str, ...]  # absolute local paths of its photos in order; the first is the main photo
    # Values of the declared fields beyond these three, by name; None where the catalog has none.
    attributes: Mapping[str, str | None] = field(default_factory=dict, hash=False)


def same_design(title: str) -> str:
    """A title without case, spacing and compatibility characters: equal for all photos of one design."""
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())


@dataclass(frozen=True)
class ListedPhoto:
    """One photo of a product, as listed."""

    key: str
    size: int  # bytes
    etag: str


@dataclass(frozen=True)
class ManifestItem:
    """One product that a run must process."""

    product_id: str
    photos: tuple[ListedPhoto, ...]  # in the product's order, the main photo first
    photos_etag: str
    reason: Reason
    attempt: int  # 1 for the first try of these photos with this fingerprint
    shard: int


@dataclass(frozen=True)
class Alternative:
    """A category the model also considered, with its calibrated probability."""

    category: str
    confidence: float
