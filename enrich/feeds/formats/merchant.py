"""Google Merchant Center: a text feed that follows the product data specification.

What a model wrote is declared: titles as structured_title, and a text field `description` as structured_description.
Without `product_link` the file is a supplemental data source, which adds to products that another one describes.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from urllib.parse import quote

import polars as pl

from enrich.errors import UsageError
from enrich.feeds.files import write_delimited
from enrich.feeds.formats.base import Feed, Format
from enrich.feeds.rows import cut, money, one_line, value, where
from enrich.settings.export import ExportSettings

LONGEST = {
    "id": 50, "title": 150, "description": 5000, "image_link": 2000, "product_type": 750, "color": 40, "material": 200,
    "pattern": 100, "size": 100,
}  # fmt: skip
MOST_MORE_PHOTOS = 10  # additional_image_link
# Declared fields that are attributes of Google's.
ATTRIBUTES = {"color": "color", "colour": "color", "material": "material", "pattern": "pattern", "size": "size",
              "gender": "gender", "age_group": "age_group"}  # fmt: skip
# Of attributes with few values: the value that the feed takes for each that we have.
VALUES = {
    "gender": {"male": "male", "men": "male", "man": "male", "female": "female", "women": "female", "woman": "female",
               "unisex": "unisex"},
    "age_group": {"newborn": "newborn", "infant": "infant", "toddler": "toddler", "kids": "kids", "children": "kids",
                  "adult": "adult", "adults": "adult"},
}  # fmt: skip
DESCRIPTION = "description"  # a declared field of this name is Google's description
SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
# Rows that a feed cannot represent: an id is compared with those of other files, so it is not changed.
ODD_IDS = {"with control characters in its product_id": pl.col("product_id").str.contains(r"\p{Cc}")}
_DETAIL = 1000  # characters of a value in product_detail
_GOOGLE_ID = r"^[0-9]{1,6}$"  # of Google's taxonomy; GS1's ids have eight digits, Shopify's letters


def check(feed: Feed) -> None:
    """No photo has a link, or the name is not that of a text feed."""
    if PurePath(feed.name).suffix.lower() not in SEPARATORS:
        raise UsageError(f"{feed.name}: merchant is a text feed; name a file that ends with .tsv, .txt or .csv")
    if not feed.linked:
        raise UsageError(
            "merchant: image_link needs links to the photos; give --link-prefix https://cdn.shop.example/photos/, "
            "to which the photos' keys are added"
        )


def lacks(settings: ExportSettings) -> Mapping[str, pl.Expr]:
    """Rows that Google would refuse."""
    found = {
        "without a photo that has a link": pl.col("links").list.len() == 0,
        f"with a product_id of more than {LONGEST['id']} characters": pl.col("product_id").str.len_chars()
        > LONGEST["id"],
        **ODD_IDS,
        "with a link that is too long": pl.col("links").list.first().str.len_chars() > LONGEST["image_link"],
    }
    if settings.product_link:
        found["without a price and its currency"] = pl.col("price").is_null() | pl.col("currency").is_null()
    return found


def table(rows: pl.DataFrame, feed: Feed) -> pl.DataFrame:
    """The cells, by the names of Google's attributes."""
    settings = feed.settings
    title = cut(one_line(pl.col("title")), LONGEST["title"])
    given = {"availability": settings.availability, "condition": settings.condition, "brand": settings.brand}
    fields = [field for field in feed.fields if field != DESCRIPTION]
    own, details = _attributes(fields, settings.min_confidence)
    columns: dict[str, pl.Expr] = {
        "id": pl.col("product_id"),
        "title": pl.when("written").then(title),
        "structured_title": pl.when(~pl.col("written")).then(_declared(title)),
    }
    if DESCRIPTION in feed.fields:
        text = cut(one_line(value(DESCRIPTION, settings.min_confidence)), LONGEST[DESCRIPTION])
        columns["structured_description"] = _declared(text)
    if settings.product_link:
        columns["link"] = _filled_in(settings.product_link)
    columns |= {
        "image_link": pl.col("links").list.first(),
        "additional_image_link": pl.col("links").list.slice(1, MOST_MORE_PHOTOS).list.join(","),
        **{name: pl.lit(said) for name, said in given.items() if said is not None},
        "price": money("price", feed.currencies) + pl.lit(" ") + pl.col("currency"),
        "google_product_category": pl.when(pl.col("category_id").str.contains(_GOOGLE_ID)).then("category_id"),
        "product_type": cut(one_line(pl.col("path")), LONGEST["product_type"]),
        **own,
    }
    if details:
        columns["product_detail"] = pl.concat_str(details, separator=",", ignore_nulls=True)
    return rows.select(**columns)


def _attributes(fields: Sequence[str], least: float) -> tuple[dict[str, pl.Expr], list[pl.Expr]]:
    """Google's own attributes, and details such as `General:Sleeve length:long` of all other values."""
    own: dict[str, pl.Expr] = {}
    details = []
    for field in fields:
        text = one_line(value(field, least))
        detail = pl.lit(f"General:{field.replace('_', ' ').capitalize()}:") + _quoted(cut(text, _DETAIL), '[:",]')
        name = ATTRIBUTES.get(field)
        if name and name not in own:
            own[name] = _as_attribute(name, text)
            detail = pl.when(own[name].is_null()).then(detail)
        details.append(detail)
    return own, details


def _as_attribute(name: str, text: pl.Expr) -> pl.Expr:
    """The value in the attribute's vocabulary, null if it is not in it."""
    if name in VALUES:
        return text.str.to_lowercase().replace_strict(VALUES[name], default=None, return_dtype=pl.String)
    return pl.when(text.str.len_chars() <= LONGEST[name]).then(text)


def _declared(text: pl.Expr) -> pl.Expr:
    """A text with its source: `trained_algorithmic_media:"Coat: Navy"`."""
    return pl.col("digital_source_type") + pl.lit(":") + _quoted(text, '[:"]')


def _quoted(text: pl.Expr, special: str) -> pl.Expr:
    """A part of a cell, in quotation marks if it has characters that stand between parts."""
    inside = pl.lit('"') + text.str.replace_all('"', '""', literal=True) + pl.lit('"')
    return pl.when(text.str.contains(special)).then(inside).otherwise(text)


def _filled_in(link: str) -> pl.Expr:
    escaped = where(pl.col("product_id"), "[^A-Za-z0-9_.~-]", partial(quote, safe=""))
    before, _, after = link.partition("{product_id}")
    return pl.lit(before) + escaped + pl.lit(after)


def write(path: Path, tables: Iterable[pl.DataFrame], feed: Feed) -> int:
    """With tabs, or with commas if the name ends with .csv."""
    return write_delimited(path, tables, SEPARATORS[PurePath(feed.name).suffix.lower()])


def notes(feed: Feed) -> list[str]:
    """How Merchant Center uses the file."""
    asked = {"product_link": feed.settings.product_link, "availability": feed.settings.availability}
    if not (missing := [name for name, said in asked.items() if said is None]):
        return []
    return [
        f"without {' and '.join(missing)} this is a supplemental data source: add it in Merchant Center to the one "
        "that has the links, descriptions and availability of the same ids"
    ]


FORMAT = Format(
    about="Google Merchant Center's text feed", table=table, write=write, check=check, lacks=lacks, notes=notes
)
