"""Download and decode the photos of products, yielded as they finish. Threads download, processes decode."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from enrich.errors import ImageError
from enrich.models.base import Preparation
from enrich.photos.decode import Photo, prepare
from enrich.photos.decoders import Decoders, Work, cores
from enrich.photos.first_look import with_first_look
from enrich.photos.workers import choose_workers
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.storage import StorageError, Store
from enrich.storage.store import Problem, check_size
from enrich.vocabulary import TRANSIENT, ErrorKind, ListedPhoto, ManifestItem

_KINDS = {
    Problem.NOT_FOUND: ErrorKind.NOT_FOUND,
    Problem.ACCESS_DENIED: ErrorKind.ACCESS_DENIED,
    Problem.TOO_LARGE: ErrorKind.TOO_LARGE,
    Problem.FAILED: ErrorKind.DOWNLOAD_FAILED,
}


@dataclass(frozen=True)
class FetchedPhoto:
    """One photo of a product: its pixels, or what is wrong with it; neither if it was not needed."""

    listed: ListedPhoto
    etag: str  # of the bytes read, or the manifest's if none were read
    sha256: str | None = None  # of the bytes read, in hexadecimal
    photo: Photo | None = None
    error_kind: ErrorKind | None = None
    error_message: str | None = None


@dataclass(frozen=True)
class Fetched:
    """The result for one product: each of its photos, in its order."""

    item: ManifestItem
    photos: tuple[FetchedPhoto, ...]
    download_seconds: float
    decode_seconds: float
    ready_at: float  # time.monotonic()

    @property
    def shown(self) -> tuple[FetchedPhoto, ...]:
        """The photos that the model can be shown; none if all are broken."""
        return tuple(photo for photo in self.photos if photo.photo is not None)

    @property
    def good(self) -> list[tuple[Photo, str]]:
        """Those photos, each with the hash of its bytes."""
        return [(one.photo, one.sha256 or "") for one in self.photos if one.photo is not None]

    @property
    def failure(self) -> FetchedPhoto:
        """The photo that explains why nothing can be shown: one whose failure may be temporary, so that the product is
        retried, else the main photo."""
        return next((photo for photo in self.photos if photo.error_kind in TRANSIENT), self.photos[0])


@contextmanager
def fetcher(
    store: Store,
    settings: RunSettings,
    how: Preparation,
    work: Work | None = None,
    *,
    needed: int = 1,
    first: int | None = None,
) -> Iterator[Callable[[Iterable[ManifestItem | None]], Iterator[Fetched]]]:
    """A function from items to `Fetched`, whose decoding processes live as long as the context.

    The first `needed` good photos of each product are read; a broken one is reported, and the next takes its place.
    Products are started while fewer than `settings.in_flight` photos are between the start of their download and the
    consumer. An item that is None means that there is none at present: the iterator is asked again after the next
    product, and abandoned if no product is in flight.

    Args:
        how: how the model's training photos were prepared.
        work: the function that decoding processes apply to a photo; by default `prepare`.
        first: squares of the page of a first look, which main photos then get too.

    Raises:
        RunFailed: the decoding processes do not start.
    """
    workers = choose_workers(settings, cores())
    make = work or partial(prepare, how=how)
    decoders = Decoders(make, settings.limits, workers.decode, most_pixels=how.most_pixels)
    threads = ThreadPoolExecutor(workers.download, "fetch")
    fetch_product = partial(
        _fetch_product, store, needed=needed, decoders=decoders, limits=settings.limits, how=how, first=first
    )

    def fetch_items(items: Iterable[ManifestItem | None]) -> Iterator[Fetched]:
        rest = iter(items)
        waiting: set[Future[Fetched]] = set()
        done: set[Future[Fetched]] = set()
        in_flight = 0
        try:
            while True:
                # Before each product, even if several finished at once: the next shard is asked for in time.
                while in_flight < settings.in_flight and (item := next(rest, None)):
                    waiting.add(threads.submit(fetch_product, item))
                    in_flight += min(needed, len(item.photos))
                if not done:
                    if not waiting:
                        return
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                fetched = done.pop().result()  # popped, so that pixels are freed when the consumer is done with it
                in_flight -= min(needed, len(fetched.item.photos))
                yield fetched
                del fetched
        finally:
            for future in waiting:
                future.cancel()

    try:
        yield fetch_items
    finally:
        decoders.close()
        threads.shutdown(wait=False, cancel_futures=True)  # a running download ends at its own time-out


def _fetch_product(
    store: Store,
    item: ManifestItem,
    needed: int,
    decoders: Decoders,
    limits: PhotoLimits,
    how: Preparation,
    first: int | None,
) -> Fetched:
    """The photos of one product, one after the other: other products are fetched meanwhile."""
    photos: list[FetchedPhoto] = []
    download_seconds = decode_seconds = 0.0
    good = 0
    for listed in item.photos:
        if good >= needed:
            photos.append(FetchedPhoto(listed, listed.etag))
            continue
        further = how.is_further(good)
        photo, downloading, decoding = _fetch_photo(store, listed, further, decoders, limits)
        if photo.photo is not None and not further:
            photo = replace(photo, photo=with_first_look(photo.photo, how, first))
        photos.append(photo)
        download_seconds, decode_seconds = download_seconds + downloading, decode_seconds + decoding
        good += photo.photo is not None
    return Fetched(item, tuple(photos), download_seconds, decode_seconds, time.monotonic())


def _fetch_photo(
    store: Store, listed: ListedPhoto, further: bool, decoders: Decoders, limits: PhotoLimits
) -> tuple[FetchedPhoto, float, float]:
    """One photo, and the seconds that its download and its decoding took."""
    started = time.monotonic()
    try:
        check_size(store.uri_of(listed.key), listed.size, limits.max_bytes)
        data, etag = store.get(listed.key, limits.max_bytes)
    except StorageError as error:
        failed = FetchedPhoto(listed, listed.etag, error_kind=_KINDS[error.problem], error_message=str(error))
        return failed, time.monotonic() - started, 0.0
    download_seconds = time.monotonic() - started
    sha256 = hashlib.sha256(data).hexdigest()
    photo, kind, message = None, None, None
    with decoders.lend() as decode:
        started = time.monotonic()
        try:
            photo = decode(data, further=further)
        except ImageError as error:
            kind, message = error.kind, str(error)
    fetched = FetchedPhoto(listed, etag, sha256, photo, kind, message)
    return fetched, download_seconds, time.monotonic() - started
