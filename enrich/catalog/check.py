"""How a catalog is read, what is left out, and what looks wrong: found in seconds, without a model."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from enrich.answers.amount import digits, money
from enrich.answers.plain_text import excerpt
from enrich.catalog.dropped import Dropped, too_many
from enrich.catalog.photo_facts import PhotoFacts, Shot, look_at_photos
from enrich.catalog.photo_files import PhotoFiles
from enrich.catalog.read import Catalog
from enrich.catalog.wrong import SHOWN, Finding, find_wrong
from enrich.delimited import SEPARATORS
from enrich.settings.catalog import CHECKED_PHOTOS
from enrich.settings.training import TrainSettings
from enrich.vocabulary import Product

_GROUPS, _SHOTS = 6, 4  # pictures shown of a finding, and photos of each
_SHEET = 24  # products shown as they were read
_CATEGORIES, _DROPPED = 40, 50  # listed on the page


@dataclass(frozen=True)
class Check:
    """A checked catalog."""

    catalog: Catalog
    photos: PhotoFacts
    wrong: tuple[Finding, ...]
    parts: Mapping[str, str]  # the split of each product by its code; empty where there can be no splits

    def as_json(self) -> dict[str, Any]:
        """The fixed form for programs. Photos are paths below the catalog, or URLs; those from inside a table are
        where they were put."""
        catalog, columns = self.catalog, self.catalog.columns
        rows = [
            {
                "product_code": one.product_code, "title": one.title, "category": one.category, "price": one.price,
                "currency": catalog.currency, "photos": [catalog.key_of(path) for path in one.image_paths],
            }
            for one in catalog.products
        ]  # fmt: skip
        dropped = [
            {"row": one.row, "product_code": one.product_code, "reason": _reason(one)} for one in catalog.dropped
        ]
        named = {**columns.model_dump(include={"product_code", "title", "price", "currency", "image_path"}),
                 "category": list(columns.category), "more_images": list(columns.more_images)}  # fmt: skip
        return {"rows": rows, "dropped": dropped, "columns": named, "encoding": catalog.encoding,
                "separator": catalog.separator}  # fmt: skip

    def lines(self) -> Iterator[str]:
        """The report for people, beginning with how the catalog was read, which shows any wrong guess."""
        catalog = self.catalog
        for name, text in self.facts():
            yield f"{name}: {text}"
        yield from catalog.lines
        listed = [*catalog.dropped, *catalog.unread, *catalog.lost]
        if len(listed) > 1:
            yield from (f"row {one.row}, product {excerpt(one.product_code)}: {_reason(one)}" for one in listed[:SHOWN])
        if too_many(catalog.dropped, catalog.rows):
            yield "more than a tenth of the rows are left out: fine-tuning requires --allow-dropped"
        yield from (f"looks wrong: {one.line}" for one in self.wrong)
        if not self.wrong:
            yield "nothing looks wrong"

    def facts(self) -> Iterator[tuple[str, str]]:
        """How the catalog was read, by name."""
        catalog, columns = self.catalog, self.catalog.columns
        if catalog.encoding:
            separator = catalog.separator and SEPARATORS.get(catalog.separator, repr(catalog.separator))
            yield "encoding", catalog.encoding + (f"; separator: {separator}" if separator else "")
        photos = ", ".join((columns.image_path, *columns.more_images))
        named = (
            f"product_code {columns.product_code!r}, title {columns.title!r}, category "
            f"{', '.join(map(repr, columns.category))}, price {columns.price!r}, currency {columns.currency!r}, "
            f"photos {photos!r}"
        )
        yield "columns", named
        yield "rows", f"{catalog.rows:,}, of which {len(catalog.products):,} products can be used"
        first = catalog.products[0]
        price = "no price" if first.price is None else money(first.price, catalog.currency)
        yield "first product", ", ".join(map(excerpt, (first.product_code, first.title, first.category, price)))
        yield "prices", _prices(catalog)
        yield "categories", _categories(catalog.products)
        yield "photos", _photos(self.photos)
        if found := [f"{len(shots):,} {issue}" for issue, shots in self.photos.issues.items() if shots]:
            yield "photo issues", f"{', '.join(found)} (no photo is left out for these)"
        if self.parts:
            counted = Counter(self.parts.values())
            yield "splits", ", ".join(f"{name} {count:,}" for name, count in counted.most_common())

    def as_page(self) -> dict[str, Any]:
        """The content of `enrich.pages.catalog_page`. Photos are named by their paths."""
        catalog = self.catalog
        counts = {"rows": catalog.rows, "products": len(catalog.products), "left out": len(catalog.dropped),
                  "categories": len(catalog.categories), "photos": catalog.photos,
                  "looks wrong": len(self.wrong)}  # fmt: skip
        rows = {one.product_code: one for one in catalog.products}
        step = max(1, len(catalog.products) // _SHEET)
        sheet = [Shot(one.product_code, one.image_paths[0]) for one in catalog.products[::step][:_SHEET]]
        return {
            "counts": counts,
            "facts": list(self.facts()),
            "notes": list(catalog.lines),
            "findings": [
                {"what": one.what, "count": len(one.examples), "examples": one.examples[:SHOWN],
                 "groups": [[self._shown(shot, rows) for shot in group[:_SHOTS]] for group in one.pictures[:_GROUPS]]}
                for one in self.wrong
            ],
            "issues": [
                {"issue": issue.value, "count": len(shots),
                 "shots": [self._shown(shot, rows) for shot in shots[:_GROUPS]]}
                for issue, shots in self.photos.issues.items()
                if shots
            ],
            "sheet": [self._shown(shot, rows) for shot in sheet],
            "categories": list(_category_rows(catalog))[:_CATEGORIES],
            "dropped": [
                {"row": one.row, "product_code": one.product_code, "reason": _reason(one)}
                for one in [*catalog.dropped, *catalog.unread, *catalog.lost][:_DROPPED]
            ],
            "currency": catalog.currency,
            "dropped_total": len(catalog.dropped) + len(catalog.unread) + len(catalog.lost),
        }  # fmt: skip

    def _shown(self, shot: Shot, rows: Mapping[str, Product]) -> dict[str, Any]:
        """A product with one of its photos, as the page shows it."""
        one, catalog = rows[shot.product_code], self.catalog
        return {
            "path": shot.path, "key": catalog.key_of(shot.path), "row": catalog.row_of[one.product_code],
            "product_code": one.product_code, "title": one.title, "category": one.category, "price": one.price,
            "currency": catalog.currency, "split": self.parts.get(one.product_code), "photos": len(one.image_paths),
        }  # fmt: skip


def check(
    catalog: Catalog,
    settings: TrainSettings,
    progress: Callable[[int, int], None],
    files: PhotoFiles | None = None,
    most_photos: int = CHECKED_PHOTOS,
) -> Check:
    """Check a catalog and its photos, of which at most `most_photos` are decoded, in resource-limited processes."""
    photos = look_at_photos(catalog.products, files or PhotoFiles(), settings.limits, most_photos, progress)
    wrong, parts = find_wrong(catalog, photos, settings.split)
    return Check(catalog, photos, tuple(wrong), parts)


def _reason(one: Dropped) -> str:
    return one.reason + (f": {excerpt(one.detail)}" if one.detail else "")


def _prices(catalog: Catalog) -> str:
    prices = sorted(one.price for one in catalog.products if one.price is not None)
    if not prices:
        return "none"
    least, most, middle = (digits(price, catalog.currency) for price in (prices[0], prices[-1], median(prices)))
    return (
        f"{len(prices):,} of {len(catalog.products):,} products, {least} to {most}, "
        f"median {middle}, currency {catalog.currency or 'not named'}"
    )


def _categories(products: Sequence[Product]) -> str:
    counts = Counter(one.category for one in products).most_common()
    shown = ", ".join(f"{excerpt(name)} {count:,}" for name, count in counts[:SHOWN])
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    return f"{len(counts):,}: {shown}{more}"


def _category_rows(catalog: Catalog) -> Iterable[dict[str, Any]]:
    """Categories with their products and prices, the largest first."""
    prices: dict[str, list[float]] = defaultdict(list)
    for one in catalog.products:
        if one.price is not None:
            prices[one.category].append(one.price)
    for name, count in Counter(one.category for one in catalog.products).most_common():
        known = prices[name]
        yield {"name": name, "count": count, "low": min(known, default=None), "high": max(known, default=None),
               "median": median(known) if known else None}  # fmt: skip


def _photos(photos: PhotoFacts) -> str:
    parts = [f"{photos.files:,} files of {photos.bytes / 1e6:,.1f} MB"] if photos.files else []
    parts += [f"{photos.urls:,} {'URL' if photos.urls == 1 else 'URLs'}, not opened"] if photos.urls else []
    if photos.sizes:
        wide, high = zip(*photos.sizes, strict=True)
        parts.append(
            f"{min(wide)} x {min(high)} to {max(wide)} x {max(high)} pixels, median {median(wide):.0f} x "
            f"{median(high):.0f} ({photos.looked_at:,} decoded)"
        )
    same, alike = photos.sharing(exact=True), photos.sharing(exact=False)
    parts.append(f"{same:,} products share a photo's bytes with another")
    parts += [f"{alike:,} have one that looks the same"] if alike else []
    return "; ".join(parts)
