"""A whole sample on disk: a labelled catalog, its hold-out and its truth, and a bucket of unlabelled photos, hostile
files among them.

The same arguments give the same bytes. A run that was cut short continues where it stopped: every file is written under
another name and renamed; the hold-out's table, truth.json and catalog.csv come last, in this order.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from enrich.catalog.split import HOLDOUT
from enrich.errors import UsageError
from sample.dialects import DEMO
from sample.hostile import hostile_files
from sample.photos import (
    BUCKET_START,
    Photo,
    bucket_photos,
    draw_photos,
    holdout_photos,
    labelled_photos,
)
from sample.place import BUCKET_YEAR, CATALOG, TRUTH, claim, finish, write
from sample.pricing import optimum
from sample.products import SampleProduct, sample_product
from sample.spec import VERSION, Dialect

COLUMNS = (
    "website_name", "competence_date", "country_code", "currency_code", "brand", "category1_code", "category2_code",
    "category3_code", "product_code", "title", "itemurl", "imageurl", "full_price", "price", "full_price_eur",
    "price_eur", "flg_discount", "local_image_path",
)  # fmt: skip
_OF_THE_OPTIMUM = 1000  # products whose prices are simulated


@dataclass(frozen=True)
class SampleSummary:
    """What `write_sample` left on disk: labelled products and their categories, the hold-out, the bucket's files."""

    products: int
    categories: int
    holdout: int
    bucket: int


def _silent(done: int, total: int) -> None:
    pass


def write_sample(
    out: Path,
    products: int = 600,
    bucket: int = 120,
    seed: int = 0,
    dialect: Dialect = DEMO,
    progress: Callable[[int, int], None] = _silent,
    bucket_out: Path | None = None,
    *,
    holdout: int = 60,
    overwrite: bool = False,
) -> SampleSummary:
    """Writes `out/catalog.csv` and `out/images/`; below `out/holdout/` a catalog of `holdout` products whose colour x
    fabric x kind the first one never shows; `out/truth.json`; and into `bucket_out`, where given, `bucket` photos of
    other products, six in unusual encodings, a copy under a second key, and the hostile files.

    `progress` is told (photos done, photos in all). `overwrite` removes another sample first.

    Raises:
        UsageError: `out` holds something else or cannot be a directory, or a number is out of range.
        RunFailed: a file could not be written; the same call continues.
    """
    _check_numbers(products, holdout, bucket, seed)
    settings: dict[str, Any] = {
        "version": VERSION, "dialect": dialect.name, "seed": seed, "products": products, "holdout_products": holdout,
    }  # fmt: skip
    if bucket_out is not None:
        settings["bucket_photos"] = bucket
    claim(out, bucket_out, settings, overwrite=overwrite)

    # Called anew for each pass over the photos: a list of a million of them would take memory.
    labelled = partial(labelled_photos, out, seed, products)
    held_out = partial(holdout_photos, out, seed, holdout)

    def unlabelled() -> Iterator[Photo]:
        return iter(()) if bucket_out is None else bucket_photos(bucket_out, seed, bucket)

    in_bucket = sum(1 for _ in unlabelled())
    draw_photos(chain(labelled(), held_out(), unlabelled()), products + holdout + in_bucket, seed, progress)

    known = partial(_truth_of, seed=seed, dialect=dialect)
    truth: dict[str, Iterable[tuple[str, dict[str, Any]]]] = {
        "images": known(labelled()),
        "holdout": known(held_out(), below=f"{HOLDOUT}/"),
    }
    extras: dict[str, dict[str, Any]] = {}
    if bucket_out is not None:
        extras = _finish_bucket(bucket_out, unlabelled, seed, dialect)
        usual = ((key, {"status": "ok", **facts}) for key, facts in known(unlabelled()))
        truth["bucket"] = chain(usual, extras.items())
    if holdout:
        write(out / HOLDOUT / CATALOG, _table(held_out(), seed, dialect, set()))
    write(out / TRUTH, _json(settings, _optimum(seed, products, dialect), truth))
    categories: set[str] = set()
    # Written last: without it the folder does not count as a catalog.
    write(out / CATALOG, _table(labelled(), seed, dialect, categories))
    finish(out)
    return SampleSummary(products, len(categories), holdout, in_bucket + len(extras))


