"""A labelled catalog from its table: columns mapped, prices read, photos found; every dropped row has a reason."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import polars as pl

from enrich.answers.path import SEPARATOR, joined, levels_of
from enrich.answers.plain_text import MAX_TITLE
from enrich.answers.spelling import one_spelling
from enrich.answers.wording import WORDINGS
from enrich.catalog.attributes import read_attributes
from enrich.catalog.cells import clean, levels, value
from enrich.catalog.dropped import Dropped, describe
from enrich.catalog.further import add_further_photos
from enrich.catalog.prices import Cell, Price, read_prices
from enrich.catalog.select import BETWEEN_PHOTOS, select
from enrich.catalog.table import FORMATS, read_table
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.settings.fields import FieldSettings
from enrich.vocabulary import Product

_OF_FIELD = "field."  # before the name of a declared field, which may be that of another column
UNPRICED = "price cannot be used, taught without it"


@dataclass(frozen=True)
class Catalog:
    """The usable rows in the table's order, and what was learned on the way."""

    products: tuple[Product, ...]
    categories: tuple[str, ...]  # sorted
    currency: str | None
    dropped: tuple[Dropped, ...]
    fingerprint: str  # of the usable rows; neither their order nor the catalog's place changes it
    unread: tuple[Dropped, ...]  # usable rows whose price cannot be used
    lost: tuple[Dropped, ...]  # photos that cannot be used, of products that have others
    rows: int  # of the table, without those that only add photos to a product
    notes: tuple[str, ...]  # what else a person should know, a line each
    row_of: Mapping[str, int]  # product code -> row
    paths: Mapping[str, tuple[str, ...]]  # category -> its levels, the broadest first, as most of its rows have them
    category_ids: Mapping[str, str] = field(default_factory=dict)  # category -> its id in a standard's table, if named

    @property
    def photos(self) -> int:
        """How many photos the products have."""
        return sum(len(product.image_paths) for product in self.products)

    @property
    def lines(self) -> tuple[str, ...]:
        """What a person should know of the table, a line each."""
        told = (("left out", self.dropped, self.rows, "rows"), ("without price", self.unread, self.rows, "rows"),
                ("photos left out", self.lost, self.photos + len(self.lost), "photos"))  # fmt: skip
        several = [f"{self.photos:,} photos of {len(self.products):,} products"]
        return (
            *(several if self.photos > len(self.products) else ()),
            *(f"{what}: {len(rows):,} of {all:,} {unit}: {describe(rows)}" for what, rows, all, unit in told if rows),
            *self.notes,
        )


def read_catalog(
    path: str | Path,
    columns: Columns | None = None,
    group_by: str = "photo",
    *,
    category_path: bool = False,
    fields: Mapping[str, FieldSettings] = {},
    unknown: str = WORDINGS["en"].unknown,
) -> Catalog:
    """The catalog in a local directory (its catalog.csv or catalog.parquet), or the one in a table file.

    Photo paths are relative to the table's directory and must stay inside it. A product may have several: a list in a
    cell, names joined by `|`, or rows of one product code (see `select`). Categories that differ in case or spacing
    only are one, in their most frequent spelling.

    Args:
        group_by: see `add_further_photos`.
        category_path: a category is all of its levels, `WOMAN > SHOES > PUMPS`, not only the last.
        fields: what else is read of each product (`read_attributes`).
        unknown: what a cell without a value may hold.

    Raises:
        UsageError: no table, an unreadable one, a missing column, several currencies, prices that could be either of
            two amounts, photos that cannot be grouped so, or no usable row.
    """
    columns = columns or Columns()
    table_path = _find_table(Path(path))
    table = read_table(table_path, lists={columns.image_path: BETWEEN_PHOTOS})
    mapped = _map_columns(table, table_path, columns, category_path, fields)
    rows = mapped.drop("levels").to_dicts()
    selected = select(rows, table_path.parent.absolute())
    where = f"catalog {table_path}"
    if not selected.kept:
        raise UsageError(f"{where}: {_why_empty(selected.dropped)}; give each product a title, category and photo")
    kept = add_further_photos(selected.kept, table_path.parent.absolute(), group_by, where)
    cells = [Cell(number, rows[number - 1]["price"], rows[number - 1]["currency"]) for number in kept]
    prices, currency = read_prices(cells, columns.decimal, where)
    labels, respelled = _one_spelling([product.category for product in kept.values()], category_path)
    attributes, told = read_attributes([_values(rows[number - 1], fields) for number in kept], fields, unknown)
    products = [
        replace(product, category=label, price=price.value, attributes=values)
        for product, price, label, values in zip(kept.values(), prices, labels, attributes, strict=True)
    ]
    row_of = {product.product_code: number for number, product in kept.items()}
    return Catalog(
        products=tuple(products),
        categories=tuple(sorted({product.category for product in products})),
        currency=currency,
        dropped=tuple(selected.dropped),
        fingerprint=_fingerprint(products, table_path.parent.absolute()),
        unread=_unread(kept, prices),
        lost=tuple(selected.lost),
        rows=len(rows) - selected.further,
        notes=(*respelled, *told, *_long_titles(rows, kept), *_small_prices(products, row_of)),
        row_of=row_of,
        paths=_paths(products, mapped["levels"], row_of, category_path),
    )


