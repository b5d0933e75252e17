"""Catalogs written to a URI: the tutorial's data set, and what others make."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from enrich.catalog.fetch import FetchSummary, fetch_catalog
from enrich.pipeline.progress import Progress, silent
from enrich.settings.catalog import FetchSettings
from enrich.storage import is_s3, open_store, write_tree
from enrich.storage.cache import disk_errors
from enrich.storage.tree import work_directory

CATALOG_FILE = "catalog.csv"  # written last: a catalog without it is not whole


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
