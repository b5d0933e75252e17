"""Runs on machines with a wrong clock: the run created later wins, whatever its timestamp says."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from enrich.output import history, manifest, publish
from enrich.output.products import read_products
from enrich.output.run_record import RunInfo
from enrich.pipeline import releasing
from enrich.pipeline.progress import silent
from enrich.pipeline.run import records
from enrich.pipeline.run.planning import plan_run
from enrich.pipeline.run.request import RunRequest
from enrich.storage import Store, open_store
from tests.testing.rows import START, answer, begin, finish, make_run, plan, products_table

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
    started = plan_run(source, output, info, RunRequest(source.uri, "", output.uri), silent)
    run, minutes = started.run, (wrong_by / timedelta(minutes=1)) + 1
    for shard in started.shards:
        items = manifest.items(started, shard)
        rows = [replace(answer(run, item, minutes), title=(photos / item.photos[0].key).read_text()) for item in items]
        history.commit_shard(output, run, shard, rows, [row.product_id for row in rows])
    publish.publish(output, run)
    finish(output, run)
    return run


def shown(output: Store) -> dict[str, tuple[Any, ...]]:
    rows = read_products(output).table.to_dicts()
    return {row["product_id"]: (row["title"], row["last_run_id"], row["in_source"]) for row in rows}


@pytest.mark.parametrize("wrong_by", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_a_clock_wrong_by_a_year_does_not_poison_the_table(output: Store, tmp_path: Path, wrong_by: timedelta) -> None:
    photos = tmp_path / "photos"
    night(output, photos, "n1", timedelta(0), a="a in n1", b="b in n1")
    night(output, photos, "n2", wrong_by, a="a changed in n2", c="c new in n2")
    assert shown(output) == {
        "a": ("a changed in n2", "n2", True), "b": ("b in n1", "n1", True), "c": ("c new in n2", "n2", True)
    }  # fmt: skip
    (photos / "b.jpg").unlink()
    last = night(output, photos, "n3", timedelta(days=1), a="a changed again in n3", d="d new in n3")
    assert shown(output) == {
        "a": ("a changed again in n3", "n3", True),
        "b": ("b in n1", "n1", False),
        "c": ("c new in n2", "n2", True),
        "d": ("d new in n3", "n3", True),
    }
    assert night(output, photos, "n4", timedelta(days=2)).sequence == last.sequence + 1
    assert history.committed_shards(output, replace(last, run_id="n4")) == set()  # there was nothing to do
    assert records.read_record(output, None).run.run_id == "n4"


def test_a_rollback_goes_by_the_order_in_which_runs_were_created(output: Store, tmp_path: Path) -> None:
    for number, wrong_by in enumerate((timedelta(0), YEAR, -YEAR)):
        night(output, tmp_path / "photos", f"n{number}", wrong_by, a=f"a of night {number}")
    assert [record.run.run_id for record in releasing.roll_back(output.uri, "n1")] == ["n2"]
    assert shown(output) == {"a": ("a of night 1", "n1", True)}


def test_a_table_that_a_wrong_clock_had_poisoned_before_recovers(output: Store, tmp_path: Path) -> None:
    """Tables written without sequences can be in this state."""
    photos, source = tmp_path / "photos", listing_of(tmp_path / "photos", a="old")
    ahead = make_run("ahead", images_uri=source.uri, created_at=START + YEAR)
    started = manifest_without_sequence(output, source, ahead)
    rows = [replace(answer(ahead, item, 525_601), title="old") for item in manifest.items(started, 0)]
    history.commit_shard(output, ahead, 0, rows, ["a"])
    publish.publish(output, ahead)
    assert read_products(output).last.source == ahead.mark
    night(output, photos, "n2", timedelta(days=1), a="a newer one", b="b new")
    assert shown(output) == {"a": ("a newer one", "n2", True), "b": ("b new", "n2", True)}


def listing_of(photos: Path, **contents: str) -> Store:
    photos.mkdir()
    for key, content in contents.items():
        (photos / f"{key}.jpg").write_text(content)
    return open_store(str(photos))


def manifest_without_sequence(output: Store, source: Store, run: RunInfo) -> manifest.Manifest:
    listed = products_table({info.key.removesuffix(".jpg"): [info] for info in source.list()})
    return begin(output, run, listed, plan(listed, read_products(output), run))
