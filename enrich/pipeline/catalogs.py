"""Catalogs at a URI: check them, and make them from other tables."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from enrich.catalog.check import Check, check
from enrich.catalog.fetch import FetchSummary, fetch_catalog, is_dataset
from enrich.catalog.layouts import Proposal, propose
from enrich.catalog.photo_files import PhotoFiles
from enrich.catalog.table import find_table, header_of, may_be_table
from enrich.catalog.taught import read_taught, taught_prompt
from enrich.errors import UsageError
from enrich.pages.catalog_page import render_catalog
from enrich.pipeline.progress import Progress, silent
from enrich.settings.catalog import CHECKED_PHOTOS, FetchSettings
from enrich.settings.training import TrainSettings
from enrich.storage import is_s3, open_store, write_tree
from enrich.storage.cache import disk_errors
from enrich.storage.scratch import scratch
from enrich.storage.tree import local_tree_or_file, read_outline, work_directory

CATALOG_FILE = "catalog.csv"  # written last: a catalog without it is not whole


def check_catalog(
    uri: str,
    settings: TrainSettings,
    progress: Progress = silent,
    *,
    auto: bool = False,
    most_photos: int = CHECKED_PHOTOS,
    page: Callable[[str], object] | None = None,
) -> tuple[Check, Proposal | None]:
    """Check the catalog at `uri`, a directory or a table file, as fine-tuning would read it.

    Args:
        auto: propose columns from the table's header where `settings` name none.
        most_photos: how many photos are decoded at most. Of a catalog on S3 no other photo is read.
        page: gets what was found as an HTML page with pictures.

    Raises:
        UsageError: it cannot be read, no columns can be proposed, or a word of the settings cannot stand in a prompt.
    """
    if uri.startswith("hf://") or (is_dataset(uri) and not Path(uri).expanduser().exists()):
        name = uri.removeprefix("hf://").removeprefix("datasets/")
        raise UsageError(
            f"catalog {uri}: no such directory; if it is a Hugging Face data set, `enrich catalog fetch --source "
            f"{name} --out DIRECTORY` makes a catalog of it; then check that"
        )
    with _there(uri) as (path, files):
        proposal = _proposed(path, settings) if auto else None
        if proposal:
            settings = settings.model_copy(update={"columns": proposal.columns})
        catalog = read_taught(path, settings, urls=True)
        taught_prompt(settings, catalog, catalog.products)  # refuses labels that fine-tuning would
        found = check(catalog, settings, partial(progress, "checking photos"), files, most_photos)
        if page:
            page(render_catalog(uri, found.as_page(), files.read, settings.limits))
        return found, proposal


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
def _there(uri: str) -> Iterator[tuple[Path, PhotoFiles]]:
    """The catalog's directory or table on the local disk, and its photos, which stay on S3 if it is there."""
    if not is_s3(uri):
        with local_tree_or_file(uri) as path:
            yield path, PhotoFiles()
        return
    with scratch() as folder:
        store, listed = read_outline(uri, folder, may_be_table)
        yield folder, PhotoFiles(str(folder), store, listed)


def fetch_photos(source: str, out: str, settings: FetchSettings, progress: Progress = silent) -> FetchSummary:
    """Download the photos of the table `source` into a catalog at `out`. Raises as `fetch_catalog`."""
    with written_to(out) as folder:
        return fetch_catalog(source, folder, settings, partial(progress, "fetching"))


@contextmanager
def written_to(uri: str) -> Iterator[Path]:
    """A directory to write a catalog into; one for S3 is kept until it is uploaded, so that a second attempt
    resumes."""
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
