"""Packs, retirement and roll-backs: what a reader sees, at every step."""

import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from enrich.cli import runs
from enrich.errors import UsageError
from enrich.output import history, publish, run_record
from enrich.output.products import Products, read_products
from enrich.output.run_record import RunInfo
from enrich.pipeline import releasing, tidying
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from tests.testing.rows import Wrapped, enrich_night, finish, finished_night, listing, make_run

DAY = timedelta(days=1)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "output") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/output"


KEYS = [f"{number}.jpg" for number in range(9)]


def tidy(output: str, grace: timedelta = timedelta(0), keep: timedelta | None = None) -> tidying.Tidied:
    return tidying.tidy(output, RunSettings(), grace=grace, keep=keep)


def pack(store: Store, run: RunInfo) -> int:
    """Pack a run on a store that may fail, and delete the packed shards at once; returns their number."""
    record = run_record.read_run_record(store, run)
    assert record is not None
    for group in tidying._groups(history.files_in_force(history.all_files(store, run))):
        tidying._pack(store, record, group)
    return tidying._delete_packed(store, record, datetime.now(UTC))


def test_shards_are_packed_and_later_deleted_and_every_row_stays(output: str) -> None:
    store = open_store(output, create=True)
    run = finished_night(store, make_run(), listing(*KEYS))
    before, table = history.read_shards(store, run), read_products(store).table
    assert tidy(output, grace=DAY) == tidying.Tidied(packed=5, packs=1, deleted=0, retired=0)
    assert len(history.all_files(store, run)) == 6
    assert history.read_shards(store, run).sort("product_id").equals(before.sort("product_id"))
    assert tidy(output, grace=DAY) == tidying.Tidied(0, 0, 0, 0)
    assert tidy(output) == tidying.Tidied(packed=0, packs=0, deleted=5, retired=0)
    assert [file.key for file in history.all_files(store, run)] == [f"{run.history}shards-00000-00004.parquet"]
    assert history.committed_shards(store, run) == set(range(5))
    packed = history.read_shards(store, run)
    assert packed.sort("product_id").equals(before.sort("product_id"))
    assert not publish.publish(store, run).changed
    assert read_products(store).table.equals(table)
    assert tidy(output) == tidying.Tidied(0, 0, 0, 0)


def test_the_command_says_how_to_read_history_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_night(open_store(str(tmp_path), create=True), make_run(), listing(*KEYS))
    runs.tidy(str(tmp_path), keep=None, grace="12h", config=None)
    said = capsys.readouterr().out
    assert said.startswith("5 shards packed into 1 files, 0 packed shards deleted\n")
    assert "in 12h at the earliest; until then queries on history must take each (run_id, product_id) once" in said
    runs.tidy(str(tmp_path), keep=None, grace="0s", config=None)
    assert "run_id" not in capsys.readouterr().out


