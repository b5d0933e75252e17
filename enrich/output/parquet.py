"""Tables to Parquet and back, with exactly the declared columns and types, a row group at a time."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from enrich.errors import PermanentFailure
from enrich.output.schema import SCHEMA_VERSION
from enrich.output.upgrade import earlier_columns, forms, upgraded
from enrich.storage import Store

# 65,536 rows are some 10 MB: large enough to scan fast, small enough that the statistics of a sorted column skip most.
ROW_GROUP_ROWS = 65_536

# Key-value metadata. Every file carries the schema version; the rest is the caller's.
SCHEMA_VERSION_KEY = "enrich.schema_version"
RUN_KEY = "enrich.run"  # RunInfo as JSON
RUN_ID_KEY = "enrich.run_id"
WARNINGS_KEY = "enrich.warnings"  # of a manifest: what planning found that a person should know, a JSON list of lines
OLDER_KEY = "enrich.older"  # of a manifest: products that an older adapter answered, left for later runs
WRITER_KEY = "enrich.writer_id"  # tells a writer whose response was lost that the file is its own


@dataclass(frozen=True)
class ParquetFile:
    """A file that was read: its rows, its key-value metadata and the etag that a compare-and-swap needs."""

    table: pl.DataFrame
    metadata: Mapping[str, str]
    etag: str


@dataclass(frozen=True)
class LocalFile:
    """A file that was fetched to the local disk; its rows are not in memory."""

    path: Path
    metadata: Mapping[str, str]
    etag: str
    rows: int


def empty(schema: pa.Schema) -> pl.DataFrame:
    """No rows of `schema`."""
    return pl.DataFrame(schema.empty_table())


def from_records(records: Sequence[Mapping[str, object]], schema: pa.Schema) -> pl.DataFrame:
    """Rows from one mapping of column to value each."""
    return pl.DataFrame(pa.Table.from_pylist(list(records), schema=schema))


def encode(table: pl.DataFrame, schema: pa.Schema, metadata: Mapping[str, str], sorted_by: Sequence[str] = ()) -> bytes:
    """A whole Parquet file in memory; see `write`."""
    sink = io.BytesIO()
    write(sink, [table], schema, metadata, sorted_by)
    return sink.getvalue()


def write(
    sink: io.BytesIO | Path,
    frames: Iterable[pl.DataFrame],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    sorted_by: Sequence[str] = (),
) -> int:
    """Write frames as one file and return its rows.

    The file has the columns of `schema` in its order, zstd, statistics, a page index, and a CRC-32 of each page.

    `sorted_by` states the order the rows already have (ascending, nulls last). Row groups are converted one at a time,
    so the 2 GiB limit of a string column never applies and memory holds one frame.
    """
    order = [(name, "ascending") for name in sorted_by]
    rows = 0
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        write_page_index=True,
        write_page_checksum=True,
        sorting_columns=pq.SortingColumn.from_ordering(schema, order, null_placement="at_end") if order else None,
    ) as writer:
        for group in _groups(frames):
            writer.write_table(group.select(schema.names).to_arrow().cast(schema))
            rows += group.height
        writer.add_key_value_metadata({**metadata, SCHEMA_VERSION_KEY: str(SCHEMA_VERSION)})
    return rows


def _groups(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in frames of ROW_GROUP_ROWS, except the last."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(part.height for part in held) < ROW_GROUP_ROWS:
            continue
        joined = pl.concat(held)
        whole = joined.height - joined.height % ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            yield joined.slice(start, ROW_GROUP_ROWS)
        held = [joined.slice(whole)] if whole < joined.height else []
    if held:
        yield pl.concat(held)


AGAIN = "move it away and start the run again"


def decode(data: bytes, schema: pa.Schema, where: str, then: str = AGAIN) -> tuple[pl.DataFrame, dict[str, str]]:
    """The rows and the key-value metadata of a file; those of schema version 2 are upgraded.

    Raises:
        RunFailed: it is not one that `write` made; the message names `where` and says what to do `then`.
    """
    with _readable(where, then):
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        pairs = _check(file, schema, where, then)
        return pl.DataFrame(_upgrade(file.read(), schema)), pairs


def read(store: Store, key: str, schema: pa.Schema, then: str = AGAIN) -> ParquetFile | None:
    """The file at `key`, or None if there is none; see `decode`."""
    if store.head(key) is None:
        return None
    data, etag = store.get(key)
    return ParquetFile(*decode(data, schema, store.uri_of(key), then), etag)


def fetch(store: Store, key: str, schema: pa.Schema, path: Path, then: str = AGAIN) -> LocalFile | None:
    """The file at `key` copied to `path`, none of its rows kept in memory, or None if there is none.

    One of schema version 2 is rewritten with the columns of this one. Every page is read and its checksum compared:
    Polars, which reads the file next, compares none, and a damaged page may end its whole process.

    Raises:
        RunFailed: as `decode`.
    """
    if store.head(key) is None:
        return None
    where, etag = store.uri_of(key), store.download(key, path).etag
    with _readable(where, then), pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        pairs, rows = _check(file, schema, where, then), file.metadata.num_rows
        current = plain(file.schema_arrow).equals(plain(schema))
        for _ in file.iter_batches(ROW_GROUP_ROWS):
            pass
    if not current:
        older = path.rename(path.with_name(f"{path.name}.older"))
        write(path, frames(older, schema), schema, pairs)
        older.unlink()
    return LocalFile(path, pairs, etag, rows)


def frames(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, rows: int = ROW_GROUP_ROWS
) -> Iterator[pl.DataFrame]:
    """The rows of a local file, some at a time, of `columns` if not all."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else what was read of the file stays in memory
        current = set(wanted.names) <= set(file.schema_arrow.names)
        for batch in file.iter_batches(rows, columns=wanted.names if current else None):
            found = pa.Table.from_batches([batch])
            yield pl.DataFrame(_upgrade(found, wanted if current else schema)).select(wanted.names)


@contextmanager
def _readable(where: str, then: str) -> Iterator[None]:
    """Turn pyarrow's errors about a broken file into RunFailed."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PermanentFailure(f"{where} is not a readable Parquet file; {then}") from error


def _check(file: pq.ParquetFile, schema: pa.Schema, where: str, then: str) -> dict[str, str]:
    """The metadata of a file whose columns are those of `schema`, or of an earlier version of it."""
    found, schema = plain(file.schema_arrow), plain(schema)
    pairs = {
        key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items() if key != b"ARROW:schema"
    }
    version = pairs.get(SCHEMA_VERSION_KEY)
    if any(found.equals(form) for form in (schema, *forms(schema))):
        return pairs
    if version in (None, str(SCHEMA_VERSION)):
        raise PermanentFailure(f"{where} has unexpected columns; {then}")
    if version.isdecimal() and int(version) < SCHEMA_VERSION and set(found.names) <= earlier_columns(schema):
        return pairs
    raise PermanentFailure(
        f"{where} has schema version {version}, not {SCHEMA_VERSION}; use the version of enrich that wrote it, "
        "or another --output"
    )


def plain(schema: pa.Schema) -> pa.Schema:
    """A schema with dictionaries taken for what they hold: how a column is stored makes no other column of it."""
    return pa.schema(
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema
    )


def _upgrade(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of `schema`, also where it is an earlier one."""
    schema = plain(schema)
    if table.schema.equals(schema):
        return table
    # Dictionaries where now there are none, or the other way round; photos without issues, which become null.
    if set(schema.names) <= set(table.schema.names):
        return table.select(schema.names).cast(schema)
    return upgraded(table, schema)
