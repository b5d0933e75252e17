"""Catalog rows that training cannot use: counted by reason, listed in dropped.csv, refused above a tenth."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from enrich.catalog.dropped import Dropped, describe, encode, too_many
from enrich.catalog.read import Catalog
from enrich.engines.adapter import DROPPED_FILE
from enrich.errors import UsageError
from enrich.settings.training import TrainSettings
from enrich.storage import is_s3, open_store
from enrich.train import record
from enrich.train.device import is_main_process


def all_dropped(labelled: Catalog, unlearnable: Iterable[record.Dropped] = ()) -> tuple[Dropped, ...]:
    """Rows of the table that are left out or lose their price, then those that cannot be trained on, once each."""
    return (*labelled.dropped, *labelled.unread, *_with_rows(labelled, unlearnable))


def all_listed(
    labelled: Catalog, unlearnable: Iterable[record.Dropped], lost_photos: Iterable[record.Dropped] = ()
) -> tuple[Dropped, ...]:
    """The content of dropped.csv: `all_dropped`, and unusable photos of products that have others."""
    unread = (Dropped(labelled.row_of[one.product_code], one.product_code, one.kind, one.reason) for one in lost_photos)
    return (*all_dropped(labelled, unlearnable), *labelled.lost, *unread)


def _with_rows(labelled: Catalog, unlearnable: Iterable[record.Dropped]) -> list[Dropped]:
    found = {one.product_code: one for one in unlearnable}
    return [Dropped(labelled.row_of[code], code, one.kind, one.reason) for code, one in found.items()]


def describe_unlearnable(labelled: Catalog, unlearnable: Sequence[record.Dropped]) -> list[str]:
    """One line about the rows that cannot be trained on, or none."""
    left = _with_rows(labelled, unlearnable)
    return [f"cannot be trained on: {len(left):,} of {labelled.rows:,} rows: {describe(left)}"] if left else []


def refuse_losses(
    catalog: str, labelled: Catalog, unlearnable: Sequence[record.Dropped], settings: TrainSettings, out: str | None
) -> None:
    """UsageError if more than a tenth of the rows are dropped and `settings` do not allow it.

    A file next to `out`, where the adapter would be written, lists the rows; None: no file.
    """
    dropped = all_dropped(labelled, unlearnable)
    if settings.allow_dropped or not too_many(dropped, labelled.rows):
        return
    listed = ""
    if out is not None:
        folder, name = _file_beside(out)
        store = open_store(folder, create=True)
        if is_main_process():  # of several processes that train, one
            store.put(name, encode(all_listed(labelled, unlearnable)))
        listed = f"; {store.uri_of(name)} lists them"
    rows = len({one.row for one in dropped})
    raise UsageError(
        f"catalog {catalog}: {rows:,} of {labelled.rows:,} rows cannot be used as they are, more than a tenth: "
        f"{describe(dropped)}{listed}; fix the catalog, or train on the rest with --allow-dropped (allow_dropped: true)"
    )


def forget_refusal(out: str) -> None:
    """Remove the file of an earlier refusal: the adapter that came of it has its own."""
    if not is_s3(out):
        folder, name = _file_beside(out)
        (Path(folder) / name).unlink(missing_ok=True)


def _file_beside(out: str) -> tuple[str, str]:
    """Folder and name: below `out` in S3, else next to it, since a directory that is there may hold an adapter."""
    if is_s3(out):
        return out, DROPPED_FILE
    path = Path(out).absolute()
    return str(path.parent), f"{path.name}.{DROPPED_FILE}"
