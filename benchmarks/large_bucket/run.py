"""A bucket of millions on one machine: wall time, peak memory and open files of each step, each in its own process.

    python -m benchmarks.large_bucket.run [--objects 1000000 10000000] [--folder DIR]

inventory  S3 Inventory (Parquet, a million rows a file, in no order) -> the run's source.parquet and manifest, photos
           grouped by folder, PHOTOS a product
fold       the first run's rows, one for each product in shards of 2,048 -> products.parquet
join       the inventory again, against products.parquet: 1 % new, 1 % changed, the rest known
refold     a second run with a row for every product, into the products.parquet of the first
refresh    the inventory again with another adapter: every product in the order of what its refreshment is worth

Inventories and shards are made up in other processes, and not timed. The folder needs 1 kB an object.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import polars as pl

from benchmarks.results import record
from enrich.output import parquet
from enrich.output.grouping import write_source
from enrich.output.history import shard_key
from enrich.output.listing import described, write_inventory
from enrich.output.manifest import create_manifest
from enrich.output.plan import write_plan
from enrich.output.products import fetch_products
from enrich.output.publish import publish
from enrich.output.run_record import RunInfo
from enrich.output.schema import ROW_ORDER, ROW_SCHEMA
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from enrich.storage.inventory import open_inventory
from enrich.storage.scratch import scratch

SHARD, FILE_ROWS, CATEGORIES = 2048, 1_000_000, 60
STEPS = ("inventory", "fold", "join", "refold", "refresh")
PHOTOS = 3  # of a product
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    rows = []
    for objects in options.objects:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for step in STEPS:
                apart(prepare, step, objects, Path(folder))
                rows.append({"objects": objects, "step": step, **apart(measure, step, objects, Path(folder))})
                print(rows[-1], flush=True)
    record("large_bucket", {"": rows})


def apart(work: Callable[[str, int, Path], T], step: str, objects: int, folder: Path) -> T:
    """`work` in a new process, whose memory is its own, with its temporary files in `folder`."""
    os.environ["TMPDIR"] = str(folder)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, step, objects, folder).result()


def night_of(step: str) -> RunInfo:
    """The run that a step belongs to."""
    night = 1 if step in ("inventory", "fold") else 3 if step == "refresh" else 2
    fingerprint = "f2" if step == "refresh" else "f1"
    return RunInfo(
        f"night-{night}",
        datetime(2026, 11, 20 + night, tzinfo=UTC),
        "s3://photos",
        fingerprint,
        "tiny",
        "a1",
        "1",
        SHARD,
    )


def prepare(step: str, objects: int, folder: Path) -> None:
    """Make up what a step reads."""
    night = night_of(step).run_id[-1]
    if step in ("inventory", "join", "refresh"):
        make_inventory(folder / f"inventory-{night}", objects, 1 if night == "1" else 2)
    else:
        make_shards(folder / "output", night_of(step), objects)


def measure(step: str, objects: int, folder: Path) -> dict[str, object]:
    """Run one step; seconds, peak memory of this process in MB, files open at once, and what came out."""
    run, output = night_of(step), open_store(str(folder / "output"), create=True)
    most, stop = [0], threading.Event()
    threading.Thread(target=watch_files, args=(most, stop), daemon=True).start()
    started = time.perf_counter()
    if step in ("inventory", "join", "refresh"):
        with scratch() as work:
            opened = open_inventory(str(folder / f"inventory-{run.run_id[-1]}" / "manifest.json"), run.images_uri)
            listing, source, plan = (work / f"{name}.parquet" for name in ("listing", "source", "manifest"))
            write_inventory(listing, lambda: opened.frames(work), work)
            made = write_source(source, listing, "folder", described(run, None), work)
            settings, products = RunSettings(shard_size=SHARD), fetch_products(output, work)
            todo = write_plan(plan, source, products, run, settings, work).todo
            create_manifest(output, run, source, plan)
            result = f"{todo:,} of {made.products:,} products to do"
    else:
        publish(output, run)
        result = f"{(folder / 'output' / 'products.parquet').stat().st_size / 1e6:.0f} MB"
    seconds, peak = time.perf_counter() - started, peak_memory()
    stop.set()
    return {"seconds": seconds, "peak MB": round(peak / 1e3), "open files": most[0], "result": result}


def peak_memory() -> int:
    """Of this process so far, kB. Its ru_maxrss would start with what the process had that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def watch_files(most: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        most[0] = max(most[0], len(os.listdir("/proc/self/fd")))


def products_of(first: int, count: int) -> pl.DataFrame:
    """Ids of products as a shop has them, in an order that is not theirs."""
    numbers = pl.int_range(first, first + count, eager=True)
    mixed = (numbers * 2_654_435_761) % 4_294_967_296
    return pl.DataFrame({"product": numbers, "mixed": mixed}).select(
        pl.format("products/{}/{}", pl.col("mixed") % 1000, "mixed").alias("product_id"), "product"
    )


def keys_of(first: int, count: int) -> pl.DataFrame:
    """The photos with these numbers: PHOTOS in the folder of each product."""
    names = products_of(first // PHOTOS, count // PHOTOS + 2)
    numbers = pl.DataFrame({"number": pl.int_range(first, first + count, eager=True)})
    photos = numbers.with_columns(product=pl.col("number") // PHOTOS, view=pl.col("number") % PHOTOS + 1)
    named = photos.join(names, on="product", how="left", maintain_order="left")
    return named.select(pl.format("{}/{}.jpg", "product_id", "view").alias("key"), "number")


def etag_of(number: pl.Expr) -> pl.Expr:
    return pl.lit("1") + number.hash(1).cast(pl.String)


def make_inventory(folder: Path, objects: int, night: int) -> None:
    """1 % of the keys are new on the second night, and 1 % have another etag."""
    (folder / "data").mkdir(parents=True)
    files, shift = [], objects // 100 if night == 2 else 0
    for number, first in enumerate(range(shift, objects + shift, FILE_ROWS)):
        count = min(FILE_ROWS, objects + shift - first)
        changed = (pl.col("number") % 100 == 7) if night == 2 else pl.lit(False)
        table = keys_of(first, count).select(
            pl.lit("photos").alias("bucket"),
            "key",
            pl.lit(150_000, pl.Int64).alias("size"),
            (etag_of(pl.col("number")) + pl.when(changed).then(pl.lit("x")).otherwise(pl.lit(""))).alias("e_tag"),
            pl.lit(True).alias("is_latest"),
            pl.lit(False).alias("is_delete_marker"),
        )
        path = folder / "data" / f"{number}.parquet"
        table.write_parquet(path, row_group_size=100_000)
        data = path.read_bytes()
        files.append({"key": f"data/{number}.parquet", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = {
        "sourceBucket": "photos", "destinationBucket": "arn:aws:s3:::inventories", "version": "2016-11-30",
        "creationTimestamp": "1763712000000", "fileFormat": "Parquet",
        "fileSchema": "message s3.inventory { ... }", "files": files,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_shards(output: Path, run: RunInfo, objects: int) -> None:
    """A row for each product, in shards as a run leaves them."""
    shard, products = 0, -(-objects // PHOTOS)
    for first in range(0, products, SHARD * 50):
        rows = rows_of(run, first, min(SHARD * 50, products - first))
        for start in range(0, rows.height, SHARD):
            path = output / shard_key(run, shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = rows.slice(start, SHARD).sort(ROW_ORDER, nulls_last=True)
            parquet.write(path, [part], ROW_SCHEMA, {parquet.RUN_ID_KEY: run.run_id}, sorted_by=ROW_ORDER)
            shard += 1


def rows_of(run: RunInfo, first: int, count: int) -> pl.DataFrame:
    types = parquet.empty(ROW_SCHEMA)
    number = pl.col("product")
    failed = number % 50 == 3
    photos = [
        pl.struct(
            key=pl.format("{}/{}.jpg", "product_id", pl.lit(view + 1)),
            uri=pl.format("s3://photos/{}/{}.jpg", "product_id", pl.lit(view + 1)),
            etag=etag_of(number * PHOTOS + view),
            sha256=(number * PHOTOS + view).hash(2).cast(pl.String) + (number * PHOTOS + view).hash(3).cast(pl.String),
            width=1000,
            height=1333,
            error_kind=pl.lit(None, pl.String),
        )
        for view in range(PHOTOS)
    ]
    known = products_of(first, count).with_columns(
        photos=pl.concat_list(photos),
        photos_answered=PHOTOS,
        status=pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("ok")),
        error_kind=pl.when(failed).then(pl.lit("truncated")),
        error_message=pl.when(failed).then(pl.lit("image file is truncated (12 bytes not processed)")),
        title=pl.when(~failed).then(pl.format("Wool blend coat number {} in navy", "product")),
        category=pl.when(~failed).then(pl.format("Category {}", pl.col("product").hash(4) % CATEGORIES)),
        category_confidence=(pl.col("product").hash(6) % 1000) / 1000,
        price=pl.when(~failed).then((pl.col("product").hash(5) % 2000).cast(pl.Float64)),
        price_low=10.0, price_high=99.0, currency=pl.lit("EUR"), needs_review=False, attempt=1, model=pl.lit(run.model),
        adapter=pl.lit(run.adapter), prompt_version=pl.lit("1"), fingerprint=pl.lit(run.fingerprint),
        engine=pl.lit("vllm"), run_id=pl.lit(run.run_id), shard=0, prompt_tokens=812, output_tokens=30,
        processed_at=pl.lit(run.created_at + timedelta(minutes=5)),
        digital_source_type=pl.lit("trained_algorithmic_media"), schema_version=1,
    )  # fmt: skip
    return pl.concat([types, known.select(columns(known, types))], how="vertical")


def columns(known: pl.DataFrame, types: pl.DataFrame) -> Iterator[pl.Expr]:
    for name, kind in types.schema.items():
        yield (pl.col(name) if name in known.columns else pl.lit(None).alias(name)).cast(kind)


if __name__ == "__main__":
    main()
