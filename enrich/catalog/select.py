"""Rows of a table to products: which rows stand for a product, which only add photos to one, which are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from enrich.answers.plain_text import MAX_TITLE, fault_of
from enrich.catalog.dropped import Dropped
from enrich.catalog.find_photo import Photos, names_of
from enrich.vocabulary import Product, same_design

BROKEN = "row cannot be read"
OF_FIELD = "field."  # before the name of a declared field, which may be that of another column
_LONGEST_NAME = 1000  # characters of a photo's name in a list; a data: URI may have millions
_SAME_PRODUCT = ("title", "category", "price", "currency")  # what rows of one product agree in


@dataclass(frozen=True)
class Selection:
    """Products without their prices by the row that names them, in the table's order, and what is not used."""

    kept: dict[int, Product]
    dropped: list[Dropped]
    lost: list[Dropped]  # photos that cannot be used, of products that have others
    further: int  # rows that only add photos to a product
    variants: int  # of these, rows of a size or colour with a price of its own


def select(rows: Sequence[dict[str, str]], photos: Photos, broken: Mapping[int, str] = {}) -> Selection:
    """Products with their photos.

    A row whose product code is in an earlier row adds its photos to that product if the two agree in title, category
    and price, or it leaves them empty. Shopify's rows of variants, which have a price but no title, add theirs too. A
    photo that cannot be used costs itself, and its product only if no other is left.

    Args:
        broken: rows that cannot be read, and why.
    """
    heads: dict[str, int] = {}  # product code -> the row that stands for the product
    named: dict[int, list[tuple[int, str]]] = {}  # by that row: the photos' rows and names, in order
    dropped: list[Dropped] = []
    further = variants = 0
    for number, row in enumerate(rows, start=1):
        if number in broken:
            dropped.append(Dropped(number, row["product_code"], BROKEN, broken[number]))
            continue
        head = heads.get(row["product_code"])
        reason, detail = _why_unusable(row) if head is None else _why_another(row, rows[head - 1], head)
        if reason:
            dropped.append(Dropped(number, row["product_code"], reason, detail))
            continue
        further += head is not None
        variants += head is not None and row["price"] not in ("", rows[head - 1]["price"]) and not row["title"]
        named.setdefault(heads.setdefault(row["product_code"], number), []).extend(
            (number, name) for name in names_of(row["image_path"])
        )
    kept: dict[int, Product] = {}
    lost: list[Dropped] = []
    for number, names in named.items():
        row = rows[number - 1]
        paths, troubles = _find(names, row["product_code"], photos)
        if paths:
            title = row["title"][:MAX_TITLE].strip()
            kept[number] = Product(row["product_code"], title, row["category"], None, paths)
            lost += troubles
        else:
            first = troubles[0] if troubles else Dropped(number, row["product_code"], "no image_path")
            dropped.append(replace(first, row=number))
    return Selection(kept, sorted(dropped, key=lambda one: one.row), lost, further, variants)


def _why_another(row: dict[str, str], first: dict[str, str], head: int) -> tuple[str, str]:
    """Reason and detail why a row is not of the product of row `head`, `first`; "" if it is."""
    told = _SAME_PRODUCT if row["title"] or row["category"] else ()
    odd = next((name for name in told if row[name] and not _agree(row[name], first[name])), None)
    return ("product_code is in an earlier row", f"its {odd} differs from row {head}") if odd else ("", "")


def _why_unusable(row: dict[str, str]) -> tuple[str, str]:
    """Reason and detail why a row cannot stand for a product, whatever its photos; "" if it can."""
    for name in ("product_code", "title", "category"):
        if not row[name]:
            photo_only = row["image_path"] and not (row["title"] or row["category"])
            return f"no {name}", "only a photo, for a product in another row" if photo_only else ""
    taught = (text for name, text in row.items() if name in ("title", "category") or name.startswith(OF_FIELD))
    return next(((f"a value {fault}", text) for text in taught if text and (fault := fault_of(text))), ("", ""))


def _agree(one: str, other: str) -> bool:
    """Whether two cells are the same, ignoring case, spacing and how numbers are written."""
    if same_design(one) == same_design(other):
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _find(names: Sequence[tuple[int, str]], product_code: str, photos: Photos) -> tuple[tuple[str, ...], list[Dropped]]:
    """The paths of the photos that are there, each once, and the others."""
    paths: dict[str, None] = {}
    troubles = []
    for row, name in names:
        path, trouble = photos.find(name)
        if trouble:
            troubles.append(Dropped(row, product_code, trouble, name[:_LONGEST_NAME]))
        else:
            paths[path] = None
    return tuple(paths), troubles
