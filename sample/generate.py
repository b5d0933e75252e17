"""A whole sample on disk: a labelled catalog, its hold-out and its truth, and a bucket of unlabelled photos, hostile
files among them.

The same arguments give the same bytes. A run that was cut short continues where it stopped: every file is written under
another name and renamed; the hold-out's table, truth.json and catalog.csv come last, in this order.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from enrich.catalog.split import HOLDOUT
from enrich.errors import UsageError
from sample.dialects import DEMO
from sample.fields import field_columns
from sample.photos import (
    BUCKET_START,
    Photo,
    Photos,
    bucket_photos,
    draw_photos,
    holdout_photos,
    labelled_photos,
)
from sample.place import CATALOG, TRUTH, claim, finish, write
from sample.products import sample_product
from sample.spec import VERSION, VIEWS, Dialect
from sample.truth import Facts, finish_bucket, optima, truth_of

COLUMNS = (
    "website_name", "competence_date", "country_code", "currency_code", "brand", "category1_code", "category2_code",
    "category3_code", "product_code", "title", "itemurl", "imageurl", "full_price", "price", "full_price_eur",
    "price_eur", "flg_discount", "local_image_path",
)  # fmt: skip


@dataclass(frozen=True)
class SampleSummary:
    """What `write_sample` left on disk: labelled products and their categories, the hold-out, the bucket's files or,
    where products are folders, its products."""

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
    photos: int = 1,
    overwrite: bool = False,
) -> SampleSummary:
    """Writes `out/catalog.csv` and `out/images/`; below `out/holdout/` a catalog of `holdout` products whose colour x
    fabric x kind the first one never shows; `out/truth.json`; and into `bucket_out`, where given, `bucket` photos of
    other products, six in unusual encodings, a copy under a second key, and the hostile files.

    With `photos` above 1, up to 4, products have 1 to so many photos, a folder each; `bucket` then counts products.
    `progress` is told (photos done, photos in all). `overwrite` removes another sample first.

    Raises:
        UsageError: `out` holds something else or cannot be a directory, or a number is out of range.
        RunFailed: a file could not be written; the same call continues.
    """
    _check_numbers(products, holdout, bucket, seed, photos)
    settings = {
        "version": VERSION, "dialect": dialect.name, "seed": seed, "products": products, "holdout_products": holdout,
        **({} if bucket_out is None else {"bucket_photos": bucket}), **({"photos": photos} if photos > 1 else {}),
    }  # fmt: skip
    claim(out, bucket_out, settings, overwrite=overwrite)

    # Called again for each pass over the photos: a list of a million of them would take memory.
    labelled = partial(labelled_photos, out, seed, products, photos)
    held_out = partial(holdout_photos, out, seed, holdout, photos)

    def unlabelled() -> Iterator[Photos]:
        return iter(()) if bucket_out is None else bucket_photos(bucket_out, seed, bucket, photos)

    def in_all() -> Iterator[Photo]:
        return chain.from_iterable(chain(labelled(), held_out(), unlabelled()))

    draw_photos(in_all(), sum(1 for _ in in_all()), seed, progress, photos)

    known = partial(truth_of, seed=seed, dialect=dialect, most=photos)
    truth: dict[str, Iterable[tuple[str, Facts]]] = {
        "images": known(labelled()),
        "holdout": known(held_out(), below=f"{HOLDOUT}/"),
    }
    in_bucket = 0
    if bucket_out:
        extras = finish_bucket(bucket_out, unlabelled, partial(known, folders=True))
        in_bucket = sum(1 for _ in unlabelled()) + len(extras)
        truth["bucket"] = chain(known(unlabelled(), folders=True, status="ok"), extras.items())
    if holdout:
        write(out / HOLDOUT / CATALOG, _table(held_out(), seed, dialect, photos, set()))
    write(out / TRUTH, _json(settings, optima(seed, products, dialect, photos), truth))
    categories: set[str] = set()  # catalog.csv is written last: without it the folder does not count as a catalog
    write(out / CATALOG, _table(labelled(), seed, dialect, photos, categories))
    finish(out)
    return SampleSummary(products, len(categories), holdout, in_bucket)


def _check_numbers(products: int, holdout: int, bucket: int, seed: int, photos: int) -> None:
    if not 1 <= photos <= len(VIEWS):
        raise UsageError(f"sample of products with up to {photos} photos: give 1 to {len(VIEWS)}")
    if not 1 <= products <= BUCKET_START or not 0 <= holdout <= BUCKET_START or bucket < 1 or seed < 0:
        raise UsageError(
            f"sample of {products} products, {holdout} held out, {bucket} bucket photos and seed {seed}: give 1 to "
            f"{BUCKET_START:,} products, up to as many held out, at least 1 bucket photo and a seed of at least 0"
        )


def _json(settings: Facts, facts: Facts, tables: dict[str, Iterable[tuple[str, Facts]]]) -> Iterator[bytes]:
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


def _table(products: Iterator[Photos], seed: int, dialect: Dialect, most: int, categories: set[str]) -> Iterator[bytes]:
    """A header and one row for each product, in the columns and the manner of the tutorial's data set; adds to
    `categories` those that it names. Further fields of the dialect are the last columns."""
    header = (*COLUMNS, *field_columns(dialect, most))
    yield _csv_row(header)
    for photos in products:
        product = sample_product(seed, photos[0].index, dialect, most)
        categories.add(product.category)
        slug = quote(product.title.lower().replace(" ", "-"))
        price, eur = f"{product.price:.0f}", f"{product.price * dialect.to_eur:.2f}"
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
            "local_image_path": "|".join(photo.key for photo in photos),
            **product.fields,
        }
        yield _csv_row(row[column] for column in header)


def _csv_row(values: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
