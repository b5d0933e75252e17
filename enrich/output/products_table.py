"""A products table: the shop's own list of products and their photos. Only the listed products are processed.

It is CSV or Parquet, a row for each product. Neither it nor the listing is held in memory as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from enrich.delimited import make_utf8, opening
from enrich.errors import UsageError, first_line
from enrich.output import parquet
from enrich.output.grouping import PIECE_SCHEMA, Grouped, spooled, write_grouped
from enrich.output.schema import LISTING_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.settings.run import ProductColumns
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage import open_store
from enrich.vocabulary import LONGEST_KEY

_BATCH = 100_000  # rows at a time
_TEXTS = (".csv", ".tsv")
# A photo that the table lists.
_LISTED = pa.schema([("key", pa.string()), ("product_id", pa.string()), ("order", pa.string()), ("row", pa.int64())])
_FORM = pa.field("form", pa.string())  # of a key: the same for all ways to write it (`_form`)


@dataclass(frozen=True)
class ProductsTable:
    """A table that was read, as a local file of its photos (_LISTED)."""

    uri: str
    path: Path
    warning: str | None = None  # about a text whose encoding had to be guessed


class _Faults:
    """Rows with one kind of error: how many, and the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, (0, "")

    def add(self, rows: pl.DataFrame, example: pl.Expr) -> None:
        """`rows` have a column row; `example` is what to show of the first."""
        if rows.height:
            earliest = rows.sort("row").head(1).select("row", example=example).row(0)
            self.first = earliest if not self.count else min(self.first, earliest)
            self.count += rows.height

    def check(self, uri: str, one: str, several: str, then: str) -> None:
        """UsageError if there are any."""
        if self.count:
            row, example = self.first
            what = one if self.count == 1 else f"{self.count:,} {several}"
            raise UsageError(f"products table {uri}: {what}, the first in row {row:,}: {example!r}; {then}")


def open_products(uri: str, columns: ProductColumns, folder: Path, s3: S3Settings = PLAIN_S3) -> ProductsTable:
    """The products table at `uri`, read into `folder`.

    Raises:
        UsageError: there is none, it cannot be read, or its rows are not one product with photos each.
    """
    parent, _, name = uri.rpartition("/")
    suffix = Path(name).suffix.lower()
    if suffix not in _READERS:
        raise UsageError(f"products table {uri}: none of {', '.join(_READERS)}; convert it to one of these")
    beside = open_store(parent or ("/" if uri.startswith("/") else "."), must_exist=True, s3=s3)
    if beside.head(name) is None:
        raise UsageError(f"products table {uri}: no such object; check the path")
    table, listed = folder / f"products{suffix}", folder / "listed.parquet"
    beside.download(name, table)
    warning = _as_utf8(table, uri) if suffix in _TEXTS else None
    unnamed, too_long, without, total = _Faults(), _Faults(), _Faults(), 0

    def photos() -> Iterator[pl.DataFrame]:
        nonlocal total
        for frame in _READERS[suffix](table, columns, uri):
            rows = frame.with_row_index("row", offset=total + 1).with_columns(pl.col("row").cast(pl.Int64))
            total += frame.height
            unnamed.add(rows.filter(pl.col("product_id") == ""), pl.col("product_id"))
            long = pl.col("product_id").str.len_chars() > LONGEST_KEY
            too_long.add(rows.filter(long), pl.col("product_id").str.head(40))
            without.add(rows.filter(pl.col("photos").list.len() == 0), pl.col("product_id"))
            yield _exploded(rows)

    with _readable(uri):
        parquet.write(listed, photos(), _LISTED, {})
    table.unlink()
    if not total:
        raise UsageError(f"products table {uri}: it has no rows; list the products to process")
    unnamed.check(uri, "1 row has no product_id", "rows have no product_id", "name each product")
    too_long.check(
        uri, f"1 product_id is longer than {LONGEST_KEY:,} characters",
        f"product_ids are longer than {LONGEST_KEY:,} characters", "shorten it",
    )  # fmt: skip
    without.check(uri, "1 product has no photos", "products have no photos", "list its keys, or take the row out")
    _check_ids(uri, listed, folder)
    return ProductsTable(uri, listed, warning)


