"""List an S3 prefix in parallel: the key space is cut at a few points, and the pieces are listed concurrently and
yielded in order. The cuts affect only the speed, so they may be guesses."""

import string
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, pairwise
from queue import Full, Queue
from threading import Event
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

THREADS = 16  # pieces listed at a time; S3 takes about 100 ms for a page of 1,000 keys
PIECES = 256
_FIRST_PAGES = 4  # listed one by one, because cutting a short listing into pieces costs 64 requests, 0.4 s
_PAGES_AHEAD = 4  # of each piece, 1,000 keys of about 0.5 kB: 16 x 4 MB in all at most
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase

Page = Sequence[Any]  # what boto3 says of objects


def list_objects(client: "S3Client", bucket: str, below: str, **options: Any) -> Iterator[Page]:
    """Pages of ListObjectsV2's entries for every object below the prefix `below`, in the UTF-8 byte order of the keys.

    A listing of a few pages costs as many requests. The rest is listed by THREADS threads in bounded memory.
    """
    request, last = {"Bucket": bucket, "Prefix": below, **options}, ""
    for found in islice(client.get_paginator("list_objects_v2").paginate(**request), _FIRST_PAGES):
        page = found.get("Contents", [])
        yield page
        if not found.get("IsTruncated"):
            return
        last = page[-1]["Key"] if page else last
    cuts = [cut for cut in _cuts(client, {**request, "StartAfter": last}, below) if cut.encode() > last.encode()]
    bounds = pairwise([last, *cuts, None])
    yield from _in_order([_pages(client, request, after or "", until) for after, until in bounds])


def _pages(client: "S3Client", request: dict[str, Any], after: str, until: str | None) -> Iterator[Page]:
    """Pages of the keys after `after`, up to and with `until` (None: to the end)."""
    if after:
        request = {**request, "StartAfter": after}
    for found in client.get_paginator("list_objects_v2").paginate(**request):
        page = found.get("Contents", [])
        if until is not None and page and page[-1]["Key"].encode() > until.encode():
            yield [item for item in page if item["Key"].encode() <= until.encode()]
            return
        yield page


def _cuts(client: "S3Client", request: dict[str, Any], below: str) -> list[str]:
    """Cuts at folders, at their subfolders if there are few, and at letters and digits if there are none."""
    level = _folders(client, request, below)
    if 0 < len(level) < THREADS:
        with ThreadPoolExecutor(THREADS) as pool:
            level += [name for names in pool.map(lambda name: _folders(client, request, name), level) for name in names]
    if len(level) < THREADS:
        level += [f"{folder}{letter}" for folder in level or [below] for letter in _ALPHABET]
    ordered = sorted(set(level), key=str.encode)
    return ordered[:: -(-len(ordered) // PIECES)]


def _folders(client: "S3Client", request: dict[str, Any], below: str) -> list[str]:
    """The folders directly below a prefix that the first page shows."""
    page = client.list_objects_v2(**{**request, "Prefix": below, "Delimiter": "/"})
    return [str(found["Prefix"]) for found in page.get("CommonPrefixes", [])]


def _in_order(pieces: Sequence[Iterator[Page]]) -> Iterator[Page]:
    """Pages of all pieces, one piece after the other, while up to THREADS of them are being listed."""
    stop = Event()
    queues: list[Queue[Page | BaseException | None]] = [Queue(_PAGES_AHEAD) for _ in pieces]

    def work(piece: Iterator[Page], queue: Queue[Page | BaseException | None]) -> None:
        try:
            for page in piece:
                _put(queue, page, stop)
                if stop.is_set():
                    return
            _put(queue, None, stop)
        except BaseException as error:  # raised where the listing is read
            _put(queue, error, stop)

    pool = ThreadPoolExecutor(THREADS, "list")
    try:
        for piece, queue in zip(pieces, queues, strict=True):
            pool.submit(work, piece, queue)
        for queue in queues:
            while (page := queue.get()) is not None:
                if isinstance(page, BaseException):
                    raise page
                yield page
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _put(queue: Queue[Any], value: object, stop: Event) -> None:
    """Put `value` into the queue, waiting for room unless `stop` is set."""
    while not stop.is_set():
        with suppress(Full):
            queue.put(value, timeout=0.2)
            return
