"""Settings of catalogs: columns, splits, downloads and the generated sample."""

import codecs
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from enrich.settings.base import Settings
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import MOST_PHOTOS

CHECKED_PHOTOS = 4000  # the most that `catalog check` decodes: about 10 s on two cores


class Columns(Settings):
    """Names of a catalog table's columns. The defaults are those of the tutorial's data set."""

    product_code: str = "product_code"
    title: str = "title"
    category: tuple[str, ...] = Field(
        default=("category3_code", "category2_code", "category1_code"),
        description="The first of these columns whose value is neither empty nor N.A. is the category",
    )
    levels: str = Field(
        default=">", min_length=1, max_length=3, description="Separator of a category's levels, such as / in Magento"
    )
    categories: str | None = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="Separator of several categories in a cell, of which the first with the most levels is used; null: "
        "one category a cell",
    )
    price: str = "full_price"
    currency: str = "currency_code"
    decimal: Literal[".", ","] | None = Field(
        default=None, description="Decimal mark of ambiguous prices such as 1.299; null: decided by the other prices"
    )
    rates: dict[str, float] = Field(
        default={},
        description="Value of a unit of each currency in the catalog's own currency, which is 1: {EUR: 1, USD: 0.92}; "
        "empty: several currencies are refused. {SEK: 1} alone says what kr means if no column does",
    )
    cents: bool = Field(default=False, description="Prices are in hundredths: 1299 is 12.99")
    image_path: str = Field(
        default="local_image_path",
        description="Photos of the product, the main one first: paths or data: URIs, several joined by |, or a list",
    )
    more_images: tuple[str, ...] = Field(
        default=(), description="Columns with further photos; `image_path: [first, second]` means the same"
    )
    encoding: str | None = Field(
        default=None, description="Encoding of a text table, such as windows-1252 or shift_jis; null: detected"
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Separator of a CSV file; null: comma, semicolon, tab or bar, detected",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_texts_and_lists(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name in ("category", "more_images"):
            if isinstance(values.get(name), str):
                values[name] = (values[name],)
        if isinstance(values.get("image_path"), list | tuple) and values["image_path"]:
            values["image_path"], *more = values["image_path"]
            values["more_images"] = (*more, *values.get("more_images", ()))
        return values

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            # Codecs such as zlib or rot13 turn bytes into something other than text.
            if encoding is not None and not codecs.lookup(encoding)._is_text_encoding:
                raise LookupError
        except LookupError as error:
            raise ValueError(
                f"{encoding!r} is not an encoding; write one such as windows-1252, shift_jis or gb18030"
            ) from error
        return encoding

    @field_validator("rates")
    @classmethod
    def _has_a_base(cls, rates: dict[str, float]) -> dict[str, float]:
        if rates and (list(rates.values()).count(1) != 1 or min(rates.values()) <= 0):
            raise ValueError("exactly one currency must be 1, the others above 0: {EUR: 1, USD: 0.92}")
        return {code.upper(): rate for code, rate in rates.items()}


class SplitSettings(Settings):
    """Shares of the rows. Products with the same title stay together; train gets the rest."""

    seed: int = 0
    validation: float = Field(default=0.05, gt=0, lt=0.5, description="Chooses the best checkpoint")
    calibration: float = Field(default=0.10, gt=0, lt=0.5, description="Calibrates confidences and price intervals")
    test: float = Field(default=0.10, gt=0, lt=0.5, description="Scores the adapter")


class SampleSettings(Settings):
    """A generated catalog of product photos."""

    products: int = Field(default=3000, ge=1, le=1_000_000)
    holdout: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Products in a separate catalog, with combinations of colour, fabric and kind that the main one "
        "never shows; null: a tenth of the products",
    )
    bucket: int = Field(default=120, ge=1, le=1_000_000, description="Ordinary products in the unlabelled bucket")
    seed: int = Field(default=0, ge=0)
    photos: int = Field(
        default=1,
        ge=1,
        le=4,
        description="Maximum number of photos of a product: front, back, detail, another angle; above 1 a product is a "
        "folder, and some titles and prices depend on what only a further photo shows",
    )
    language: Literal["en", "ja"] = Field(
        default="en", description="Language of titles, categories and further fields; same photos, ja has prices in yen"
    )


class FetchSettings(Settings):
    """Making a catalog from a table with photo URLs or embedded photos."""

    product_code: str = Field(default="product_code", description="Column with the product code")
    image_url: tuple[str, ...] = Field(
        default=("imageurl",),
        min_length=1,
        description="Columns with photo URLs or embedded photos, the main photo's first; a cell may have several",
    )
    photos_per_product: int = Field(default=5, ge=1, le=MOST_PHOTOS, description="Maximum number of photos in a row")
    limits: PhotoLimits = PhotoLimits()
    per_host: int = Field(default=8, ge=1, le=256, description="Simultaneous requests to one host")
    attempts: int = Field(default=4, ge=1, le=20, description="Attempts at a photo whose failure may be temporary")
    total_seconds: float = Field(
        default=120.0, gt=0, description="Seconds that one attempt at a photo may take, from DNS look-up to last byte"
    )
    allow_private: bool = Field(default=False, description="Also fetch from loopback, private and link-local addresses")
    proxy: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+/?$",
        description="http://host:port of a proxy, which then decides what may be reached; HTTP_PROXY is ignored",
    )

    @field_validator("image_url", mode="before")
    @classmethod
    def _one_column(cls, columns: Any) -> Any:
        return (columns,) if isinstance(columns, str) else columns
