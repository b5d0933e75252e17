"""S3 Inventory as a source: Amazon's own daily list of a bucket, instead of listing it.

Listing 100 million keys costs 100,000 requests; their inventory is about a hundred files. It is up to two days old:
newer photos wait for the next one, and photos deleted since fail as not_found.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_plus

import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from enrich.errors import PermanentFailure, UsageError
from enrich.settings.storage import PLAIN_S3, S3Settings
from enrich.storage import Store, is_s3, open_store
from enrich.storage.store import OWN_PREFIX

_CSV_BLOCK = 8 << 20  # bytes parsed at a time
# What the columns are called in Parquet files; in CSV files the manifest's fileSchema gives the order.
_NAMES = {
    "Bucket": "bucket",
    "Key": "key",
    "Size": "size",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(min_length=1)
    size: int = Field(ge=0)
    md5: str = Field(alias="MD5checksum", pattern="^[0-9a-f]{32}$")


class InventoryManifest(BaseModel):
    """manifest.json as S3 writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source_bucket: str = Field(alias="sourceBucket", min_length=1)
    destination_bucket: str = Field(alias="destinationBucket")
    file_format: Literal["CSV", "Parquet"] = Field(alias="fileFormat")
    file_schema: str = Field(alias="fileSchema")
    files: tuple[_Described, ...]


@dataclass(frozen=True)
class Inventory:
    """An inventory whose manifest was read."""

    uri: str
    manifest: InventoryManifest
    files: Store  # has the keys of `manifest.files`
    bucket: str  # of the photos
    prefix: str  # of the photos, with "/" at the end, or empty

    def frames(self, folder: Path) -> Iterator[pl.DataFrame]:
        """The photos' rows (SOURCE_SCHEMA) in batches, in no order. Its files are downloaded to `folder` one by one.

        Raises:
            RunFailed: a file is not what the manifest says.
        """
        for number, described in enumerate(self.manifest.files):
            path = folder / f"inventory-{number}"
            self.files.download(described.key, path)
            _check_file(path, described, self.files.uri_of(described.key))
            try:
                for rows in _read(path, self.manifest, self.files.uri_of(described.key)):
                    yield _photos(rows, self.bucket, self.prefix)
            finally:
                path.unlink(missing_ok=True)


def open_inventory(uri: str, images: str, s3: S3Settings = PLAIN_S3) -> Inventory:
    """The inventory with the manifest.json at `uri`, for the photos at `images`.

    Its files are at the destination of the manifest. If `uri` is a local path (a copy), they are next to it under the
    same keys.

    Raises:
        UsageError: the file does not exist, is not a manifest, or is of another bucket.
    """
    parent, _, name = uri.rpartition("/")
    if name != "manifest.json":
        raise UsageError(f"inventory {uri}: name its manifest.json")
    beside = open_store(parent or ".", must_exist=True, s3=s3)
    if beside.head(name) is None:
        raise UsageError(f"inventory {uri}: no such object; check the path")
    data, _ = beside.get(name, max_bytes=64 << 20)
    manifest = parse_manifest(data, uri)
    bucket, _, prefix = images.removeprefix("s3://").partition("/")
    if is_s3(images) and manifest.source_bucket != bucket:
        raise UsageError(f"inventory {uri}: is of bucket {manifest.source_bucket}, not of {images}; name that bucket's")
    destination = manifest.destination_bucket.removeprefix("arn:aws:s3:::").rpartition(":")[2]
    files = open_store(f"s3://{destination}", s3=s3) if is_s3(uri) else beside
    prefix = prefix.rstrip("/") if is_s3(images) else ""
    return Inventory(uri, manifest, files, manifest.source_bucket, f"{prefix}/" if prefix else "")


def parse_manifest(data: bytes, uri: str) -> InventoryManifest:
    """manifest.json from its bytes; UsageError if it cannot be used."""
    try:
        manifest = InventoryManifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"inventory {uri}: {where}: {first['msg']}; it must be an inventory of format CSV or Parquet"
        ) from error
    if manifest.file_format == "CSV":
        missing = {"Bucket", "Key", "Size", "ETag"}.difference(_columns(manifest))
        if missing:
            raise UsageError(f"inventory {uri}: missing fields: {', '.join(sorted(missing))}; add them to it")
    return manifest


def _columns(manifest: InventoryManifest) -> list[str]:
    return [name.strip() for name in manifest.file_schema.split(",")]


def _check_file(path: Path, described: _Described, where: str) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if path.stat().st_size != described.size or digest != described.md5:
        raise PermanentFailure(f"{where}: its bytes differ from those listed in the manifest; use a newer inventory")


def _read(path: Path, manifest: InventoryManifest, where: str) -> Iterator[pl.DataFrame]:
    """Rows with the columns of _NAMES that there are, keys decoded."""
    try:
        if manifest.file_format == "Parquet":
            yield from _read_parquet(path)
        else:
            yield from _read_csv(path, _columns(manifest))
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise PermanentFailure(f"{where}: is not an inventory file ({reason}); use a newer inventory") from error


def _read_parquet(path: Path) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        names = [name for name in _NAMES.values() if name in file.schema_arrow.names]
        yield from map(_frame, file.iter_batches(columns=names))


def _read_csv(path: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    """CSV files have no header, and their keys are percent-encoded."""
    wanted = [name for name in columns if name in _NAMES]
    with gzip.open(path) as file:
        if not file.peek(1):
            return
        reader = pyarrow.csv.open_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=columns, block_size=_CSV_BLOCK),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            frame = _frame(batch).rename({name: _NAMES[name] for name in wanted})
            keys = frame["key"]
            if keys.str.contains_any(["%", "+"]).any():
                keys = pl.Series("key", [unquote_plus(key, errors="strict") for key in keys], pl.String)
            yield frame.with_columns(
                keys, pl.col("size").replace("", "0").cast(pl.Int64), cs.starts_with("is_").str.to_lowercase() == "true"
            )


def _photos(rows: pl.DataFrame, bucket: str, prefix: str) -> pl.DataFrame:
    """What a listing of the prefix would say: newest versions, no folder markers, none of the package's own files."""
    keep = (pl.col("bucket") == bucket) & pl.col("key").str.starts_with(prefix)
    if "is_latest" in rows.columns:
        keep &= pl.col("is_latest").fill_null(True)
    if "is_delete_marker" in rows.columns:
        keep &= ~pl.col("is_delete_marker").fill_null(False)
    key = pl.col("key").str.slice(len(prefix))
    marker = (pl.col("size") == 0) & ((key == "") | key.str.ends_with("/"))
    own = key.str.starts_with(OWN_PREFIX) | key.str.contains(f"/{OWN_PREFIX}", literal=True)
    return rows.filter(keep.fill_null(False) & ~marker.fill_null(True) & ~own).select(
        key.alias("key"), pl.col("size").cast(pl.Int64), pl.col("e_tag").str.strip_chars('"').alias("etag")
    )


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    batch.validate(full=True)  # a key that is not UTF-8 would make our own files unreadable
    return pl.DataFrame(pa.Table.from_batches([batch]))
