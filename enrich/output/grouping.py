"""Group photos into products: a listing of photos becomes a list of products with their photos in order.

Every photo belongs to exactly one product. A photo that is a product by itself (all of them with `photo`, otherwise
those that are in no folder or do not match the expression) is named by its key without the extension. If that name is
taken by another photo or by a group, it is named by its whole key, so that ids are unique.

Tables are sorted on disk, in ranges of product ids (`enrich.output.spill`): memory does not grow with the listing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import polars as pl
import pyarrow as pa

from enrich.errors import UsageError
from enrich.output import parquet
from enrich.output.photos_etag import photos_etags
from enrich.output.schema import LISTING_SCHEMA, SOURCE_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.photos.groups import STEM, group_of, natural_order
from enrich.vocabulary import MOST_PHOTOS

_BATCH = 100_000  # photos at a time

# A photo with the product it belongs to. Of a group's photos in one batch only the first MOST_PHOTOS are kept.
PIECE_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        pa.field("product_id", pa.string()),
        pa.field("order", pa.string()),  # of the photos of a product
        pa.field("own", pa.bool_()),  # the photo is a product of its own, whose id may still change
        pa.field("more", pa.int64()),  # photos of the product that were left out of the batch
    ]
)


@dataclass(frozen=True)
class Grouped:
    """The result of grouping a listing."""

    products: int
    warning: str | None  # about products with too many photos


def write_source(path: Path, listing: Path, group_by: str, metadata: Mapping[str, str], folder: Path) -> Grouped:
    """Write the products (SOURCE_SCHEMA, by product_id) of the photos in `listing` (LISTING_SCHEMA).

    Args:
        folder: for data that does not fit into memory.

    Raises:
        UsageError: `group_by` is an expression that matches no photo.
    """
    pieces, seen, grouped = folder / "pieces.parquet", 0, 0

    def found() -> Iterator[pl.DataFrame]:
        nonlocal seen, grouped
        for photos in parquet.frames(listing, LISTING_SCHEMA, rows=_BATCH):
            named = _named(photos, group_by)
            seen, grouped = seen + named.height, grouped + int((~named["own"]).sum())
            yield _first_of_each(named)

    bounds = spooled(pieces, found())
    if seen and not grouped:
        check_matches(next(parquet.frames(listing, LISTING_SCHEMA, ["key"], 1))["key"], group_by)
    parts = RangePartitions(bounds, folder / "pieces", PIECE_SCHEMA).add(parquet.frames(pieces, PIECE_SCHEMA))
    if grouped < seen:
        parts = _settled(parts, bounds, folder)
    return write_grouped(path, parts, metadata, "the first in natural order are used")


def check_matches(keys: Iterable[str], group_by: str) -> None:
    """UsageError if `group_by` is an expression that matches none of `keys`; reads no more of them than it has to."""
    if group_by in ("photo", "folder"):
        return
    grouped, example = group_of(group_by), ""
    for key in keys:
        if grouped(key) is not None:
            return
        example = example or key
    raise UsageError(
        f"group_by {group_by!r} matches no photo, such as {example!r}: it has to match a whole key; correct it, or use "
        "photo or folder"
    )


def spooled(path: Path, pieces: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Write `pieces` (PIECE_SCHEMA) to a local file; returns where to part them by product_id."""
    samples = [parquet.empty(PIECE_SCHEMA).select("product_id")]

    def watched() -> Iterator[pl.DataFrame]:
        for piece in pieces:
            samples.append(sampled([piece], ["product_id"]))
            yield piece

    rows = parquet.write(path, watched(), PIECE_SCHEMA, {})
    return partition_bounds(pl.concat(samples), ["product_id"], rows)


