"""Runs on machines with a wrong clock: the run created later wins, whatever its timestamp says."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from enrich.output import history, manifest, publish, run_record
from enrich.output.products import read_products
from enrich.output.run_record import RunInfo, RunRecord
from enrich.pipeline import releasing
from enrich.pipeline.progress import silent
from enrich.pipeline.run import records
from enrich.pipeline.run.planning import plan_run
from enrich.pipeline.run.request import RunRequest
from enrich.storage import Store, open_store
from tests.testing.rows import START, answer, at, make_run

YEAR = timedelta(days=365)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def night(output: Store, photos: Path, name: str, wrong_by: timedelta, **contents: str) -> RunInfo:
    """Run over files with these contents, with a creation time that is off by `wrong_by`."""
    photos.mkdir(exist_ok=True)
    for key, content in contents.items():
        (photos / f"{key}.jpg").write_text(content)
    source = open_store(str(photos))
    info = make_run(name, images_uri=source.uri, created_at=START + wrong_by)
    begun = plan_run(source, output, info, RunRequest(source.uri, "", output.uri), silent)
    minutes = (wrong_by / timedelta(minutes=1)) + 1
    for shard in begun.shards:
        rows = [
            replace(answer(begun.run, item, minutes), title=(photos / item.key).read_text())
            for item in manifest.items(begun, shard)
        ]
        history.commit_shard(output, begun.run, shard, rows, [row.image_key for row in rows])
    publish.publish(output, begun.run)
    record = RunRecord(
        run=begun.run, state="published", counts={"rows": begun.rows, "ok": begun.rows, "failed": 0}, started_at=at(0),
        finished_at=at(0), seconds=1, images_per_second=1, engine="fake", host="h", shards=len(begun.shards),
    )  # fmt: skip
    run_record.write_run_record(output, record)
    return begun.run


def shown(output: Store) -> dict[str, tuple[Any, ...]]:
    rows = read_products(output).table.to_dicts()
    return {row["image_key"]: (row["title"], row["last_run_id"], row["in_source"]) for row in rows}


@pytest.mark.parametrize("wrong_by", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_a_clock_wrong_by_a_year_does_not_poison_the_table(output: Store, tmp_path: Path, wrong_by: timedelta) -> None:
    photos = tmp_path / "photos"
    night(output, photos, "n1", timedelta(0), a="a in n1", b="b in n1")
    night(output, photos, "n2", wrong_by, a="a changed in n2", c="c new in n2")
    assert shown(output) == {
        "a.jpg": ("a changed in n2", "n2", True), "b.jpg": ("b in n1", "n1", True), "c.jpg": ("c new in n2", "n2", True)
    }  # fmt: skip
    (photos / "b.jpg").unlink()
    last = night(output, photos, "n3", timedelta(days=1), a="a changed again in n3", d="d new in n3")
    assert shown(output) == {
        "a.jpg": ("a changed again in n3", "n3", True),
        "b.jpg": ("b in n1", "n1", False),
        "c.jpg": ("c new in n2", "n2", True),
        "d.jpg": ("d new in n3", "n3", True),
    }
    assert night(output, photos, "n4", timedelta(days=2)).sequence == last.sequence + 1
    assert history.committed_shards(output, replace(last, run_id="n4")) == set()  # there was nothing to do
    assert records.last_run_id(output) == "n4"


def test_a_rollback_goes_by_the_order_in_which_runs_were_created(output: Store, tmp_path: Path) -> None:
    for number, wrong_by in enumerate((timedelta(0), YEAR, -YEAR)):
        night(output, tmp_path / "photos", f"n{number}", wrong_by, a=f"a of night {number}")
    assert [record.run.run_id for record in releasing.roll_back(output.uri, "n1")] == ["n2"]
    assert shown(output) == {"a.jpg": ("a of night 1", "n1", True)}


def test_a_table_that_a_wrong_clock_had_poisoned_before_recovers(output: Store, tmp_path: Path) -> None:
    """Tables written without sequences can be in this state."""
    photos, source = tmp_path / "photos", listing_of(tmp_path / "photos", a="old")
    ahead = make_run("ahead", images_uri=source.uri, created_at=START + YEAR)
    begun = manifest_without_sequence(output, source, ahead)
    rows = [replace(answer(ahead, item, 525_601), title="old") for item in manifest.items(begun, 0)]
    history.commit_shard(output, ahead, 0, rows, ["a.jpg"])
    publish.publish(output, ahead)
    assert read_products(output).last.source == ahead.mark
    night(output, photos, "n2", timedelta(days=1), a="a newer one", b="b new")
    assert shown(output) == {"a.jpg": ("a newer one", "n2", True), "b.jpg": ("b new", "n2", True)}


def listing_of(photos: Path, **contents: str) -> Store:
    photos.mkdir()
    for key, content in contents.items():
        (photos / f"{key}.jpg").write_text(content)
    return open_store(str(photos))


def manifest_without_sequence(output: Store, source: Store, run: RunInfo) -> manifest.Manifest:
    from tests.testing.rows import begin, plan, source_table

    listed = source_table(source.list())
    return begin(output, run, listed, plan(listed, read_products(output), run))
