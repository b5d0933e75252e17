"""An Iceberg table follows products.parquet: each publish one snapshot, whatever dies in between."""

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table

from enrich.errors import RunFailed, UsageError
from enrich.output.schema import PRODUCTS_SCHEMA, Attribute, Row
from enrich.output.sinks import SINKS, appoint, follow, iceberg
from enrich.pipeline.releasing import publish_held, rebuild, roll_back
from enrich.pipeline.tidying import tidy
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from tests.testing.rows import answer, enrich_night, finish, listing, make_photo, make_row, make_run

ICEBERG = RunSettings(sink="iceberg")


def catalog_of(output: Store) -> Catalog:
    """As anybody may open it."""
    folder = Path(output.uri) / "iceberg"
    return load_catalog("default", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=folder.as_uri())


def table_of(output: Store) -> Table:
    return catalog_of(output).load_table("enrich.products")


def in_iceberg(output: Store, snapshot_id: int | None = None) -> pl.DataFrame:
    rows = table_of(output).scan(snapshot_id=snapshot_id).to_arrow()
    return pl.DataFrame(rows.cast(iceberg.iceberg_schema()).cast(PRODUCTS_SCHEMA)).sort("product_id")


def in_parquet(output: Store) -> pl.DataFrame:
    return pl.read_parquet(output.get("products.parquet")[0]).sort("product_id")


def commits(output: Store) -> list[tuple[str, str]]:
    """The action and the run of each snapshot, the oldest first."""
    summaries = [snapshot.summary for snapshot in table_of(output).snapshots()]
    return [(one[iceberg.ACTION] or "", one[iceberg.RUN_ID] or "") for one in summaries if one is not None]


def rich(run: Any, item: Any, minutes: float) -> Row:
    """Answers with maps and lists of structs."""
    row = answer(run, item, minutes)
    return make_row(
        run, item.product_id, minutes, shard=item.shard, title=row.title, category_path=("Clothing", "Coats"),
        attributes={"colour": Attribute(f"of {run.run_id}", 0.5), "size": Attribute(None, None)},
        photos=(make_photo(run, "a.jpg", width=3, height=4), make_photo(run, "b.jpg", error_kind="empty")),
    )  # fmt: skip


def night(output: Store, run_id: str, minutes: float, *keys: str, commit: bool = True) -> None:
    enrich_night(output, run := make_run(run_id, minutes, fingerprint=run_id), listing(*keys), rich)
    finish(output, run, minutes)
    if commit:
        follow(output, run_id, "publish")


def test_three_publishes_a_rollback_and_a_kill_before_a_commit(local: Store, tmp_path: Path) -> None:
    appoint(local, ICEBERG)
    states = []
    for number, keys in enumerate((("a", "b"), ("a", "b", "c"), ("b", "c", "d")), start=1):
        night(local, f"r{number}", number * 60, *keys)
        assert in_iceberg(local).equals(in_parquet(local))
        states.append(in_parquet(local))
    roll_back(local.uri, "r2")
    assert in_iceberg(local).equals(in_parquet(local))
    assert in_parquet(local).drop("in_source").equals(states[1].drop("in_source"))
    killed = (
        "import os, signal, sys\n"
        "from enrich.output.sinks import iceberg\n"
        "from enrich.storage import open_store\n"
        "from tests.output.test_sinks import night\n"
        "iceberg._replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "night(open_store(sys.argv[1]), 'r4', 240, 'a', 'e')\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, local.uri], capture_output=True, timeout=240)
    assert done.returncode == -9, done.stderr
    assert not in_iceberg(local).equals(in_parquet(local))
    assert publish_held(local.uri, "r4").run.run_id == "r4"  # `enrich publish` of a published run commits it
    assert in_iceberg(local).equals(in_parquet(local))
    assert commits(local) == [
        ("publish", "r1"), ("publish", "r2"), ("publish", "r3"), ("rollback", "r2"), ("publish", "r4"),
    ]  # fmt: skip
    files = [task.file.file_path.removeprefix("file://") for task in table_of(local).scan().plan_files()]
    seen = duckdb.execute("select product_id, attributes['colour'].value from read_parquet(?) order by 1", [files])
    assert seen.fetchall() == [("a", "of r4"), ("b", "of r2"), ("c", "of r2"), ("e", "of r4")]
    snapshots = [snapshot.snapshot_id for snapshot in table_of(local).snapshots()]
    for state, snapshot_id in zip(states, snapshots, strict=False):
        assert in_iceberg(local, snapshot_id).equals(state)


def test_the_next_publish_commits_what_a_killed_one_did_not(local: Store) -> None:
    appoint(local, ICEBERG)
    night(local, "r1", 60, "a", commit=False)
    night(local, "r2", 120, "a", "b")
    assert commits(local) == [("publish", "r2")]
    assert in_iceberg(local).equals(in_parquet(local))


def test_a_state_is_committed_once(local: Store) -> None:
    appoint(local, ICEBERG)
    night(local, "r1", 60, "a")
    assert not follow(local, "r1", "publish")
    with pytest.raises(UsageError, match="run r1: already published"):
        publish_held(local.uri, "r1")
    assert len(commits(local)) == 1
    rebuild(local.uri)
    assert commits(local)[1:] == [("rebuild", "r1")]


