"""Human review: write the page, apply the decisions from its file, publish them and add them to the catalog."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from enrich.catalog.add import Added, Label, Labelled, Seen, add_products, check_addition
from enrich.catalog.frozen import REVIEWED
from enrich.errors import UsageError
from enrich.output.asked import Asked, read_asked
from enrich.output.decisions import REJECTED, read_decisions, run_mark
from enrich.output.products import PRODUCTS_KEY, Products, read_products
from enrich.output.publish import publish_reviews
from enrich.output.reviews import next_reviews, read_reviews, review_key, standing, with_identity, write_reviews
from enrich.output.run_record import RunInfo
from enrich.output.sinks import follow
from enrich.pages.review_page import picked_queue, render_queue, review_queue
from enrich.pipeline.decided import categories, check_and_complete, find_run, usual_currency
from enrich.pipeline.kept_apart import check_taught
from enrich.pipeline.labelling import read_picks
from enrich.settings.catalog import Columns
from enrich.settings.run import RunSettings
from enrich.storage import StorageError, Store, open_store

PAGE_KEY = "review.html"


@dataclass(frozen=True)
class Queue:
    """A review page that was written."""

    uri: str
    rows: int
    waiting: int  # rows that need review, or were picked, in all


@dataclass(frozen=True)
class Applied:
    """Decisions that were published."""

    uri: str  # of products.parquet
    counts: dict[str, int]  # accepted, edited, rejected
    outdated: int  # about photos that no product has any more: kept, and without effect
    added: Added | None  # None where no catalog was named


def write_queue(output: str, limit: int = 1000, picked: str | None = None) -> Queue:
    """Write `review.html` into the output: the `limit` rows with the most value at risk, or those that were picked.

    Args:
        picked: file of `enrich label`; all of its products are shown, in its order.

    Raises:
        UsageError: nothing was published there yet, or no product that was picked is left to decide on.
    """
    target = open_store(output, must_exist=True)
    products = _published(target)
    table = products.table
    queue = review_queue(table, table.height) if picked is None else _picked(target, table, picked)
    identity = pl.coalesce("bytes", "version")  # products with the same photos are decided once
    shown = with_identity(queue).unique(identity, keep="first", maintain_order=True)
    shown = shown.head(limit) if picked is None else shown
    runs = _runs(target, shown)
    page = render_queue(
        shown, categories(table), _images(target, products), RunSettings().limits, output=target.uri,
        waiting=queue.height, runs={run_id: run_mark(run) for run_id, run in runs.items()},
        asked={run_id: read_asked(target, run) for run_id, run in runs.items()}, currency=usual_currency(table),
    )  # fmt: skip
    target.put(PAGE_KEY, page.encode())
    return Queue(target.uri_of(PAGE_KEY), shown.height, queue.height)


def _picked(output: Store, table: pl.DataFrame, file: str) -> pl.DataFrame:
    picks = read_picks(file).picks
    queue = picked_queue(table, picks)
    if queue.is_empty():
        raise UsageError(
            f"--picked {file}: none of its {len(picks):,} products is still undecided in output {output.uri}; pick "
            "others with `enrich label`"
        )
    return queue


def apply_decisions(output: str, file: Path, catalog: str | None = None, columns: Columns | None = None) -> Applied:
    """Add the decisions in `file` to the output's history and apply them to products.parquet and, if named, `catalog`.

    The catalog gets what people confirmed, for the next fine-tuning. The same file again changes nothing.

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
    about = _decided_rows(news, table.filter(pl.col("status") == "ok"))
    rows = table.filter(pl.col("product_id").is_in(about["row"].drop_nulls().implode()))
    asked = {run_id: read_asked(target, run) for run_id, run in _runs(target, rows).items()}
    lessons = _lessons(rows, reviews if known else pl.concat([reviews, news]), asked)
    shop = None if catalog is None else open_store(catalog, must_exist=True)
    if shop is not None:
        check_taught(_images(target, products).uri, shop.uri_of(REVIEWED), shop.uri)
        check_addition(shop, columns or Columns(), lessons)
    write_reviews(target, decided.digest, news)
    publish_reviews(target)
    follow(target, None, "review")
    added = None
    if shop is not None:
        added = add_products(shop, columns or Columns(), lessons, _reviewed_bytes(_images(target, products)))
    counts = Counter(one.decision for one in decisions)
    late = about["row"].null_count()
    return Applied(target.uri_of(PRODUCTS_KEY), dict(sorted(counts.items())), late, added)


def _published(output: Store) -> Products:
    products = read_products(output)
    if products.etag is None:
        raise UsageError(f"output {output.uri}: no products.parquet; make one with `enrich run`")
    return products


def _images(output: Store, products: Products) -> Store:
    """Where the photos are: where the run created last, of those published, saw them."""
    last = products.last.source
    run = find_run(output, last.run_id) if last else None
    if run is None:
        raise UsageError(f"output {output.uri}: the manifest of its last run is missing; start a run first")
    return open_store(run.images_uri)


def _decided_rows(news: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """For each new decision the row of `table` that has its photos, under the same product_id if there is one; columns
    number, and row, null where no product has these photos any more."""
    decided = with_identity(news).with_row_index("number").select("number", "product_id", "bytes", "version")
    rows = with_identity(table.select("product_id", "photos").with_row_index("row"))
    found = [
        decided.drop_nulls(name).join(rows.select("row", name, other="product_id"), on=name)
        for name in ("version", "bytes")
    ]
    own = pl.col("product_id") == pl.col("other")
    best = pl.concat([one.select("number", "row", own=own) for one in found]).sort(
        "own", "row", descending=[True, False]
    )
    ids = best.unique("number", keep="first").join(table.select("product_id").with_row_index("row"), on="row")
    return decided.select("number").join(ids.select("number", row="product_id"), on="number", how="left").sort("number")


def _runs(output: Store, rows: pl.DataFrame) -> dict[str, RunInfo]:
    """The runs that answered these rows, as far as they are known, by run_id."""
    runs = {run_id: find_run(output, run_id) for run_id in rows["run_id"].unique()}
    return {run_id: run for run_id, run in runs.items() if run}


def _lessons(rows: pl.DataFrame, reviews: pl.DataFrame, asked: Mapping[str, Asked]) -> list[Labelled]:
    """The reviewed products of `rows` as training data, with the photos that the model saw; the same first photo
    once."""
    said = {row["row"]: row for row in standing(reviews, rows).iter_rows(named=True)}
    lessons = {}
    for number, row in enumerate(rows.iter_rows(named=True)):
        seen = [
            Seen(photo["key"], photo["sha256"])
            for photo in row["photos"]
            if photo["sha256"] and not photo["error_kind"]
        ]
        if not seen or number not in said:
            continue
        decided, label = said[number], None
        if decided["decision"] != REJECTED:
            values, fields = decided["attributes"] or {}, asked.get(row["run_id"], Asked()).fields
            label = Label(
                decided["title"], decided["category"], decided["priced"], decided["price"], decided["currency"],
                {field.column: values[field.name] for field in fields if field.name in values},
            )  # fmt: skip
        lessons[seen[0].sha256] = Labelled(row["product_id"], tuple(seen), label)
    return list(lessons.values())


def _reviewed_bytes(images: Store) -> Callable[[Seen], bytes | None]:
    """A function that reads the reviewed bytes; None if the photo is gone or has changed."""
    limits = RunSettings().limits

    def read(photo: Seen) -> bytes | None:
        try:
            data = images.get(photo.key, limits.max_bytes)[0]
        except StorageError:
            return None
        return data if hashlib.sha256(data).hexdigest() == photo.sha256 else None

    return read
