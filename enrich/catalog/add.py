"""Add reviewed products with their labels to a catalog, for the next fine-tuning."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import polars as pl

from enrich.answers.amount import AmountError, parse_currency
from enrich.catalog.cells import value
from enrich.catalog.edit import Cell, Edit, edited, hidden_columns, holds_numbers, read_bytes
from enrich.catalog.frozen import FROZEN, REVIEWED, is_frozen_id, linked
from enrich.catalog.records import BETWEEN_PHOTOS
from enrich.errors import RunFailed, UsageError
from enrich.settings.catalog import Columns
from enrich.storage import Store

_TABLES = ("catalog.csv", "catalog.parquet")
_ATTEMPTS = 5  # every lost swap means that another writer succeeded


@dataclass(frozen=True)
class Seen:
    """A photo that the model saw."""

    key: str  # names the photo's format
    sha256: str


@dataclass(frozen=True)
class Labelled:
    """A product with its reviewed label; None if a person rejected all of it."""

    product_id: str
    photos: tuple[Seen, ...]  # at least one; the first tells products apart
    label: "Label | None"
    frozen: bool = False  # kept out of training; found out as the product is added


@dataclass(frozen=True)
class Label:
    """Title, category, price and further fields of a product."""

    title: str
    category: str
    priced: bool  # False: nobody confirmed a price
    price: float | None
    currency: str | None
    further: Mapping[str, str | None] = field(default_factory=dict)  # column -> value, of those that were decided


@dataclass(frozen=True)
class Added:
    """Counts of an addition."""

    new: int  # rows that the catalog did not have
    withdrawn: int  # rows that an earlier decision had added, and a rejection took out
    missed: tuple[str, ...]  # keys of products' first photos that no longer exist as reviewed: these were not added


def check_addition(catalog: Store, columns: Columns, products: Sequence[Labelled]) -> None:
    """UsageError if `products` could not be added to the catalog. Writes nothing."""
    name, data, _ = _table(catalog)
    _edited(data, name, columns, _with_frozen(products, catalog), catalog)


def add_products(
    catalog: Store, columns: Columns, products: Sequence[Labelled], photo: Callable[[Seen], bytes | None]
) -> Added:
    """Write photos below images/reviewed/ and rows into the catalog's table, which is replaced by compare-and-swap.

    Photos of the frozen slice (`enrich.catalog.frozen`) get a separate folder, which is not trained on. A product that
    was added before gets its newer labels, or is removed if they were rejected.

    Args:
        photo: returns the reviewed bytes, or None if they no longer exist. Such a photo is left out; if it is the
            first, so is its product.

    Raises:
        UsageError: there is no table, or the rows do not fit it. RunFailed: other writers kept replacing it.
    """
    products = _with_frozen(products, catalog)
    for _ in range(_ATTEMPTS):
        name, data, etag = _table(catalog)
        held = [(product, _held(catalog, product, photo)) for product in products]
        had = [with_photos for _, with_photos in held if with_photos]
        after, new, withdrawn = _edited(data, name, columns, had, catalog)
        if after == data or catalog.replace(name, after, etag):
            missed = tuple(product.photos[0].key for product, with_photos in held if not with_photos)
            return Added(new, withdrawn, missed)
    raise RunFailed(f"{catalog.uri_of(name)}: others replaced it {_ATTEMPTS} times in a row; apply the file again")


def _with_frozen(products: Sequence[Labelled], catalog: Store) -> list[Labelled]:
    """`products`, marked if they are in the frozen slice, by their id or by one of its photos."""
    kept = {PurePosixPath(info.key).stem for info in catalog.list(FROZEN)}
    photos = [[seen.sha256 for seen in product.photos] for product in products]
    start = [
        number
        for number, product in enumerate(products)
        if is_frozen_id(product.product_id) or not kept.isdisjoint(photos[number])
    ]
    frozen = linked(photos, start)
    return [replace(product, frozen=number in frozen) for number, product in enumerate(products)]


def _held(catalog: Store, product: Labelled, photo: Callable[[Seen], bytes | None]) -> Labelled | None:
    """The product with those of its photos that the catalog now has; None without the first. Rejected ones need
    none."""
    if product.label is None:
        return product
    found = []
    for seen in product.photos:
        if catalog.head(key := _photo_key(seen, product.frozen)) is None:
            if (data := _taught_bytes(catalog, product, seen) or photo(seen)) is None:
                continue
            catalog.put(key, data)
        found.append(seen)
    return replace(product, photos=tuple(found)) if found[:1] == [product.photos[0]] else None


def _taught_bytes(catalog: Store, product: Labelled, seen: Seen) -> bytes | None:
    """A frozen product's photo, if it was trained on before: the shop may no longer have it."""
    key = _photo_key(seen, False)
    return catalog.get(key)[0] if product.frozen and catalog.head(key) is not None else None


