"""A labelled catalog from its table: columns mapped, prices read, photos found; every dropped row has a reason."""

import hashlib
import json
import os
import re
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
from enrich.catalog.cells import code, levels, title, value
from enrich.catalog.dropped import Dropped, describe
from enrich.catalog.find_photo import Photos, is_url
from enrich.catalog.further import add_further_photos
from enrich.catalog.prices import Cell, Price, read_prices
from enrich.catalog.records import BETWEEN_PHOTOS
from enrich.catalog.select import OF_FIELD, select
from enrich.catalog.table import Table, Wanted, find_table, open_table
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.settings.fields import FieldSettings
from enrich.vocabulary import Product

# Names of the columns that formats without a header have: folders of photos, archives, conversations.
FIXED = {
    "image_path": ("image",), "product_code": ("id", "product_code"), "title": ("title",), "category": ("category",),
    "price": ("price",), "currency": ("currency",),
}  # fmt: skip
UNPRICED = "price cannot be used; taught without it"


@dataclass(frozen=True)
class Catalog:
    """The usable rows in the table's order, and what else was found."""

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
    encoding: str | None = None  # of a table that is text
    separator: str | None = None  # of a CSV
    columns: Columns = field(default_factory=Columns)  # as they were found
    directory: str = ""  # of the table, absolute

    def key_of(self, path: str) -> str:
        """A photo's path below the catalog; a URL, or the path of one from inside a table, as it is."""
        return os.path.relpath(path, self.directory) if path.startswith(self.directory + os.sep) else path

    @property
    def photos(self) -> int:
        """How many photos the products have."""
        return sum(len(product.image_paths) for product in self.products)

    @property
    def lines(self) -> tuple[str, ...]:
        """Messages about the table for the user, one line each."""
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
    urls: bool = False,
) -> Catalog:
    """The catalog in a local directory (its catalog.csv, or what else `find_table` finds), or the one in a table file.

    Photo paths are relative to the table's directory and must stay inside it. A product may have several: a list in a
    cell (`names_of`), further columns, or rows of one product code (see `select`). Categories that differ in case or
    spacing only are one, in their most frequent spelling.

    Args:
        group_by: see `add_further_photos`.
        category_path: a category is all of its levels, `WOMAN > SHOES > PUMPS`, not only the last.
        fields: what else is read of each product (`read_attributes`).
        unknown: the word in cells without a value.
        urls: whether a photo may be a URL, which is not downloaded: for callers that only inspect the table.

    Raises:
        UsageError: no table, an unreadable one, a missing column, several currencies, prices that could be either of
            two amounts, photos that cannot be grouped so, or no usable row.
    """
    columns = columns or Columns()
    table_path = find_table(Path(path))
    directory = (table_path if table_path.is_dir() else table_path.parent).absolute()
    table = open_table(table_path, _wanted(columns))
    columns = _as_there(columns, table)
    mapped = _map_columns(table.frame, table_path, columns, category_path, fields)
    rows = mapped.drop("levels").to_dicts()
    selected = select(rows, Photos(directory, table.embedded, urls), table.broken)
    where = f"catalog {table_path}"
    if not selected.kept:
        raise UsageError(f"{where}: {_why_empty(selected.dropped)}; give each product a title, category and photo")
    kept = add_further_photos(selected.kept, directory, group_by, where)
    row_of = {product.product_code: number for number, product in kept.items()}
    products, prices, currency, told = _with_values(kept, rows, row_of, columns, where, category_path, fields, unknown)
    return Catalog(
        products=tuple(products),
        categories=tuple(sorted({product.category for product in products})),
        currency=currency,
        dropped=tuple(selected.dropped),
        fingerprint=_fingerprint(products, directory),
        unread=_unread(kept, prices),
        lost=tuple(selected.lost),
        rows=len(rows) - selected.further,
        notes=(*table.notes, *_no_currency(columns, table, currency), *_variants(selected.variants), *told),
        row_of=row_of,
        paths=_paths(products, mapped["levels"], row_of, category_path),
        encoding=table.encoding,
        separator=table.separator,
        columns=columns,
        directory=str(directory),
    )


