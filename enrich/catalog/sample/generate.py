"""A whole sample on disk: a labelled catalog, its truth, and a bucket of unlabelled photos, hostile files among them.

The same arguments give the same bytes. A run that was cut short continues where it stopped: every photo is written
under another name and renamed, and catalog.csv and truth.json come last.
"""

import csv
import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from enrich.catalog.sample.draw import render
from enrich.catalog.sample.encode import USUAL, encode
from enrich.catalog.sample.hostile import hostile_files
from enrich.catalog.sample.pricing import best_mdape
from enrich.catalog.sample.products import SampleProduct, sample_product
from enrich.catalog.sample.spec import DEMO, VERSION, Dialect
from enrich.errors import RunFailed, UsageError

COLUMNS = (
    "website_name", "competence_date", "country_code", "currency_code", "brand", "category1_code", "category2_code",
    "category3_code", "product_code", "title", "itemurl", "imageurl", "full_price", "price", "full_price_eur",
    "price_eur", "flg_discount", "local_image_path",
)  # fmt: skip

_FILE_STREAM = 4
_BUCKET_START = 1_000_000  # index of the bucket's first product: no catalog reaches it
_PHOTOS_PER_TASK = 16
_ODD_ENCODINGS = ("gif", "cmyk.jpg", "exif.jpg", "gray16.png", "alpha.png", "palette.png")
_FOLDERS = ("2026/08", "2026/09", "2026/10", "2026/10/new in", "2026/10/été", "2026/10/50% off", "2026/10/a+b&c")


@dataclass(frozen=True)
class SampleSummary:
    """What `write_sample` left on disk: labelled products and their categories, and files in the bucket."""

    products: int
    categories: int
    bucket: int


@dataclass(frozen=True)
class _Photo:
    """One photo to write: `key` below its directory, of product `index`."""

    key: str
    index: int
    encoding: str


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
) -> SampleSummary:
    """Writes `out/catalog.csv`, `out/images/`, `out/truth.json`, and into `bucket_out`, where given, `bucket` photos of
    other products, six in unusual encodings, a copy under a second key, and the hostile files.

    `progress` is told (photos done, photos in all).

    Raises:
        UsageError: `out` holds another sample or cannot be a directory, or a number is out of range.
        RunFailed: a file could not be written; the same call continues.
    """
    if products < 1 or products > _BUCKET_START or bucket < 1 or seed < 0:
        raise UsageError(
            f"sample of {products} products, {bucket} bucket photos and seed {seed}: "
            f"give 1 to {_BUCKET_START:,} products, at least 1 bucket photo and a seed of at least 0"
        )
    settings = {"version": VERSION, "dialect": dialect.name, "seed": seed, "products": products}
    if bucket_out is not None:
        settings["bucket_photos"] = bucket
    _check_empty_or_same(out, settings)
    labelled = [_photo("images", seed, index) for index in range(products)]
    unlabelled = list(_bucket_photos(seed, bucket, dialect)) if bucket_out is not None else []
    jobs = [(out, photo) for photo in labelled] + [(bucket_out or out, photo) for photo in unlabelled]
    _write_photos(jobs, seed, dialect, progress)

    truth: dict[str, Any] = {
        **settings,
        "currency": dialect.currency,
        "sigma": dialect.prices.sigma,
        "best_mdape": round(best_mdape(dialect.prices.sigma), 4),
        "best_mdape_formula": "median of |exp(sigma z) - 1|, z normal: about 0.6745 sigma",
        "ladder": [list(step) for step in dialect.prices.ladder],
        "images": {photo.key: _truth(sample_product(seed, photo.index, dialect)) for photo in labelled},
    }
    if bucket_out is not None:
        truth["bucket"] = _finish_bucket(bucket_out, unlabelled, seed, dialect)
    _write(out / "catalog.csv", _catalog_csv(labelled, seed, dialect))
    _write(out / "truth.json", (json.dumps(truth, indent=1, ensure_ascii=False) + "\n").encode())
    categories = {shown["category"] for shown in truth["images"].values()}
    return SampleSummary(products, len(categories), len(truth.get("bucket", ())))


def _check_empty_or_same(out: Path, settings: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        truth = json.loads((out / "truth.json").read_bytes())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"sample directory {out}: {error.strerror or error}; choose another directory") from error
    except ValueError as error:
        raise UsageError(f"{out / 'truth.json'} is not a sample's truth; choose an empty directory") from error
    for name, value in settings.items():
        found = truth.get(name) if isinstance(truth, dict) else None
        if found != value:
            raise UsageError(
                f"{out} holds a sample with {name} {found}, not {value}; choose another directory or delete it first"
            )


