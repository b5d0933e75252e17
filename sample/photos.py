"""Which photos a sample has, and drawing them in as many processes as there are cores."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from enrich.catalog.split import HOLDOUT
from enrich.errors import RunFailed
from sample.dialects import DEMO
from sample.draw import render
from sample.encode import USUAL, encode
from sample.place import BUCKET_YEAR, IMAGES, write
from sample.products import HOLDOUT_START, sample_product

BUCKET_START = 1_000_000  # index of the bucket's first product: no catalog reaches it

_FILE_STREAM = 4
_PHOTOS_PER_TASK = 16
_TASKS_AHEAD = 4  # a process: enough to keep it busy, whatever the sample's size
_ODD_ENCODINGS = ("gif", "cmyk.jpg", "exif.jpg", "gray16.png", "alpha.png", "palette.png")
_FOLDERS = tuple(
    f"{BUCKET_YEAR}/{month}" for month in ("08", "09", "10", "10/new in", "10/été", "10/50% off", "10/a+b&c")
)


@dataclass(frozen=True)
class Photo:
    """One photo to write: `key` below the directory `root`, of product `index`."""

    root: Path
    key: str
    index: int
    encoding: str


def labelled_photos(out: Path, seed: int, count: int) -> Iterator[Photo]:
    """The catalog's photos, in the order of its products."""
    return (_photo(out, IMAGES, seed, index) for index in range(count))


def holdout_photos(out: Path, seed: int, count: int) -> Iterator[Photo]:
    """The hold-out's, a catalog of its own."""
    return (_photo(out / HOLDOUT, IMAGES, seed, HOLDOUT_START + position) for position in range(count))


def bucket_photos(out: Path, seed: int, count: int) -> Iterator[Photo]:
    """`count` usual photos in nested folders, then one in each unusual encoding."""
    for position in range(count):
        folder = _FOLDERS[position % 3] if position % 4 else _FOLDERS[3 + position // 4 % 4]
        yield _photo(out, folder, seed, BUCKET_START + position, "sku-")
    index = BUCKET_START + count
    for encoding in _ODD_ENCODINGS:
        product = sample_product(seed, index, DEMO)
        while encoding == "gray16.png" and product.attributes["colour"] not in ("black", "grey", "ivory"):
            index += 1  # a photo without colour must not need one
            product = sample_product(seed, index, DEMO)
        key = f"{BUCKET_YEAR}/11/sku-{product.product_code}.{encoding.split('.')[-1]}"
        yield Photo(out, key, index, encoding)
        index += 1


def _photo(root: Path, folder: str, seed: int, index: int, prefix: str = "") -> Photo:
    """The photo of product `index` in an encoding drawn for it."""
    code = sample_product(seed, index, DEMO).product_code
    rng = np.random.default_rng((_FILE_STREAM, seed, index))
    encoding = str(rng.choice(list(USUAL), p=list(USUAL.values())))
    return Photo(root, f"{folder}/{prefix}{code}.{encoding}", index, encoding)


def draw_photos(photos: Iterable[Photo], total: int, seed: int, progress: Callable[[int, int], None]) -> None:
    """Draw what is not there yet. Photos are taken as they are needed: memory does not depend on their number.

    Raises:
        RunFailed: a file could not be written, or a process died.
    """
    draw = partial(_draw, seed=seed)
    workers = min(os.cpu_count() or 1, total // _PHOTOS_PER_TASK)
    tasks = _tasks(iter(photos))
    done = 0
    try:
        # A process takes longer to start than a small sample takes to draw.
        for count in map(draw, tasks) if workers < 2 or total < 8 * _PHOTOS_PER_TASK else _ahead(draw, tasks, workers):
            done += count
            progress(done, total)
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process that draws photos died, perhaps for want of memory; run the command again"
        ) from error


def _ahead(draw: Callable[[list[Photo]], int], tasks: Iterator[list[Photo]], workers: int) -> Iterator[int]:
    """Results in the order of the tasks, a few tasks a process under way."""
    # Spawned, not forked: the caller may have threads. Ctrl-C reaches the whole process group; the caller ends these.
    spawn, deaf = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(workers, spawn, signal.signal, deaf)
    try:
        under_way: deque[Future[int]] = deque()
        for task in tasks:
            under_way.append(pool.submit(draw, task))
            if len(under_way) >= _TASKS_AHEAD * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(photos: Iterator[Photo]) -> Iterator[list[Photo]]:
    while task := list(islice(photos, _PHOTOS_PER_TASK)):
        yield task


def _draw(task: list[Photo], seed: int) -> int:
    for photo in task:
        path = photo.root / photo.key
        if path.exists():
            continue
        rng = np.random.default_rng((_FILE_STREAM, seed, photo.index, 1))
        image = render(sample_product(seed, photo.index, DEMO), view_seed=seed)  # every dialect tells of these drawings
        write(path, encode(image, photo.encoding, rng))
    return len(task)
