"""Check decisions against their output: that they belong to it, and that each fits its row."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from enrich.answers.amount import WHOLE_UNITS, is_currency
from enrich.answers.path import levels_of
from enrich.answers.plain_text import excerpt
from enrich.errors import PermanentFailure, UsageError
from enrich.output.asked import Asked, AskedField, read_asked
from enrich.output.decisions import REJECTED, Decision, DecisionFile, run_mark, typed
from enrich.output.history import read_frames
from enrich.output.manifest import check_run_id, read_manifest
from enrich.output.run_record import RunInfo, RunRecord
from enrich.storage import Store, is_s3
from enrich.vocabulary import same_design

MOST_TIMES = 1000.0  # a price this many times above the highest or below the lowest of an output is a typing error
Row = dict[str, Any]


def find_run(output: Store, run_id: str) -> RunInfo | None:
    """A run that was started in this output, even if its rows were deleted since; None if there is none."""
    key = f"runs/{check_run_id(run_id)}/run.json"
    if output.head(key) is not None:
        try:
            return RunRecord.model_validate_json(output.get(key)[0]).run
        except ValidationError as error:
            raise PermanentFailure(f"{output.uri_of(key)} is not a run's record; move it away and try again") from error
    started = read_manifest(output, run_id)
    return None if started is None else started.run


def categories(table: pl.DataFrame) -> list[str]:
    """Every label that occurs in the output, as a category or an alternative."""
    others = table["category_alternatives"].explode().struct.field("category")
    return sorted(set(table["category"].drop_nulls()) | set(others.drop_nulls()))


def check_and_complete(output: Store, table: pl.DataFrame, decided: DecisionFile, file: Path) -> list[Decision]:
    """The decisions of a file, completed from their rows: the model's suggestion, the currency, what was confirmed.

    Args:
        table: products.parquet of the output.

    Raises:
        UsageError: the file is another output's; a product, its photos and the run that answered it do not
            belong together; or a value is not one that the row could have.
    """
    runs = _own_runs(output, decided, file)
    rows = _rows_decided_on(output, table, decided.decisions, runs)
    asked = {run_id: read_asked(output, run) for run_id, run in runs.items()}
    labels, currency, prices = set(categories(table)), usual_currency(table), table["price"].drop_nulls()
    bounds = (prices.min(), prices.max()) if len(prices) else (None, None)
    completed = []
    for one, row in zip(decided.decisions, rows, strict=True):
        try:
            if row is None:
                raise ValueError(f"these are not the photos that run {one.run_id} answered; write the page again")
            done = _completed(one, row, labels, row["currency"] or currency, bounds)
            completed.append(_with_path(_with_attributes(done, row, asked[one.run_id]), row, asked[one.run_id]))
        except ValueError as error:
            raise UsageError(f"{file}: {excerpt(repr(one.product_id))}: {error}; nothing was applied") from error
    return completed


def _own_runs(output: Store, decided: DecisionFile, file: Path) -> dict[str, RunInfo]:
    """The runs whose rows were decided on; UsageError unless all of them are this output's."""
    if decided.runs is None and _place(decided.output) != _place(output.uri):
        raise UsageError(f"{file}: is for output {excerpt(decided.output, 200)}, not {output.uri}; name its own output")
    runs = {}
    for run_id in sorted({one.run_id for one in decided.decisions}):
        run = find_run(output, run_id)
        if run is None or (decided.runs is not None and decided.runs.get(run_id) != run_mark(run)):
            raise UsageError(
                f"{file}: run {run_id} of output {excerpt(decided.output, 200)} is not a run of {output.uri}; "
                "name the output that the page was made for"
            )
        runs[run_id] = run
    return runs


def _place(uri: str) -> str:
    return uri.rstrip("/") if is_s3(uri) else os.path.realpath(uri)


def _rows_decided_on(
    output: Store, table: pl.DataFrame, decisions: Sequence[Decision], runs: dict[str, RunInfo]
) -> Iterator[Row | None]:
    """For each decision the ok row of its run that is about the same product and photos, as the model answered it.

    Where history no longer has a run's rows, the row in the table is used, if it is of the same product and bytes.
    """
    wanted = [
        "product_id", "photos", "run_id", "title", "category", "category_path", "category_id", "price", "currency",
        "attributes", "category_confidence", "price_low", "price_high", "adapter",
    ]  # fmt: skip
    ids = pl.Series([one.product_id for one in decisions]).implode()
    ok = table.filter(pl.col("status") == "ok", pl.col("product_id").is_in(ids))
    found: dict[tuple[object, ...], Row] = {}

    def take(rows: pl.DataFrame) -> None:
        for row in rows.select(wanted).iter_rows(named=True):
            photos = tuple((photo["key"], photo["etag"], photo["sha256"]) for photo in row["photos"])
            found.setdefault((row["product_id"], photos, row["run_id"]), row)

    take(ok.filter(pl.col("reviewed_at").is_null()))
    gone = set()
    for run_id in sorted({one.run_id for one in decisions if _identity(one) not in found}):
        count = 0
        for frame in read_frames(output, runs[run_id]):
            take(frame.filter(pl.col("status") == "ok", pl.col("product_id").is_in(ids)))
            count += frame.height
        gone |= set() if count else {run_id}
    # A row with a decision says no more what the model was sure of.
    ok = ok.with_columns(adapter=pl.when(pl.col("reviewed_at").is_null()).then("adapter"))
    take(ok)  # a product whose etags are others since: history still has the first
    same_bytes = {
        (row["product_id"], tuple(photo["sha256"] for photo in row["photos"])): row
        for row in ok.select(wanted).iter_rows(named=True)
    }
    for one in decisions:
        bytes_of = tuple(photo.sha256 for photo in one.photos)
        shown = same_bytes.get((one.product_id, bytes_of)) if all(bytes_of) and one.run_id in gone else None
        yield found.get(_identity(one)) or shown