def _photo(folder: str, seed: int, index: int, prefix: str = "") -> _Photo:
    """The photo of product `index` in an encoding drawn for it."""
    code = sample_product(seed, index, DEMO).product_code
    rng = np.random.default_rng((_FILE_STREAM, seed, index))
    encoding = str(rng.choice(list(USUAL), p=list(USUAL.values())))
    return _Photo(f"{folder}/{prefix}{code}.{encoding}", index, encoding)


def _bucket_photos(seed: int, count: int, dialect: Dialect) -> Iterator[_Photo]:
    """`count` usual photos in nested folders, then one in each unusual encoding."""
    for position in range(count):
        folder = _FOLDERS[position % 3] if position % 4 else _FOLDERS[3 + position // 4 % 4]
        yield _photo(folder, seed, _BUCKET_START + position, "sku-")
    index = _BUCKET_START + count
    for encoding in _ODD_ENCODINGS:
        product = sample_product(seed, index, dialect)
        while encoding == "gray16.png" and product.attributes["colour"] not in ("black", "grey", "ivory"):
            index += 1  # a photo without colour must not need one
            product = sample_product(seed, index, dialect)
        yield _Photo(f"2026/11/sku-{product.product_code}.{encoding.split('.')[-1]}", index, encoding)
        index += 1


def _write_photos(
    jobs: list[tuple[Path, _Photo]], seed: int, dialect: Dialect, progress: Callable[[int, int], None]
) -> None:
    tasks = [jobs[start : start + _PHOTOS_PER_TASK] for start in range(0, len(jobs), _PHOTOS_PER_TASK)]
    draw = partial(_draw_photos, seed=seed, dialect=dialect)
    workers = min(os.cpu_count() or 1, len(tasks))
    done = 0
    try:
        if workers < 2 or len(tasks) < 8:  # a process takes longer to start than such a sample takes to draw
            for task in tasks:
                done += draw(task)
                progress(done, len(jobs))
            return
        # Spawned, not forked: the caller may have threads.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for count in pool.map(draw, tasks):
                done += count
                progress(done, len(jobs))
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process that draws photos died, perhaps for want of memory; run the command again"
        ) from error


def _draw_photos(task: list[tuple[Path, _Photo]], seed: int, dialect: Dialect) -> int:
    for directory, photo in task:
        path = directory / photo.key
        if path.exists():
            continue
        rng = np.random.default_rng((_FILE_STREAM, seed, photo.index, 1))
        image = render(sample_product(seed, photo.index, dialect), view_seed=seed)
        _write(path, encode(image, photo.encoding, rng))
    return len(task)


def _finish_bucket(out: Path, photos: list[_Photo], seed: int, dialect: Dialect) -> dict[str, Any]:
    """Adds the copy and the hostile files; returns what is to be expected of every key, in the order of the keys."""
    expected = {photo.key: {"status": "ok", **_truth(sample_product(seed, photo.index, dialect))} for photo in photos}
    jpeg = next((photo for photo in photos if photo.encoding == "jpg"), None) or photos[0]
    whole = (out / jpeg.key).read_bytes()
    copy = f"2026/11/copy of {Path(jpeg.key).name}"
    _write(out / copy, whole)
    expected[copy] = expected[jpeg.key]
    other = next(photo for photo in photos if photo.encoding == "exif.jpg")  # not the copied one: its bytes are known
    for name, (content, kind) in hostile_files((out / other.key).read_bytes()).items():
        _write(out / "2026/11" / name, content)
        expected[f"2026/11/{name}"] = {"status": "failed", "error_kind": str(kind)}
    return dict(sorted(expected.items()))


def _truth(product: SampleProduct) -> dict[str, Any]:
    return {
        "product_code": product.product_code,
        "title": product.title,
        "category": product.category,
        "price": product.price,
        "noiseless_price": product.noiseless_price,
        "kind": product.kind,
        "attributes": dict(product.attributes),
    }


def _catalog_csv(photos: list[_Photo], seed: int, dialect: Dialect) -> bytes:
    """One row for each photo, sorted by product code, in the columns and the manner of the tutorial's data set."""
    rows = []
    for photo in photos:
        product = sample_product(seed, photo.index, dialect)
        slug = product.title.lower().replace(" ", "-")
        price, eur = f"{product.price:g}", f"{product.price * dialect.to_eur:.2f}"
        rows.append(
            {
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
        )
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: row["product_code"]))
    return buffer.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; a rest of an earlier try is overwritten."""
    partial_path = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_bytes(content)
        partial_path.replace(path)
    except OSError as error:
        raise RunFailed(f"sample file {path}: {error.strerror or error}; mend that and run again") from error
