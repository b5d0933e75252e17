"""An Iceberg table, through pyiceberg (the extra `iceberg`): each publish is one snapshot that names its run.

A commit replaces all rows. It is refused by the catalog if another one came first: the table is loaded before
products.parquet is read, so what is committed is never older than what it replaces. The files are the table's own, in
its warehouse; `enrich tidy` does not touch them, and snapshots are expired by the tools of the lakehouse.
"""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from enrich.errors import EnrichError, RunFailed, UsageError, first_line
from enrich.output.parquet import ROW_GROUP_ROWS
from enrich.output.products import StoredProducts, fetch_products
from enrich.output.schema import PRODUCTS_SCHEMA
from enrich.output.sinks.base import Commit, Place, Sink
from enrich.storage import Store, is_s3
from enrich.storage.scratch import scratch

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

ATTEMPTS = 20
RUN_ID, ACTION, WRITER_ID = "enrich.run-id", "enrich.action", "enrich.writer-id"  # properties of a snapshot
OUTPUT = "enrich.output"  # property of a table: which output it follows
PROPERTIES = {"commit.retry.num-retries": "0"}  # pyiceberg's own would commit again what a newer state has replaced
FILE_ROWS = 4 * ROW_GROUP_ROWS  # some 40 MB; pyiceberg would hold all files that it is given at once in memory
FOLDER = "iceberg"  # in a local output, if pyiceberg has no configuration


def check(output: Store, place: Place) -> None:
    """Check that the catalog answers, and that the table does not belong to another output."""
    try:
        catalog = _catalog(output, place)
        if catalog.table_exists(place.table):
            _check_ours(catalog.load_table(place.table), output, place)
    except EnrichError:
        raise
    except Exception as error:  # of any catalog's client
        raise UsageError(f"{_named(place)}: {first_line(error)[:300]}; check pyiceberg's configuration") from error


def commit(output: Store, place: Place, said: Commit) -> bool:
    """One snapshot of products.parquet, unless the newest one holds it."""
    from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException

    behind = f"products.parquet is published, but {_named(place)} is behind; repeat the command to commit"
    for attempt in range(ATTEMPTS):
        try:
            table = _table(output, place)
            with scratch() as folder:
                products = fetch_products(output, folder)
                if products.path is None or _holds(table, products):
                    return False
                _replace(table, products, products.path, said)
                return True
        except (CommitFailedException, CommitStateUnknownException):
            time.sleep(random.uniform(0, min(5.0, 0.05 * 2**attempt)))
        except EnrichError:
            raise
        except Exception as error:  # of any catalog's client, its storage or its network
            raise RunFailed(f"{behind}: {first_line(error)[:300]}") from error
    raise RunFailed(f"{behind}: other processes committed {ATTEMPTS} times in a row")


def _catalog(output: Store, place: Place) -> "Catalog":
    """The catalog as pyiceberg's configuration has it; without one, a local output has its own."""
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config
    except ImportError as error:
        raise UsageError("sink iceberg: pyiceberg is not installed; pip install 'enrich[iceberg]'") from error
    configured = Config().get_catalog_config(place.catalog)
    if configured is not None:
        return load_catalog(place.catalog, **configured)  # type: ignore[arg-type]  # texts, by their names
    if is_s3(output.uri):
        variable = f"PYICEBERG_CATALOG__{place.catalog.upper()}__URI"
        raise UsageError(
            f"sink iceberg: catalog {place.catalog!r} is not configured; write it into ~/.pyiceberg.yaml, or set "
            f"{variable}"
        )
    folder = Path(output.uri).absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return load_catalog(place.catalog, type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=folder.as_uri())


def _table(output: Store, place: Place) -> "Table":
    """The table that follows `output`, made if it is not there yet."""
    catalog = _catalog(output, place)
    namespace, properties = place.table.rpartition(".")[0], {OUTPUT: output.uri, **PROPERTIES}
    _create(catalog.namespace_exists, namespace, lambda: catalog.create_namespace(namespace))
    _create(
        catalog.table_exists,
        place.table,
        lambda: catalog.create_table(place.table, iceberg_schema(), properties=properties),
    )
    table = catalog.load_table(place.table)
    _check_ours(table, output, place)
    return table


def _create(exists: Callable[[str], bool], name: str, create: Callable[[], object]) -> None:
    """Create what does not exist yet; another process may be faster, which each catalog says in its own way."""
    if exists(name):
        return
    try:
        create()
    except Exception:
        if not exists(name):
            raise


def _check_ours(table: "Table", output: Store, place: Place) -> None:
    follows = table.properties.get(OUTPUT)
    if follows != output.uri:
        whose = f"follows the output {follows}" if follows else "was not made by enrich"
        raise UsageError(f"{_named(place)} {whose}; name another one in the settings under sink_table")


def _holds(table: "Table", products: StoredProducts) -> bool:
    newest = table.current_snapshot()
    return newest is not None and newest.summary is not None and newest.summary.get(WRITER_ID) == products.writer_id


def _replace(table: "Table", products: StoredProducts, path: Path, said: Commit) -> None:
    """All rows of the table, in one snapshot; columns that it does not have yet are added."""
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    newest = products.last.source
    run_id = said.run_id or (newest.run_id if newest else "")
    properties = {RUN_ID: run_id, ACTION: said.action, WRITER_ID: products.writer_id or ""}
    schema = iceberg_schema()
    before = [task.file for task in table.scan().plan_files()]
    with table.transaction() as transaction:
        with transaction.update_schema() as update:
            update.union_by_name(schema)
        # Table.overwrite would be two snapshots, of which the first one is empty.
        with transaction.update_snapshot(snapshot_properties=properties).overwrite() as snapshot:
            for file in before:
                snapshot.delete_data_file(file)
            for rows in _tables(path, schema):
                for file in _dataframe_to_data_files(transaction.table_metadata, rows, table.io):
                    snapshot.append_data_file(file)


def _tables(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of products.parquet, a file of the table each."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(FILE_ROWS):
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def iceberg_schema() -> pa.Schema:
    """The columns of products.parquet. Iceberg has no integers of 8 and 16 bits; they get 32."""
    small = (pa.int8(), pa.int16())
    return pa.schema(field.with_type(pa.int32()) if field.type in small else field for field in PRODUCTS_SCHEMA)


def _named(place: Place) -> str:
    return f"iceberg table {place.table} of catalog {place.catalog}"


SINK = Sink(about="an Iceberg table, of which each publish is a snapshot", check=check, commit=commit)
