"""The images of a manifest -> photos decoded and cropped, as they finish.

Threads download. Processes decode, for the bytes come from outside: each process has one photo at a time, a memory
limit and a time limit, and a photo that breaks its process costs one row.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import numpy as np

from enrich.errors import RunFailed
from enrich.images import ImageRefused, Photo, Preparation, prepare
from enrich.schema import ErrorKind, ManifestItem
from enrich.settings import PhotoLimits, RunSettings
from enrich.stages import choose_workers
from enrich.storage import StorageError, Store
from enrich.storage.store import check_size

Prepare = Callable[[bytes, PhotoLimits, Preparation], Photo]

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads as they happen to be
_START_SECONDS = 120.0  # Pillow and numpy take 0.5 s to import, on a busy machine more
_MAX_HEADER_BYTES = 10_000


@dataclass(frozen=True)
class Fetched:
    """What became of one image: a photo or an error."""

    item: ManifestItem
    etag: str  # of the bytes read; where none were, the manifest's
    sha256: str | None  # of the bytes read, in hexadecimal
    photo: Photo | None
    error_kind: ErrorKind | None
    error_message: str | None
    download_seconds: float
    decode_seconds: float
    ready_at: float  # time.monotonic()


def fetch(store: Store, items: Iterable[ManifestItem], settings: RunSettings, how: Preparation) -> Iterator[Fetched]:
    """One `Fetched` for each item, in the order in which they finish; see `fetcher`, which does many manifests."""
    with fetcher(store, settings, how) as fetch_items:
        yield from fetch_items(items)


@contextmanager
def fetcher(
    store: Store, settings: RunSettings, how: Preparation, prepare: Prepare = prepare
) -> Iterator[Callable[[Iterable[ManifestItem]], Iterator[Fetched]]]:
    """A function from items to `Fetched`, whose decoding processes live as long as the context.

    Items are taken as there is room for them: at most `settings.in_flight` are between download and consumer. Nothing
    is raised for a faulty image; its `Fetched` says what is wrong.

    Args:
        how: as the model was trained.
        prepare: Runs in the decoding processes: a function that they can import.

    Raises:
        RunFailed: the decoding processes do not start.
    """
    workers = choose_workers(settings, cores())
    decoders = [_Decoder(prepare, settings.limits, how) for _ in range(workers.decode)]
    idle: SimpleQueue[_Decoder] = SimpleQueue()
    for decoder in decoders:
        idle.put(decoder)
    threads = ThreadPoolExecutor(workers.download, "fetch")

    def fetch_items(items: Iterable[ManifestItem]) -> Iterator[Fetched]:
        rest = iter(items)
        waiting: set[Future[Fetched]] = set()
        try:
            while True:
                for item in islice(rest, settings.in_flight - len(waiting)):
                    waiting.add(threads.submit(_fetch_one, store, item, idle, settings.limits))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                while done:  # popped: a photo that the consumer is done with must not stay in memory
                    yield done.pop().result()
        finally:
            for future in waiting:
                future.cancel()

    try:
        yield fetch_items
    finally:
        for decoder in decoders:
            decoder.close()
        threads.shutdown(wait=False, cancel_futures=True)  # a download under way ends by itself, at its time-out


def _fetch_one(store: Store, item: ManifestItem, idle: "SimpleQueue[_Decoder]", limits: PhotoLimits) -> Fetched:
    started = time.monotonic()
    try:
        check_size(store.uri_of(item.key), item.size, limits.max_bytes)
        data, etag = store.get(item.key, limits.max_bytes)
    except StorageError as error:
        now = time.monotonic()
        return Fetched(item, item.etag, None, None, error.kind, str(error), now - started, 0.0, now)
    download_seconds = time.monotonic() - started
    sha256 = hashlib.sha256(data).hexdigest()
    decoder = idle.get()
    photo, kind, message = None, None, None
    try:
        for tries_left in (1, 0):
            decoder.get_ready()
            started = time.monotonic()
            try:
                photo = decoder.decode(data)
                break
            except _DecoderDied:  # killed from outside, where memory ran out, or by the photo: then it dies again
                if not tries_left:
                    raise
    except ImageRefused as error:
        kind, message = error.kind, str(error)
    finally:
        idle.put(decoder)
    now = time.monotonic()
    return Fetched(item, etag, sha256, photo, kind, message, download_seconds, now - started, now)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _DecoderDied(ImageRefused):
    """The process ended while it had a photo."""


class _Decoder:
    """One decoding process, started again after a photo broke it. Used by one thread at a time.

    Each has a pipe of its own. In a pool that shares one, a process killed while it sends (the kernel does so when
    memory runs out) leaves the others waiting for its lock. Pages cross as plain bytes: unpickling what comes from a
    process that parsed hostile bytes would give away what the process is there to protect.
    """

    def __init__(self, prepare: Prepare, limits: PhotoLimits, how: Preparation) -> None:
        self._prepare, self._limits, self._how = prepare, limits, how
        self._changing = Lock()  # of the process: one thread decodes, another may close
        self._closed = False
        with self._changing:
            self._start()

    def get_ready(self) -> None:
        """Waits for the process to be started, anew if it ended. Raises RunFailed: it does not start."""
        with self._changing:
            if self._closed:
                raise RuntimeError("the fetcher is closed")
            if not self._process.is_alive():
                self._start()
        self._await_start()

    def decode(self, data: bytes) -> Photo:
        """Raises ImageRefused, also for a photo that takes too long or ends the process."""
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(self._limits.decode_seconds):
                return self._receive()
        except (EOFError, OSError) as error:
            with self._changing:
                self._process.join(1.0)  # the pipe ends a moment before the process, which is to tell how it ended
                self._kill()
            code = self._process.exitcode or 0
            ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise _DecoderDied(ErrorKind.NOT_AN_IMAGE, f"the decoder died of it ({ending})") from error
        with self._changing:
            self._kill()
        seconds = self._limits.decode_seconds
        raise ImageRefused(ErrorKind.NOT_AN_IMAGE, f"decoding took longer than {seconds:g} s")

    def close(self) -> None:
        """Ends the process, whatever it is doing; a thread that waits for it gets an error."""
        with self._changing:
            self._closed = True
            self._kill()

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, self._prepare, self._limits, self._how)
        self._process = _SPAWN.Process(target=_serve, args=arguments, name="enrich-decoder", daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self._started = False

    def _await_start(self) -> None:
        try:
            if not self._started and not self._pipe.poll(_START_SECONDS):
                raise EOFError
            self._started = self._started or bool(self._pipe.recv_bytes(_MAX_HEADER_BYTES))
        except (EOFError, OSError) as error:
            raise RunFailed("no decoding process starts; `python -c 'import enrich.fetch'` may say why") from error

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _receive(self) -> Photo:
        header = json.loads(self._pipe.recv_bytes(_MAX_HEADER_BYTES))
        if "kind" in header:
            raise ImageRefused(ErrorKind(header["kind"]), header["message"])
        rows, columns, side = header["rows"], header["columns"], self._how.image_size
        if not 0 < rows * columns <= self._how.num_crops:
            raise OSError(f"{columns} x {rows} crops from the decoder")
        page = np.empty((rows * side, columns * side, 3), np.uint8)
        self._pipe.recv_bytes_into(page.reshape(-1).data)
        return Photo(page, header["width"], header["height"])


def _serve(pipe: Connection, prepare: Prepare, limits: PhotoLimits, how: Preparation) -> None:
    """A decoding process: bytes of a photo in, a JSON header and, where it is a photo, its page out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this one
    _limit_memory(limits.decode_memory_bytes)
    with suppress(EOFError, ConnectionError):  # the parent closed the pipe, or is gone
        pipe.send_bytes(b"started")
        while True:
            data = pipe.recv_bytes()
            photo = None
            try:
                photo = prepare(data, limits, how)
                rows, columns = (length // how.image_size for length in photo.page.shape[:2])
                header = {"rows": rows, "columns": columns, "width": photo.width, "height": photo.height}
            except ImageRefused as error:
                header = {"kind": error.kind, "message": str(error)}
            except MemoryError:
                message = f"decoding needs more than {limits.decode_memory_bytes:,} bytes of memory"
                header = {"kind": ErrorKind.TOO_MANY_PIXELS, "message": message}
            pipe.send_bytes(json.dumps(header).encode())
            if photo is not None:
                pipe.send_bytes(photo.page.reshape(-1).data)


def _limit_memory(bytes_more: int) -> None:
    """Lets this process use `bytes_more` of address space on top of what it has. Only Linux keeps to such a limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a decoder that dies leaves no dump of gigabytes
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + bytes_more
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
