"""Small pictures inside of pages, so that a page needs nothing but itself."""

import base64
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from enrich.images import ImageRefused, decode
from enrich.settings import PhotoLimits
from enrich.storage import StorageError, Store

_READERS = 8  # photos read at once: about 30 ms each on S3


def thumbnails(images: Store, keys: Iterable[str], limits: PhotoLimits, side: int) -> Iterator[str | None]:
    """For each key its photo as a data: URI, `side` pixels on the longer side; None where it cannot be read."""

    def one(key: str) -> str | None:
        try:
            return _data_uri(decode(images.get(key, limits.max_bytes)[0], limits), side)
        except (StorageError, ImageRefused, MemoryError):
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(one, keys)


def _data_uri(photo: Image.Image, side: int) -> str:
    photo.thumbnail((side, side))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
