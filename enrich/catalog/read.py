"""A labelled catalog from its table: columns mapped, prices read, photos found; every dropped row has a reason."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from enrich.answers.parse import MAX_TITLE
from enrich.answers.prompt import spells_control_token
from enrich.catalog.cells import clean, first_value, value
from enrich.catalog.dropped import Dropped, describe
from enrich.catalog.find_photo import find_photo
from enrich.catalog.prices import Cell, read_prices
from enrich.catalog.table import FORMATS, read_table
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.vocabulary import Product, same_design

UNPRICED = "price cannot be used, taught without it"


@dataclass(frozen=True)
class Catalog:
    """The usable rows in the table's order, and what was learnt on the way."""

    products: tuple[Product, ...]
    categories: tuple[str, ...]  # sorted
    currency: str | None
    dropped: tuple[Dropped, ...]
    fingerprint: str  # of the usable rows; neither their order nor the catalog's place changes it
    unread: tuple[Dropped, ...] = ()  # usable rows whose price cannot be used
    rows: int = 0  # of the table
    notes: tuple[str, ...] = ()  # what else a person should know, a line each
    row_of: Mapping[str, int] = field(default_factory=dict)  # product code -> row

    @property
    def unpriced(self) -> int:
        """How many products have no price."""
        return sum(product.price is None for product in self.products)

    @property
    def lines(self) -> tuple[str, ...]:
        """What a person should know of the table, a line each."""
        told = (("left out", self.dropped), ("without price", self.unread))
        counted = (f"{what}: {len(rows):,} of {self.rows:,} rows: {describe(rows)}" for what, rows in told if rows)
        return (*counted, *self.notes)


def read_catalog(path: str | Path, columns: Columns | None = None) -> Catalog:
    """The catalog in a local directory (its catalog.csv or catalog.parquet), or the one in a table file.

    Photo paths are relative to the table's directory and must stay inside it. Categories that differ in case or spacing
    only are one, in their most frequent spelling.

    Raises:
        UsageError: no table, an unreadable one, a missing column, several currencies, prices that could be either of
            two amounts, or no usable row.
    """
    columns = columns or Columns()
    table_path = _find_table(Path(path))
    table = read_table(table_path)
    rows = _map_columns(table, table_path, columns)
    kept, dropped = _select(rows, table_path.parent.absolute())
    where = f"catalog {table_path}"
    if not kept:
        raise UsageError(f"{where}: {_why_empty(dropped)}; give each product a title, category and photo")
    cells = [Cell(number, rows[number - 1]["price"], rows[number - 1]["currency"]) for number in kept]
    prices, currency = read_prices(cells, columns.decimal, where)
    labels, joined = _one_spelling([product.category for product in kept.values()])
    products = [
        replace(product, category=labels[product.category], price=price.value)
        for product, price in zip(kept.values(), prices, strict=True)
    ]
    row_of = {product.product_code: number for number, product in kept.items()}
    return Catalog(
        products=tuple(products),
        categories=tuple(sorted({product.category for product in products})),
        currency=currency,
        dropped=tuple(dropped),
        fingerprint=_fingerprint(products, table_path.parent.absolute()),
        unread=tuple(
            Dropped(number, product.product_code, UNPRICED, price.problem)
            for (number, product), price in zip(kept.items(), prices, strict=True)
            if price.problem
        ),
        rows=len(rows),
        notes=(*joined, *_long_titles(rows, kept), *_small_prices(products, row_of)),
        row_of=row_of,
    )


def _find_table(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"catalog {path}: no such file or directory; name a directory with catalog.csv in it")
    found = [path / f"catalog{suffix}" for suffix in FORMATS if (path / f"catalog{suffix}").is_file()]
    if not found:
        raise UsageError(f"catalog {path}: holds neither catalog.csv nor catalog.parquet; put one beside images/")
    if len(found) > 1:
        raise UsageError(f"catalog {path}: holds both catalog.csv and catalog.parquet; delete one or name the file")
    return found[0]