def _as_utf8(table: Path, uri: str) -> str | None:
    encoding = make_utf8(table, f"products table {uri}")
    if encoding.startswith("utf-"):
        return None
    return f"products table {uri}: read as {encoding}; if product ids look wrong, save it as UTF-8"


def _form() -> pl.Expr:
    """The key as any program may have written it: with the separator of Windows, accents as on a Mac, or from the
    images' folder on (./a.jpg)."""
    slashes = pl.col("key").str.replace_all("\\", "/", literal=True).str.replace(r"^\.?/+", "")
    return slashes.str.normalize("NFC").alias("form")


def write_listed(path: Path, listing: Path, table: ProductsTable, metadata: Mapping[str, str], folder: Path) -> Grouped:
    """Write the products of `table` (SOURCE_SCHEMA, by product_id) with their photos as `listing` has them.

    Raises:
        UsageError: it lists photos that are not there, or one photo more than once.
    """
    unknown, doubled = _Faults(), _Faults()

    def pieces() -> Iterator[pl.DataFrame]:
        for there, wanted in _by_form(listing, table.path, folder):
            found = _found(wanted, there)
            unknown.add(found.filter(pl.col("size").is_null()), pl.col("key"))
            again = found.filter(pl.col("key").is_duplicated()).sort("row", "order")
            doubled.add(again.filter(~pl.col("key").is_first_distinct()), pl.col("key"))
            yield found.select(
                *LISTING_SCHEMA.names, "product_id", "order", own=pl.lit(False), more=pl.lit(0, pl.Int64)
            )

    file = folder / "pieces.parquet"
    bounds = spooled(file, pieces())
    doubled.check(
        table.uri, "1 photo is listed more than once", "photos are listed more than once",
        "a photo belongs to one product",
    )  # fmt: skip
    unknown.check(
        table.uri, "1 photo is not in the bucket", "photos are not in the bucket",
        "keys are paths below the URI of the images",
    )  # fmt: skip
    parts = RangePartitions(bounds, folder / "pieces", PIECE_SCHEMA).add(parquet.frames(file, PIECE_SCHEMA))
    return write_grouped(path, parts, metadata, "the first ones in the table's order are used")


def _by_form(listing: Path, listed: Path, folder: Path) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Photos that are there and photos that are listed, in the same ranges of `_form`, which is one more column."""

    def frames(path: Path, schema: pa.Schema) -> Iterator[pl.DataFrame]:
        return (frame.with_columns(_form()) for frame in parquet.frames(path, schema))

    rows = pq.read_metadata(listing).num_rows
    bounds = partition_bounds(sampled(frames(listing, LISTING_SCHEMA), ["form"]), ["form"], rows)
    there, wanted = (
        RangePartitions(bounds, folder / name, schema.append(_FORM)).add(frames(path, schema))
        for name, path, schema in (("there", listing, LISTING_SCHEMA), ("wanted", listed, _LISTED))
    )
    return zip(there, wanted, strict=True)


def _found(wanted: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """The photos that are listed, with what the listing says: of the very key, else of the only one of its form."""
    same = wanted.join(there.drop("form"), on="key", how="left")
    written = same.filter(pl.col("size").is_null()).select(wanted.columns)
    alike = there.filter(~pl.col("form").is_duplicated()).rename({"key": "actual"})
    others = written.join(alike, on="form", how="left").with_columns(pl.coalesce("actual", "key").alias("key"))
    return pl.concat([same.filter(pl.col("size").is_not_null()), others.select(same.columns)])


def _exploded(rows: pl.DataFrame) -> pl.DataFrame:
    """A row for each photo (_LISTED)."""
    photos = rows.with_columns(place=pl.int_ranges(pl.col("photos").list.len())).explode("photos", "place")
    return photos.drop_nulls("photos").select(
        pl.col("photos").alias("key"), "product_id", order=pl.col("place").cast(pl.String).str.zfill(9), row="row"
    )


def _check_ids(uri: str, listed: Path, folder: Path) -> None:
    """UsageError if two rows have one product_id."""
    doubled, schema = _Faults(), pa.schema([_LISTED.field("product_id"), _LISTED.field("row")])

    def ids() -> Iterator[pl.DataFrame]:
        return (frame.unique() for frame in parquet.frames(listed, _LISTED, schema.names))

    rows = pq.read_metadata(listed).num_rows
    bounds = partition_bounds(sampled(ids(), ["product_id"]), ["product_id"], rows)
    for part in RangePartitions(bounds, folder / "by-id", schema).add(ids()):
        again = part.unique().filter(pl.col("product_id").is_duplicated()).sort("row")
        doubled.add(again.filter(~pl.col("product_id").is_first_distinct()), pl.col("product_id"))
    doubled.check(
        uri, "1 product_id is in more than one row", "rows have the product_id of an earlier one",
        "put the photos of a product into one row",
    )  # fmt: skip


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn pyarrow's errors about a broken file into UsageError."""
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise UsageError(f"products table {uri} cannot be read: {first_line(error)[:200]}; correct the file") from error


