"""Files of schema version 2, where a row was about one photo, with the columns of version 3.

Every photo was a product: its id is the key without the extension, as `group_by: photo` has it. Where two photos of a
folder had one stem (x.jpg, x.png), the fold keeps one row of the two, and the next run answers the other.
"""

import polars as pl
import pyarrow as pa

from enrich.output.photos_etag import photos_etags
from enrich.output.schema import (
    MANIFEST_SCHEMA,
    PRODUCTS_SCHEMA,
    REVIEW_SCHEMA,
    ROW_PHOTO,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    SOURCE_SCHEMA,
)
from enrich.photos.groups import STEM

_PHOTO = {"image_key", "image_etag", "image_sha256"}
_ROW = _PHOTO | {"image_uri", "image_width", "image_height"}
_LISTED = {"key", "size", "etag"}
_NEW = {
    "category_path", "category_id", "attributes", "suggested_attributes", "photos", "photos_answered", "looks",
    "last_photos_etag", "photos_etag",
}  # fmt: skip
# Columns of decisions that were added since, the newest last: a file has the first few of these.
_LATER = (
    {"attributes", "suggested_attributes"},
    {
        "picked", "adapter", "suggested_confidence", "suggested_price_low", "suggested_price_high",
        "suggested_confidences",
    },
)  # fmt: skip


def earlier_columns(schema: pa.Schema) -> frozenset[str]:
    """The columns of a file of version 2 that has those of `schema` by now; empty where there was none."""
    names = set(schema.names)
    if schema.names == REVIEW_SCHEMA.names:
        return frozenset((names - _NEW - later_columns(schema) - {"product_id"}) | _PHOTO)
    if schema.names in (SOURCE_SCHEMA.names, MANIFEST_SCHEMA.names):
        return frozenset((names - _NEW - {"product_id"}) | _LISTED)
    if schema.names == ROW_SCHEMA.names:
        return frozenset((names - _NEW) | _ROW)
    if schema.names == PRODUCTS_SCHEMA.names:
        return frozenset((names - _NEW) | _ROW | {"last_etag"})
    return frozenset()


def later_columns(schema: pa.Schema) -> frozenset[str]:
    """The columns of `schema` that a file of this version may lack: it was written before there were any."""
    later = set[str]().union(*_LATER) if schema.names == REVIEW_SCHEMA.names else {"looks"}
    return frozenset(later.intersection(schema.names))


def forms(schema: pa.Schema) -> list[pa.Schema]:
    """What a file of this version may have instead of `schema`: no `later_columns`, nor photo_issues in its photos."""
    first, second = (
        pa.schema(field for field in schema if field.name not in some)
        for some in (later_columns(schema), later_columns(schema) & _LATER[-1])
    )
    photos = pa.list_(pa.struct([field for field in ROW_PHOTO if field.name != "photo_issues"]))
    older = pa.schema(field.with_type(photos) if field.type == pa.list_(ROW_PHOTO) else field for field in first)
    return [first, second, older]


def upgraded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows of a file with `earlier_columns`, or without `later_columns`, with the columns of `schema`."""
    if set(schema.names) - later_columns(schema) <= set(table.column_names):
        return _completed(table, schema)
    frame = pl.DataFrame(table)
    listed = "key" in frame.columns
    key = pl.col("key" if listed else "image_key")
    changed: dict[str, pl.Expr] = {"product_id": pl.coalesce(key.str.extract(STEM, 1), key)}
    if listed:
        changed["photos"] = pl.concat_list(pl.struct("key", "size", "etag"))
        changed["photos_etag"] = pl.concat_list(pl.struct("key", "etag"))
    elif "image_uri" in frame.columns:
        read = pl.col("image_width").is_not_null()
        kind = pl.when((pl.col("status") == "failed") & ~read).then("error_kind")
        changed["photos"] = pl.concat_list(
            pl.struct(
                key=key, uri="image_uri", etag="image_etag", sha256="image_sha256", width="image_width",
                height="image_height", error_kind=kind, photo_issues=pl.lit(None, pl.List(pl.String)),
            )
        )  # fmt: skip
        changed["photos_answered"] = (read | (pl.col("status") == "ok")).cast(pl.Int16)
        changed["schema_version"] = pl.lit(SCHEMA_VERSION, pl.Int16)
    else:
        changed["photos"] = pl.concat_list(pl.struct(key=key, etag="image_etag", sha256="image_sha256"))
    if "last_etag" in frame.columns:
        changed["last_photos_etag"] = pl.concat_list(pl.struct(key=key, etag="last_etag"))
    made = frame.select(**changed)
    for name in {"photos_etag", "last_photos_etag"} & set(made.columns):
        made = made.with_columns(photos_etags(made[name]).alias(name))
    return _completed(table, schema, made.to_arrow())


def _completed(table: pa.Table, schema: pa.Schema, made: pa.Table | None = None) -> pa.Table:
    """The columns of `schema`, from `made` if it has them, else from `table`; null where neither does."""
    columns = []
    for field in schema:
        source = next((one for one in (made, table) if one is not None and field.name in one.column_names), None)
        columns.append(pa.nulls(len(table), field.type) if source is None else source[field.name].cast(field.type))
    return pa.table(columns, schema=schema.with_metadata(table.schema.metadata))