def _map_columns(table: pl.DataFrame, path: Path, columns: Columns) -> list[dict[str, str]]:
    """Rows with the keys product_code, title, category, price, currency and image_path; "" where there is nothing."""
    categories = [name for name in columns.category if name in table.columns]
    wanted = {
        "product_code": columns.product_code,
        "title": columns.title,
        "image_path": columns.image_path,
        "category": categories[0] if categories else columns.category[0] if columns.category else "",
    }
    for role in ("price", "currency"):  # a catalog may lack these, but not where a setting names them
        named = getattr(columns, role)
        if named in table.columns or named != getattr(Columns(), role):
            wanted[role] = named
    for role, name in wanted.items():
        if name not in table.columns:
            there = ", ".join(table.columns[:30]) or "none"
            raise UsageError(
                f"catalog {path}: no column {name!r} ({role}); its columns are: {there}; "
                f"name the right one in the settings under columns.{role}"
            )
    for name in columns.category if columns.category != Columns().category else ():
        if name not in table.columns:
            raise UsageError(f"catalog {path}: no column {name!r} (category); take it out of columns.category")
    return table.select(
        clean(columns.product_code).alias("product_code"),
        value(columns.title).alias("title"),
        first_value(categories).alias("category"),
        (value(wanted["price"]) if "price" in wanted else pl.lit("")).alias("price"),
        (value(wanted["currency"]) if "currency" in wanted else pl.lit("")).alias("currency"),
        pl.col(columns.image_path).str.strip_chars().alias("image_path"),
    ).to_dicts()


def _select(rows: list[dict[str, str]], directory: Path) -> tuple[dict[int, Product], list[Dropped]]:
    """Products without their prices by row number, and the other rows."""
    kept: dict[int, Product] = {}
    first: dict[str, int] = {}  # product code -> row
    dropped = []
    for number, row in enumerate(rows, start=1):
        image, trouble = find_photo(row["image_path"], directory) if row["image_path"] else ("", "no image_path")
        reason, detail = _reason_to_drop(row, trouble, first)
        if reason:
            dropped.append(Dropped(number, row["product_code"], reason, detail))
            continue
        title = row["title"][:MAX_TITLE].strip()
        first[row["product_code"]] = number
        kept[number] = Product(row["product_code"], title, row["category"], None, image)
    return kept, dropped


def _reason_to_drop(row: dict[str, str], trouble: str, first: dict[str, int]) -> tuple[str, str]:
    """Reason and detail; "" where the row can be used."""
    further = (
        f"a further photo of the product in row {first[row['product_code']]}" if row["product_code"] in first else ""
    )
    for name in ("product_code", "title", "category", "image_path"):
        if not row[name]:
            photo_only = not (row["title"] or row["category"] or trouble)
            return f"no {name}", further or ("only a photo, as of a product in another row" if photo_only else "")
    if further:
        return "product_code is in an earlier row", further
    for text in (row["title"], row["category"]):
        if spells_control_token(text):
            return "title or category spells a control token of the model", text
    return trouble, row["image_path"] if trouble else ""


def _one_spelling(categories: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """For each category the spelling that stands for it, and a line that names those that were joined."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for category in categories:
        groups[same_design(category)][category] += 1
    labels: dict[str, str] = {}
    joined: list[str] = []
    for spellings in groups.values():
        # Of equally frequent ones, neither SHIRTS nor shirts but Shirts.
        chosen = max(spellings, key=lambda one: (spellings[one], not (one.isupper() or one.islower()), one))
        labels |= dict.fromkeys(spellings, chosen)
        others = sorted(set(spellings) - {chosen})
        joined += [f"{', '.join(others)} as {chosen}"] if others else []
    if not joined:
        return labels, []
    more = f" and {len(joined) - 5} more" if len(joined) > 5 else ""
    return labels, [f"categories that differ in case only are one: {'; '.join(joined[:5])}{more}"]


def _long_titles(rows: list[dict[str, str]], kept: Mapping[int, Product]) -> list[str]:
    cut = [number for number in kept if len(rows[number - 1]["title"]) > MAX_TITLE]
    return [f"titles cut to {MAX_TITLE} characters: {len(cut):,} (the first in row {cut[0]})"] if cut else []


def _small_prices(products: Sequence[Product], row_of: Mapping[str, int]) -> list[str]:
    small = [
        (product.price, row_of[product.product_code]) for product in products if product.price and product.price < 2
    ]
    if not small:
        return []
    price, row = small[0]
    return [
        f"prices are learned in whole units: {len(small):,} are below 2 (the first, {price:g} in row {row}, as "
        f"{max(1, round(price))}), so cents make no difference"
    ]


def _why_empty(dropped: list[Dropped]) -> str:
    if not dropped:
        return "has no rows"
    reason, count = Counter(row.reason for row in dropped).most_common(1)[0]
    return f"none of its {len(dropped):,} rows can be used, most often because: {reason} ({count:,} rows)"


def _fingerprint(products: list[Product], directory: Path) -> str:
    digest = hashlib.sha256()
    for product in sorted(products, key=lambda product: product.product_code):
        relative = os.path.relpath(product.image_path, directory)
        size = os.stat(product.image_path).st_size
        row = [product.product_code, product.title, product.category, product.price, relative, size]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
