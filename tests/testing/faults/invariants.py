"""Invariants of an output, checked from outside: its objects are copied and queried with plain DuckDB."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb


@dataclass
class Seen:
    """What earlier checks of an output found. Nothing in history may ever change."""

    etags: dict[str, str] = field(default_factory=dict)


def copy_output(client: Any, bucket: str, prefix: str, into: Path) -> dict[str, str]:
    """Copy every object of an output to a file, and return the etags."""
    etags: dict[str, str] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for item in page.get("Contents", []):
            key = item["Key"].removeprefix(f"{prefix}/")
            if ".enrich-" in key:  # probes and locks come and go
                continue
            path = into / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
            etags[key] = item["ETag"]
    return etags


def violations(
    output: Path, etags: Mapping[str, str], seen: Seen, titles: Mapping[str, str], finished: list[str],
    several_buckets: bool = False,
) -> list[str]:  # fmt: skip
    """Describe each violation; return an empty list if all is well.

    Args:
        titles: the expected titles of the products in the bucket, by id; checked once runs are `finished`.
        finished: runs that completed and were published.
        several_buckets: the photos are in several buckets, so to the last run, photos in the others are gone.
    """
    found: list[str] = []
    history = {key: etag for key, etag in etags.items() if key.startswith("history/") and key.endswith(".parquet")}
    for key, etag in seen.etags.items():
        if history.get(key) != etag:
            found.append(f"changed: {key} is not what it was")
    seen.etags.update(history)
    db = duckdb.connect()
    rows = f"read_parquet('{output}/history/**/*.parquet', hive_partitioning = false)"
    try:
        if history:
            db.sql(f"select * from {rows}").fetchall()  # every page of every column
        for key in etags:
            if key.endswith(".parquet"):
                db.sql(f"select * from read_parquet('{output}/{key}', hive_partitioning = false)").fetchall()
    except duckdb.Error as error:
        return [*found, f"torn: {' '.join(str(error).split())[:200]}"]
    if history:
        doubled = f"select run_id, product_id from {rows} group by all having count(*) > 1"
        found += [f"doubled: {key} in run {run}" for run, key in db.sql(doubled).fetchall()]
    for run in finished:
        found += _lost(db, output, rows, run)
    if finished:
        found += _products(db, output, titles, several_buckets)
    db.close()
    return found


def _lost(db: duckdb.DuckDBPyConnection, output: Path, rows: str, run: str) -> list[str]:
    found = []
    record = output / "runs" / run / "run.json"
    if not record.exists():
        found.append(f"lost: run {run} has no run.json")
    else:
        state = json.loads(record.read_text())["state"]
        found += [f"state: run {run} is {state}"] if state not in ("published", "nothing_to_do") else []
    manifest = output / "runs" / run / "manifest.parquet"
    if not manifest.exists():
        return [*found, f"lost: run {run} has no manifest"]
    wanted = {key for (key,) in db.sql(f"select product_id from read_parquet('{manifest}')").fetchall()}
    there: set[str] = set()
    if wanted:
        with suppress(duckdb.Error):  # there is no history
            there = {key for (key,) in db.sql(f"select product_id from {rows} where run_id = '{run}'").fetchall()}
    found += [f"lost: {key} of run {run}" for key in sorted(wanted - there)]
    found += [f"too much: {key} of run {run}" for key in sorted(there - wanted)]
    return found


def _products(
    db: duckdb.DuckDBPyConnection, output: Path, titles: Mapping[str, str], several_buckets: bool
) -> list[str]:
    path = output / "products.parquet"
    if not path.exists():
        return ["lost: products.parquet"]
    table = f"read_parquet('{path}')"
    found = [
        f"doubled: {key} in products.parquet"
        for (key,) in db.sql(f"select product_id from {table} group by all having count(*) > 1").fetchall()
    ]
    shown = {
        key: (title, status, kind, in_source)
        for key, title, status, kind, in_source in db.sql(
            f"select product_id, title, status, error_kind, in_source from {table}"
        ).fetchall()
    }
    for key, expected in titles.items():
        if key not in shown:
            found.append(f"lost: {key} is not in products.parquet")
            continue
        title, status, kind, in_source = shown[key]
        if not in_source and not several_buckets:
            found.append(f"lost: {key} counts as gone")
        elif status == "ok" and title != expected:
            found.append(f"wrong: {key} is called {title!r}, not {expected!r}")
        elif status != "ok" and kind not in ("download_failed", "not_found"):
            found.append(f"wrong: {key} failed with {kind}")
    found += [f"wrong: {key} is gone" for key, row in shown.items() if row[3] and key not in titles]
    return found
