"""Further photos of products whose table names only one: the others in its group."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from enrich.catalog.frozen import is_reviewed
from enrich.errors import UsageError
from enrich.photos.groups import group_of, natural_order
from enrich.settings.photos import SIDECARS
from enrich.vocabulary import MOST_PHOTOS, Product


def add_further_photos(kept: Mapping[int, Product], directory: Path, group_by: str, where: str) -> dict[int, Product]:
    """`kept` with the photos of each product's group after the one that the table names, in natural order.

    Args:
        directory: of the table; paths below it are the keys that an expression is matched with.
        group_by: see the setting.

    Raises:
        UsageError: the expression matches no photo of the table, or a group has the photos of two products.
    """
    # Rows of decisions name all of their photos, and the folder holds those of other products.
    alone = {number: one for number, one in kept.items() if len(one.image_paths) == 1 and not is_reviewed(one)}
    if group_by == "photo" or not alone:
        return dict(kept)
    grouped = group_of(group_by)
    products: dict[str, tuple[int, str]] = {}  # by group: the product's row, and its photo
    for number, product in alone.items():
        key = os.path.relpath(product.image_paths[0], directory)
        group = grouped(key)
        if group is None:
            continue
        other = products.setdefault(group, (number, key))
        if other[0] != number:
            raise UsageError(
                f"{where}: group_by {group_by}: the photos of products {kept[other[0]].product_code} and "
                f"{product.product_code} ({other[1]}, {key}) are in one group; use another expression, or photo"
            )
    if not products:
        raise UsageError(f"{where}: group_by {group_by}: matches no photo of the table; correct it, or use photo")
    found: dict[str, list[str]] = defaultdict(list)
    for key in _photos(directory):
        if (group := grouped(key)) in products:
            found[group].append(key)
    grown = dict(kept)
    for group, (number, key) in products.items():
        others = sorted({*found[group]} - {key}, key=lambda key: (natural_order(key), key))[: MOST_PHOTOS - 1]
        paths = (*kept[number].image_paths, *(str(directory / other) for other in others))
        grown[number] = replace(kept[number], image_paths=paths)
    return grown


def _photos(directory: Path) -> Iterator[str]:
    """Keys of the files below `directory` that may be photos."""
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            if not any(fnmatch(name.lower(), pattern.lower()) for pattern in SIDECARS) and os.path.getsize(path):
                yield os.path.relpath(path, directory)