def _check_numbers(products: int, holdout: int, bucket: int, seed: int) -> None:
    if not 1 <= products <= BUCKET_START or not 0 <= holdout <= BUCKET_START or bucket < 1 or seed < 0:
        raise UsageError(
            f"sample of {products} products, {holdout} held out, {bucket} bucket photos and seed {seed}: give 1 to "
            f"{BUCKET_START:,} products, up to as many held out, at least 1 bucket photo and a seed of at least 0"
        )


def _truth_of(
    photos: Iterable[Photo], *, seed: int, dialect: Dialect, below: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each photo's key below `below`, and what is true of its product."""
    for photo in photos:
        yield f"{below}{photo.key}", _truth(sample_product(seed, photo.index, dialect))


def _optimum(seed: int, products: int, dialect: Dialect) -> dict[str, Any]:
    """What the best possible estimate of prices would score on products like these."""
    seen = (sample_product(seed, index, dialect).noiseless_price for index in range(min(products, _OF_THE_OPTIMUM)))
    best = optimum(seen, dialect.prices)
    return {
        "currency": dialect.currency,
        "sigma": dialect.prices.sigma,
        "best_mdape": best.mdape,
        "ideal_intervals": {
            level: {"log_width": best.log_widths[level], "ratio": best.ratios[level]} for level in best.log_widths
        },
        "how": "simulated with the ladder; see Optimum in sample/pricing.py",
        "ladder": [list(step) for step in dialect.prices.ladder],
    }


def _finish_bucket(
    out: Path, photos: Callable[[], Iterator[Photo]], seed: int, dialect: Dialect
) -> dict[str, dict[str, Any]]:
    """Adds the copy and the hostile files; returns what is to be expected of each."""
    jpeg = next((photo for photo in photos() if photo.encoding == "jpg"), None) or next(photos())
    copy = f"{BUCKET_YEAR}/11/copy of {Path(jpeg.key).name}"
    write(out / copy, (out / jpeg.key).read_bytes())
    expected = {copy: {"status": "ok", **_truth(sample_product(seed, jpeg.index, dialect))}}
    other = next(photo for photo in photos() if photo.encoding == "exif.jpg")  # not the copied one: its bytes are known
    for name, (content, kind) in hostile_files((out / other.key).read_bytes()).items():
        write(out / f"{BUCKET_YEAR}/11" / name, content)
        expected[f"{BUCKET_YEAR}/11/{name}"] = {"status": "failed", "error_kind": str(kind)}
    return expected


def _truth(product: SampleProduct) -> dict[str, Any]:
    return {
        name: value for name, value in asdict(product).items() if name not in ("category1", "category2", "category3")
    } | {"levels": [product.category1, product.category2, product.category]}


def _json(
    settings: dict[str, Any], facts: dict[str, Any], tables: dict[str, Iterable[tuple[str, dict[str, Any]]]]
) -> Iterator[bytes]:
    """One JSON object, an entry a line, its first line the settings (`place` reads it); never all of it in memory."""
    yield json.dumps(settings)[:-1].encode()
    for name, value in facts.items():
        yield f",\n{json.dumps(name)}: {json.dumps(value)}".encode()
    for name, entries in tables.items():
        yield f",\n{json.dumps(name)}: {{".encode()
        for number, (key, entry) in enumerate(entries):
            line = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
            yield (",\n " if number else "\n ").encode() + line.encode()
        yield b"}"
    yield b"}\n"


def _table(photos: Iterator[Photo], seed: int, dialect: Dialect, categories: set[str]) -> Iterator[bytes]:
    """A header and one row for each photo, in the columns and the manner of the tutorial's data set; adds to
    `categories` those that it names."""
    yield _csv_row(COLUMNS)
    for photo in photos:
        product = sample_product(seed, photo.index, dialect)
        categories.add(product.category)
        slug = product.title.lower().replace(" ", "-")
        price, eur = f"{product.price:g}", f"{product.price * dialect.to_eur:.2f}"
        row = {
            "website_name": dialect.website,
            "competence_date": "2026-11-01",
            "country_code": dialect.country,
            "currency_code": dialect.currency,
            "brand": dialect.brand,
            "category1_code": product.category1,
            "category2_code": product.category2,
            "category3_code": product.category3,
            "product_code": product.product_code,
            "title": product.title,
            "itemurl": f"https://shop.example.com/{slug}-p{product.product_code}",
            "imageurl": f"https://images.example.com/{product.product_code}",
            "full_price": price,
            "price": price,
            "full_price_eur": eur,
            "price_eur": eur,
            "flg_discount": "0",
            "local_image_path": photo.key,
        }
        yield _csv_row(row[column] for column in COLUMNS)


def _csv_row(values: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
