"""Train, validation, calibration and test rows: no title in two of them, and the same whatever the rows' order."""

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

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


def split_catalog(products: Sequence[Product], settings: SplitSettings) -> Splits:
    """Products with the same title (see `same_design`) stay together: they are one design in several photos.

    Titles are taken in the order of a hash with the seed, and fill test, calibration and validation up to their share
    of the rows; train gets the rest. Last in that order, and so in train, are titles that would overfill a split, and
    the only titles of a category: held out, they would ask for a category that was never taught.

    Raises:
        UsageError: fewer titles than splits.
    """
    groups: dict[str, list[Product]] = defaultdict(list)
    for product in products:
        groups[same_design(product.title)].append(product)
    if len(groups) < 4:
        raise UsageError(
            f"catalog with {len(groups)} different titles: train, validation, calibration and test need at least one "
            "each, so 4 at the least; add products"
        )
    shares = {"test": settings.test, "calibration": settings.calibration, "validation": settings.validation}
    wanted = {name: max(1, round(share * len(products))) for name, share in shares.items()}
    queue = deque(_order(groups, settings.seed, largest=min(wanted.values())))
    chosen: dict[str, list[Product]] = {}
    for position, (name, rows) in enumerate(wanted.items()):
        chosen[name] = []
        while not chosen[name] or (len(chosen[name]) < rows and len(queue) > len(wanted) - position):
            chosen[name] += groups[queue.popleft()]
    chosen["train"] = [product for title in queue for product in groups[title]]
    return Splits(**{name: tuple(sorted(rows, key=lambda row: row.product_code)) for name, rows in chosen.items()})


def _order(groups: dict[str, list[Product]], seed: int, largest: int) -> list[str]:
    """Titles, those that may be held out first."""
    titles_of = Counter(category for rows in groups.values() for category in {row.category for row in rows})

    def rank(title: str) -> tuple[bool, bytes]:
        rows = groups[title]
        kept = len(rows) > largest or any(titles_of[row.category] == 1 for row in rows)
        return kept, hashlib.sha256(f"{seed}\0{title}".encode()).digest()

    return sorted(groups, key=rank)
