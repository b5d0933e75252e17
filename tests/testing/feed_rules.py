"""What is published of the files that Merchant Center, Shopify and WooCommerce read, as data.

Google's product data specification (support.google.com/merchants/answer/7052112 and a page for each attribute),
Shopify's "Using CSV files to import and export products", WooCommerce's "Product CSV Import Schema".
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """What the cells of a column may be; an empty cell is always fine unless the column is required."""

    longest: int | None = None  # characters
    pattern: str | None = None  # of the whole cell
    values: Sequence[str] = ()


_URL = r"https?://[!-~]+"
_LINKS = rf"{_URL.replace('[!-~]', '[!-+.-~]')}(,{_URL.replace('[!-~]', '[!-+.-~]')}){{0,9}}"
_DECLARED = r'(default|trained_algorithmic_media)?:([^:"]+|"([^"]|"")+")'
_DETAIL = r'[^:",]*:[^:",]+:([^:",]+|"([^"]|"")+")'
PRICE = r"[0-9]+(\.[0-9]{2,3})? [A-Z]{3}"

MERCHANT = {
    "id": Rule(50, r"\S(.*\S)?"),
    "title": Rule(150),
    "structured_title": Rule(None, _DECLARED),
    "description": Rule(5000),
    "structured_description": Rule(None, _DECLARED),
    "link": Rule(2000, _URL),
    "image_link": Rule(2000, _URL),
    "additional_image_link": Rule(None, _LINKS),
    "availability": Rule(values=("in_stock", "out_of_stock", "preorder", "backorder")),
    "condition": Rule(values=("new", "refurbished", "used")),
    "price": Rule(None, PRICE),
    "brand": Rule(70),
    "google_product_category": Rule(None, "[0-9]{1,6}"),
    "product_type": Rule(750),
    "color": Rule(100, r"[^/]{1,40}(/[^/]{1,40}){0,2}"),
    "material": Rule(200),
    "pattern": Rule(100),
    "size": Rule(100),
    "gender": Rule(values=("male", "female", "unisex")),
    "age_group": Rule(values=("newborn", "infant", "toddler", "kids", "adult")),
    "product_detail": Rule(None, rf"{_DETAIL}(,{_DETAIL})*"),
}
SHOPIFY = {
    "Handle": Rule(255, r"[A-Za-z0-9]+(-+[A-Za-z0-9]+)*"),
    "Title": Rule(255),
    "Body (HTML)": Rule(),
    "Vendor": Rule(255, ".{2,}"),
    "Product Category": Rule(),
    "Type": Rule(255),
    "Tags": Rule(),
    "Published": Rule(values=("TRUE", "FALSE")),
    "Option1 Name": Rule(255),
    "Option1 Value": Rule(255),
    "Variant SKU": Rule(255),
    "Variant Inventory Policy": Rule(values=("deny", "continue")),
    "Variant Fulfillment Service": Rule(values=("manual",)),
    "Variant Price": Rule(None, r"[0-9]+(\.[0-9]+)?"),
    "Variant Requires Shipping": Rule(values=("TRUE", "FALSE")),
    "Variant Taxable": Rule(values=("TRUE", "FALSE")),
    "Image Src": Rule(2048, _URL),
    "Image Position": Rule(None, "[1-9][0-9]*"),
    "Gift Card": Rule(values=("TRUE", "FALSE")),
    "Google Shopping / Gender": Rule(values=("male", "female", "unisex")),
    "Google Shopping / Age Group": Rule(values=("newborn", "infant", "toddler", "kids", "adult")),
    "Status": Rule(values=("active", "draft", "archived")),
}
# Columns of an export of WooCommerce 9, in its order.
WOOCOMMERCE = (
    "ID", "Type", "SKU", "GTIN, UPC, EAN, or ISBN", "Name", "Published", "Is featured?", "Visibility in catalog",
    "Short description", "Description", "Date sale price starts", "Date sale price ends", "Tax status", "Tax class",
    "In stock?", "Stock", "Low stock amount", "Backorders allowed?", "Sold individually?", "Weight (kg)", "Length (cm)",
    "Width (cm)", "Height (cm)", "Allow customer reviews?", "Purchase note", "Sale price", "Regular price",
    "Categories", "Tags", "Shipping class", "Images", "Download limit", "Download expiry days", "Parent",
    "Grouped products", "Upsells", "Cross-sells", "External URL", "Button text", "Position",
)  # fmt: skip
# Required of each row, one of several where there are some; for Merchant Center of a primary data source.
MERCHANT_REQUIRED = (("id",), ("title", "structured_title"), ("link",), ("image_link",), ("availability",), ("price",))
SHOPIFY_REQUIRED = (("Handle",),)


def broken(rows: Sequence[Row], rules: Mapping[str, Rule], required: Sequence[Sequence[str]]) -> list[str]:
    """What is not as the rules say, a line each."""
    unknown = [f"column {name}" for name in rows[0] if name not in rules]
    lacking = [f"row {n}: none of {names}" for n, row in enumerate(rows) for names in required
               if not any(row.get(name) for name in names)]  # fmt: skip
    checks: list[Callable[[Rule, str], bool]] = [
        lambda rule, cell: rule.longest is not None and len(cell) > rule.longest,
        lambda rule, cell: rule.pattern is not None and not re.fullmatch(rule.pattern, cell),
        lambda rule, cell: bool(rule.values) and cell not in rule.values,
    ]
    wrong = [f"row {n}: {name} {cell!r}" for n, row in enumerate(rows) for name, cell in row.items()
             if cell and any(check(rules.get(name, Rule()), cell) for check in checks)]  # fmt: skip
    return unknown + lacking + wrong
