"""Thumbnails embedded in HTML pages, so that a page needs no other file."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from enrich.errors import ImageError
from enrich.photos.decode import shrink
from enrich.photos.decoders import Decoders, cores
from enrich.settings.photos import PhotoLimits
from enrich.storage import StorageError, Store

_READERS = 8  # photos read at once: about 30 ms each on S3
_PROCESSES = 4  # at most; one makes about 50 thumbnails a second


def thumbnails(images: Store, keys: Sequence[str], limits: PhotoLimits, side: int) -> Iterator[str | None]:
    """The photo of each key as a data: URI, `side` pixels on its longer side; None if it cannot be read."""
    return thumbnails_of(lambda key, most: images.get(key, most)[0], keys, limits, side)


def thumbnails_of(
    read: Callable[[str, int], bytes], names: Sequence[str], limits: PhotoLimits, side: int
) -> Iterator[str | None]:
    """As `thumbnails`, of photos that `read` gets by name, and one byte more than the second argument at most."""
    if not len(names):
        return
    processes = min(_PROCESSES, cores(), -(-len(names) // _READERS))
    with (
        Decoders(partial(shrink, side=side), limits, processes, most_pixels=side * side) as decoders,
        ThreadPoolExecutor(_READERS) as pool,
    ):

        def one(name: str) -> str | None:
            try:
                return _data_uri(decoders.decode(read(name, limits.max_bytes)).page)
            except (ImageError, StorageError, OSError):
                return None

        yield from pool.map(one, names)


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
