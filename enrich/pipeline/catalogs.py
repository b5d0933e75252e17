"""Catalogs in and out: the sample, the tutorial's data set, and local copies of what lies in S3."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from enrich.catalog.fetch import FetchSummary, fetch_catalog
from enrich.errors import UsageError
from enrich.pipeline.progress import Progress, silent
from enrich.settings import FetchSettings, SampleSettings
from enrich.storage import is_s3, open_store, overlap, read_tree, write_tree
from enrich.storage.cache import cache_directory, disk_errors
from enrich.storage.scratch import scratch
from sample.generate import SampleSummary, write_sample

CATALOG_FILE = "catalog.csv"  # written last: a catalog without it is not whole


def make_sample(
    out: str,
    settings: SampleSettings,
    *,
    bucket: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> SampleSummary:
    """Generate a catalog at `out` and, where given, unlabelled photos at `bucket`. Raises as `write_sample`."""
    if bucket is not None and overlap(out, bucket):
        raise UsageError(f"bucket {bucket} and out {out} overlap; keep them apart")
    with _written_to(out) as folder, scratch() as temporary:
        photos = None if bucket is None else temporary if is_s3(bucket) else Path(bucket)
        summary = write_sample(
            folder,
            settings.products,
            settings.bucket,
            settings.seed,
            progress=partial(progress, "drawing"),
            bucket_out=photos,
            holdout=settings.products // 10 if settings.holdout is None else settings.holdout,
            overwrite=overwrite,
        )
        if bucket is not None and photos is not None and is_s3(bucket):
            store = open_store(bucket)
            for info in open_store(str(photos)).list():
                store.put(info.key, (photos / info.key).read_bytes())
    return summary


def fetch_photos(source: str, out: str, settings: FetchSettings, progress: Progress = silent) -> FetchSummary:
    """Download the photos of the table `source` into a catalog at `out`. Raises as `fetch_catalog`."""
    with _written_to(out) as folder:
        return fetch_catalog(source, folder, settings, partial(progress, "fetching"))


@contextmanager
def local_tree(uri: str) -> Iterator[Path]:
    """A directory at `uri` as local files; what comes from S3 is gone afterwards."""
    with scratch() as folder:
        yield read_tree(uri, folder)


def work_directory(uri: str, purpose: str) -> Path:
    """Where unfinished work for `uri` keeps its state, the same at every try: beside it, or for S3 in the cache.

    Raises:
        UsageError: `uri` is a file, or there is no place for a cache.
    """
    if is_s3(uri):
        return cache_directory() / f"{purpose}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
    target = Path(uri).absolute()
    if target.is_file():
        raise UsageError(f"out {uri}: is a file; name a directory")
    return target.with_name(f".{target.name}.{purpose}")


@contextmanager
def _written_to(uri: str) -> Iterator[Path]:
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
