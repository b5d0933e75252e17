"""Download and decode the images of a manifest, yielded as they finish. Threads download, processes decode."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

from enrich.errors import ImageError
from enrich.photos.decode import Photo, Preparation, prepare
from enrich.photos.decoders import Decoders, Work, cores
from enrich.photos.workers import choose_workers
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.storage import StorageError, Store
from enrich.storage.store import Problem, check_size
from enrich.vocabulary import ErrorKind, ManifestItem

_KINDS = {
    Problem.NOT_FOUND: ErrorKind.NOT_FOUND,
    Problem.ACCESS_DENIED: ErrorKind.ACCESS_DENIED,
    Problem.TOO_LARGE: ErrorKind.TOO_LARGE,
    Problem.FAILED: ErrorKind.DOWNLOAD_FAILED,
}


@dataclass(frozen=True)
class Fetched:
    """The result for one image: a photo or an error."""

    item: ManifestItem
    etag: str  # of the bytes read, or the manifest's if none were read
    sha256: str | None  # of the bytes read, in hexadecimal
    photo: Photo | None
    error_kind: ErrorKind | None
    error_message: str | None
    download_seconds: float
    decode_seconds: float
    ready_at: float  # time.monotonic()


@contextmanager
def fetcher(
    store: Store, settings: RunSettings, how: Preparation, work: Work | None = None
) -> Iterator[Callable[[Iterable[ManifestItem]], Iterator[Fetched]]]:
    """A function from items to `Fetched`, whose decoding processes live as long as the context.

    At most `settings.in_flight` items are between the start of their download and the consumer. A faulty image raises
    nothing; its `Fetched` has the error.

    Args:
        how: how the model's training photos were prepared.
        work: the function that decoding processes apply to a photo; by default `prepare`.

    Raises:
        RunFailed: the decoding processes do not start.
    """
    workers = choose_workers(settings, cores())
    most_pixels = how.num_crops * how.image_size**2
    decoders = Decoders(work or partial(prepare, how=how), settings.limits, workers.decode, most_pixels=most_pixels)
    threads = ThreadPoolExecutor(workers.download, "fetch")

    def fetch_items(items: Iterable[ManifestItem]) -> Iterator[Fetched]:
        rest = iter(items)
        waiting: set[Future[Fetched]] = set()
        try:
            while True:
                for item in islice(rest, settings.in_flight - len(waiting)):
                    waiting.add(threads.submit(_fetch_one, store, item, decoders, settings.limits))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                while done:  # popped, so that a photo is freed when the consumer is done with it
                    yield done.pop().result()
        finally:
            for future in waiting:
                future.cancel()

    try:
        yield fetch_items
    finally:
        decoders.close()
        threads.shutdown(wait=False, cancel_futures=True)  # a running download ends at its own time-out


def _fetch_one(store: Store, item: ManifestItem, decoders: Decoders, limits: PhotoLimits) -> Fetched:
    started = time.monotonic()
    try:
        check_size(store.uri_of(item.key), item.size, limits.max_bytes)
        data, etag = store.get(item.key, limits.max_bytes)
    except StorageError as error:
        now = time.monotonic()
        return Fetched(item, item.etag, None, None, _KINDS[error.problem], str(error), now - started, 0.0, now)
    download_seconds = time.monotonic() - started
    sha256 = hashlib.sha256(data).hexdigest()
    photo, kind, message = None, None, None
    with decoders.lend() as decode:
        started = time.monotonic()
        try:
            photo = decode(data)
        except ImageError as error:
            kind, message = error.kind, str(error)
    now = time.monotonic()
    return Fetched(item, etag, sha256, photo, kind, message, download_seconds, now - started, now)
