"""The frozen slice: a fifth of the products that people decided, which no adapter is ever trained on.

A product's id decides whether it belongs to the slice, never its title. From then on its photos are stored in a
separate folder, which marks them permanently: even if the product is renamed, its photos are grouped differently, or
its label is withdrawn for a time.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from enrich.vocabulary import Product

REVIEWED = "images/reviewed"  # where a catalog keeps the photos of products that people decided on, by their sha256
FROZEN = f"{REVIEWED}/frozen"
SHARE = 0.2  # changing it would train on what was held out


def is_frozen_id(product_id: str) -> bool:
    """Whether decisions about this product are in the frozen slice, unless its photos say so anyway."""
    digest = hashlib.sha256(b"frozen\0" + product_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) < SHARE * 2**64


def is_reviewed(product: Product) -> bool:
    """Whether a product entered its catalog as a person's decision."""
    return f"/{REVIEWED}/" in product.image_paths[0]


def linked(groups: Sequence[Iterable[str]], start: Iterable[int]) -> set[int]:
    """The numbers of those `groups` of photos that share one with a group in `start`, or with another one that does."""
    holders: dict[str, list[int]] = defaultdict(list)
    photos = [list(group) for group in groups]
    for number, group in enumerate(photos):
        for photo in group:
            holders[photo].append(number)
    found, todo = set(start), list(start)
    while todo:
        for photo in photos[todo.pop()]:
            fresh = set(holders.pop(photo, ())) - found
            found |= fresh
            todo += fresh
    return found


def frozen_products(products: Sequence[Product]) -> set[str]:
    """The codes of products in the frozen slice, and of all others that show one of their photos, by its bytes."""
    start = [
        number for number, product in enumerate(products) if any(f"/{FROZEN}/" in path for path in product.image_paths)
    ]
    if not start:
        return set()
    reviewed = {path for product in products for path in product.image_paths if f"/{REVIEWED}/" in path}
    sizes = {_size(path) for path in reviewed} - {None}
    # Only photos of the same size can have the same bytes, so few have to be read.
    names = [
        [_digest(path) if path in reviewed or _size(path) in sizes else path for path in product.image_paths]
        for product in products
    ]
    return {products[number].product_code for number in linked(names, start)}


def _size(path: str) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:  # a URL, or a photo that is gone
        return None


def _digest(path: str) -> str:
    if f"/{REVIEWED}/" in path:
        return PurePath(path).stem
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
