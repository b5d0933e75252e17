"""A labelled catalog from its table: columns mapped, N.A. resolved, photos found; every dropped row has a reason."""

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from enrich.catalog.table import FORMATS, read_table
from enrich.errors import UsageError
from enrich.schema import Product
from enrich.settings import Columns

MAX_TITLE = 200  # characters; a longer one is cut


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be used. `row` counts from 1, the first below the header."""

    row: int
    reason: str


@dataclass(frozen=True)
class Catalog:
    """The usable rows in the table's order, and what was learnt on the way."""

    products: tuple[Product, ...]
    categories: tuple[str, ...]  # sorted
    currency: str | None
    dropped: tuple[Dropped, ...]
    fingerprint: str  # of the usable rows; neither their order nor the catalog's place changes it

    @property
    def unpriced(self) -> int:
        """How many products have no price, or none that is positive and finite."""
        return sum(product.price is None for product in self.products)


def read_catalog(path: str | Path, columns: Columns | None = None) -> Catalog:
    """The catalog in a local directory (its catalog.csv or catalog.parquet), or the one in a table file.

    Photo paths are relative to the table's directory and must stay inside it.

    Raises:
        UsageError: no table, an unreadable one, a missing column, several currencies, or no usable row.
    """
    columns = columns or Columns()
    table_path = _find_table(Path(path))
    table = read_table(table_path)
    rows = _map_columns(table, table_path, columns)
    products, dropped = _select(rows, table_path.parent.absolute())
    if not products:
        raise UsageError(f"catalog {table_path}: {_why_empty(dropped)}; give each product a title, category and photo")
    kept = {product.product_code for product in products}
    currencies = sorted({str(row["currency"]) for row in rows if row["product_code"] in kept and row["currency"]})
    if len(currencies) > 1:
        listed = ", ".join(currencies[:5])
        raise UsageError(
            f"catalog {table_path}: prices in several currencies ({listed}); keep the rows of one currency"
        )
    return Catalog(
        products=tuple(products),
        categories=tuple(sorted({product.category for product in products})),
        currency=currencies[0] if currencies else None,
        dropped=tuple(dropped),
        fingerprint=_fingerprint(products, table_path.parent.absolute()),
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
        _clean(columns.product_code).alias("product_code"),
        _clean(columns.title).str.slice(0, MAX_TITLE).str.strip_chars().alias("title"),
        _coalesce(categories).alias("category"),
        (_clean(wanted["price"]) if "price" in wanted else pl.lit("")).alias("price"),
        (_coalesce([wanted["currency"]]) if "currency" in wanted else pl.lit("")).alias("currency"),
        pl.col(columns.image_path).str.strip_chars().alias("image_path"),
    ).to_dicts()


def _clean(name: str) -> pl.Expr:
    """One line of NFC text: runs of white space and control characters become one space."""
    return pl.col(name).str.normalize("NFC").str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()


def _coalesce(names: list[str]) -> pl.Expr:
    """The first value that is neither empty nor N.A., else ""."""
    values = [_clean(name) for name in names]
    return pl.coalesce(
        *(pl.when(value.is_in(["", "N.A.", "n.a."])).then(None).otherwise(value) for value in values), pl.lit("")
    )


def _select(rows: list[dict[str, str]], directory: Path) -> tuple[list[Product], list[Dropped]]:
    products: dict[str, Product] = {}
    dropped = []
    for number, row in enumerate(rows, start=1):
        image = os.path.normpath(directory / row["image_path"])
        reason = _reason_to_drop(row, image, directory, products)
        if reason:
            dropped.append(Dropped(number, reason))
            continue
        price = _price(row["price"])
        products[row["product_code"]] = Product(row["product_code"], row["title"], row["category"], price, image)
    return list(products.values()), dropped


def _reason_to_drop(row: dict[str, str], image: str, directory: Path, seen: dict[str, Product]) -> str | None:
    for name in ("product_code", "title", "category", "image_path"):
        if not row[name]:
            return f"no {name}"
    if row["product_code"] in seen:
        return "product_code is in an earlier row"
    if not image.startswith(str(directory) + os.sep):
        return "photo lies outside the catalog's directory"
    try:
        size = os.stat(image).st_size if os.path.isfile(image) else None
    except (OSError, ValueError):  # a name too long, or with a zero byte
        size = None
    if size is None:
        return "photo not found"
    return None if size else "photo is an empty file"


def _price(text: str) -> float | None:
    try:
        price = float(text)
    except ValueError:
        return None
    return price if math.isfinite(price) and price > 0 else None


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
