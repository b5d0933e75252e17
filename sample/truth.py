"""The truth about a sample's products and files, and the best possible score of an estimator: truth.json."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sample.fields import field_columns, field_values
from sample.hostile import hostile_files
from sample.photos import Photos
from sample.place import BUCKET_YEAR, write
from sample.pricing import Optimum, noiseless_price, optimum
from sample.products import SampleProduct, sample_product
from sample.spec import Dialect
from sample.titles import title
from sample.unseen import fields_from_main_photo, from_main_photo, on_main_photo

Facts = dict[str, Any]

_OF_THE_OPTIMUM = 1000  # products whose prices are simulated
_LATE = f"{BUCKET_YEAR}/11"  # the folder of a bucket's unusual files


def truth_of(
    products: Iterable[Photos],
    *,
    seed: int,
    dialect: Dialect,
    most: int = 1,
    below: str = "",
    folders: bool = False,
    **more: str,
) -> Iterator[tuple[str, Facts]]:
    """The key of each product's main photo below `below`, or with `folders` of its folder; `more` and what is true."""
    for photos in products:
        product = sample_product(seed, photos[0].index, dialect, most)
        facts = {**more, **_facts(product)}
        if most > 1:
            front = on_main_photo(product)
            facts["main_photo"] = {
                "title": title(product.kind, front, dialect),
                "noiseless_price": round(noiseless_price(product.kind, front, dialect.prices), 4),
                "fields": field_values(product.kind, front, dialect, most),
            }
            facts["photos"] = {f"{below}{photo.key}": {"view": photo.view} for photo in photos}
        key = photos[0].key
        yield below + (key.rpartition("/")[0] if folders and most > 1 else key), facts


def _facts(product: SampleProduct) -> Facts:
    left_out = ("category1", "category2", "category3", "views")
    return {name: value for name, value in asdict(product).items() if name not in left_out} | {
        "levels": [product.category1, product.category2, product.category]
    }


def optima(seed: int, products: int, dialect: Dialect, most: int) -> Facts:
    """What the best possible estimates would score on products like these: from all photos and, where products have
    several, `optimum` also from the main photo alone. `fields` are shares of right values, an empty one being a value.
    """
    shown = [sample_product(seed, index, dialect, most) for index in range(min(products, _OF_THE_OPTIMUM))]
    best = _scores(optimum((product.noiseless_price for product in shown), dialect.prices))
    facts = {
        "currency": dialect.currency,
        "sigma": dialect.prices.sigma,
        **best,
        "how": "simulated with the ladder; see Optimum in sample/pricing.py",
        "ladder": [list(step) for step in dialect.prices.ladder],
    }
    if most > 1:
        exact, from_one = from_main_photo(shown, dialect, most)
        facts["optimum"] = {
            "main_photo": {
                "title_exact": exact,
                **_scores(from_one),
                "fields": fields_from_main_photo(shown, dialect, most),
            },
            "all_photos": {"title_exact": 1.0, **best, "fields": dict.fromkeys(field_columns(dialect, most), 1.0)},
        }
        facts["how"] += "; for main_photo also sample/unseen.py"
    return facts


def _scores(best: Optimum) -> Facts:
    return {
        "best_mdape": best.mdape,
        "ideal_intervals": {
            level: {"log_width": best.log_widths[level], "ratio": best.ratios[level]} for level in best.log_widths
        },
    }


def finish_bucket(
    out: Path,
    products: Callable[[], Iterator[Photos]],
    truth: Callable[[Iterable[Photos]], Iterator[tuple[str, Facts]]],
) -> dict[str, Facts]:
    """Add a copy and the hostile files; returns the expected result of each.

    Where products are folders, the hostile files are too, and two more have one broken photo among good ones.
    """
    copied = (
        next((photos for photos in products() if len(photos) > 1), None)
        or next((photos for photos in products() if photos[0].encoding == "jpg"), None)
        or next(products())
    )
    other = next(photos for photos in products() if photos[0].encoding == "exif.jpg")  # its bytes are known
    hostile = hostile_files((out / other[0].key).read_bytes())
    key, facts = next(truth([copied]))
    name = Path(key).name
    if "photos" not in facts:
        key = f"{_LATE}/copy of {name}"
        write(out / key, (out / copied[0].key).read_bytes())
        expected = {key: {"status": "ok", **facts}}
        for file, (content, kind) in hostile.items():
            write(out / _LATE / file, content)
            expected[f"{_LATE}/{file}"] = {"status": "failed", "error_kind": str(kind)}
        return expected

    expected = _copies(out, copied, name, facts, hostile)
    for file, (content, kind) in hostile.items():
        folder, key = f"{_LATE}/{Path(file).stem}", f"{_LATE}/{Path(file).stem}/1{Path(file).suffix}"
        write(out / key, content)
        told = {"error_kind": str(kind)}
        expected[folder] = {"status": "failed", **told, "photos": {key: told}}
    return expected


def _copies(
    out: Path, photos: Photos, name: str, facts: Facts, hostile: Mapping[str, tuple[bytes, Any]]
) -> dict[str, Facts]:
    """The same product in three more folders: as it is, with a broken last photo, and with a broken first one."""
    expected = {}
    for what, number, file in (
        ("copy of", 0, None),
        ("broken last of", len(photos) + 1, "sku-truncated.jpg"),
        ("broken first of", 0, "sku-webpage.jpg"),
    ):
        folder = f"{_LATE}/{what} {name}"
        told: dict[str, Facts] = {}
        for photo in photos:
            key = f"{folder}/{Path(photo.key).name}"
            write(out / key, (out / photo.key).read_bytes())
            told[key] = {"view": photo.view}
        if file:
            key, (content, kind) = f"{folder}/{number}.jpg", hostile[file]
            write(out / key, content)
            told[key] = {"error_kind": str(kind)}
        expected[folder] = {"status": "ok", **facts, "photos": dict(sorted(told.items()))}
    return expected
