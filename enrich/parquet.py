"""Tables to Parquet bytes and back, with exactly the declared columns and types."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.errors import RunFailed
from enrich.schema import SCHEMA_VERSION
from enrich.storage import Store

# 65,536 rows are some 10 MB: large enough to scan fast, small enough that the statistics of a sorted column skip most.
ROW_GROUP_ROWS = 65_536

# Key-value metadata. Every file carries the schema version; the rest is the caller's.
SCHEMA_VERSION_KEY = "enrich.schema_version"
RUN_KEY = "enrich.run"  # RunInfo as JSON
RUN_ID_KEY = "enrich.run_id"
WRITER_KEY = "enrich.writer_id"  # tells a writer whose response was lost that the file is its own


@dataclass(frozen=True)
class ParquetFile:
    """A file as it was read: its rows, its key-value metadata and the etag that a compare-and-swap needs."""

    table: pl.DataFrame
    metadata: Mapping[str, str]
    etag: str
    size: int  # bytes


def empty(schema: pa.Schema) -> pl.DataFrame:
    """No rows of `schema`."""
    return _to_polars(schema.empty_table())


def from_records(records: Sequence[Mapping[str, object]], schema: pa.Schema) -> pl.DataFrame:
    """Rows from one mapping of column to value each."""
    return _to_polars(pa.Table.from_pylist(list(records), schema=schema))


def encode(table: pl.DataFrame, schema: pa.Schema, metadata: Mapping[str, str], sorted_by: Sequence[str] = ()) -> bytes:
    """A whole Parquet file: the columns of `schema` in its order, zstd, statistics, page index.

    `sorted_by` states the order the rows already have (ascending, nulls last). Row groups are converted one at a time,
    so the 2 GiB limit of a string column never applies and memory holds the table once.
    """
    pairs = {**metadata, SCHEMA_VERSION_KEY: str(SCHEMA_VERSION)}
    order = [(name, "ascending") for name in sorted_by]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        schema.with_metadata(pairs),
        compression="zstd",
        write_page_index=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema, order, null_placement="at_end") if order else None,
    ) as writer:
        columns = table.select(schema.names)
        for start in range(0, columns.height, ROW_GROUP_ROWS):
            writer.write_table(columns.slice(start, ROW_GROUP_ROWS).to_arrow().cast(schema))
    return sink.getvalue()


def decode(data: bytes, schema: pa.Schema, where: str) -> tuple[pl.DataFrame, dict[str, str]]:
    """The rows and the key-value metadata of a file; RunFailed, naming `where`, if it is not one that `encode` made."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise RunFailed(f"{where} is not a readable Parquet file; move it away and start the run again") from error
    pairs = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if not table.schema.equals(schema):
        version = pairs.get(SCHEMA_VERSION_KEY)
        if version in (None, str(SCHEMA_VERSION)):
            raise RunFailed(f"{where} has other columns than it should; move it away and start the run again")
        raise RunFailed(
            f"{where} has schema version {version}, not {SCHEMA_VERSION}; use the version of enrich that wrote it, "
            "or another --output"
        )
    return _to_polars(table), pairs


def read(store: Store, key: str, schema: pa.Schema) -> ParquetFile | None:
    """The file at `key`, or None if there is none; RunFailed if it is not one that `encode` made."""
    if store.head(key) is None:
        return None
    data, etag = store.get(key)
    return ParquetFile(*decode(data, schema, store.uri_of(key)), etag, len(data))


def _to_polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
