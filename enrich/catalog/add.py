"""More labelled products for a catalog: what people decided about photos, for the next fine-tuning."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import polars as pl

from enrich.errors import RunFailed, UsageError
from enrich.settings import Columns
from enrich.storage import Store

FOLDER = "images/reviewed"
_TABLES = ("catalog.csv", "catalog.parquet")
_ATTEMPTS = 5  # every lost swap means that another writer got through


@dataclass(frozen=True)
class Labelled:
    """A photo and what a person says it shows."""

    product_code: str
    title: str
    category: str
    price: float | None
    currency: str | None
    image_key: str  # names the photo's format
    sha256: str


def add_products(
    catalog: Store, columns: Columns, products: Sequence[Labelled], photo: Callable[[Labelled], bytes]
) -> int:
    """Put photos below images/reviewed/ and rows into the catalog's table, replaced by compare-and-swap.

    A photo that was added before gets its newer labels. Returns how many rows are new.

    Raises:
        UsageError: there is no table, or it lacks a column. RunFailed: others replaced it again and again.
    """
    if not products:
        return 0
    name = next((name for name in _TABLES if catalog.head(name) is not None), None)
    if name is None:
        raise UsageError(f"catalog {catalog.uri}: holds neither catalog.csv nor catalog.parquet; name a catalog")
    for _ in range(_ATTEMPTS):
        data, etag = catalog.get(name)
        table = _read(data, name)
        added = _rows(products, columns, table, f"catalog {catalog.uri}")
        for product in products:
            if catalog.head(_photo_key(product)) is None:
                catalog.put(_photo_key(product), photo(product))
        standing = table.join(added, on=columns.image_path, how="semi").height
        kept = table.join(added, on=columns.image_path, how="anti", maintain_order="left")
        if catalog.replace(name, _write(pl.concat([kept, added], how="diagonal"), name), etag):
            return len(products) - standing
    raise RunFailed(f"{catalog.uri_of(name)} was replaced by others {_ATTEMPTS} times in a row; apply the file again")


def _rows(products: Sequence[Labelled], columns: Columns, table: pl.DataFrame, where: str) -> pl.DataFrame:
    category = next((name for name in columns.category if name in table.columns), None)
    for role, column in (("product_code", columns.product_code), ("title", columns.title), ("category", category),
                         ("image_path", columns.image_path)):  # fmt: skip
        if column is None or column not in table.columns:
            raise UsageError(f"{where}: no column for {role}; name it in the settings under columns.{role}")
    assert category is not None
    values = {
        columns.product_code: [f"{one.product_code}-{one.sha256[:8]}" for one in products],
        columns.title: [one.title for one in products],
        category: [one.category for one in products],
        columns.price: ["" if one.price is None else f"{one.price:g}" for one in products],
        columns.currency: [one.currency or "" for one in products],
        columns.image_path: [_photo_key(one) for one in products],
    }
    added = pl.DataFrame({name: column for name, column in values.items() if name in table.columns})
    empty = [pl.lit("").alias(name) for name, kind in table.schema.items() if name not in values and kind == pl.String]
    return added.with_columns(empty).with_columns(
        pl.when(pl.col(name) == "").then(None).otherwise(pl.col(name)).cast(table.schema[name]).alias(name)
        for name in added.columns
        if table.schema[name] != pl.String
    )


def _photo_key(product: Labelled) -> str:
    return f"{FOLDER}/{product.sha256}{PurePosixPath(product.image_key).suffix.lower()}"


def _read(data: bytes, name: str) -> pl.DataFrame:
    return pl.read_csv(data, infer_schema=False) if name.endswith(".csv") else pl.read_parquet(data)


def _write(table: pl.DataFrame, name: str) -> bytes:
    sink = io.BytesIO()
    if name.endswith(".csv"):
        table.write_csv(sink)
    else:
        table.write_parquet(sink)
    return sink.getvalue()
