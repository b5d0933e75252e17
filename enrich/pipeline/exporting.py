"""Exports: products.parquet in the format of a shop, a feed or a spreadsheet."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from enrich.errors import UsageError
from enrich.feeds.formats import FORMATS, Feed, Format
from enrich.feeds.rows import prepared, why_not, written_titles
from enrich.output import parquet
from enrich.output.products import fetch_products
from enrich.output.reviews import read_reviews
from enrich.output.schema import PRODUCTS_SCHEMA
from enrich.pipeline.kept_apart import check_file
from enrich.pipeline.progress import Progress, silent
from enrich.settings.export import ExportSettings
from enrich.storage import folder_of_file, open_store
from enrich.storage.scratch import scratch


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    uri: str  # of the file
    products: int
    left_out: Mapping[str, int]  # by the reason, the most frequent first
    notes: tuple[str, ...]  # messages for the user, one line each

    @property
    def left_out_line(self) -> str:
        """How many rows were left out, and why."""
        if not self.left_out:
            return "left out: nothing"
        return f"left out: {sum(self.left_out.values()):,}: {_listed(self.left_out)}"


def export(
    output: str, format: str, to: str, settings: ExportSettings | None = None, progress: Progress = silent
) -> Exported:
    """Write the rows of `output` that are ready for use to the file `to`, a local path or s3://bucket/key.

    These are good rows of products that are still in the source, and that need no review or were accepted by a person.
    The same rows give the same bytes. An existing file is replaced atomically.

    Raises:
        UsageError: no such format, nothing was published, no row may be used, or the format cannot hold the rows.
    """
    settings = settings or ExportSettings()
    if format not in FORMATS:
        raise UsageError(f"format {format}: choose from {', '.join(FORMATS)}")
    chosen = FORMATS[format]
    store = open_store(output, must_exist=True, s3=settings.s3)
    folder_uri, name = folder_of_file("--to", to)
    check_file("--to", to, output)
    with scratch() as folder:
        products = fetch_products(store, folder)
        path = products.path
        if path is None:
            raise UsageError(f"output {store.uri}: no products.parquet; make one with `enrich run`")
        written = written_titles(read_reviews(store))
        feed, left_out = _survey(path, name, chosen, written, settings)
        usable = products.rows - sum(left_out.values())
        if not usable:
            raise UsageError(f"output {store.uri}: none of {products.rows:,} rows can be exported: {_listed(left_out)}")

        def tables() -> Iterator[pl.DataFrame]:
            done = 0
            for rows in _usable(path, chosen, feed, written):
                yield chosen.table(rows, feed)
                done += rows.height
                progress("products", done, usable)

        changed = chosen.write(folder / "file", tables(), feed)
        target = open_store(folder_uri, create=True, s3=settings.s3)
        target.put(name, folder / "file")
    notes = [*chosen.notes(feed), *_apostrophes(changed)]
    return Exported(target.uri_of(name), usable, left_out, tuple(notes))


def _survey(
    path: Path, name: str, chosen: Format, written: pl.DataFrame, settings: ExportSettings
) -> tuple[Feed, dict[str, int]]:
    """What the rows that may be used have in common, and how many rows are left out, by the reason.

    Raises:
        UsageError: the format cannot hold them.
    """
    fields, currencies, linked, counts, some = set[str](), set[str](), False, Counter[str](), False
    lacks = chosen.lacks(settings)
    for frame in parquet.frames(path, PRODUCTS_SCHEMA):
        rows = prepared(frame, written, settings)
        may = rows.filter(why_not(settings, {}).is_null())
        fields.update(may["attributes"].map.keys().explode().drop_nulls().unique())
        currencies.update(may["currency"].drop_nulls().unique())
        some = some or may.height > 0
        linked = linked or bool((may["links"].list.len() > 0).any())
        counts.update(rows.select(why_not(settings, lacks).alias("why"))["why"].drop_nulls().to_list())
    feed = Feed(name, settings, tuple(sorted(fields)), tuple(sorted(currencies)), linked)
    if some:
        chosen.check(feed)
    return feed, dict(counts.most_common())


def _usable(path: Path, chosen: Format, feed: Feed, written: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows that are exported, some at a time, in the table's order."""
    why = why_not(feed.settings, chosen.lacks(feed.settings))
    for frame in parquet.frames(path, PRODUCTS_SCHEMA):
        yield prepared(frame, written, feed.settings).filter(why.is_null())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _apostrophes(changed: int) -> list[str]:
    if not changed:
        return []
    return [f"cells that a spreadsheet would execute as formulas are prefixed with an apostrophe: {changed:,}"]
