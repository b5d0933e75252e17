import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrich.errors import RunFailed
from enrich.output import history, manifest, parquet, publish, run_record
from enrich.output.gate import run_stats
from enrich.output.photos_etag import photos_etag
from enrich.output.products import Products, fold, last_runs, read_products
from enrich.output.run_record import Finding, PublishedRun, RunInfo, RunRecord, Stages, StageUse
from enrich.output.run_rows import fetch_run
from enrich.output.schema import PRODUCTS_SCHEMA, ROW_SCHEMA, Row
from enrich.settings.run import GateSettings
from enrich.storage import Body, ObjectInfo, Store, open_store
from enrich.vocabulary import ErrorKind, ManifestItem
from tests.testing.rows import (
    START,
    Wrapped,
    answer,
    as_read,
    at,
    enrich_night,
    finish,
    finished_night,
    held,
    listing,
    make_photo,
    make_row,
    make_run,
)


def table_of(*rows: Row) -> pl.DataFrame:
    return parquet.from_records([asdict(row) for row in rows], ROW_SCHEMA)


# --- the fold ---


@dataclass(frozen=True)
class Night:
    """A run with its listing and its rows, for tests of the fold alone."""

    run: RunInfo
    present: tuple[str, ...]
    rows: tuple[Row, ...]


@st.composite
def histories(draw: st.DrawFn) -> list[Night]:
    """Up to five runs over six products, with so few distinct times and sequences that runs overlap, tie and finish
    out of order, and clocks contradict the sequences."""
    keys = st.sampled_from("abcdef")
    outcomes = st.tuples(
        st.sampled_from([None, None, "empty", "engine_failed"]),
        st.text("xy", min_size=1, max_size=3),
        st.integers(0, 4),
    )
    nights = []
    for number in range(draw(st.integers(1, 5))):
        run = make_run(
            f"r{number}", draw(st.integers(0, 3)), fingerprint=draw(st.sampled_from(["f1", "f2"])),
            sequence=draw(st.integers(0, 3)),
        )  # fmt: skip
        rows = tuple(
            make_row(
                run,
                key,
                minutes,
                photos=tuple(make_photo(run, f"{key}/{number}", etag) for number, etag in enumerate(etags)),
                **({"error_kind": kind} if kind else {}),
            )
            for key, (kind, etags, minutes) in draw(st.dictionaries(keys, outcomes)).items()
        )
        nights.append(Night(run, tuple(sorted(draw(st.sets(keys)))), rows))
    return nights


def order(night: Night) -> tuple[int, Any, str]:
    return night.run.sequence, night.run.created_at, night.run.run_id


def folded(nights: list[Night]) -> Products:
    products, seen = Products(), list[Night]()
    for night in nights:
        seen.append(night)
        rows = table_of(*night.rows)
        stats = run_stats(rows) if len(night.rows) >= 3 else None
        products = fold(products, [night.run], rows, pl.Series(max(seen, key=order).present, dtype=pl.String))
        products = replace(products, last=last_runs(products.last, night.run, stats))
    return products


def version(row: Row) -> str:
    return photos_etag((photo.key, photo.etag) for photo in row.photos)


def recomputed(nights: list[Night]) -> dict[str, dict[str, Any]]:
    """Compute products.parquet from the whole history at once, in plain Python."""
    present = max(nights, key=order).present
    expected = {}
    for key in {row.product_id for night in nights for row in night.rows}:
        outcomes = [(order(night), row) for night in nights for row in night.rows if row.product_id == key]
        shown = max(outcomes, key=lambda outcome: (outcome[1].status == "ok", outcome[0]))[1]
        last = max(outcomes, key=lambda outcome: outcome[0])[1]
        expected[key] = {
            **as_read(shown),
            "category_alternatives": [],
            "review_reasons": [],
            "in_source": key in present,
            "last_photos_etag": version(last),
            "last_status": last.status,
            "last_error_kind": last.error_kind,
            "last_attempt": last.attempt,
            "last_run_id": last.run_id,
            "reviewed_by": None,
            "reviewed_at": None,
        }
    return expected