def _with_values(
    kept: Mapping[int, Product],
    rows: list[dict[str, str]],
    row_of: Mapping[str, int],
    columns: Columns,
    where: str,
    category_path: bool,
    fields: Mapping[str, FieldSettings],
    unknown: str,
) -> tuple[list[Product], list[Price], str | None, list[str]]:
    """The products with the prices and attributes of their rows, and each category in one spelling; the prices as they
    were read, their currency, and messages for the user."""
    cells = [Cell(number, rows[number - 1]["price"], rows[number - 1]["currency"]) for number in kept]
    prices, currency, priced = read_prices(cells, columns, where)
    labels, respelled = _one_spelling([product.category for product in kept.values()], category_path)
    attributes, told = read_attributes([_values(rows[number - 1], fields) for number in kept], fields, unknown)
    products = [
        replace(product, category=label, price=price.value, attributes=values)
        for product, price, label, values in zip(kept.values(), prices, labels, attributes, strict=True)
    ]
    notes = [*priced, *respelled, *told, *_long_titles(rows, kept)]
    return products, prices, currency, notes


def _unread(kept: Mapping[int, Product], prices: Sequence[Price]) -> tuple[Dropped, ...]:
    return tuple(
        Dropped(number, product.product_code, UNPRICED, price.problem)
        for (number, product), price in zip(kept.items(), prices, strict=True)
        if price.problem
    )


def _wanted(columns: Columns) -> Wanted:
    photos = (columns.image_path, *columns.more_images)
    names = (columns.product_code, columns.title, *columns.category, columns.price, columns.currency, *photos)
    lists = dict.fromkeys(columns.category, SEPARATOR) | dict.fromkeys(photos, BETWEEN_PHOTOS)
    if columns.image_path == Columns().image_path:
        photos = (*photos, FIXED["image_path"][0])
    return Wanted(names, lists, photos, columns.encoding, columns.separator)


def _as_there(columns: Columns, table: Table) -> Columns:
    """The columns of formats that name them, where no setting does, and repeated columns of photos."""
    there = set(table.frame.columns)
    changed: dict[str, str | tuple[str, ...]] = {}
    for role, names in FIXED.items() if table.fixed else ():
        at = getattr(columns, role)
        found = next((name for name in names if name in there), None)
        if found and at == getattr(Columns(), role) and not there & set(at if isinstance(at, tuple) else (at,)):
            changed[role] = (found,) if isinstance(at, tuple) else found
    named = (columns.image_path, *columns.more_images)
    repeated = [name for name in table.frame.columns if re.sub(r" \(\d+\)$", "", name) in named and name not in named]
    if repeated:
        changed["more_images"] = (*columns.more_images, *repeated)
    return columns.model_copy(update=changed)


def _no_currency(columns: Columns, table: Table, found: str | None) -> list[str]:
    if columns.currency in table.frame.columns or columns.currency == Columns().currency:
        return []
    return [f"no column {columns.currency!r} (currency): " + (f"prices say {found}" if found else "prices have none")]


def _variants(count: int) -> list[str]:
    told = "variant rows with their own prices, which only add photos to their product"
    return [f"{told}: {count:,}"] if count else []


