"""Settings of exports: which rows they take, and what a feed says beside them."""

from typing import Literal

from pydantic import Field

from enrich.settings.base import Settings
from enrich.settings.storage import PLAIN_S3, S3Settings

_URL = r"^https?://[!-~]+$"  # a link is ASCII


class ExportSettings(Settings):
    """Which rows an export takes, and what a feed says beside them."""

    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="Confidence that a row's category, and each further field in a feed, needs"
    )
    link_prefix: str | None = Field(
        default=None,
        pattern=_URL,
        description="Before the key of a photo, to make a link of it, such as https://cdn.shop.example/photos/",
    )
    product_link: str | None = Field(
        default=None,
        pattern=r"^https?://[!-~]*\{product_id\}[!-~]*$",
        description="Link of a product's page, such as https://shop.example/products/{product_id}; with it, a file for "
        "Merchant Center is a primary data source and must have a price in each row",
    )
    availability: Literal["in_stock", "out_of_stock", "preorder", "backorder"] | None = Field(
        default=None, description="Of all products, for Merchant Center; left out: its other data sources say"
    )
    condition: Literal["new", "refurbished", "used"] | None = Field(
        default=None, description="Of all products, for Merchant Center; left out: its other data sources say"
    )
    brand: str | None = Field(
        default=None, min_length=2, max_length=70, description="Of all products: brand, and Shopify's Vendor"
    )
    status: Literal["draft", "active", "archived"] = Field(
        default="draft", description="Of products that Shopify imports; only active ones are shown to customers"
    )
    s3: S3Settings = PLAIN_S3
