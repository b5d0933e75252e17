"""What looks wrong in a catalog: it does not keep a row from being taught, but a person should check it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from enrich.answers.amount import digits
from enrich.answers.plain_text import excerpt
from enrich.catalog.photo_facts import PhotoFacts, Picture, Shot
from enrich.catalog.read import Catalog
from enrich.catalog.split import Splits, split_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import SplitSettings
from enrich.vocabulary import Product, same_design

SHOWN = 10  # of what looks wrong of a kind
_TIMES_OFF = 200  # a price so many times its category's median, or a part of it, is taken for one 1,000 times off
_FEWEST_PRICES = 4  # of a category, for its median to say something
# Different titles under one picture: so many with less than half of their words in common, or so many in any case, are
# not sizes of one product.
_UNRELATED, _MANY = 3, 8
_PLACEHOLDER = "placeholders, the same picture for products of many titles"
_SAME = "the same photo under titles that differ"
_ALIKE = "photos that look the same under titles that differ"


@dataclass(frozen=True)
class Finding:
    """One kind of problem."""

    what: str
    examples: tuple[str, ...]  # all of them
    pictures: tuple[tuple[Shot, ...], ...] = ()  # photos that show them, those of an example together

    @property
    def line(self) -> str:
        """The kind, the number and the first ten in one line."""
        count = len(self.examples)
        more = f" and {count - SHOWN:,} more" if count > SHOWN else ""
        return f"{self.what}: {count:,}: {', '.join(self.examples[:SHOWN])}{more}" if count else self.what


def find_wrong(catalog: Catalog, photos: PhotoFacts, split: SplitSettings) -> tuple[list[Finding], dict[str, str]]:
    """What looks wrong, and the split that each product falls into under these settings."""
    by_code = {one.product_code: one for one in catalog.products}
    parts, problem = _parts(catalog.products, split)
    found = [
        _broken(catalog, photos),
        *_titles(photos.pictures, by_code),
        _leaks(photos.pictures, by_code, parts),
        *_values(catalog),
    ]
    if problem:
        found.append(Finding(problem, ()))
    if photos.urls:
        found.append(Finding(
            "photo URLs are not opened here, and fine-tuning needs files: `enrich catalog fetch --source "
            f"TABLE --out URI` with image_url: {catalog.columns.image_path} downloads them: {photos.urls:,}", (),
        ))  # fmt: skip
    return [one for one in found if one], parts


def _parts(products: Sequence[Product], settings: SplitSettings) -> tuple[dict[str, str], str]:
    """The split of each product by its code, or why there are no splits."""
    try:
        splits = split_catalog(products, settings)
    except UsageError as error:
        return {}, str(error)
    return {one.product_code: name for name in Splits.__annotations__ for one in getattr(splits, name)}, ""


def _broken(catalog: Catalog, photos: PhotoFacts) -> Finding | None:
    told = [
        f"{excerpt(catalog.key_of(one.shot.path))} (row {catalog.row_of[one.shot.product_code]}, product "
        f"{excerpt(one.shot.product_code)}: {one.reason})"
        for one in photos.broken
    ]
    return Finding(f"photos that cannot be read, of {photos.looked_at:,} decoded", tuple(told)) if told else None


def _titles(pictures: Sequence[Picture], by_code: Mapping[str, Product]) -> Iterator[Finding]:
    """Pictures of products with different titles: placeholders, and others by whether they are the same or nearly."""
    kinds: dict[str, list[tuple[Shot, ...]]] = {_PLACEHOLDER: [], _SAME: [], _ALIKE: []}
    for one in pictures:
        titles = {same_design(by_code[shot.product_code].title) for shot in one.shots}
        if len(titles) >= (_MANY if _are_related(titles) else _UNRELATED):
            kinds[_PLACEHOLDER].append(one.shots)
        elif len(titles) > 1:
            kinds[_SAME if one.exact else _ALIKE].append(one.shots)
    for what, found in kinds.items():
        if found:
            yield Finding(what, tuple(_differ(shots, by_code) for shots in found), tuple(found))


def _are_related(titles: Collection[str]) -> bool:
    """Whether at least half of their words are in all of them."""
    words = [set(title.split()) for title in titles]
    return 2 * len(set.intersection(*words)) * len(words) >= sum(map(len, words))


def _differ(shots: Sequence[Shot], by_code: Mapping[str, Product]) -> str:
    """Two of the titles, and how many products there are."""
    first = by_code[shots[0].product_code]
    products = (by_code[shot.product_code] for shot in shots)
    other = next(one for one in products if same_design(one.title) != same_design(first.title))
    codes = f"{excerpt(first.product_code)}, {excerpt(other.product_code)}"
    more = f" and {len(shots) - 2:,} more" if len(shots) > 2 else ""
    return f"{excerpt(first.title)!r} and {excerpt(other.title)!r} ({codes}{more})"


def _leaks(pictures: Sequence[Picture], by_code: Mapping[str, Product], parts: Mapping[str, str]) -> Finding | None:
    """Pictures that are both trained on and tested: splits keep titles together, but not photos."""
    told, shown, held = [], [], set()
    for one in pictures:
        first = {parts.get(shot.product_code, ""): shot for shot in reversed(one.shots)}
        if len(first) > 1:
            shots = [first[name] for name in Splits.__annotations__ if name in first]
            told.append(" and ".join(
                f"{excerpt(by_code[shot.product_code].title)!r} ({parts[shot.product_code]})" for shot in shots
            ))  # fmt: skip
            shown.append(tuple(shots))
            held |= {shot.product_code for shot in one.shots if parts[shot.product_code] == "test"}
    tested = sum(part == "test" for part in parts.values())
    what = f"leaks between splits, which make scores look too good ({len(held):,} of {tested:,} test products)"
    return Finding(what, tuple(told), tuple(shown)) if told else None


def _values(catalog: Catalog) -> Iterator[Finding]:
    """What is odd about prices, categories, codes and titles."""
    odd = list(_odd_prices(catalog))
    counts = Counter(one.category for one in catalog.products)
    alone = [one for one in catalog.products if counts[one.category] == 1]
    rounded = [one for one in catalog.products if _was_rounded(one.product_code)]
    garbled = [one for one in catalog.products if _is_garbled(one.title)]
    kinds = (
        ("prices hundreds of times off from their category's", [text for _, text in odd], [one for one, _ in odd]),
        ("categories with only one product, which cannot be tested", [excerpt(one.category) for one in alone], alone),
        ("product codes that a spreadsheet rounded; format that column as text",
         [one.product_code for one in rounded], rounded),
        ("titles with garbled characters; export the table again",
         [f"{excerpt(one.title)!r} ({one.product_code})" for one in garbled], garbled),
    )  # fmt: skip
    for what, told, products in kinds:
        if told:
            shots = tuple((Shot(one.product_code, one.image_paths[0]),) for one in products[:SHOWN])
            yield Finding(what, tuple(told), shots)


def _odd_prices(catalog: Catalog) -> Iterator[tuple[Product, str]]:
    prices: dict[str, list[float]] = defaultdict(list)
    for one in catalog.products:
        if one.price:
            prices[one.category].append(one.price)
    middle = {name: median(values) for name, values in prices.items() if len(values) >= _FEWEST_PRICES}
    for one in catalog.products:
        if one.price and one.category in middle and not 1 / _TIMES_OFF < one.price / middle[one.category] < _TIMES_OFF:
            price, usual = (digits(value, catalog.currency) for value in (one.price, middle[one.category]))
            yield one, f"{price} compared with {usual} (row {catalog.row_of[one.product_code]})"


def _was_rounded(code: str) -> bool:
    """4.00638E+12, as Excel writes a long number into a CSV."""
    head, _, tail = code.upper().partition("E+")
    return tail.isdecimal() and head.replace(".", "", 1).replace(",", "", 1).isdecimal()


def _is_garbled(title: str) -> bool:
    """UTF-8 that was read as Windows-1252 once, such as `MÃ¤ntel`."""
    try:
        return not title.isascii() and len(title.encode("cp1252").decode("utf-8")) < len(title)
    except (UnicodeEncodeError, UnicodeDecodeError):
        return False