@settings(max_examples=50)
@given(st.data())
def test_the_fold_is_a_recomputation_of_history_in_any_order_and_with_repetitions(data: st.DataObject) -> None:
    nights = data.draw(histories())
    sequence = data.draw(st.permutations(nights + data.draw(st.lists(st.sampled_from(nights), max_size=3))))
    products = folded(sequence)
    assert {row["product_id"]: row for row in products.table.to_dicts()} == recomputed(nights)

    in_order = folded(sorted(nights, key=order))
    assert products.table.equals(in_order.table)
    assert (products.runs, products.last) == (in_order.runs, in_order.last)
    assert set(products.runs) == {row[name] for row in products.table.to_dicts() for name in ("run_id", "last_run_id")}
    together = fold(
        Products(),
        [night.run for night in nights],
        pl.concat([table_of(), *(table_of(*night.rows) for night in nights)]),
        pl.Series(max(nights, key=order).present, dtype=pl.String),
    )
    assert together.table.equals(products.table)
    assert together.runs == products.runs
    large = [night for night in nights if len(night.rows) >= 3]
    assert products.last.stats == (run_stats(table_of(*max(large, key=order).rows)) if large else None)


RUN_1, RUN_2 = make_run("r1", 0), make_run("r2", 10)


def shown_after(*rows: Row) -> dict[str, Any]:
    products = Products()
    for row in rows:
        run = {"r1": RUN_1, "r2": RUN_2}[row.run_id]
        products = fold(products, [run], table_of(row), pl.Series(["a.jpg"]))
    (shown,) = products.table.to_dicts()
    return shown


OLD, NEW = make_row(RUN_1, title="old"), make_row(RUN_2, minutes=11, title="new")
OLD_FAILURE = make_row(RUN_1, error_kind=ErrorKind.EMPTY)
NEW_FAILURE = make_row(RUN_2, minutes=11, etag="e2", error_kind=ErrorKind.TRUNCATED, attempt=2)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param((OLD, NEW), {"title": "new", "last_run_id": "r2"}, id="a newer good row replaces an older one"),
        pytest.param(
            (OLD, NEW_FAILURE),
            {"status": "ok", "title": "old", "photos": as_read(OLD)["photos"], "error_kind": None,
             "last_photos_etag": version(NEW_FAILURE),
             "last_status": "failed", "last_error_kind": "truncated", "last_attempt": 2, "last_run_id": "r2"},
            id="a failure never replaces a good row and is remembered",
        ),
        pytest.param(
            (NEW_FAILURE, OLD), {"status": "ok", "title": "old", "last_status": "failed"},
            id="a good row replaces even a later failure",
        ),
        pytest.param((OLD_FAILURE, NEW_FAILURE), {"error_kind": "truncated"}, id="the newest failure is shown"),
        pytest.param((NEW_FAILURE, OLD_FAILURE), {"error_kind": "truncated"}, id="whatever was published first"),
    ],
)  # fmt: skip
def test_which_row_is_shown(rows: tuple[Row, ...], expected: dict[str, Any]) -> None:
    assert shown_after(*rows).items() >= expected.items()


# --- nights ---


def test_products_is_a_table_that_analysts_can_read(output: Store, tmp_path: Path) -> None:
    run = enrich_night(output, make_run(), listing("z.jpg", "a.jpg", "bad.jpg"))
    data, _ = output.get("products.parquet")
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.schema_arrow.equals(PRODUCTS_SCHEMA)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    pairs = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
    published = json.loads(pairs["enrich.runs"])["night-1"]
    assert published.items() >= {"created_at": "2026-11-22T02:00:00.123456Z", "fingerprint": run.fingerprint}.items()
    assert pairs["enrich.schema_version"] == "3"
    assert len(pairs["enrich.writer_id"]) == 32

    path = tmp_path / "copy.parquet"
    path.write_bytes(data)
    query = f"select product_id, status, in_source, last_run_id from '{path}'"
    expected = [("a.jpg", "ok", True), ("z.jpg", "ok", True), ("bad.jpg", "failed", True)]
    assert duckdb.execute(query).fetchall() == [(*row, "night-1") for row in expected]
    assert pl.read_parquet(path).select("product_id", "status", "in_source").rows() == expected


