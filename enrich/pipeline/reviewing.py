"""What needs a person: asked for in a page, taken back from a file, published and taught."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from enrich.catalog.add import Labelled, add_products
from enrich.errors import UsageError
from enrich.manifest import read_manifest
from enrich.products import PRODUCTS_KEY, read_products
from enrich.publish import publish_reviews
from enrich.review_page import render_queue, review_queue
from enrich.reviews import REJECTED, Decision, outdated, read_decisions, write_reviews
from enrich.settings import Columns, RunSettings
from enrich.storage import Store, open_store

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
    outdated: int  # about bytes that are no longer there: kept, and without effect
    learned: int | None  # new rows of the catalog, None where none was named


def write_queue(output: str, limit: int = 1000) -> Queue:
    """Write `review.html` into the output: the `limit` rows with the most value at risk.

    Raises:
        UsageError: nothing was published there yet.
    """
    target = open_store(output, must_exist=True)
    table = _published(target)
    queue = review_queue(table, table.height)
    shown = queue.unique("image_sha256", keep="first", maintain_order=True).head(limit)
    images = _images(target, table)
    page = render_queue(
        shown, _categories(table), images, RunSettings().limits, output=target.uri, waiting=queue.height
    )  # fmt: skip
    target.put(PAGE_KEY, page.encode())
    return Queue(target.uri_of(PAGE_KEY), shown.height, queue.height)


def apply_decisions(output: str, file: Path, catalog: str | None = None, columns: Columns | None = None) -> Applied:
    """Add the decisions in `file` to the output's history, lay them over products.parquet, and, where a catalog is
    named, put what was accepted or edited into it for the next fine-tuning. The same file again changes nothing.

    Raises:
        UsageError: the file, or a decision in it, does not fit the output; nothing was written.
    """
    decided = read_decisions(file)
    target = open_store(output, must_exist=True)
    table = _published(target)
    _check(decided.decisions, table, file)
    shop = None if catalog is None else open_store(catalog, must_exist=True)
    write_reviews(target, decided)
    publish_reviews(target)
    late = outdated(table, decided.decisions)
    learned = None
    if shop is not None:
        current = [one for one in decided.decisions if one not in late]
        learned = _teach(shop, columns or Columns(), target, table, current)
    counts = Counter(one.decision for one in decided.decisions)
    return Applied(target.uri_of(PRODUCTS_KEY), dict(sorted(counts.items())), len(late), learned)


def _published(output: Store) -> pl.DataFrame:
    products = read_products(output)
    if products.etag is None:
        raise UsageError(f"output {output.uri}: no products.parquet there; make one with `enrich run`")
    return products.table


def _images(output: Store, table: pl.DataFrame) -> Store:
    """Where the photos lie. The run shown last says it; all runs of an output read the same images."""
    last = table.sort("processed_at")["run_id"]
    begun = read_manifest(output, last[-1]) if len(last) else None
    if begun is None:
        raise UsageError(f"output {output.uri}: the manifest of its last run is gone; start a run first")
    return open_store(begun.run.images_uri)


def _categories(table: pl.DataFrame) -> list[str]:
    """Every label that the output has seen, chosen or as an alternative."""
    others = table["category_alternatives"].explode().struct.field("category")
    return sorted(set(table["category"].drop_nulls()) | set(others.drop_nulls()))


def _check(decisions: tuple[Decision, ...], table: pl.DataFrame, file: Path) -> None:
    keys, categories = set(table["image_key"]), set(_categories(table))
    for one in decisions:
        if one.image_key not in keys:
            raise UsageError(f"{file}: {one.image_key!r} is not in this output; name the output that the page is of")
        if one.category is not None and one.category not in categories:
            raise UsageError(
                f"{file}: {one.image_key!r}: {one.category!r} is no category of this output; correct it in the page"
            )


def _teach(catalog: Store, columns: Columns, output: Store, table: pl.DataFrame, decisions: list[Decision]) -> int:
    images = _images(output, table)
    codes = dict(table.select("image_key", "product_id").iter_rows())
    labelled = {
        one.image_sha256: Labelled(
            codes[one.image_key], one.title, one.category, one.price, one.currency, one.image_key, one.image_sha256
        )
        for one in decisions
        if one.decision != REJECTED and one.title and one.category and one.image_sha256
    }
    return add_products(catalog, columns, list(labelled.values()), lambda product: images.get(product.image_key)[0])
