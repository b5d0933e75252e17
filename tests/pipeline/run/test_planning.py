"""--dry-run, --deadline, --inventory and `enrich rollback`, over the session's small demo."""

import hashlib
import json
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import enrich
from enrich.cli.runs import publish, rollback
from enrich.engines.adapter import read_adapter
from enrich.errors import UsageError
from enrich.phases import describe_start
from enrich.pipeline.releasing import roll_back
from enrich.pipeline.run import deadline, enrichment, start
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import circumstances, dry_run, fingerprint
from enrich.settings.duration import parse_deadline, parse_duration
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.storage import S3Settings
from enrich.storage import open_store

SETTINGS = RunSettings(shard_size=4, gate=GateSettings(enabled=False), machine_price_per_hour=3.6)


def keys_in(output: Path) -> list[str]:
    return sorted(pl.read_parquet(output / "products.parquet")["product_id"])


def test_a_dry_run_writes_nothing_and_goes_by_the_last_run(story: Any, tmp_path: Path) -> None:
    places = str(story.bucket), str(story.adapter), str(tmp_path / "output")
    photos = sum(path.is_file() for path in story.bucket.rglob("*"))
    first = dry_run(RunRequest(*places, SETTINGS))
    assert (first.listed, first.todo, first.by_reason, first.seconds) == (photos, photos, {"new": photos}, None)
    assert first.lines()[1] == "expected time: unknown, because no run has finished in this output yet"
    assert first.lines()[2] == "expected start: unknown, because no run with this model has finished in this output yet"
    assert not (tmp_path / "output").exists()

    record = run_enrichment(RunRequest(*places, SETTINGS, limit=6))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    rest = dry_run(RunRequest(*places, SETTINGS))
    assert rest.todo == photos - 6
    assert rest.seconds is not None
    assert rest.seconds == pytest.approx(rest.todo / record.images_per_second)
    assert rest.lines()[0].startswith(f"{rest.todo} of {photos} products to do ({rest.todo} new), 0.00 GB, ")
    assert rest.lines()[2] == f"expected cost: {rest.seconds / 1000:.2f}, at 3.6 an hour"
    assert record.start is not None
    assert rest.lines()[3] == f"expected start: {describe_start(record.start)}, as run {record.run.run_id} took"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files


