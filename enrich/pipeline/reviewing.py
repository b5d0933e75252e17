"""What needs a person: asked for in a page, taken back from a file, published and taught."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from enrich.catalog.add import FOLDER, Added, Label, Labelled, add_products, check_addition
from enrich.errors import UsageError
from enrich.output.decisions import REJECTED, Decision, read_decisions, run_mark
from enrich.output.products import PRODUCTS_KEY, Products, read_products
from enrich.output.publish import publish_reviews
from enrich.output.reviews import next_reviews, photo, photo_of, read_reviews, review_key, standing, write_reviews
from enrich.pages.review_page import render_queue, review_queue
from enrich.pipeline.decided import categories, check_and_complete, find_run, usual_currency
from enrich.pipeline.kept_apart import check_taught
from enrich.settings.catalog import Columns
from enrich.settings.run import RunSettings
from enrich.storage import StorageError, Store, open_store

PAGE_KEY = "review.html"


@dataclass(frozen=True)
class Queue:
    """A review page that was written."""

    uri: str
    rows: int
    waiting: int  # rows that need review in all


@dataclass(frozen=True)
class Applied:
    """Decisions that were published."""

    uri: str  # of products.parquet
    counts: dict[str, int]  # accepted, edited, rejected
    outdated: int  # about bytes that no photo has any more: kept, and without effect
    added: Added | None  # None where no catalog was named


def write_queue(output: str, limit: int = 1000) -> Queue:
    """Write `review.html` into the output: the `limit` rows with the most value at risk.

    Raises:
        UsageError: nothing was published there yet.
    """
    target = open_store(output, must_exist=True)
    products = _published(target)
    table = products.table
    queue = review_queue(table, table.height)
    shown = queue.unique("image_sha256", keep="first", maintain_order=True).head(limit)
    runs = {run_id: find_run(target, run_id) for run_id in shown["run_id"].unique()}
    page = render_queue(
        shown, categories(table), _images(target, products), RunSettings().limits, output=target.uri,
        waiting=queue.height, runs={run_id: run_mark(run) for run_id, run in runs.items() if run},
        currency=usual_currency(table),
    )  # fmt: skip
    target.put(PAGE_KEY, page.encode())
    return Queue(target.uri_of(PAGE_KEY), shown.height, queue.height)


def apply_decisions(output: str, file: Path, catalog: str | None = None, columns: Columns | None = None) -> Applied:
    """Add the decisions in `file` to the output's history, apply them to products.parquet, and, where a catalog is
    named, put what people confirmed into it for the next fine-tuning. The same file again changes nothing.

    Raises:
        UsageError: the file is of another output, a decision in it does not fit its row, or the catalog cannot take
            what was decided; nothing was written.
    """
    decided = read_decisions(file)
    target = open_store(output, must_exist=True)
    products = _published(target)
    table = products.table
    decisions = check_and_complete(target, table, decided, file)
    reviews = read_reviews(target)
    news = next_reviews(reviews, decisions, decided.reviewed_by, datetime.now(UTC))
    known = target.head(review_key(decided.digest)) is not None
    shown = dict(table.filter(pl.col("status") == "ok").select(photo(), "image_key").iter_rows())
    lessons = _lessons(decisions, reviews if known else pl.concat([reviews, news]), table, shown)
    shop = None if catalog is None else open_store(catalog, must_exist=True)
    if shop is not None:
        check_taught(_images(target, products).uri, shop.uri_of(FOLDER), shop.uri)
        check_addition(shop, columns or Columns(), lessons)
    write_reviews(target, decided.digest, news)
    publish_reviews(target)
    added = None
    if shop is not None:
        added = add_products(shop, columns or Columns(), lessons, _reviewed_bytes(_images(target, products)))
    counts = Counter(one.decision for one in decisions)
    late = sum(photo_of(one) not in shown for one in decisions)
    return Applied(target.uri_of(PRODUCTS_KEY), dict(sorted(counts.items())), late, added)


def _published(output: Store) -> Products:
    products = read_products(output)
    if products.etag is None:
        raise UsageError(f"output {output.uri}: no products.parquet there; make one with `enrich run`")
    return products


def _images(output: Store, products: Products) -> Store:
    """Where the photos are: where the run created last, of those published, saw them."""
    last = products.last.source
    run = find_run(output, last.run_id) if last else None
    if run is None:
        raise UsageError(f"output {output.uri}: the manifest of its last run is gone; start a run first")
    return open_store(run.images_uri)


def _lessons(
    decisions: Sequence[Decision], reviews: pl.DataFrame, table: pl.DataFrame, shown: dict[str, str]
) -> list[Labelled]:
    """What the photos that were decided on teach by now, each photo once; those that nothing shows any more do not."""
    said = {row["photo"]: row for row in standing(reviews).iter_rows(named=True)}
    ids = dict(table.select("image_key", "product_id").iter_rows())
    own = dict(table.select("image_key", photo()).iter_rows())
    lessons = {}
    for one in decisions:
        digest = one.image_sha256
        if digest is None or digest not in shown:
            continue
        key = one.image_key if own.get(one.image_key) == digest else shown[digest]
        row, label = said[digest], None
        if row["decision"] != REJECTED:
            label = Label(row["title"], row["category"], row["priced"], row["price"], row["currency"])
        lessons[digest] = Labelled(ids[key], key, digest, label)
    return list(lessons.values())


def _reviewed_bytes(images: Store) -> Callable[[Labelled], bytes | None]:
    """Reads the bytes that were reviewed; None where they are gone or others by now."""
    limits = RunSettings().limits

    def read(product: Labelled) -> bytes | None:
        try:
            data = images.get(product.image_key, limits.max_bytes)[0]
        except StorageError:
            return None
        return data if hashlib.sha256(data).hexdigest() == product.sha256 else None

    return read
