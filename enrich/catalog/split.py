"""Train, validation, calibration and test rows: no title is in two of them, and the order of rows does not matter.

Products that people decided are separate: a frozen slice is in no split, and the rest is for training.
"""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from enrich.catalog.frozen import frozen_products, is_reviewed
from enrich.errors import UsageError
from enrich.settings.catalog import SplitSettings
from enrich.vocabulary import Product, same_design

HOLDOUT = "holdout"  # a catalog below a sample's own: combinations of colour, fabric and kind that it never shows


@dataclass(frozen=True)
class Splits:
    """Disjoint rows, each split sorted by product code."""

    train: tuple[Product, ...]
    validation: tuple[Product, ...]
    calibration: tuple[Product, ...]
    test: tuple[Product, ...]
    frozen: tuple[Product, ...] = ()  # never learned from; may share titles with the others


def split_catalog(products: Sequence[Product], settings: SplitSettings) -> Splits:
    """Products with the same title (see `same_design`) stay together: they are one design in several photos.

    Titles are taken in the order of a hash with the seed, and fill test, calibration and validation up to their share
    of the rows; train gets the rest. Last in that order, and so in train, are titles that would overfill a split, and
    the only titles of a category: held out, they would ask for a category that was never taught.

    Products that people decided do not change this: they join train, except those whose title is held out, which join
    that split, and except the frozen slice.

    Raises:
        UsageError: fewer titles than splits.
    """
    kept = frozen_products(products)
    frozen = [product for product in products if product.product_code in kept]
    reviewed = [product for product in products if is_reviewed(product) and product.product_code not in kept]
    groups = _by_title(product for product in products if not is_reviewed(product) and product.product_code not in kept)
    if len(groups) < 4:
        besides = " in addition to those that people decided" if frozen or reviewed else ""
        raise UsageError(
            f"catalog with {len(groups)} different titles{besides}: train, validation, calibration and test need at "
            "least one each, so 4 at the least; add products"
        )
    rows = sum(map(len, groups.values()))
    shares = {"test": settings.test, "calibration": settings.calibration, "validation": settings.validation}
    wanted = {name: max(1, round(share * rows)) for name, share in shares.items()}
    queue = deque(_order(groups, settings.seed, largest=min(wanted.values())))
    chosen: dict[str, list[Product]] = {}
    for position, (name, most) in enumerate(wanted.items()):
        chosen[name] = []
        while not chosen[name] or (len(chosen[name]) < most and len(queue) > len(wanted) - position):
            chosen[name] += groups[queue.popleft()]
    chosen["train"] = [product for title in queue for product in groups[title]]
    held_out = {same_design(product.title): name for name in wanted for product in chosen[name]}
    for product in reviewed:
        chosen[held_out.get(same_design(product.title), "train")].append(product)
    chosen["frozen"] = frozen
    return Splits(**{name: tuple(sorted(rows, key=lambda row: row.product_code)) for name, rows in chosen.items()})


def _by_title(products: Iterable[Product]) -> dict[str, list[Product]]:
    groups: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        groups[same_design(product.title)].append(product)
    return groups


def _order(groups: dict[str, list[Product]], seed: int, largest: int) -> list[str]:
    """Titles, those that may be held out first."""
    titles_of = Counter(category for rows in groups.values() for category in {row.category for row in rows})

    def rank(title: str) -> tuple[bool, bytes]:
        rows = groups[title]
        kept = len(rows) > largest or any(titles_of[row.category] == 1 for row in rows)
        return kept, hashlib.sha256(f"{seed}\0{title}".encode()).digest()

    return sorted(groups, key=rank)
