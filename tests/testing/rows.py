"""Rows, runs and whole nights for tests of the output of a run, and stores that fail."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from enrich.output import history, manifest, parquet, publish
from enrich.output import plan as planning
from enrich.output.photos_etag import photos_etag
from enrich.output.products import Products, StoredProducts, read_products
from enrich.output.run_record import RunInfo, RunRecord, write_run_record
from enrich.output.schema import MANIFEST_SCHEMA, PRODUCTS_SCHEMA, SOURCE_SCHEMA, Row, RowPhoto
from enrich.settings.run import RunSettings
from enrich.storage import Body, ObjectInfo, Store, scratch
from enrich.vocabulary import ErrorKind, ListedPhoto, ManifestItem, Reason

START = datetime(2026, 11, 22, 2, 0, 0, 123456, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def make_run(run_id: str = "night-1", minutes: float = 0, **changes: Any) -> RunInfo:
    values: dict[str, Any] = {
        "run_id": run_id,
        "created_at": at(minutes),
        "images_uri": "s3://photos",
        "fingerprint": "f1",
        "model": "tiny",
        "adapter": "a1",
        "prompt_version": "1",
        "shard_size": 2,
    }
    return RunInfo(**(values | changes))


def make_row(
    run: RunInfo, key: str = "a.jpg", minutes: float = 1, *, etag: str = "e1", sha256: str | None = None, **changes: Any
) -> Row:
    """An ok row of `run` about one photo, processed `minutes` after START; a failed one if an error_kind is given."""
    values: dict[str, Any] = {
        "product_id": key,
        "photos": (make_photo(run, key, etag, sha256),),
        "photos_answered": 1,
        "attempt": 1,
        "shard": 0,
        "engine": "fake",
        "model": run.model,
        "adapter": run.adapter,
        "prompt_version": run.prompt_version,
        "fingerprint": run.fingerprint,
        "run_id": run.run_id,
        "processed_at": at(minutes),
    }
    if "error_kind" in changes:
        values |= {"status": "failed", "error_message": "made to fail", "photos_answered": 0}
    else:
        values |= {"status": "ok", "title": f"Title of {key}", "category": "Coats", "price": 100.0, "currency": "EUR"}
    return Row(**(values | changes))


def make_photo(run: RunInfo, key: str, etag: str = "e1", sha256: str | None = None, **changes: Any) -> RowPhoto:
    return RowPhoto(key=key, uri=f"{run.images_uri}/{key}", etag=etag, sha256=sha256, **changes)


def as_read(row: Row) -> dict[str, Any]:
    """A row as a table gives it back."""
    values = asdict(row)
    lists = ("photos", "category_alternatives", "review_reasons")
    return {**values, **{name: list(values[name]) for name in lists}}


def make_item(*photos: ListedPhoto, name: str | None = None) -> ManifestItem:
    """A new product of these photos, named by the first."""
    version = photos_etag((photo.key, photo.etag) for photo in photos)
    return ManifestItem(name or photos[0].key, photos, version, Reason.NEW, attempt=1, shard=0)


def listing(*keys: str, **etags: str) -> pl.DataFrame:
    """A source of photos that are a product each, named by their keys: etag e1, and keyword=etag as keyword.jpg."""
    found = dict.fromkeys(keys, "e1") | {f"{name}.jpg": etag for name, etag in etags.items()}
    return source_table(ObjectInfo(key, 10, etag) for key, etag in found.items())


def source_table(objects: Iterable[ObjectInfo]) -> pl.DataFrame:
    """A source in memory, each photo a product."""
    return products_table({info.key: [info] for info in objects})


def products_table(products: dict[str, list[ObjectInfo]]) -> pl.DataFrame:
    """A source in memory (SOURCE_SCHEMA), by product_id."""
    records = [
        {
            "product_id": name,
            "photos": [asdict(photo) for photo in photos],
            "photos_etag": photos_etag((photo.key, photo.etag) for photo in photos),
        }
        for name, photos in products.items()
    ]
    return parquet.from_records(records, SOURCE_SCHEMA).sort("product_id")


def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
    """A stand-in for inference that depends on the photos and the run: products whose id contains `bad` fail."""
    title = " ".join(photo.etag for photo in item.photos)
    changes: dict[str, Any] = {"error_kind": ErrorKind.NOT_AN_IMAGE} if "bad" in item.product_id else {"title": title}
    kind = changes.get("error_kind")
    photos = tuple(make_photo(run, photo.key, photo.etag, error_kind=kind) for photo in item.photos)
    changes |= {"product_id": item.product_id, "photos": photos, "attempt": item.attempt, "shard": item.shard}
    return make_row(run, item.photos[0].key, minutes, **changes)


def enrich_night(output: Store, run: RunInfo, source: pl.DataFrame, answer: Callable[..., Row] = answer) -> RunInfo:
    """Do one run from listing to publish, restartable under its run id. Return the run of its manifest."""
    started = manifest.read_manifest(output, run.run_id)
    if started is None:
        products = read_products(output)
        todo = plan(source, products, run)
        started = begin(output, run, source, todo)
    manifest.check_same_run(started, run)
    minutes = (started.run.created_at - START).total_seconds() / 60 + 1
    done = history.committed_shards(output, started.run)
    for shard in started.shards:
        if shard not in done:
            items = manifest.items(started, shard)
            rows = [answer(started.run, item, minutes) for item in items]
            history.commit_shard(output, started.run, shard, rows, [item.product_id for item in items])
    publish.publish(output, started.run)
    return started.run


def plan(
    source: pl.DataFrame, products: Products, run: RunInfo, limit: int | None = None, **changes: Any
) -> pl.DataFrame:
    """Return what a run has to do, from tables in memory."""
    with scratch.scratch() as folder:
        parquet.write(folder / "source", [source.sort("product_id")], SOURCE_SCHEMA, {})
        parquet.write(folder / "products", [products.table], PRODUCTS_SCHEMA, {})
        stored = StoredProducts(folder / "products", 0, products.runs, products.last)
        settings = RunSettings(shard_size=run.shard_size, **changes)
        planning.write_plan(folder / "plan", folder / "source", stored, run, settings, folder, limit)
        return pl.read_parquet(folder / "plan")


def begin(output: Store, run: RunInfo, source: pl.DataFrame, todo: pl.DataFrame) -> manifest.Manifest:
    """Start a run from tables in memory."""
    with scratch.scratch() as folder:
        pairs = {parquet.RUN_KEY: run.to_json()}
        parquet.write(folder / "source", [source], SOURCE_SCHEMA, pairs)
        parquet.write(folder / "plan", [todo], MANIFEST_SCHEMA, pairs)
        return manifest.create_manifest(output, run, folder / "source", folder / "plan")


def finish(store: Store, run: RunInfo, minutes: float = 0, state: Any = "published") -> None:
    """Write the run.json of a run whose rows are in history."""
    rows, shards = history.read_shards(store, run).height, len(history.committed_shards(store, run))
    record = RunRecord(
        run=run, state=state, counts={"rows": rows, "ok": rows, "failed": 0},
        started_at=at(minutes), finished_at=at(minutes),
        seconds=1, images_per_second=1, engine="fake", host="h", shards=shards,
    )  # fmt: skip
    write_run_record(store, record)


def held(output: Store, run: RunInfo, source: pl.DataFrame, minutes: float) -> None:
    """Do everything in a run except publishing it, as if the gate had held it back."""
    todo = plan(source, Products(), run)
    started = begin(output, run, source, todo)
    for shard in started.shards:
        items = manifest.items(started, shard)
        history.commit_shard(
            output, run, shard, [answer(run, item, minutes) for item in items], [item.product_id for item in items]
        )


def finished_night(store: Store, run: RunInfo, source: pl.DataFrame) -> RunInfo:
    done = enrich_night(store, run, source)
    finish(store, done, (done.created_at - START).total_seconds() / 60)
    return done


def increment(store: Store, key: str) -> bool:
    """Add one to the number in an object; False if others were faster 200 times."""
    for _ in range(200):
        data, etag = store.get(key)
        if store.replace(key, b"%d" % (int(data) + 1), etag):
            return True
    return False


class Wrapped:
    """A store that can count calls or make them fail: `before` and `after` get the number and name of each call."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.uri, self._numbers = inner, inner.uri, itertools.count()  # several threads read shards

    def before(self, number: int, name: str) -> None:
        """Raise to prevent the call."""

    def after(self, number: int, name: str, result: Any) -> Any:
        """Return the result that the caller sees, or raise to lose it."""
        return result

    def _call(self, name: str, *args: Any) -> Any:
        number = next(self._numbers)
        self.before(number, name)
        return self.after(number, name, getattr(self.inner, name)(*args))

    def uri_of(self, key: str) -> str:
        return self.inner.uri_of(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._call("list", prefix))

    def head(self, key: str) -> ObjectInfo | None:
        return self._call("head", key)

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        return self._call("get", key, max_bytes)

    def download(self, key: str, path: Path) -> ObjectInfo:
        return self._call("download", key, path)

    def create(self, key: str, data: Body) -> bool:
        return self._call("create", key, data)

    def replace(self, key: str, data: Body, if_match: str | None) -> bool:
        return self._call("replace", key, data, if_match)

    def put(self, key: str, data: Body) -> None:
        self._call("put", key, data)

    def delete(self, key: str) -> None:
        self._call("delete", key)

    def check_conditional_writes(self) -> None:
        self.inner.check_conditional_writes()

    def remove_abandoned(self) -> int:
        return self.inner.remove_abandoned()
