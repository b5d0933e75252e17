"""An output as schema version 2 left it, made from one of today's: a row a photo, named by its key."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.output.schema import REVIEW_SCHEMA, ROW_SCHEMA

_NEW = ("photos", "photos_answered", "looks", "category_path", "category_id", "attributes", "suggested_attributes",
        "photos_etag", "last_photos_etag")  # fmt: skip
_NEW_OF_DECISIONS = ("picked", "adapter", "suggested_confidence", "suggested_price_low", "suggested_price_high",
                     "suggested_confidences")  # fmt: skip
_TYPES = {"image_width": pl.Int32, "image_height": pl.Int32}
_ROW = {"image_key": "key", "image_uri": "uri", "image_etag": "etag", "image_sha256": "sha256", "image_width": "width",
        "image_height": "height"}  # fmt: skip


def downgrade(folder: Path) -> None:
    """Write every Parquet file of an output, whose products have one photo each, as version 2 wrote it."""
    for path in sorted(folder.rglob("*.parquet")):
        with pq.ParquetFile(path) as file:
            table, pairs = file.read(), dict(file.metadata.metadata)
        pairs.pop(b"ARROW:schema", None)
        frame = pl.DataFrame(table)
        older = _reviews(frame) if set(REVIEW_SCHEMA.names) == set(frame.columns) else _rows(frame)
        made = older.to_arrow(compat_level=pl.CompatLevel.oldest())
        made = made.cast(pa.schema([_as_written(field) for field in made.schema]))
        with pq.ParquetWriter(path, made.schema, compression="zstd") as writer:
            writer.write_table(made)
            writer.add_key_value_metadata({**pairs, b"enrich.schema_version": b"2"})


def _rows(frame: pl.DataFrame) -> pl.DataFrame:
    photo = pl.col("photos").list.first().struct
    kept = [name for name in frame.columns if name not in (*_NEW, "schema_version")]
    if "status" not in frame.columns:  # a manifest or a source
        listed = [photo.field(name) for name in ("key", "size", "etag")]
        return frame.select(*listed, *(name for name in kept if name != "product_id"))
    images = [photo.field(old).alias(new) for new, old in _ROW.items()]
    last = [photo.field("etag").alias("last_etag")] if "in_source" in frame.columns else []
    rest = [name for name in kept if name != "product_id"]
    stem = photo.field("key").str.extract(r"([^/]+?)(?:\.[^./]*)?$").alias("product_id")
    version = pl.lit(2, pl.Int16).alias("schema_version")
    return frame.select(stem, *images, *rest, *last, version)


def _reviews(frame: pl.DataFrame) -> pl.DataFrame:
    photo = pl.col("photos").list.first().struct
    images = [photo.field(old).alias(new) for new, old in list(_ROW.items())[:4] if new != "image_uri"]
    gone = {"product_id", *_NEW, *_NEW_OF_DECISIONS}
    return frame.select(*images, *(name for name in frame.columns if name not in gone))


def _as_written(field: pa.Field) -> pa.Field:
    """Strings and lists as Arrow's small types, and the columns that stayed as they are."""
    known = {one.name: one for one in [*ROW_SCHEMA, *REVIEW_SCHEMA]}
    if field.name in known:
        return known[field.name]
    return field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field
