"""What a catalog says, what of it is left out, and what looks wrong: found in seconds, without a model."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from enrich.answers.plain_text import excerpt
from enrich.catalog.delimited import SEPARATORS
from enrich.catalog.dropped import too_many
from enrich.catalog.find_photo import is_url
from enrich.catalog.read import Catalog
from enrich.photos.decode import ImageRefused, inspect
from enrich.photos.decoders import Decoders, DecodingFailed, cores
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import Product, same_design

_SHOWN = 10  # of what looks wrong of a kind, and of categories
_DECODED = 60  # photos whose pixels are looked at, spread over the catalog: a second or two
_TIMES_OFF = 200  # a price so many times its category's median, or a part of it, is taken for one 1,000 times off
_FEWEST_PRICES = 4  # of a category, for its median to say something


@dataclass(frozen=True)
class PhotoFacts:
    """What the files of the photos say, without a model."""

    files: int
    urls: int
    bytes: int
    sizes: tuple[tuple[int, int], ...]  # width and height of those that were decoded
    unreadable: tuple[tuple[str, str], ...]  # of these, path and reason
    same: tuple[tuple[str, ...], ...]  # product codes of products whose main photos have equal bytes


@dataclass(frozen=True)
class Check:
    """A catalog that was looked at."""

    catalog: Catalog
    photos: PhotoFacts
    wrong: tuple[str, ...] = field(default=())  # what looks wrong, a line each

    def as_json(self) -> dict[str, Any]:
        """The fixed form for programs. Photos are paths below the catalog, or URLs; those from inside a table are
        where they were put."""
        catalog, columns = self.catalog, self.catalog.columns
        rows = [
            {
                "product_code": one.product_code, "title": one.title, "category": one.category, "price": one.price,
                "currency": catalog.currency, "photos": [_key(path, catalog.directory) for path in one.image_paths],
            }
            for one in catalog.products
        ]  # fmt: skip
        dropped = [
            {"row": one.row, "product_code": one.product_code,
             "reason": one.reason + (f": {excerpt(one.detail)}" if one.detail else "")}
            for one in catalog.dropped
        ]  # fmt: skip
        named = {**columns.model_dump(include={"product_code", "title", "price", "currency", "image_path"}),
                 "category": list(columns.category), "more_images": list(columns.more_images)}  # fmt: skip
        return {"rows": rows, "dropped": dropped, "columns": named, "encoding": catalog.encoding,
                "separator": catalog.separator}  # fmt: skip

    def lines(self) -> Iterable[str]:
        """The report for people: what was understood first, since a wrong guess shows there."""
        catalog, columns = self.catalog, self.catalog.columns
        if catalog.encoding:
            separator = catalog.separator and SEPARATORS.get(catalog.separator, repr(catalog.separator))
            yield f"encoding: {catalog.encoding}" + (f"; separator: {separator}" if separator else "")
        photos = ", ".join((columns.image_path, *columns.more_images))
        yield (f"columns: product_code {columns.product_code!r}, title {columns.title!r}, category "
               f"{', '.join(map(repr, columns.category))}, price {columns.price!r}, currency {columns.currency!r}, "
               f"photos {photos!r}")  # fmt: skip
        yield f"rows: {catalog.rows:,}, of which {len(catalog.products):,} products can be used"
        first = catalog.products[0]
        price = "no price" if first.price is None else f"{first.price:,.2f} {catalog.currency or ''}".strip()
        yield f"first product: {', '.join(map(excerpt, (first.product_code, first.title, first.category, price)))}"
        yield _prices(catalog)
        yield _categories(catalog.products)
        yield _photos(self.photos)
        yield from catalog.lines
        if too_many(catalog.dropped, catalog.rows):
            yield "more than a tenth of the rows is left out: fine-tuning goes on only with --allow-dropped"
        yield from (f"looks wrong: {line}" for line in self.wrong)
        if not self.wrong:
            yield "nothing looks wrong"


def check(catalog: Catalog, limits: PhotoLimits, progress: Callable[[int, int], None]) -> Check:
    """Look at a catalog and its photos. Bytes are decoded in processes with limits, and only those of some photos."""
    photos = _look_at(catalog.products, limits, progress)
    return Check(catalog, photos, tuple(_wrong(catalog, photos)))


def _key(path: str, directory: str) -> str:
    return os.path.relpath(path, directory) if path.startswith(directory + os.sep) else path


def _prices(catalog: Catalog) -> str:
    prices = sorted(one.price for one in catalog.products if one.price is not None)
    if not prices:
        return "prices: none"
    return (
        f"prices: {len(prices):,} of {len(catalog.products):,} products, {prices[0]:,.2f} to {prices[-1]:,.2f}, "
        f"median {median(prices):,.2f}, currency {catalog.currency or 'not named'}"
    )


def _categories(products: Sequence[Product]) -> str:
    counts = Counter(one.category for one in products).most_common()
    shown = ", ".join(f"{excerpt(name)} {count:,}" for name, count in counts[:_SHOWN])
    more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    return f"categories: {len(counts):,}: {shown}{more}"


def _photos(photos: PhotoFacts) -> str:
    parts = [f"{photos.files:,} files of {photos.bytes / 1e6:,.1f} MB"] if photos.files else []
    parts += [f"{photos.urls:,} URLs"] if photos.urls else []
    if photos.sizes:
        wide, high = zip(*photos.sizes, strict=True)
        parts.append(f"{min(wide)} x {min(high)} to {max(wide)} x {max(high)} pixels ({len(photos.sizes)} looked at)")
    parts.append(f"{sum(map(len, photos.same)):,} products share their main photo's bytes with another")
    return f"photos: {'; '.join(parts)}"


def _look_at(products: Sequence[Product], limits: PhotoLimits, progress: Callable[[int, int], None]) -> PhotoFacts:
    paths = list(dict.fromkeys(path for one in products for path in one.image_paths))
    files = [path for path in paths if not is_url(path)]
    bytes_of = {path: os.stat(path).st_size for path in files}
    chosen = files[:: max(1, len(files) // _DECODED)][:_DECODED]
    sizes, unreadable = [], []
    with Decoders(inspect, limits, min(2, cores()), most_pixels=0) as decoders:
        for number, path in enumerate(chosen, start=1):
            try:
                with open(path, "rb") as file:
                    photo = decoders.decode(file.read(limits.max_bytes + 1))
                sizes.append((photo.width, photo.height))
            except (ImageRefused, DecodingFailed) as error:
                unreadable.append((path, str(error)))
            progress(number, len(chosen))
    return PhotoFacts(
        files=len(files),
        urls=len(paths) - len(files),
        bytes=sum(bytes_of.values()),
        sizes=tuple(sizes),
        unreadable=tuple(unreadable),
        same=tuple(map(tuple, _same_bytes(products, bytes_of))),
    )


def _same_bytes(products: Sequence[Product], bytes_of: Mapping[str, int]) -> list[list[str]]:
    """Products whose main photos have the same bytes. Only files of one size are read."""
    by_size: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in products:
        path = one.image_paths[0]
        if path in bytes_of:
            by_size[bytes_of[path]][path].append(one.product_code)
    groups: dict[str, list[str]] = defaultdict(list)
    for paths in by_size.values():
        for path, codes in paths.items():
            groups[_digest(path) if len(paths) > 1 else path] += codes
    urls: dict[str, list[str]] = defaultdict(list)
    for one in products:
        if is_url(one.image_paths[0]):
            urls[one.image_paths[0]].append(one.product_code)
    return [codes for codes in (*groups.values(), *urls.values()) if len(codes) > 1]


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(catalog: Catalog, photos: PhotoFacts) -> Iterable[str]:
    by_code = {one.product_code: one for one in catalog.products}
    yield from _listed("photos that cannot be read", [f"{path} ({why})" for path, why in photos.unreadable])
    differ = [codes for codes in photos.same if len({same_design(by_code[code].title) for code in codes}) > 1]
    yield from _listed(
        "the same photo under titles that differ",
        [f"{excerpt(by_code[one[0]].title)!r} and {excerpt(_other(one, by_code))!r} ({one[0]}, ...)" for one in differ],
    )
    yield from _listed("prices that are hundreds of times off their category's", _odd_prices(catalog))
    counts = Counter(one.category for one in catalog.products)
    single = [excerpt(name) for name, count in counts.items() if count == 1]
    yield from _listed("categories with one product, which cannot be tested", single)
    rounded = [one.product_code for one in catalog.products if _was_rounded(one.product_code)]
    yield from _listed("product codes that a spreadsheet rounded; format that column as text", rounded)
    garbled = [f"{excerpt(one.title)!r} ({one.product_code})" for one in catalog.products if _is_garbled(one.title)]
    yield from _listed("titles that were decoded wrongly somewhere; export the table again", garbled)
    if photos.urls:
        yield (
            f"{photos.urls:,} photos are URLs, and fine-tuning reads files: `enrich catalog fetch --source TABLE --out "
            f"URI` with image_url: {catalog.columns.image_path} downloads them"
        )


def _listed(what: str, found: Sequence[str]) -> list[str]:
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return [f"{what}: {len(found):,}: {', '.join(found[:_SHOWN])}{more}"] if found else []


def _other(codes: Sequence[str], by_code: Mapping[str, Product]) -> str:
    first = same_design(by_code[codes[0]].title)
    return next(by_code[code].title for code in codes if same_design(by_code[code].title) != first)


def _odd_prices(catalog: Catalog) -> list[str]:
    prices: dict[str, list[float]] = defaultdict(list)
    for one in catalog.products:
        if one.price:
            prices[one.category].append(one.price)
    middle = {name: median(values) for name, values in prices.items() if len(values) >= _FEWEST_PRICES}
    return [
        f"{one.price:,.2f} beside {middle[one.category]:,.2f} (row {catalog.row_of[one.product_code]})"
        for one in catalog.products
        if one.price and one.category in middle and not 1 / _TIMES_OFF < one.price / middle[one.category] < _TIMES_OFF
    ]


def _was_rounded(code: str) -> bool:
    """4.00638E+12, as Excel writes a long number into a CSV."""
    head, _, tail = code.upper().partition("E+")
    return tail.isdecimal() and head.replace(".", "", 1).replace(",", "", 1).isdecimal()


def _is_garbled(title: str) -> bool:
    """UTF-8 that was read as Windows-1252 once, such as `MÃ¤ntel`, or a replacement character."""
    if "\ufffd" in title:
        return True
    try:
        return not title.isascii() and len(title.encode("cp1252").decode("utf-8")) < len(title)
    except (UnicodeEncodeError, UnicodeDecodeError):
        return False
