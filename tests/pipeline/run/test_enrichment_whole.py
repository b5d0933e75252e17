"""Runs as a whole, on local folders and on S3: every object one row, again and again, whatever dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.output.schema import PRODUCTS_SCHEMA
from enrich.pipeline.releasing import publish_held, rewrite_report
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.settings.run import GateSettings, RunSettings
from enrich.storage import open_store, write_tree

SETTINGS = RunSettings(shard_size=8, gate=GateSettings(enabled=False))
CLOCKS = ("processed_at", "run_id", "last_run_id")  # all that may differ between two runs over the same photos


def products(output: Path | str) -> pl.DataFrame:
    data, _ = open_store(str(output)).get("products.parquet")
    return pl.read_parquet(data)


def expected(story: Any) -> dict[str, str | None]:
    """Product -> the error kind it must end with, or None."""
    truth = json.loads((story.catalog / "truth.json").read_text())
    return {named(key): photo.get("error_kind") for key, photo in truth["bucket"].items()}


def named(key: str) -> str:
    """The product of a photo: its key without the extension."""
    return str(Path(key).with_suffix(""))


def without_clocks(table: pl.DataFrame) -> pl.DataFrame:
    return table.drop(CLOCKS).sort("product_id")


def test_every_object_has_one_row_and_only_hostile_files_fail(story: Any, tmp_path: Path) -> None:
    record = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(tmp_path), SETTINGS))
    table = products(tmp_path)
    assert table.columns == PRODUCTS_SCHEMA.names
    assert dict(table.select("product_id", "error_kind").iter_rows()) == expected(story)
    assert table["product_id"].is_unique().all()
    assert record.state == "published"
    assert record.counts == {"rows": len(table), "ok": (table["status"] == "ok").sum(), "failed": 5}
    assert record.by_reason == {"new": len(table)}
    ok = table.filter(pl.col("status") == "ok")
    assert ok["category_confidence"].is_between(0, 1).all()
    assert ok.filter(pl.col("price").is_not_null())["price_low"].is_not_null().all()
    assert ok["digital_source_type"].unique().to_list() == ["trained_algorithmic_media"]
    digest = pl.col("photos").list.first().struct.field("sha256")
    twins = ok.filter(digest.is_duplicated())
    assert twins.height == 2
    assert twins["title"].n_unique() == 1
    report = (tmp_path / "runs" / record.run.run_id / "report.html").read_text()
    assert "Published" in report
    assert "not_an_image" in report


def test_only_what_changed_is_done_again(story: Any, tmp_path: Path) -> None:
    bucket, output = tmp_path / "bucket", tmp_path / "output"
    shutil.copytree(story.bucket, bucket)
    run_enrichment(RunRequest(str(bucket), str(story.adapter), str(output), SETTINGS))
    before = products(output)

    again = run_enrichment(RunRequest(str(bucket), str(story.adapter), str(output), SETTINGS))
    assert again.state == "nothing_to_do"
    assert products(output).equals(before)

    ok = before.filter(pl.col("status") == "ok").sort("product_id")
    changed, removed = (photos[0]["key"] for photos in ok["photos"].to_list()[:2])
    Image.new("RGB", (64, 64), "red").save(bucket / changed, "PNG")
    Image.new("RGB", (64, 96), "blue").save(bucket / "brand new.jpg")
    (bucket / removed).unlink()
    record = run_enrichment(RunRequest(str(bucket), str(story.adapter), str(output), SETTINGS))
    assert record.by_reason == {"changed": 1, "new": 1}
    after = products(output)
    touched = after.filter(pl.col("last_run_id") == record.run.run_id)["product_id"].to_list()
    assert sorted(touched) == sorted([named(changed), "brand new"])
    assert after.filter(~pl.col("in_source"))["product_id"].to_list() == [named(removed)]
    assert len(after) == len(before) + 1


def enrich(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "enrich.cli", *arguments]


def test_a_killed_run_continues_with_the_missing_shards_only(story: Any, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("shard_size: 4\nbatch_size: 2\ngate: {enabled: false}\n")
    output = tmp_path / "output"
    command = enrich(
        "run", "--images", str(story.bucket), "--adapter", str(story.adapter), "--output", str(output),
        "--run-id", "night", "--config", str(config),
    )  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (done := sorted(output.glob("history/*/*/*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert done
    done = sorted(output.glob("history/*/*/*.parquet"))
    states = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done}
    assert not (output / "products.parquet").exists()

    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=280)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done} == states
    shards = sorted(output.glob("history/*/*/*.parquet"))
    assert len(states) < len(shards) == -(-len(expected(story)) // 4)

    undisturbed = tmp_path / "undisturbed"
    settings = RunSettings(shard_size=4, batch_size=2, gate=GateSettings(enabled=False))
    run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(undisturbed), settings, run_id="night"))
    columns = [name for name in PRODUCTS_SCHEMA.names if name not in CLOCKS]
    close = ("category_confidence", "category_alternatives", "price_low", "price_high")  # floats of other batches
    exact = [name for name in columns if name not in close]
    mine, theirs = without_clocks(products(output)), without_clocks(products(undisturbed))
    assert mine.select(exact).equals(theirs.select(exact))


def test_the_whole_of_it_on_s3(story: Any, s3_bucket: str) -> None:
    write_tree(story.adapter, f"{s3_bucket}/adapter", last="train.json")
    images = open_store(f"{s3_bucket}/photos")
    for path in sorted(story.bucket.rglob("*")):
        if path.is_file():
            images.put(path.relative_to(story.bucket).as_posix(), path.read_bytes())
    places = f"{s3_bucket}/photos", f"{s3_bucket}/adapter", f"{s3_bucket}/output"
    record = run_enrichment(RunRequest(*places, SETTINGS, run_id="one"))
    table = products(places[2])
    assert dict(table.select("product_id", "error_kind").iter_rows()) == expected(story)
    uris = [photo["uri"] for photos in table["photos"] for photo in photos]
    assert all(uri.startswith(f"{s3_bucket}/photos/") for uri in uris)
    assert record.state == "published"
    assert (
        run_enrichment(RunRequest(*places, SETTINGS, run_id="one")) == record
    )  # it is finished: nothing is done again
    assert run_enrichment(RunRequest(*places, SETTINGS)).state == "nothing_to_do"
    ok = table.filter(pl.col("status") == "ok").sort("product_id")
    gone, kept = (photos[0]["key"] for photos in ok["photos"].to_list()[:2])
    images.delete(gone)
    images.put("new.png", images.get(kept)[0])
    third = run_enrichment(RunRequest(*places, SETTINGS))
    assert third.by_reason == {"new": 1}
    after = products(places[2])
    assert after.filter(~pl.col("in_source"))["product_id"].to_list() == [named(gone)]
    assert after["in_source"].sum() == len(table)


def test_a_held_run_is_released_by_a_person(story: Any, tmp_path: Path) -> None:
    strict = RunSettings(gate=GateSettings(min_rows=1, max_failed=0.0, allow_weak_adapter=True))
    held = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(tmp_path), strict, run_id="held"))
    assert held.state == "held"
    assert held.findings[0].limit == "max_failed"
    assert not (tmp_path / "products.parquet").exists()
    released = publish_held(str(tmp_path), "held")
    assert released.state == "published"
    assert len(products(tmp_path)) == len(expected(story))
    assert rewrite_report(str(tmp_path))[0] == released
    with pytest.raises(UsageError, match="run held: already published; only a held run can be released"):
        publish_held(str(tmp_path), "held")


def test_a_limit_takes_the_rest_the_next_time(story: Any, tmp_path: Path) -> None:
    first = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(tmp_path), SETTINGS, limit=6))
    assert first.counts["rows"] == 6
    rest = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(tmp_path), SETTINGS))
    assert first.counts["rows"] + rest.counts["rows"] == len(products(tmp_path)) == len(expected(story))
    assert products(tmp_path)["in_source"].all()


def test_another_adapter_makes_every_answer_anew(story: Any, tmp_path: Path) -> None:
    first = run_enrichment(RunRequest(str(story.bucket), str(story.adapter), str(tmp_path / "out"), SETTINGS))
    other = tmp_path / "adapter"
    shutil.copytree(story.adapter, other)
    calibration = json.loads((other / "calibration.json").read_text())
    calibration["category"]["slope"] *= 0.9
    (other / "calibration.json").write_text(json.dumps(calibration))
    record = run_enrichment(RunRequest(str(story.bucket), str(other), str(tmp_path / "out"), SETTINGS))
    assert record.by_reason == {"model": first.counts["ok"], "retry": first.counts["failed"]}