def _unread(kept: Mapping[int, Product], prices: Sequence[Price]) -> tuple[Dropped, ...]:
    return tuple(
        Dropped(number, product.product_code, UNPRICED, price.problem)
        for (number, product), price in zip(kept.items(), prices, strict=True)
        if price.problem
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


def _map_columns(
    table: pl.DataFrame, path: Path, columns: Columns, category_path: bool, fields: Mapping[str, FieldSettings]
) -> pl.DataFrame:
    """Columns product_code, title, category, price, currency, image_path and those of `fields` (_OF_FIELD before their
    names), "" where there is nothing; and the levels of the category, a list."""
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
    for name, one in fields.items():
        if one.column_of(name) not in table.columns:
            there = ", ".join(table.columns[:30])
            raise UsageError(
                f"catalog {path}: no column {one.column_of(name)!r} ({name}); its columns are: {there}; "
                f"name the right one in the settings under fields.{name}.column"
            )
    found = levels(categories, paths=category_path)
    return table.select(
        product_code=clean(columns.product_code),
        title=value(columns.title),
        category=found.list.join(SEPARATOR) if category_path else found.list.last().fill_null(""),
        levels=found,
        price=value(wanted["price"]) if "price" in wanted else pl.lit(""),
        currency=value(wanted["currency"]) if "currency" in wanted else pl.lit(""),
        image_path=pl.col(columns.image_path).str.strip_chars(),
        **{f"{_OF_FIELD}{name}": value(one.column_of(name)) for name, one in fields.items()},
    )


def _values(row: Mapping[str, str], fields: Mapping[str, FieldSettings]) -> dict[str, str]:
    return {name: row[f"{_OF_FIELD}{name}"] for name in fields}


def _one_spelling(categories: Sequence[str], category_path: bool) -> tuple[list[str], list[str]]:
    spelled, told = one_spelling([levels_of(one) if category_path else (one,) for one in categories])
    return list(map(joined, spelled)), told


def _paths(
    products: Sequence[Product], found: pl.Series, row_of: Mapping[str, int], category_path: bool
) -> dict[str, tuple[str, ...]]:
    """The levels of each category. One that is a leaf may be beneath several; most of its rows decide."""
    if category_path:
        return {label: levels_of(label) for label in {product.category for product in products}}
    above = Counter((one.category, tuple(found[row_of[one.product_code] - 1])[:-1]) for one in products)
    return {label: (*path, label) for (label, path), _ in reversed(above.most_common())}


def _long_titles(rows: list[dict[str, str]], kept: Mapping[int, Product]) -> list[str]:
    cut = [number for number in kept if len(rows[number - 1]["title"]) > MAX_TITLE]
    return [f"titles cut to {MAX_TITLE} characters: {len(cut):,} (the first in row {cut[0]})"] if cut else []


def _small_prices(products: Sequence[Product], row_of: Mapping[str, int]) -> list[str]:
    small = [(one.price, row_of[one.product_code]) for one in products if one.price and one.price < 2]
    return [
        f"prices are learned in whole units: {len(small):,} are below 2 (the first, {price:g} in row {row}, as "
        f"{max(1, round(price))}), so cents make no difference"
        for price, row in small[:1]
    ]


def _why_empty(dropped: list[Dropped]) -> str:
    if not dropped:
        return "has no rows"
    reason, count = Counter(row.reason for row in dropped).most_common(1)[0]
    return f"none of its {len(dropped):,} rows can be used, most often because: {reason} ({count:,} rows)"


def _fingerprint(products: list[Product], directory: Path) -> str:
    digest = hashlib.sha256()
    for product in sorted(products, key=lambda product: product.product_code):
        photos = [(os.path.relpath(path, directory), os.stat(path).st_size) for path in product.image_paths]
        row = [product.product_code, product.title, product.category, product.price, *chain.from_iterable(photos)]
        row += [sorted(product.attributes.items())] if product.attributes else []
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
