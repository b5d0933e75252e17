"""Catalogs at a URI: looked at, and written from what others make."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from enrich.catalog.check import Check, check
from enrich.catalog.fetch import FetchSummary, fetch_catalog
from enrich.catalog.layouts import Proposal, propose
from enrich.catalog.table import find_table, header_of
from enrich.catalog.taught import read_taught
from enrich.errors import UsageError
from enrich.pipeline.progress import Progress, silent
from enrich.settings.catalog import FetchSettings
from enrich.settings.training import TrainSettings
from enrich.storage import is_s3, open_store, write_tree
from enrich.storage.cache import disk_errors
from enrich.storage.tree import local_tree, work_directory

CATALOG_FILE = "catalog.csv"  # written last: a catalog without it is not whole


def check_catalog(
    uri: str, settings: TrainSettings, progress: Progress = silent, *, auto: bool = False
) -> tuple[Check, Proposal | None]:
    """Look at the catalog at `uri`, a directory or a table in a file, as fine-tuning would read it.

    Args:
        auto: propose columns from the table's header where `settings` name none.

    Raises:
        UsageError: it cannot be read, or no columns can be proposed.
    """
    with _local(uri) as path:
        proposal = _proposed(path, settings) if auto else None
        if proposal:
            settings = settings.model_copy(update={"columns": proposal.columns})
        catalog = read_taught(path, settings, urls=True)
        return check(catalog, settings.limits, partial(progress, "looking at photos")), proposal


def _proposed(path: Path, settings: TrainSettings) -> Proposal:
    table = find_table(path)
    header, filled = header_of(table)
    given = settings.columns.model_dump(include=settings.columns.model_fields_set)
    proposal = propose(header, given, filled)
    if needed := [role for role in proposal.missing if role != "price"]:
        raise UsageError(
            f"catalog {table}: no column looks like {' or '.join(needed)}; its columns are: {', '.join(header[:30])}; "
            f"name it in the settings under columns.{needed[0]}"
        )
    return proposal


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    if not is_s3(uri) and Path(uri).expanduser().is_file():
        yield Path(uri).expanduser()
        return
    with local_tree(uri) as folder:
        yield folder


def fetch_photos(source: str, out: str, settings: FetchSettings, progress: Progress = silent) -> FetchSummary:
    """Download the photos of the table `source` into a catalog at `out`. Raises as `fetch_catalog`."""
    with written_to(out) as folder:
        return fetch_catalog(source, folder, settings, partial(progress, "fetching"))


@contextmanager
def written_to(uri: str) -> Iterator[Path]:
    """A directory to write a catalog into; one for S3 is kept until it is uploaded, so that a second try goes on."""
    if not is_s3(uri):
        with disk_errors(Path(uri)):
            yield Path(uri)
        return
    open_store(uri)  # a bucket that is not there must not cost the work first
    folder = work_directory(uri, "catalog")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        write_tree(folder, uri, last=CATALOG_FILE)
        shutil.rmtree(folder)