def _map_columns(
    table: pl.DataFrame, path: Path, columns: Columns, category_path: bool, fields: Mapping[str, FieldSettings]
) -> pl.DataFrame:
    """Columns product_code, title, category, price, currency, image_path and those of `fields` (OF_FIELD before their
    names), "" where there is nothing; and the levels of the category, a list."""
    categories = [name for name in columns.category if name in table.columns]
    wanted = {
        "product_code": columns.product_code,
        "title": columns.title,
        "image_path": columns.image_path,
        "category": categories[0] if categories else columns.category[0] if columns.category else "",
        **{f"more_images {name}": name for name in columns.more_images},
    }
    if columns.price in table.columns or columns.price != Columns().price:  # may be missing, unless a setting names it
        wanted["price"] = columns.price
    if columns.currency in table.columns:
        wanted["currency"] = columns.currency
    for role, name in wanted.items():
        if name not in table.columns:
            there = ", ".join(table.columns[:30]) or "none"
            role = role.partition(" ")[0]
            alone = "; if that is several, set columns.separator" if len(table.columns) == 1 else ""
            raise UsageError(
                f"catalog {path}: no column {name!r} ({role}); its columns are: {there}{alone}; "
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
    found = levels(categories, paths=category_path, between=columns.levels, several=columns.categories)
    photos = [pl.col(name).str.strip_chars() for name in (columns.image_path, *columns.more_images)]
    return table.select(
        product_code=code(columns.product_code),
        title=title(columns.title, table.columns),
        category=found.list.join(SEPARATOR) if category_path else found.list.last().fill_null(""),
        levels=found,
        price=value(wanted["price"]) if "price" in wanted else pl.lit(""),
        currency=value(wanted["currency"]) if "currency" in wanted else pl.lit(""),
        image_path=pl.concat_str(photos, separator=BETWEEN_PHOTOS) if photos[1:] else photos[0],
        **{f"{OF_FIELD}{name}": value(one.column_of(name)) for name, one in fields.items()},
    )


def _values(row: Mapping[str, str], fields: Mapping[str, FieldSettings]) -> dict[str, str]:
    return {name: row[f"{OF_FIELD}{name}"] for name in fields}


def _one_spelling(categories: Sequence[str], category_path: bool) -> tuple[list[str], list[str]]:
    spelled, told = one_spelling([levels_of(one) if category_path else (one,) for one in categories])
    return list(map(joined, spelled)), told


def _paths(
    products: Sequence[Product], found: pl.Series, row_of: Mapping[str, int], category_path: bool
) -> dict[str, tuple[str, ...]]:
    """The levels of each category. A leaf may occur below several parents; most of its rows decide."""
    if category_path:
        return {label: levels_of(label) for label in {product.category for product in products}}
    above = Counter((one.category, tuple(found[row_of[one.product_code] - 1])[:-1]) for one in products)
    return {label: (*path, label) for (label, path), _ in reversed(above.most_common())}


def _long_titles(rows: list[dict[str, str]], kept: Mapping[int, Product]) -> list[str]:
    cut = [number for number in kept if len(rows[number - 1]["title"]) > MAX_TITLE]
    return [f"titles cut to {MAX_TITLE} characters: {len(cut):,} (the first in row {cut[0]})"] if cut else []


def _why_empty(dropped: list[Dropped]) -> str:
    if not dropped:
        return "has no rows"
    reason, count = Counter(row.reason for row in dropped).most_common(1)[0]
    return f"none of its {len(dropped):,} rows can be used, most often because: {reason} ({count:,} rows)"


def _fingerprint(products: list[Product], directory: Path) -> str:
    digest = hashlib.sha256()
    for product in sorted(products, key=lambda product: product.product_code):
        digest.update(_line(product, directory))
    return digest.hexdigest()


def row_digests(catalog: Catalog) -> dict[str, int]:
    """Product code -> 63 bits of a hash of everything that its row teaches, with photos by name and size."""
    directory = Path(catalog.directory)
    hashes = ((one.product_code, hashlib.sha256(_line(one, directory)).digest()) for one in catalog.products)
    return {code: int.from_bytes(found[:8]) >> 1 for code, found in hashes}


def _line(product: Product, directory: Path) -> bytes:
    photos = [_of_photo(path, directory) for path in product.image_paths]
    row = [product.product_code, product.title, product.category, product.price, *chain.from_iterable(photos)]
    row += [sorted(product.attributes.items())] if product.attributes else []
    return json.dumps(row).encode() + b"\n"


def _of_photo(path: str, directory: Path) -> tuple[str, int]:
    """What the fingerprint records of a photo. An embedded one is identified by its bytes, wherever it is stored."""
    if is_url(path):
        return path, 0
    inside = path.startswith(f"{directory}{os.sep}")
    return os.path.relpath(path, directory) if inside else os.path.basename(path), os.stat(path).st_size
