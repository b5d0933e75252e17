"""Rows of a table to products: which rows stand for a product, which only add photos to one, which are left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from enrich.answers.plain_text import MAX_TITLE, spells_control_token
from enrich.catalog.dropped import Dropped
from enrich.catalog.find_photo import find_photo
from enrich.vocabulary import Product, same_design

BETWEEN_PHOTOS = "|"  # in a cell that names several
_SAME_PRODUCT = ("title", "category", "price", "currency")  # what rows of one product agree in


@dataclass(frozen=True)
class Selection:
    """Products without their prices by the row that names them, in the table's order, and what is not used."""

    kept: dict[int, Product]
    dropped: list[Dropped]
    lost: list[Dropped]  # photos that cannot be used, of products that have others
    further: int  # rows that only add photos to a product


def select(rows: Sequence[dict[str, str]], directory: Path) -> Selection:
    """Products with their photos, which are looked for in `directory`.

    A row whose product code is in an earlier row adds its photos to that product if the two agree in title, category
    and price, or it leaves them empty. A photo that cannot be used costs itself, and its product only if no other is
    left.
    """
    heads: dict[str, int] = {}  # product code -> the row that stands for the product
    named: dict[int, list[tuple[int, str]]] = {}  # by that row: the photos' rows and names, in order
    dropped: list[Dropped] = []
    further = 0
    for number, row in enumerate(rows, start=1):
        head = heads.get(row["product_code"])
        reason, detail = _why_unusable(row) if head is None else _why_another(row, rows[head - 1], head)
        if reason:
            dropped.append(Dropped(number, row["product_code"], reason, detail))
            continue
        further += head is not None
        named.setdefault(heads.setdefault(row["product_code"], number), []).extend(
            (number, name) for part in row["image_path"].split(BETWEEN_PHOTOS) if (name := part.strip())
        )
    kept: dict[int, Product] = {}
    lost: list[Dropped] = []
    for number, photos in named.items():
        row = rows[number - 1]
        paths, troubles = _find(photos, row["product_code"], directory)
        if paths:
            title = row["title"][:MAX_TITLE].strip()
            kept[number] = Product(row["product_code"], title, row["category"], None, paths)
            lost += troubles
        else:
            first = troubles[0] if troubles else Dropped(number, row["product_code"], "no image_path")
            dropped.append(replace(first, row=number))
    return Selection(kept, sorted(dropped, key=lambda one: one.row), lost, further)


def _why_another(row: dict[str, str], first: dict[str, str], head: int) -> tuple[str, str]:
    """Reason and detail why a row is not of the product of row `head`, `first`; "" if it is."""
    odd = next((name for name in _SAME_PRODUCT if row[name] and not _agree(row[name], first[name])), None)
    return ("product_code is in an earlier row", f"its {odd} is not that of row {head}") if odd else ("", "")


def _why_unusable(row: dict[str, str]) -> tuple[str, str]:
    """Reason and detail why a row cannot stand for a product, whatever its photos; "" if it can."""
    for name in ("product_code", "title", "category"):
        if not row[name]:
            photo_only = row["image_path"] and not (row["title"] or row["category"])
            return f"no {name}", "only a photo, as of a product in another row" if photo_only else ""
    for text in (row["title"], row["category"]):
        if spells_control_token(text):
            return "a value spells a control token of the model", text
    return "", ""


def _agree(one: str, other: str) -> bool:
    """Whether two cells say the same: but for case and spacing, and numbers but for how they are written."""
    if same_design(one) == same_design(other):
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _find(
    photos: Sequence[tuple[int, str]], product_code: str, directory: Path
) -> tuple[tuple[str, ...], list[Dropped]]:
    """The paths of the photos that are there, each once, and the others."""
    paths: dict[str, None] = {}
    troubles = []
    for row, name in photos:
        path, trouble = find_photo(name, directory)
        if trouble:
            troubles.append(Dropped(row, product_code, trouble, name))
        else:
            paths[path] = None
    return tuple(paths), troubles