def test_a_deadline_publishes_what_is_done_and_the_run_continues(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, clock = (str(story.bucket), str(story.adapter), str(tmp_path)), iter(range(0, 10_000, 10))
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    said: list[str] = []
    first = run_enrichment(RunRequest(*places, SETTINGS, run_id="night", deadline=35.0), on_message=said.append)
    # The clock moves 10 s each time it is looked at: three shards begin at 10, 20 and 30, and none at 40.
    assert (first.state, first.counts["rows"], first.missing_shards) == ("published", 12, first.shards - 3)
    assert said[-1].startswith("stopped at its deadline: ")
    assert len(keys_in(tmp_path)) == 12
    rest = run_enrichment(RunRequest(*places, SETTINGS, run_id="night"))
    assert (rest.missing_shards, rest.counts["rows"]) == (0, len(keys_in(tmp_path)))
    assert run_enrichment(RunRequest(*places, SETTINGS)).state == "nothing_to_do"


def test_an_inventory_takes_the_place_of_the_listing(story: Any, tmp_path: Path) -> None:
    infos = list(open_store(str(story.bucket)).list())[:6]
    (tmp_path / "data").mkdir()
    table = pl.DataFrame(
        {
            "bucket": ["shop"] * 6, "key": [info.key for info in infos], "size": [info.size for info in infos],
            "e_tag": [info.etag for info in infos],
        }
    )  # fmt: skip
    table.write_parquet(tmp_path / "data" / "0")
    data = (tmp_path / "data" / "0").read_bytes()
    described = {"key": "data/0", "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}
    content = {
        "sourceBucket": "shop", "destinationBucket": "arn:aws:s3:::lists", "fileFormat": "Parquet", "fileSchema": "",
        "files": [described],
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    output, inventory = tmp_path / "output", str(tmp_path / "manifest.json")
    record = run_enrichment(
        RunRequest(str(story.bucket), str(story.adapter), str(output), SETTINGS, inventory=inventory)
    )
    assert record.counts["rows"] == 6
    assert keys_in(output) == sorted(info.key.rpartition(".")[0] for info in infos)


def test_a_rollback_by_command(story: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = str(story.bucket), str(story.adapter), str(tmp_path)
    run_enrichment(RunRequest(*places, SETTINGS, run_id="one", limit=4))
    run_enrichment(RunRequest(*places, SETTINGS, run_id="two", limit=4))
    rollback(output=str(tmp_path), run_id="one")
    assert "as of run one; held back since: two" in capsys.readouterr().out
    assert len(keys_in(tmp_path)) == 4
    assert run_enrichment(RunRequest(*places, SETTINGS, run_id="two")).state == "held"
    publish(output=str(tmp_path), run_id="two")
    assert len(keys_in(tmp_path)) == 8
    with pytest.raises(UsageError, match="run three: not in"):
        roll_back(str(tmp_path), "three")


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21600), ("90m", 5400), ("2h30m", 9000), ("45s", 45), ("2d", 172800)]
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(("text", "hours"), [("6", 6), ("1.5", 1.5), ("0", 0), ("90m", 1.5), ("2d", 48)])
def test_a_deadline_may_be_a_number_of_hours(text: str, hours: float) -> None:
    assert parse_deadline(text).total_seconds() == hours * 3600


def test_no_time_at_all_is_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(enrichment, "run_enrichment", lambda request, *_: asked.append(request.deadline))
    for time in (timedelta(0), timedelta(hours=1), None):
        enrich.run("images", "adapter", "output", RunSettings(engine="transformers"), deadline=time)
    assert asked == [0.0, 3600.0, None]


@pytest.mark.parametrize("text", ["99999999999h", "36501d", "9" * 5000 + "s"])
def test_a_duration_has_a_limit(text: str) -> None:
    for parse in (parse_duration, parse_deadline):
        with pytest.raises(UsageError, match="is more than 36,500 days; write a shorter time"):
            parse(text)


@pytest.mark.parametrize("text", ["", "6", "h", "-1h", "1h 5", "tomorrow", "1.5h", "\u0661h"])
def test_what_is_not_a_duration(text: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(repr(text))} is not a duration; write 90d, 6h, 2h30m or 45s"):
        parse_duration(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"limits": PhotoLimits(max_bytes=1)}, {"limits": PhotoLimits(max_pixels=1)},
        {"limits": PhotoLimits(formats=("PNG",))}, {"limits": PhotoLimits(decode_seconds=1)},
        {"max_new_tokens": 9}, {"engine": "transformers"}, {"s3": S3Settings(requester_pays=True)},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_what_a_failure_may_depend_on_is_part_of_the_circumstances(changed: dict[str, Any]) -> None:
    assert circumstances("photos", RunSettings(**changed)) != circumstances("photos", RunSettings())


def test_what_makes_no_failure_is_no_part_of_the_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = circumstances("photos", RunSettings())
    assert circumstances("photos", RunSettings(batch_size=1, decode_processes=1, max_attempts=9)) == plain
    assert circumstances("elsewhere", RunSettings()) != plain
    monkeypatch.setattr(start, "version", lambda name: "another")
    assert circumstances("photos", RunSettings()) != plain


def test_the_precision_that_vllm_serves_in_is_part_of_the_fingerprint(
    story: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = read_adapter(story.adapter)
    settings = [RunSettings(), RunSettings(quantization="fp8"), RunSettings(kv_cache_dtype="fp8")]
    assert len({fingerprint(adapter, one) for one in settings}) == 1  # transformers knows no such thing
    plain = fingerprint(adapter, settings[0])
    monkeypatch.setattr(start, "choose_engine", lambda *_: "vllm")
    assert len({fingerprint(adapter, one) for one in settings}) == 3
    assert fingerprint(adapter, settings[0]) == plain