def test_a_second_nightly_run_does_what_changed_and_no_more(output: Store) -> None:
    enrich_night(output, make_run("n1"), listing("gone.jpg", "bad.jpg", "same.jpg", changed="e1"))
    done: list[str] = []

    def noting(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        done.append(f"{item.reason} {item.product_id}")
        return answer(run, item, minutes)

    enrich_night(output, make_run("n2", 60), listing("bad.jpg", "new.jpg", "same.jpg", changed="e2"), noting)
    assert done == ["changed changed.jpg", "new new.jpg"]
    rows = {row["product_id"]: row for row in read_products(output).table.to_dicts()}
    assert {key: (row["in_source"], row["run_id"]) for key, row in rows.items()} == {
        "bad.jpg": (True, "n1"),
        "changed.jpg": (True, "n2"),
        "gone.jpg": (False, "n1"),
        "new.jpg": (True, "n2"),
        "same.jpg": (True, "n1"),
    }
    assert rows["changed.jpg"]["title"] == "e2"


def test_a_photo_that_came_back_is_in_the_source_again_without_work(local: Store) -> None:
    in_source = []
    for number, keys in enumerate((["a.jpg", "b.jpg"], ["a.jpg"], ["a.jpg", "b.jpg"])):
        run = enrich_night(local, make_run(f"n{number}", number), listing(*keys))
        in_source.append(read_products(local).table["in_source"].to_list())
    assert in_source == [[True, True], [True, False], [True, True]]
    assert history.committed_shards(local, run) == set()


def test_a_nightly_run_that_changes_nothing_does_not_write(output: Store) -> None:
    run = enrich_night(output, make_run("n1"), listing("a.jpg"))
    before = output.head("products.parquet")
    enrich_night(output, make_run("n2", 10), listing("a.jpg"))
    again = publish.publish(output, run)
    assert again == publish.Published(rows=1, changed=False, attempts=1)
    assert output.head("products.parquet") == before


def test_an_empty_bucket_publishes_an_empty_table(local: Store) -> None:
    enrich_night(local, make_run(), listing())
    assert read_products(local).table.equals(parquet.empty(PRODUCTS_SCHEMA))
    assert local.head("products.parquet") is not None


def released(output: Store, run: RunInfo) -> publish.Published:
    return publish.publish(output, run, GateSettings(min_rows=1))


@pytest.mark.parametrize("sequence", ["012", "021", "102", "120", "201", "210", "0120", "2102"])
def test_held_runs_may_be_released_in_any_order(tmp_path: Path, sequence: str) -> None:
    runs = [make_run(f"n{number}", number * 10, fingerprint=f"f{number}") for number in range(3)]
    sources = [
        listing("a.jpg", "b.jpg", "c.jpg"),
        listing("b.jpg", "d.jpg", c="e2"),
        listing("a.jpg", b="e3", bad="e1"),
    ]
    tables = []
    for name, numbers in (("in order", "012"), ("drawn", sequence)):
        output = open_store(str(tmp_path / name), create=True)
        for run, source, minutes in zip(runs, sources, (1, 35, 21), strict=True):  # the second one finished last
            held(output, run, source, minutes)
        for number in numbers:
            released(output, runs[int(number)])
        tables.append(read_products(output))
    assert tables[0].table.equals(tables[1].table)
    assert (tables[0].runs, tables[0].last) == (tables[1].runs, tables[1].last)
    assert tables[1].last.source == runs[2].mark
    rows = {row["product_id"]: row for row in tables[1].table.to_dicts()}
    assert {key for key, row in rows.items() if row["in_source"]} == {"a.jpg", "b.jpg", "bad.jpg"}
    assert (rows["b.jpg"]["run_id"], rows["b.jpg"]["last_run_id"], rows["b.jpg"]["photos"][0]["etag"]) == (
        "n2",
        "n2",
        "e3",
    )


def test_only_runs_that_a_row_names_are_remembered(local: Store) -> None:
    enrich_night(local, make_run("n1"), listing("b.jpg", a="e1"))
    enrich_night(local, make_run("n2", 10), listing("b.jpg", a="e2"))
    assert set(read_products(local).runs) == {"n1", "n2"}
    last = enrich_night(local, make_run("n3", 20), listing(a="e3", b="e3"))
    assert read_products(local).runs == {"n3": PublishedRun.of(last)}


def test_only_a_run_large_enough_is_remembered_for_the_gate(local: Store) -> None:
    for number, count in enumerate((3, 2)):
        run = make_run(f"n{number}", number)
        held(local, run, listing(*"abc"[:count]), minutes=1)
        publish.publish(local, run, GateSettings(min_rows=3))
    stats = read_products(local).last.stats
    assert stats is not None
    assert stats.rows == 3


def test_eight_runs_that_publish_at_once_all_survive(output: Store) -> None:
    runs = [make_run(f"n{number}", number) for number in range(8)]
    for number, run in enumerate(runs):
        held(output, run, listing(f"own-{number}.jpg", shared=f"e{number}"), minutes=10)
    barrier = threading.Barrier(len(runs))

    def race(run: RunInfo) -> publish.Published:
        barrier.wait()
        return released(output, run)

    with ThreadPoolExecutor(len(runs)) as pool:
        published = list(pool.map(race, runs))
    assert all(result.changed for result in published)
    products = read_products(output)
    assert sorted(products.table["product_id"]) == [f"own-{number}.jpg" for number in range(8)] + ["shared.jpg"]
    (shared,) = products.table.filter(pl.col("product_id") == "shared.jpg").to_dicts()
    assert (shared["title"], shared["run_id"], shared["photos"][0]["etag"]) == ("e7", "n7", "e7")
    assert products.table.filter("in_source")["product_id"].to_list() == ["own-7.jpg", "shared.jpg"]


class Noting(Wrapped):
    """Records the names of the files that are read."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.read: list[str] = []

    def get(self, key: str, max_bytes: int | None = None) -> tuple[bytes, str]:
        self.read.append(key.rpartition("/")[2])
        return super().get(key, max_bytes)

    def download(self, key: str, path: Path) -> ObjectInfo:
        self.read.append(key.rpartition("/")[2])
        return super().download(key, path)


def test_a_publisher_that_has_rows_and_table_downloads_neither_again(output: Store, tmp_path: Path) -> None:
    enrich_night(output, make_run("n1"), listing("a.jpg"))
    run, other = make_run("n2", 10), make_run("n3", 20)
    held(output, run, listing("a.jpg", "b.jpg"), minutes=11)
    store = Noting(output)
    rows = fetch_run(store, run, tmp_path)
    products = publish.current_products(store, tmp_path)
    assert sorted(store.read) == ["products.parquet", "shard-00000.parquet"]
    store.read.clear()
    assert publish.publish(store, run, rows=rows, products=products) == publish.Published(2, changed=True, attempts=1)
    assert store.read == ["source.parquet"]

    held(output, other, listing("a.jpg", "b.jpg", "c.jpg"), minutes=21)
    stale = publish.publish(store, other, rows=fetch_run(output, other, tmp_path), products=products)
    assert (stale.rows, stale.attempts) == (3, 2)  # its table has been replaced since
    assert sorted(read_products(output).table["product_id"]) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_table_that_was_lost_is_made_anew_once_to_plan_and_to_publish(local: Store, tmp_path: Path) -> None:
    finished_night(local, make_run("n1"), listing("a.jpg"))
    run = make_run("n2", 10)
    held(local, run, listing("a.jpg", "b.jpg"), minutes=11)
    local.delete("products.parquet")
    products = publish.current_products(local, tmp_path)
    store = Noting(local)
    published = publish.publish(store, run, rows=fetch_run(local, run, tmp_path), products=products)
    assert published == publish.Published(2, changed=True, attempts=1)
    assert store.read == ["source.parquet"]


# --- faults ---


class Dies(Wrapped):
    """Make the process die at call number `at`, before or just after the call happens."""

    def __init__(self, inner: Store, at: int, when: str) -> None:
        super().__init__(inner)
        self.at, self.when = at, when
        self.dead = False

    def before(self, number: int, name: str) -> None:
        self._die(number, "before")

    def after(self, number: int, name: str, result: Any) -> Any:
        self._die(number, "after")
        return result

    def _die(self, number: int, when: str) -> None:
        if self.dead or (number, when) == (self.at, self.when):
            self.dead = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_nightly_run_killed_at_any_step_is_finished_by_its_run_id(output: Store, tmp_path: Path, when: str) -> None:
    first, second = listing("bad.jpg", "d.jpg", a="e1", b="e1"), listing("bad.jpg", "c.jpg", "d.jpg", "f.jpg", a="e2")
    undisturbed = open_store(str(tmp_path / "undisturbed"), create=True)
    enrich_night(undisturbed, make_run("n1"), first)
    counted = Wrapped(undisturbed)
    enrich_night(counted, make_run("n2", 10), second)
    expected, committed_rows = read_products(undisturbed), history.read_shards(undisturbed, make_run("n2", 10))
    steps = next(counted._numbers)
    assert steps > 15

    for step in range(0, steps, 7 if output.uri.startswith("s3:") else 1):
        store = open_store(f"{output.uri}/{step}", create=True)
        enrich_night(store, make_run("n1"), first)
        with pytest.raises(KeyboardInterrupt):
            enrich_night(Dies(store, step, when), make_run("n2", 10), second)
        committed = {info.key: info.etag for info in store.list("history")}
        started = manifest.read_manifest(store, "n2") is not None
        # The next day: a started run keeps the values of its manifest.
        restart = make_run("n2", 60 * 24 if started else 10)
        run = enrich_night(store, restart, second)
        assert run == make_run("n2", 10)
        assert history.read_shards(store, run).equals(committed_rows)
        products = read_products(store)
        assert products.table.equals(expected.table)
        assert (products.runs, products.last) == (expected.runs, expected.last)
        assert committed.items() <= {info.key: info.etag for info in store.list("history")}.items()


class LostResponse(Wrapped):
    """The first swap succeeds but is reported as failed; then others may intervene."""

    def __init__(self, inner: Store, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__(inner)
        self.lost, self.meanwhile = 0, meanwhile

    def after(self, number: int, name: str, result: Any) -> Any:
        if name != "replace" or self.lost:
            return result
        self.lost += 1
        self.meanwhile()
        return False


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(publish.time, "sleep", pauses.append)
    return pauses


@pytest.mark.usefixtures("no_sleep")
def test_a_publisher_whose_response_was_lost_knows_its_own_table(output: Store) -> None:
    held(output, make_run(), listing("a.jpg"), minutes=1)
    store = LostResponse(output)
    assert released(store, make_run()) == publish.Published(rows=1, changed=True, attempts=1)
    assert store.lost == 1


@pytest.mark.usefixtures("no_sleep")
def test_a_lost_response_and_another_publisher_leave_both_runs(local: Store) -> None:
    one, two = make_run("n1"), make_run("n2", 10)
    held(local, one, listing("a.jpg"), minutes=1)
    held(local, two, listing("b.jpg"), minutes=11)
    released(LostResponse(local, meanwhile=lambda: released(local, two)), one)
    assert sorted(read_products(local).table["product_id"]) == ["a.jpg", "b.jpg"]


def test_a_publisher_that_is_always_late_gives_up_and_says_what_to_do(local: Store, no_sleep: list[float]) -> None:
    class AlwaysLate(Wrapped):
        def replace(self, key: str, data: Body, if_match: str | None) -> bool:
            return False

    held(local, make_run(), listing("a.jpg"), minutes=1)
    with pytest.raises(RunFailed) as error:
        released(AlwaysLate(local), make_run())
    assert str(error.value) == (
        f"{local.uri}/products.parquet: others replaced it 20 times in a row; history has the run's rows: "
        f"repeat with `enrich publish --output {local.uri} --run-id night-1`, and if nobody else publishes, "
        "see `enrich doctor`"
    )
    assert len(no_sleep) == 20
    assert 0 <= min(no_sleep) <= max(no_sleep) <= 5
    assert local.head("products.parquet") is None


def test_a_products_file_of_others_is_named_and_kept(local: Store) -> None:
    held(local, make_run(), listing("a.jpg"), minutes=1)
    uri = local.uri_of("products.parquet")
    rebuild = f"rebuild it from history with `enrich rebuild --output {local.uri}`"
    for data, message in [
        (b"mine", f"{uri} is not a readable Parquet file; {rebuild}"),
        (
            parquet.encode(parquet.empty(ROW_SCHEMA), ROW_SCHEMA, {}),
            f"{uri} has unexpected columns; {rebuild}",
        ),
        (
            parquet.encode(parquet.empty(PRODUCTS_SCHEMA), PRODUCTS_SCHEMA, {"enrich.runs": "{}"}),
            f"{uri} was not written by enrich; {rebuild}",
        ),
        (
            parquet.encode(parquet.empty(PRODUCTS_SCHEMA), PRODUCTS_SCHEMA, {"enrich.runs": "[1"}),
            f"{uri} was not written by enrich; {rebuild}",
        ),
    ]:
        local.put("products.parquet", data)
        with pytest.raises(RunFailed) as error:
            released(local, make_run())
        assert str(error.value) == message
        assert local.get("products.parquet")[0] == data


def test_a_lost_products_file_comes_back_from_history(local: Store) -> None:
    runs = [make_run(f"n{number}", 10 * number) for number in range(3)]
    for number, run in enumerate(runs):
        enrich_night(local, run, listing("bad.jpg", "b.jpg", a=f"e{number}"))
    before = read_products(local).table
    local.delete("products.parquet")
    for run in reversed(runs):
        released(local, run)
    assert read_products(local).table.equals(before)


def test_a_run_without_its_listing_is_not_published(local: Store) -> None:
    held(local, make_run(), listing("a.jpg"), minutes=1)
    local.delete("runs/night-1/source.parquet")
    with pytest.raises(RunFailed) as error:
        released(local, make_run())
    assert str(error.value) == (
        f"{local.uri}/runs/night-1/source.parquet is missing, so which products still exist is unknown; start a new run"
    )


def test_a_foreign_file_among_the_shards_is_named(local: Store) -> None:
    run, other = make_run(), make_run("n2")
    held(local, run, listing("a.jpg"), minutes=1)
    held(local, other, listing("a.jpg"), minutes=1)
    local.put(f"{run.history}notes.txt", b"not a shard")
    assert len(history.read_shards(local, run)) == 1
    key = f"{run.history}shard-00001.parquet"
    local.put(key, local.get(history.shard_key(other, 0))[0])
    with pytest.raises(RunFailed) as error:
        history.read_shards(local, run)
    assert str(error.value) == f"{local.uri_of(key)} is not a shard of run night-1; move it away and publish again"


def test_rows_of_a_run_are_all_its_shards(local: Store) -> None:
    held(local, make_run(), listing(*"abcde"), minutes=1)
    rows = history.read_shards(local, make_run())
    assert rows.schema == parquet.empty(ROW_SCHEMA).schema
    assert rows.select("product_id", "shard").sort("product_id").rows() == [
        (key, number // 2) for number, key in enumerate("abcde")
    ]
    assert history.read_shards(local, make_run("none")).equals(parquet.empty(ROW_SCHEMA))


# --- run.json ---


def test_a_run_record_is_read_back(output: Store) -> None:
    rows = table_of(make_row(RUN_1), make_row(RUN_1, "b.jpg", error_kind=ErrorKind.EMPTY))
    record = RunRecord(
        run=RUN_1,
        state="held",
        counts={"rows": 2, "ok": 1, "failed": 1},
        by_reason={"new": 2},
        by_error_kind={"empty": 1},
        findings=(Finding("max_failed", 0.5, 0.2, "1 of 2"),),
        stats=run_stats(rows),
        shards=1,
        started_at=START,
        finished_at=at(1),
        seconds=60.0,
        images_per_second=2 / 60,
        engine="fake",
        host="cpu",
        stages=Stages(2, 1.5, (StageUse("decode", 0.01, 2, 0.5),), 0.1, "decode", "raise decode_processes to 3"),
    )
    assert run_record.read_run_record(output, RUN_1) is None
    run_record.write_run_record(output, record)
    assert run_record.read_run_record(output, RUN_1) == record
    raw = json.loads(output.get("runs/r1/run.json")[0])
    assert (raw["run"]["run_id"], raw["state"], raw["stats"]["failed_by_kind"]) == ("r1", "held", {"empty": 1})


def test_a_run_record_of_others_is_named(local: Store) -> None:
    for data in (b"{}", b"not JSON", b'{"run": 1}'):
        local.put("runs/r1/run.json", data)
        with pytest.raises(RunFailed) as error:
            run_record.read_run_record(local, RUN_1)
        assert str(error.value) == (
            f"{local.uri}/runs/r1/run.json is not a record of a run; move it away and start the run again"
        )


def test_the_newest_record_is_found_without_reading_the_others(output: Store) -> None:
    runs = [make_run(name, sequence=run_record.claim_sequence(output, name, 0)) for name in ("z1", "b2", "a3")]
    for run in runs:
        finish(output, run, 1, "held" if run.run_id == "a3" else "published")
    run_record.claim_sequence(output, "unfinished", 0)
    store = Noting(output)
    newest = run_record.find_record(store, lambda record: True)
    assert newest is not None
    assert newest.run == runs[-1]
    assert store.read.count("run.json") == 1
    store.read.clear()
    published = run_record.find_record(store, lambda record: record.state == "published")
    assert published is not None
    assert published.run == runs[1]
    assert store.read.count("run.json") == 2
    output.put("runs/a copy/run.json", b"{}")  # no run has such an id
    assert [record.run for record in run_record.read_records(output)] == runs[::-1]


def test_a_record_from_before_there_were_sequences_is_found_after_the_others(local: Store) -> None:
    older = [make_run("b", 10), make_run("c", 0)]
    for run in older:
        finish(local, run, 1)
    assert run_record.find_record(local, lambda record: False) is None
    found = run_record.find_record(local, lambda record: True)
    assert found is not None
    assert found.run == older[0]
    run_record.claim_sequence(local, "lost", 0)
    newer = make_run("a", -10, sequence=run_record.claim_sequence(local, "a", 0))
    run_record.claim_sequence(local, "a", 0)  # by a second process, which found the run started
    finish(local, newer, 1)
    found = run_record.find_record(local, lambda record: True)
    assert found is not None
    assert found.run == newer


def test_publishing_reads_the_record_of_its_own_run_only(local: Store) -> None:
    for number, name in enumerate(("n1", "n2", "n3")):
        finished_night(local, make_run(name, number), listing(f"{name}.jpg"))
    store = Noting(local)
    publish.publish(store, make_run("n2", 1))
    assert store.read.count("run.json") == 1