def test_packs_are_of_a_size(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(output, create=True)
    run = finished_night(store, make_run(), listing(*KEYS))
    size = max(file.size for file in history.all_files(store, run))
    monkeypatch.setattr(tidying, "PACK_BYTES", size * 2)
    assert tidy(output).packs == 2
    assert history.read_shards(store, run).height == 9


def test_a_reader_of_packs_in_the_making_sees_each_row_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    run = finished_night(store, make_run(), listing(*KEYS))
    query = f"""select count(*), count(distinct product_id) from (
        select distinct on (run_id, product_id) * from read_parquet('{tmp_path}/history/**/*.parquet'))"""
    counts: list[tuple[int, ...]] = []

    class Watched(Wrapped):
        def after(self, number: int, name: str, result: Any) -> Any:
            if name in ("create", "delete", "put"):
                counts.extend(duckdb.execute(query).fetchall())
                counts.append((history.read_shards(store, run).height,) * 2)
            return result

    assert pack(Watched(store), run) == 5
    assert len(counts) == 12
    assert set(counts) == {(9, 9)}


def test_packing_may_be_killed_at_any_step(tmp_path: Path) -> None:
    for step in itertools.count():
        root = tmp_path / str(step)
        store = open_store(str(root), create=True)
        run = finished_night(store, make_run(), listing(*KEYS))

        class Dies(Wrapped):
            def before(self, number: int, name: str, step: int = step) -> None:
                if number == step:
                    raise KeyboardInterrupt

        try:
            pack(Dies(store), run)
        except KeyboardInterrupt:
            assert history.read_shards(store, run).height == 9
            tidy(str(root))
            tidy(str(root))  # a pack is deleted for by the next call
            assert history.read_shards(store, run)["product_id"].sort().to_list() == KEYS
            assert len(history.all_files(store, run)) == 1
        else:
            assert step > 15
            return


def test_unfinished_runs_are_left_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    enrich_night(store, make_run(), listing(*KEYS))  # no run.json
    assert tidy(str(tmp_path)) == tidying.Tidied(0, 0, 0, 0)


def test_only_runs_that_nothing_names_are_retired(tmp_path: Path) -> None:
    store, output = open_store(str(tmp_path), create=True), str(tmp_path)
    first = finished_night(store, make_run("n1", 0), listing("a.jpg", "b.jpg"))
    second = finished_night(store, make_run("n2", 10), listing("b.jpg", a="e2"))
    third = finished_night(store, make_run("n3", 20), listing(a="e3", b="e3"))
    before = read_products(store).table
    assert tidy(output, keep=timedelta(days=36500)).retired == 0
    assert tidy(output, keep=timedelta(0)).retired == 2
    assert read_products(store).table.equals(before)
    assert [history.all_files(store, run) for run in (first, second)] == [[], []]
    assert history.read_shards(store, third).height == 2
    assert tidy(output, keep=timedelta(0)).retired == 0
    with pytest.raises(UsageError, match="not in"):
        releasing.roll_back(output, "n1")
    publish.publish(store, third)
    assert read_products(store).table.equals(before)


# ---- roll-backs


def test_a_rollback_is_the_table_as_it_was(output: str, tmp_path: Path) -> None:
    store, photos = open_store(output, create=True), str(tmp_path / "photos")
    finished_night(store, make_run("n1", 0, images_uri=photos), listing("a.jpg", "b.jpg", "bad.jpg"))
    before = read_products(store)
    finished_night(store, make_run("n2", 10, images_uri=photos), listing("a.jpg", b="e2", c="e1"))
    finished_night(store, make_run("n3", 20, images_uri=photos, fingerprint="f2"), listing("a.jpg", "c.jpg"))
    last = read_products(store)
    held = releasing.roll_back(output, "n1")
    assert sorted(record.run.run_id for record in held) == ["n2", "n3"]
    after = read_products(store)
    assert after.table.equals(before.table)
    assert (after.runs, after.last) == (before.runs, before.last)
    assert releasing.roll_back(output, "n1") == []
    assert read_products(store).table.equals(before.table)
    for run_id in ("n3", "n2"):
        released = releasing.publish_held(output, run_id)
        assert (released.state, released.findings) == ("published", ())
    assert read_products(store).table.equals(last.table)


def test_what_was_rolled_back_is_not_published_by_the_way(tmp_path: Path) -> None:
    store, output = open_store(str(tmp_path), create=True), str(tmp_path)
    for number in range(3):
        finished_night(store, make_run(f"n{number}", number), listing(a=f"e{number}"))
    releasing.roll_back(output, "n1")
    releasing.roll_back(output, "n0")
    finished_night(store, make_run("n3", 30), listing(a="e3"))
    releasing.roll_back(output, "n3")
    (row,) = read_products(store).table.to_dicts()
    assert (row["photos"][0]["etag"], row["last_run_id"]) == ("e3", "n3")


def test_only_a_published_run_can_be_gone_back_to(tmp_path: Path) -> None:
    store, output = open_store(str(tmp_path), create=True), str(tmp_path)
    run = finished_night(store, make_run("n1"), listing("a.jpg"))
    finish(store, run, 0, "held")
    with pytest.raises(UsageError, match="run n1: it was not published, so there is no state to go back to"):
        releasing.roll_back(output, "n1")


# ---- tables larger than memory, in small


def test_a_fold_by_ranges_is_the_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:03}-{'bad' if number % 7 == 0 else 'ok'}.jpg" for number in range(200)]
    nights: list[Callable[[Store], object]] = [
        lambda store: finished_night(store, make_run("n1", 0, shard_size=16), listing(*keys)),
        lambda store: finished_night(store, make_run("n2", 10, shard_size=16), listing(*keys[20:], **{"001-ok": "e2"})),
        lambda store: finished_night(store, make_run("n3", 20, shard_size=16, fingerprint="f2"), listing(*keys[:150])),
    ]
    whole, small = (open_store(str(tmp_path / name), create=True) for name in ("whole", "small"))
    tables: list[list[Products]] = []
    for store, piece in ((whole, 250_000), (small, 23)):
        for module in ("enrich.output.spill", "enrich.output.manifest"):
            monkeypatch.setattr(f"{module}.PARTITION_ROWS", piece)
        monkeypatch.setattr("enrich.output.spill.SAMPLE_EVERY", 3)
        tables.append([])
        for one in nights:
            one(store)
            tables[-1].append(read_products(store))
    for expected, found in zip(*tables, strict=True):
        assert found.table.equals(expected.table)
        assert (found.runs, found.last) == (expected.runs, expected.last)
    for run in ("n1", "n2", "n3"):
        for name in ("manifest", "source"):
            mine, theirs = (
                pl.read_parquet(tmp_path / root / f"runs/{run}/{name}.parquet") for root in ("whole", "small")
            )
            assert mine.equals(theirs)


def test_two_tidiers_at_once_do_no_harm(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    run = finished_night(store, make_run(), listing(*KEYS))
    threads = [threading.Thread(target=tidy, args=(str(tmp_path), DAY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tidy(str(tmp_path))
    assert history.read_shards(store, run)["product_id"].sort().to_list() == KEYS