def _table(catalog: Store) -> tuple[str, bytes, str]:
    names = [name for name in _TABLES if catalog.head(name) is not None]
    if not names:
        raise UsageError(f"catalog {catalog.uri}: holds neither catalog.csv nor catalog.parquet; name a catalog")
    if len(names) > 1:
        raise UsageError(f"catalog {catalog.uri}: holds both catalog.csv and catalog.parquet; delete one")
    return names[0], *catalog.get(names[0])


def _edited(
    data: bytes, name: str, columns: Columns, products: Sequence[Labelled], catalog: Store
) -> tuple[bytes, int, int]:
    """The table with `products` in it, how many rows are new, and how many were removed."""
    where = f"catalog {catalog.uri_of(name)}"
    table = read_bytes(data, name, where, columns.image_path)
    category = _check_columns(columns, table, where)
    further = {column for product in products if product.label for column in product.label.further}
    if unread := hidden_columns(data, name, table) & {columns.price, columns.currency, *further}:
        raise UsageError(
            f"{where}: column {min(unread)!r} contains lists or records, not texts or numbers; change its type"
        )
    _check_currency(columns, table, products, where)
    rows = table.select(columns.image_path, columns.product_code).iter_rows()
    standing = {_digest(path): (path, code) for path, code in rows if path.startswith(f"{REVIEWED}/")}
    codes, numbered = set(table[columns.product_code]), holds_numbers(data, name, columns.product_code)
    changed, added, removed, moved = {}, [], set(), 0
    for product in products:
        (path, had), label = standing.get(product.photos[0].sha256, (None, "")), product.label
        if label is None:
            removed |= {path} if path else set()
            continue
        if path and product.frozen and not path.startswith(f"{FROZEN}/"):  # was taught, and shows a frozen photo by now
            removed.add(path)
            codes.discard(had)
            path, moved = None, moved + 1
        cells = _cells(label, columns, category)
        cells = {column: cell for column, cell in cells.items() if column in table.columns}
        if path is not None:
            changed[path] = cells
            continue
        code = _unused_code(product, codes, numbered)
        codes.add(code)
        paths = BETWEEN_PHOTOS.join(_photo_key(seen, product.frozen) for seen in product.photos)
        added.append({columns.product_code: code, **cells, columns.image_path: paths})
    edit = Edit(columns.image_path, changed, added, frozenset(removed))
    return edited(data, name, edit, where), len(added) - moved, len(removed) - moved


def _cells(label: Label, columns: Columns, category: str) -> dict[str, Cell]:
    """The cells of a label, by column."""
    cells: dict[str, Cell] = {**label.further, columns.title: label.title, category: label.category}
    if label.priced:
        cells |= {columns.price: label.price, columns.currency: label.currency if label.price else None}
    return {column: cell for column, cell in cells.items() if column not in (columns.product_code, columns.image_path)}


def _check_columns(columns: Columns, table: pl.DataFrame, where: str) -> str:
    """The column of categories; UsageError if one is missing that each product needs."""
    category = next((name for name in columns.category if name in table.columns), None)
    for role, column in (("product_code", columns.product_code), ("title", columns.title), ("category", category),
                         ("image_path", columns.image_path)):  # fmt: skip
        if column is None or column not in table.columns:
            raise UsageError(f"{where}: no column for {role}; name it in the settings under columns.{role}")
    assert category is not None
    return category


def _check_currency(columns: Columns, table: pl.DataFrame, products: Sequence[Labelled], where: str) -> None:
    """UsageError if prices in another currency would be added, after which the catalog could no longer be read."""
    if columns.currency not in table.columns:
        return
    known: set[str] = set()
    for text in table.select(value(columns.currency).unique()).to_series():
        with suppress(AmountError):  # read_catalog tells of cells that name no currency
            known |= {parse_currency(text)} if text else set()
    others = {one.label.currency for one in products if one.label and one.label.priced and one.label.currency} - known
    if known and others:
        raise UsageError(
            f"{where}: its prices are in {min(known)}, the decisions' in {min(others)}; name this output's catalog"
        )


def _unused_code(product: Labelled, codes: set[str], numbered: bool) -> str:
    """A product code that no row has: after the product, or the next number where codes are numbers."""
    if numbered:
        return str(1 + max((int(float(code)) for code in codes if code), default=0))
    text = unicodedata.normalize("NFC", product.product_id)
    plain = re.sub(r"[^\w.\- ]", "_", text)[:100]  # of file names: may hold anything, formulas and line breaks too
    stem = " ".join(plain.split()).lstrip("-. ") or "photo"
    sha256 = product.photos[0].sha256
    return next((code for size in (8, 16, len(sha256)) if (code := f"{stem}-{sha256[:size]}") not in codes), "")


def _photo_key(photo: Seen, frozen: bool) -> str:
    suffix = PurePosixPath(photo.key).suffix.lower()
    known = suffix if re.fullmatch(r"[.][a-z0-9]{1,5}", suffix) else ""
    return f"{FROZEN if frozen else REVIEWED}/{photo.sha256}{known}"


def _digest(paths: str) -> str:
    """The part of the first `_photo_key` in a cell that names the bytes."""
    return PurePosixPath(paths.partition(BETWEEN_PHOTOS)[0]).stem