def test_of_publishers_at_the_same_time_the_newest_state_wins(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    appoint(local, ICEBERG)
    night(local, "r1", 60, "a")
    night(local, "r2", 120, "a", "b", commit=False)
    replace = iceberg._replace

    def late(*args: Any) -> None:
        """Another publish and its commit come between reading products.parquet and the commit of that."""
        monkeypatch.setattr(iceberg, "_replace", replace)
        night(local, "r3", 180, "a", "b", "c")
        replace(*args)

    monkeypatch.setattr(iceberg, "_replace", late)
    follow(local, "r2", "publish")
    assert commits(local) == [("publish", "r1"), ("publish", "r3")]
    assert in_iceberg(local).equals(in_parquet(local))


def test_many_at_once_commit_once(local: Store) -> None:
    appoint(local, ICEBERG)
    night(local, "r1", 60, "a", "b", commit=False)
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(follow(local, "r1", "publish"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, False, True]
    assert len(commits(local)) == 1


def test_tidy_deletes_nothing_that_a_snapshot_names(local: Store) -> None:
    appoint(local, ICEBERG)
    for number in range(1, 4):
        night(local, f"r{number}", number * 60, "a", "b", "c")
    before = [in_iceberg(local, snapshot.snapshot_id) for snapshot in table_of(local).snapshots()]
    tidied = tidy(local.uri, RunSettings(), grace=timedelta(0), keep=timedelta(0))
    assert (tidied.packed > 0, tidied.retired) == (True, 2)
    after = [in_iceberg(local, snapshot.snapshot_id) for snapshot in table_of(local).snapshots()]
    assert len(after) == 3
    assert all(one.equals(other) for one, other in zip(before, after, strict=True))


def test_new_columns_are_added_to_a_table_that_is_there(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    appoint(local, ICEBERG)
    full = iceberg.iceberg_schema()
    photos = full.field("photos").type.value_type
    fewer = pa.list_(pa.struct([one for one in photos if one.name != "error_kind"]))
    older = pa.schema(
        one.with_type(fewer) if one.name == "photos" else one for one in full if one.name != "reviewed_at"
    )
    with monkeypatch.context() as patch:
        patch.setattr(iceberg, "iceberg_schema", lambda: older)
        catalog = iceberg._catalog(local, iceberg.Place("default", "enrich.products"))
        iceberg._table(local, iceberg.Place("default", "enrich.products"))
    assert "reviewed_at" not in catalog.load_table("enrich.products").schema().column_names
    night(local, "r1", 60, "a")
    assert in_iceberg(local).equals(in_parquet(local))


def test_anyone_who_publishes_commits_until_a_run_says_none(local: Store) -> None:
    night(local, "r1", 60, "a")
    assert local.head("sink.json") is None
    appoint(local, RunSettings())
    assert local.head("sink.json") is None
    appoint(local, RunSettings(sink="iceberg", sink_table="shop.products"))
    appoint(local, RunSettings())
    assert follow(local, "r1", "publish")
    assert catalog_of(local).table_exists("shop.products")
    appoint(local, RunSettings(sink="none"))
    assert not follow(local, "r1", "publish")


def test_a_table_follows_one_output(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{warehouse}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", warehouse.as_uri())
    lake = RunSettings(sink="iceberg", sink_catalog="lake")
    appoint(local, lake)
    night(local, "r1", 60, "a")
    assert not (Path(local.uri) / "iceberg").exists()
    other = open_store(str(tmp_path / "other"), create=True)
    with pytest.raises(UsageError, match=r"^iceberg table enrich.products of catalog lake follows the output /"):
        appoint(other, lake)


@pytest.mark.parametrize(
    ("uri", "told"),
    [("sqlite:////nowhere/at/all/catalog.db", "unable to open database file"), ("ftp://x", "Could not infer")],
)
def test_a_catalog_that_does_not_answer_is_reported_before_a_run_starts(
    local: Store, monkeypatch: pytest.MonkeyPatch, uri: str, told: str
) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", uri)
    with pytest.raises(UsageError, match=told) as error:
        appoint(local, ICEBERG)
    assert "\n" not in str(error.value)
    assert local.head("sink.json") is None


def test_a_catalog_that_fails_after_a_publish_is_caught_up(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    appoint(local, ICEBERG)

    def fail(*_: Any) -> None:
        raise OSError("the warehouse is full")

    with monkeypatch.context() as patch:
        patch.setattr(iceberg, "_replace", fail)
        with pytest.raises(
            RunFailed, match=r"^products[.]parquet is published, but iceberg .*: the warehouse is full$"
        ):
            night(local, "r1", 60, "a")
    assert follow(local, "r1", "publish")


def test_pyiceberg_is_an_extra(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(UsageError, match=r"pip install 'enrich\[iceberg\]'"):
        appoint(local, ICEBERG)
    monkeypatch.undo()
    appoint(local, ICEBERG)
    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(RunFailed, match=r"^products[.]parquet is published, but its sink is behind: sink iceberg: "):
        night(local, "r1", 60, "a")


def test_settings_know_the_sinks() -> None:
    assert list(SINKS) == ["iceberg"]
    with pytest.raises(ValueError, match="Input should be one of iceberg, or none"):
        RunSettings(sink="delta")


def test_an_output_on_s3_needs_a_catalog_of_its_own(s3_bucket: str) -> None:
    with pytest.raises(UsageError, match=r"'default' is not configured; .* or set PYICEBERG_CATALOG__DEFAULT__URI"):
        appoint(open_store(f"{s3_bucket}/output"), ICEBERG)