def write_grouped(path: Path, parts: RangePartitions, metadata: Mapping[str, str], limited: str) -> Grouped:
    """Write the products of `parts` (PIECE_SCHEMA, by ranges of product_id); `limited` says how those are cut that have
    more than MOST_PHOTOS photos."""
    large, largest = 0, (0, "")

    def products() -> Iterator[pl.DataFrame]:
        nonlocal large, largest
        for part in parts:
            made = _grouped(part)
            too_many = made.filter(pl.col("count") > MOST_PHOTOS).select("count", "product_id").sort("count")
            large += too_many.height
            largest = max([largest, *too_many.tail(1).iter_rows()])
            yield made.drop("count")

    number = parquet.write(path, products(), SOURCE_SCHEMA, metadata, sorted_by=["product_id"])
    most, example = largest
    have = "1 product has" if large == 1 else f"{large:,} products have"
    told = f"{have} more than {MOST_PHOTOS} photos, e.g. {example!r} ({most:,} photos): {limited}; see group_by"
    return Grouped(number, told if large else None)


def _named(photos: pl.DataFrame, group_by: str) -> pl.DataFrame:
    """Photos (LISTING_SCHEMA) as PIECE_SCHEMA: the id of each one's product, or of its own."""
    keys = photos["key"]
    groups: list[str | None]
    if group_by == "photo":  # photos compete for an id only if all but the extension is equal: keys order them
        groups, order = [None] * len(keys), [""] * len(keys)
    else:
        groups, order = list(map(group_of(group_by), keys)), list(map(natural_order, keys))
    named = photos.with_columns(
        pl.Series("group", groups, pl.String), pl.Series("order", order, pl.String), more=pl.lit(0, pl.Int64)
    )
    ids = pl.coalesce("group", pl.col("key").str.extract(STEM, 1), "key")
    return named.with_columns(product_id=ids, own=pl.col("group").is_null()).select(PIECE_SCHEMA.names)


def _first_of_each(named: pl.DataFrame) -> pl.DataFrame:
    """The first MOST_PHOTOS of each group in a batch, with the number of those left out."""
    if named["own"].all():
        return named
    place = pl.int_range(pl.len()).over("product_id")
    left_out = (
        pl.when(pl.col("place") == 0)
        .then((pl.len().cast(pl.Int64).over("product_id") - MOST_PHOTOS).clip(0))
        .otherwise(0)
    )
    ordered = named.sort("product_id", "own", "order", "key").with_columns(place=place)
    return (
        ordered.with_columns(more=pl.when("own").then(0).otherwise(left_out.cast(pl.Int64)))
        .filter(pl.col("own") | (pl.col("place") < MOST_PHOTOS))
        .drop("place")
    )


def _settled(parts: RangePartitions, bounds: pl.DataFrame, folder: Path) -> RangePartitions:
    """`parts` with another id for each product of its own whose id is taken. Repeated, for the other may be taken too:
    ids only get longer, so it ends."""
    for number in count():
        losers = 0

        def settle(part: pl.DataFrame) -> pl.DataFrame:
            nonlocal losers
            lost = _lose(part)
            losers += int(lost.sum())
            shorter = pl.col("product_id").str.len_bytes() < pl.col("key").str.len_bytes()
            other = pl.when(shorter).then("key").otherwise(pl.col("product_id") + "#")
            return part.with_columns(product_id=pl.when(lost).then(other).otherwise("product_id"))

        parts = RangePartitions(bounds, folder / f"settled-{number}", PIECE_SCHEMA).add(map(settle, parts))
        if not losers:
            break
    return parts


def _lose(part: pl.DataFrame) -> pl.Series:
    """Which rows are products of their own whose id is another's: a group's, a whole key's, or an earlier one's."""
    doubled = part["product_id"].is_duplicated() & part["own"]
    if not doubled.any():
        return doubled
    by_stem = pl.col("product_id").str.len_bytes() < pl.col("key").str.len_bytes()
    ranked = part.with_row_index("row").sort("product_id", "own", by_stem, "order", "key")
    place = pl.int_range(pl.len()).over("product_id")
    return ranked.select("row", lost=pl.col("own") & (place > 0)).sort("row")["lost"]


def _grouped(part: pl.DataFrame) -> pl.DataFrame:
    """The products of a range (SOURCE_SCHEMA) with the number of photos that each has."""
    made = (
        part.sort("product_id", "order", "key")
        .group_by("product_id", maintain_order=True)
        .agg(
            photos=pl.struct(LISTING_SCHEMA.names).head(MOST_PHOTOS),
            count=pl.len().cast(pl.Int64) + pl.col("more").sum(),
        )
    )
    return made.with_columns(photos_etag=photos_etags(made["photos"]))