def _read_parquet(path: Path, columns: ProductColumns, uri: str) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        _check_columns(file.schema_arrow.names, columns, uri)
        names = list(dict.fromkeys([columns.product_id, columns.photos]))
        for batch in file.iter_batches(_BATCH, columns=names):
            yield _cells(pl.DataFrame(pa.Table.from_batches([batch])), columns)


def _read_csv(path: Path, columns: ProductColumns, uri: str) -> Iterator[pl.DataFrame]:
    wanted = list(dict.fromkeys([columns.product_id, columns.photos]))
    separator, before = opening(path, wanted)
    parse = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    read = pyarrow.csv.ReadOptions(skip_rows=before)
    with pyarrow.csv.open_csv(path, read, parse) as reader:
        header = reader.schema.names
    names = [" ".join(name.split()) for name in header]
    _check_columns(names, columns, uri)
    there = [header[names.index(name)] for name in wanted]
    convert = pyarrow.csv.ConvertOptions(
        include_columns=there, column_types=dict.fromkeys(there, pa.string()), strings_can_be_null=False
    )
    with pyarrow.csv.open_csv(path, read, parse, convert) as reader:
        for batch in reader:
            yield _cells(pl.DataFrame(pa.Table.from_batches([batch]).rename_columns(wanted)), columns)


def _check_columns(names: list[str], columns: ProductColumns, uri: str) -> None:
    for role, name in (("product_id", columns.product_id), ("photos", columns.photos)):
        if name not in names:
            there = ", ".join(names[:30]) or "none"
            raise UsageError(
                f"products table {uri}: no column {name!r} ({role}); its columns are: {there}; "
                f"name the right one in the settings under products.{role}"
            )
        if names.count(name) > 1:
            raise UsageError(f"products table {uri}: column {name!r} ({role}) exists more than once; keep one of them")


def _cells(frame: pl.DataFrame, columns: ProductColumns) -> pl.DataFrame:
    """Columns product_id, a text, and photos, a list of keys."""
    photos = pl.col(columns.photos)
    if not isinstance(frame.schema[columns.photos], pl.List | pl.Array):
        photos = photos.cast(pl.String).fill_null("").str.split("|")
    keys = photos.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars()).list.drop_nulls()
    named = pl.col(columns.product_id).cast(pl.String).fill_null("").str.strip_chars()
    if frame.schema[columns.product_id].is_float():
        named = named.str.strip_suffix(".0")  # integers that once had a gap among them, as in catalogs
    # What is empty between two bars does not count.
    return frame.select(product_id=named, photos=keys.list.filter(pl.element() != "").fill_null([]))


_READERS: dict[str, Callable[[Path, ProductColumns, str], Iterator[pl.DataFrame]]] = {
    **dict.fromkeys(_TEXTS, _read_csv),
    ".parquet": _read_parquet,
}
