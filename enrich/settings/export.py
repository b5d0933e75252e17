"""Settings of exports: which rows are exported, and what a feed adds to them."""

from typing import Literal

from pydantic import Field

from enrich.settings.base import Settings
from enrich.settings.storage import PLAIN_S3, S3Settings

_URL = r"^https?://[!-~]+$"  # a link is ASCII


class ExportSettings(Settings):
    """Which rows are exported, and what a feed adds to them."""

    min_confidence: float = Field(
        default=0.0, ge=0, le=1, description="Minimum confidence of a row's category, in feeds also of further fields"
    )
    link_prefix: str | None = Field(
        default=None,
        pattern=_URL,
        description="Prefix that turns the key of a photo into a link, such as https://cdn.shop.example/photos/",
    )
    product_link: str | None = Field(
        default=None,
        pattern=r"^https?://[!-~]*\{product_id\}[!-~]*$",
        description="Link to a product's page, such as https://shop.example/products/{product_id}; with it, a file for "
        "Merchant Center is a primary data source and must have a price in each row",
    )
    availability: Literal["in_stock", "out_of_stock", "preorder", "backorder"] | None = Field(
        default=None, description="Of all products, for Merchant Center; null: left to its other data sources"
    )
    condition: Literal["new", "refurbished", "used"] | None = Field(
        default=None, description="Of all products, for Merchant Center; null: left to its other data sources"
    )
    brand: str | None = Field(
        default=None, min_length=2, max_length=70, description="Brand of all products, also Shopify's Vendor"
    )
    status: Literal["draft", "active", "archived"] = Field(
        default="draft", description="Status of products that Shopify imports; customers see only active ones"
    )
    s3: S3Settings = PLAIN_S3