def _identity(one: Decision) -> tuple[object, ...]:
    return one.product_id, tuple((photo.key, photo.etag, photo.sha256) for photo in one.photos), one.run_id


def usual_currency(table: pl.DataFrame) -> str | None:
    """The currency of an output's prices: adapters know one."""
    named = table["currency"].drop_nulls()
    return None if named.is_empty() else str(named.mode().sort()[0])


def _completed(
    one: Decision, row: Row, labels: set[str], currency: str | None, bounds: tuple[Any, Any]
) -> Decision:  # fmt: skip
    """`one` with what its row says; ValueError if it does not fit."""
    suggested = {f"suggested_{name}": row[name] for name in ("title", "category", "price", "price_low", "price_high")}
    suggested |= {"suggested_confidence": row["category_confidence"], "adapter": row["adapter"]}
    if one.decision == REJECTED:
        return one.model_copy(update={**suggested, "confirmed": (), "currency": None})
    if one.category not in labels:
        raise ValueError(f"{one.category!r} is not a category of this output; correct it in the page")
    if one.currency not in (None, currency):
        raise ValueError(f"its prices are in {currency or 'no currency'}, not {one.currency}; correct it in the page")
    own_price = one.price != row["price"]
    confirmed = one.confirmed
    if confirmed is None:
        confirmed = ("title", "category", "price") if own_price else ("title", "category")
    elif own_price and "price" not in confirmed:
        raise ValueError(f"{one.price} is neither the estimate nor confirmed; decide it again in the page")
    if own_price and one.price is not None:
        _check_price(one.price, currency, bounds)
    named = currency if one.price is not None and currency and is_currency(currency) else None
    return one.model_copy(update={**suggested, "confirmed": confirmed, "currency": named})


def _with_attributes(one: Decision, row: Row, asked: Asked) -> Decision:
    """`one` with the values of declared fields as their columns hold them; ValueError if the row could not have one."""
    answers = (row["attributes"] or {}).items()
    suggested = {name: said["value"] for name, said in answers} or None
    sure = {name: said["confidence"] for name, said in answers} or None
    fields = {field.name: field for field in asked.fields}
    for name in one.attributes or {}:
        if name not in fields:
            raise ValueError(f"{name!r} is not a field that run {one.run_id} answered; write the page again")
    decided = {name: _value(fields[name], value, asked.unknown) for name, value in (one.attributes or {}).items()}
    told = {"attributes": decided or None, "suggested_attributes": suggested, "suggested_confidences": sure}
    return one.model_copy(update=told)


def _value(field: AskedField, value: str | None, unknown: str) -> str | None:
    """A decided value, None for the word for unknown; ValueError if it is none of the field's."""
    if value is None or same_design(value) == same_design(unknown):
        return None
    if field.how.closed:
        if value not in field.values:
            raise ValueError(f"{excerpt(repr(value))} is not a value of {field.name}; correct it in the page")
        return value
    if not re.fullmatch(field.form, value):
        raise ValueError(f"{field.name}: {excerpt(repr(value))} is not {field.about}; correct it in the page")
    [(read,), _] = field.how.read(field.name, [typed(value)])
    return read


def _with_path(one: Decision, row: Row, asked: Asked) -> Decision:
    """`one` with the path and the id of its category, where the row's adapter has them."""
    if one.category is None:
        return one.model_copy(update={"category_path": None, "category_id": None})
    path = None if row["category_path"] is None else levels_of(one.category)
    known = {row["category"]: row["category_id"], **asked.category_ids}
    return one.model_copy(update={"category_path": path, "category_id": known.get(one.category)})


def _check_price(price: float, currency: str | None, bounds: tuple[Any, Any]) -> None:
    if currency in WHOLE_UNITS and price != int(price):
        raise ValueError(f"{price} has decimals, which {currency} does not; correct it in the page")
    low, high = bounds
    if high is not None and not low / MOST_TIMES <= price <= high * MOST_TIMES:
        raise ValueError(f"{price} is far from all prices of this output ({low:g} to {high:g}); correct it in the page")
