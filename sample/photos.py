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
from sample.products import HOLDOUT_START, sample_product, views_of
from sample.spec import VIEWS

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
    """One photo to write: `key` below the directory `root`, a `view` of product `index`."""

    root: Path
    key: str
    index: int
    encoding: str
    view: str = VIEWS[0]


Photos = tuple[Photo, ...]  # of one product, the main photo first


def labelled_photos(out: Path, seed: int, count: int, most: int = 1) -> Iterator[Photos]:
    """The catalog's photos, in the order of its products, 1 to `most` each."""
    return (_photos(out, IMAGES, seed, index, most) for index in range(count))


def holdout_photos(out: Path, seed: int, count: int, most: int = 1) -> Iterator[Photos]:
    """The hold-out's, a catalog of its own."""
    return (_photos(out / HOLDOUT, IMAGES, seed, HOLDOUT_START + position, most) for position in range(count))


def bucket_photos(out: Path, seed: int, count: int, most: int = 1) -> Iterator[Photos]:
    """Photos of `count` products in nested folders, then of one product for each unusual encoding of its main photo."""
    for position in range(count):
        folder = _FOLDERS[position % 3] if position % 4 else _FOLDERS[3 + position // 4 % 4]
        yield _photos(out, folder, seed, BUCKET_START + position, most, "sku-")
    index = BUCKET_START + count
    for encoding in _ODD_ENCODINGS:
        product = sample_product(seed, index, DEMO)
        while encoding == "gray16.png" and product.attributes["colour"] not in ("black", "grey", "ivory"):
            index += 1  # a photo without colour must not need one
            product = sample_product(seed, index, DEMO)
        yield _photos(out, f"{BUCKET_YEAR}/11", seed, index, most, "sku-", encoding)
        index += 1


def _photos(
    root: Path, folder: str, seed: int, index: int, most: int, prefix: str = "", encoding: str | None = None
) -> Photos:
    """The photos of product `index` in encodings drawn for them: one file or, where `most` is above 1, a folder."""
    name = f"{folder}/{prefix}{sample_product(seed, index, DEMO).product_code}"
    main = encoding or _encoding((_FILE_STREAM, seed, index))
    if most == 1:
        return (Photo(root, f"{name}.{_extension(main)}", index, main),)
    photos = [Photo(root, f"{name}/1.{_extension(main)}", index, main)]
    for number, view in enumerate(views_of(seed, index, most)[1:], start=2):
        usual = _encoding((_FILE_STREAM, seed, index, 2, number))
        photos.append(Photo(root, f"{name}/{number}.{usual}", index, usual, view))
    return tuple(photos)


def _encoding(of: tuple[int, ...]) -> str:
    return str(np.random.default_rng(of).choice(list(USUAL), p=list(USUAL.values())))


def _extension(encoding: str) -> str:
    return encoding.rpartition(".")[2]


def draw_photos(
    photos: Iterable[Photo], total: int, seed: int, progress: Callable[[int, int], None], most: int = 1
) -> None:
    """Draw what is not there yet, of products with 1 to `most` photos. Photos are taken as they are needed: memory does
    not depend on their number.

    Raises:
        RunFailed: a file could not be written, or a process died.
    """
    draw = partial(_draw, seed=seed, most=most)
    workers = min(os.cpu_count() or 1, total // _PHOTOS_PER_TASK)
    tasks = _tasks(iter(photos))
    done = 0
    try:
        # A process takes longer to start than a small sample takes to draw.
        for count in map(draw, tasks) if workers < 2 or total < 8 * _PHOTOS_PER_TASK else _ahead(draw, tasks, workers):
            done += count
            progress(done, total)
    except BrokenProcessPool as error:
        raise RunFailed("a process that generates photos died, perhaps out of memory; run the command again") from error


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


def _draw(task: list[Photo], seed: int, most: int) -> int:
    for photo in task:
        path = photo.root / photo.key
        if path.exists():
            continue
        product = sample_product(seed, photo.index, DEMO, most)  # every dialect tells of these drawings
        if photo.view == VIEWS[0]:
            rng, image = np.random.default_rng((_FILE_STREAM, seed, photo.index, 1)), render(product, view_seed=seed)
        else:
            rng = np.random.default_rng((_FILE_STREAM, seed, photo.index, 1, VIEWS.index(photo.view)))
            image = render(product, view_seed=seed, view=photo.view)
        write(path, encode(image, photo.encoding, rng))
    return len(task)
