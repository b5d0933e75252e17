"""A bucket of millions on one machine: wall time, peak memory and open files of each step, each in its own process.

    python -m benchmarks.large_bucket.run [--objects 1000000 10000000] [--folder DIR]

inventory  S3 Inventory (Parquet, a million rows a file, in no order) -> the run's source.parquet and manifest
fold       the first run's rows, one for each object in shards of 2,048 -> products.parquet
join       the inventory again, against products.parquet: 1 % new, 1 % changed, the rest known
refold     a second run with a row for every object, into the products.parquet of the first

What is made up beforehand (inventory files, shards) is not timed. The folder needs 1 kB an object.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from enrich.output import parquet
from enrich.output.history import shard_key
from enrich.output.listing import write_inventory
from enrich.output.manifest import create_manifest, write_plan
from enrich.output.products import fetch_products
from enrich.output.publish import publish
from enrich.output.run_record import RunInfo
from enrich.output.schema import ROW_ORDER, ROW_SCHEMA
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from enrich.storage.inventory import open_inventory
from enrich.storage.scratch import scratch

SHARD, FILE_ROWS, CATEGORIES = 2048, 1_000_000, 60
STEPS = ("inventory", "fold", "join", "refold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.objects[0], options.folder)
        return
    print(f"{'objects':>12} {'step':10} {'seconds':>8} {'peak MB':>8} {'open files':>10}  result")
    for objects in options.objects:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_inventory(Path(folder) / "inventory-1", objects, night=1)
            make_inventory(Path(folder) / "inventory-2", objects, night=2)
            for step in STEPS:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.large_bucket.run",
                    "--objects",
                    str(objects),
                    "--folder",
                    folder,
                    "--step",
                    step,
                ]
                environment = {**os.environ, "TMPDIR": folder}
                answer = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
                print(answer.stdout.strip(), flush=True)
    print("peak MB is the process's; what it reads and writes besides is the system's page cache")


def measure(step: str, objects: int, folder: Path) -> None:
    """One step, in this process."""
    night = 1 if step in ("inventory", "fold") else 2
    run = RunInfo(
        f"night-{night}", datetime(2026, 11, 20 + night, tzinfo=UTC), "s3://photos", "f1", "tiny", "a1", "1", SHARD
    )
    output = open_store(str(folder / "output"), create=True)
    if step in ("fold", "refold"):
        make_shards(folder / "output", run, objects)
    most, stop = [0], threading.Event()
    threading.Thread(target=watch_files, args=(most, stop), daemon=True).start()
    started, before = time.perf_counter(), peak_memory()
    if step in ("inventory", "join"):
        with scratch() as work:
            opened = open_inventory(str(folder / f"inventory-{night}" / "manifest.json"), run.images_uri)
            source, plan = work / "source.parquet", work / "manifest.parquet"
            listed = write_inventory(source, lambda: opened.frames(work), run, work)
            at = time.perf_counter() - started
            todo = write_plan(plan, source, fetch_products(output, work), run, RunSettings(shard_size=SHARD), work)
            create_manifest(output, run, source, plan)
            result = f"{listed:,} listed in {at:.1f} s, {todo:,} to do"
    else:
        done = publish(output, run)
        size = (folder / "output" / "products.parquet").stat().st_size
        result = f"{done.rows:,} rows in products.parquet, {size / 1e6:.0f} MB"
    seconds, peak = time.perf_counter() - started, peak_memory()
    stop.set()
    note = f" (shards made: {before / 1e3:.0f} MB)" if step in ("fold", "refold") else ""
    print(f"{objects:12,} {step:10} {seconds:8.1f} {peak / 1e3:8.0f} {most[0]:10}  {result}{note}")


def peak_memory() -> int:
    """Of this process so far, kB. Its ru_maxrss would start with what the process had that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def watch_files(most: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.05):
        most[0] = max(most[0], len(os.listdir("/proc/self/fd")))


def keys_of(first: int, count: int) -> pl.DataFrame:
    """Keys as a shop has them, in an order that is not theirs."""
    numbers = pl.int_range(first, first + count, eager=True)
    mixed = (numbers * 2_654_435_761) % 4_294_967_296
    return pl.DataFrame({"number": numbers, "mixed": mixed}).select(
        pl.format("products/{}/{}-front.jpg", pl.col("mixed") % 1000, "mixed").alias("key"),
        pl.format("p{}", "mixed").alias("product_id"),
        pl.col("number"),
    )


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
            (
                pl.lit("1")
                + pl.col("number").hash(1).cast(pl.String)
                + pl.when(changed).then(pl.lit("x")).otherwise(pl.lit(""))
            ).alias("e_tag"),
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
    """A row for each object, in shards as a run leaves them."""
    shard = 0
    for first in range(0, objects, SHARD * 50):
        rows = rows_of(run, first, min(SHARD * 50, objects - first))
        for start in range(0, rows.height, SHARD):
            path = output / shard_key(run, shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = rows.slice(start, SHARD).sort(ROW_ORDER, nulls_last=True)
            parquet.write(path, [part], ROW_SCHEMA, {parquet.RUN_ID_KEY: run.run_id}, sorted_by=ROW_ORDER)
            shard += 1


def rows_of(run: RunInfo, first: int, count: int) -> pl.DataFrame:
    types = parquet.empty(ROW_SCHEMA)
    failed = pl.col("number") % 50 == 3
    known = keys_of(first, count).with_columns(
        image_key=pl.col("key"),
        image_uri=pl.lit("s3://photos/") + pl.col("key"),
        image_etag=pl.lit("1") + pl.col("number").hash(1).cast(pl.String),
        image_sha256=pl.col("number").hash(2).cast(pl.String) + pl.col("number").hash(3).cast(pl.String),
        image_width=1000,
        image_height=1333,
        status=pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("ok")),
        error_kind=pl.when(failed).then(pl.lit("truncated")),
        error_message=pl.when(failed).then(pl.lit("image file is truncated (12 bytes not processed)")),
        title=pl.when(~failed).then(pl.format("Wool blend coat number {} in navy", "number")),
        category=pl.when(~failed).then(pl.format("Category {}", pl.col("number").hash(4) % CATEGORIES)),
        category_confidence=0.87,
        price=pl.when(~failed).then((pl.col("number").hash(5) % 2000).cast(pl.Float64)),
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
