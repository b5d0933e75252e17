"""A lost or damaged table is restored from history in full, or an error says what history lacks."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from enrich.cli import runs
from enrich.errors import RunFailed, UsageError
from enrich.output import history, parquet, publish
from enrich.output.products import Products, read_products
from enrich.output.schema import ROW_SCHEMA
from enrich.pipeline import releasing
from enrich.storage import Store, open_store
from enrich.storage.scratch import scratch
from tests.testing.rows import begin, enrich_night, finish, finished_night, listing, make_run, plan

KEYS = ("a.jpg", "b.jpg", "bad.jpg", "c.jpg")


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def two_nights(store: Store) -> pl.DataFrame:
    finished_night(store, make_run("n1", 0), listing(*KEYS))
    finished_night(store, make_run("n2", 10), listing("a.jpg", "bad.jpg", b="e2"))  # c.jpg is gone
    return read_products(store).table


@pytest.mark.parametrize("harm", ["moved away", "cut short", "emptied"])
def test_a_table_that_is_harmed_during_a_run_comes_back_whole(output: Store, harm: str) -> None:
    before = two_nights(output)
    expected = open_store(f"{output.uri}-undisturbed", create=True)
    shutil.copytree(output.uri, expected.uri, dirs_exist_ok=True)
    enrich_night(expected, make_run("n3", 20), listing(*KEYS, "d.jpg"))

    third, source = make_run("n3", 20), listing(*KEYS, "d.jpg")
    begin(output, third, source, plan(source, read_products(output), third))
    data, _ = output.get("products.parquet")
    if harm != "moved away":
        output.put("products.parquet", data[: 100 if harm == "cut short" else 0])
        with pytest.raises(RunFailed) as error:
            enrich_night(output, third, source)
        assert str(error.value) == (
            f"{output.uri}/products.parquet is not a readable Parquet file; rebuild it from history with "
            f"`enrich rebuild --output {output.uri}`"
        )
        assert releasing.rebuild(output.uri) == (before.height, 2)  # the third continues under its id
        assert read_products(output).table.equals(before)
    output.delete("products.parquet")
    enrich_night(output, third, source)
    assert read_products(output).table.equals(read_products(expected).table)


def test_a_table_that_is_missing_when_a_run_begins_has_its_photos_answered_no_second_time(output: Store) -> None:
    before = two_nights(output)
    output.delete("products.parquet")
    with scratch() as folder:
        found = publish.current_products(output, folder)
        assert found.path is not None
        assert pl.read_parquet(found.path).equals(before)
        todo = plan(listing("a.jpg", "bad.jpg", b="e2"), Products(pl.read_parquet(found.path), found.runs), make_run())
    assert todo.is_empty()
    assert output.head("products.parquet") is None  # reading writes nothing


def test_the_command_makes_the_table_anew(output: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = two_nights(output)
    output.put("products.parquet", b"PAR1 no more")
    runs.rebuild(output=output.uri)
    assert capsys.readouterr().out == f"products: {output.uri}/products.parquet, 4 rows of 2 runs\n"
    assert read_products(output).table.equals(before)
    runs.rebuild(output=output.uri)
    assert read_products(output).table.equals(before)


def test_a_run_that_was_held_back_is_not_published_by_the_way(output: Store) -> None:
    before = two_nights(output)
    held = make_run("n3", 20)
    source = listing("z.jpg")
    begin(output, held, source, plan(source, Products(), held))
    finish(output, held, state="held")
    output.delete("products.parquet")
    releasing.rebuild(output.uri)
    assert read_products(output).table.equals(before)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_shard_that_history_should_have_and_has_not_is_named(output: Store, lost: int) -> None:
    two_nights(output)
    run = make_run("n1")
    for shard in range(lost):
        output.delete(history.shard_key(run, shard))
    more = ", like 1 others" if lost == 2 else ""
    message = (
        f"{output.uri}/{history.shard_key(run, 0)} is missing{more}: run n1 has 2 shards; restore it, or answer its "
        "products again: `enrich run --run-id n1` with the photos and the adapter of that run"
    )
    with pytest.raises(RunFailed) as error:
        releasing.rebuild(output.uri)
    assert str(error.value) == message
    with pytest.raises(RunFailed) as error:
        releasing.roll_back(output.uri, "n2")
    assert str(error.value) == message
    output.delete("products.parquet")
    with pytest.raises(RunFailed) as error:
        enrich_night(output, make_run("n3", 20), listing("a.jpg"))
    assert str(error.value) == message
    assert output.head("products.parquet") is None


def test_a_shard_with_fewer_rows_than_were_published_is_an_error(output: Store) -> None:
    two_nights(output)
    key = history.shard_key(make_run("n1"), 0)
    whole = parquet.read(output, key, ROW_SCHEMA)
    assert whole is not None
    output.put(key, parquet.encode(whole.table[1:], ROW_SCHEMA, whole.metadata))
    with pytest.raises(RunFailed, match=r"run_id=n1/: 3 rows where run.json says 4; restore the files of that run"):
        releasing.rebuild(output.uri)


def test_a_damaged_shard_is_named(output: Store) -> None:
    two_nights(output)
    key = history.shard_key(make_run("n1"), 1)
    output.put(key, b"PAR1")
    with pytest.raises(
        RunFailed, match=r"shard-00001\.parquet is not a readable Parquet file; move it away, and answer its products"
    ):
        releasing.rebuild(output.uri)


@pytest.mark.parametrize("also", [(), ("manifest.parquet",)], ids=["run.json", "and its manifest"])
def test_a_run_whose_record_is_lost_keeps_its_rows(output: Store, also: tuple[str, ...]) -> None:
    before = two_nights(output)
    for name in ("run.json", *also):
        output.delete(f"runs/n1/{name}")
    output.delete("products.parquet")
    assert releasing.rebuild(output.uri) == (4, 2)
    assert read_products(output).table.equals(before)


def test_a_run_that_was_interrupted_is_left_to_its_run_id(output: Store, caplog: pytest.LogCaptureFixture) -> None:
    before = two_nights(output)
    third, source = make_run("n3", 20), listing(*"xyz")
    begin(output, third, source, plan(source, Products(), third))
    output.put(history.shard_key(third, 0), output.get(history.shard_key(make_run("n1"), 0))[0])
    releasing.rebuild(output.uri)
    assert read_products(output).table.equals(before)
    assert "run=n3 was not finished and is left out; continue it with enrich run --run-id n3" in caplog.text


def test_a_table_of_another_output_is_not_taken_for_ones_own(output: Store) -> None:
    before = two_nights(output)
    other = open_store(f"{output.uri}-other", create=True)
    finished_night(other, make_run("elsewhere", 5), listing("other.jpg"))
    output.put("products.parquet", other.get("products.parquet")[0])
    message = (
        f"{output.uri}/products.parquet belongs to another output, because run elsewhere is not in runs/; rebuild "
        f"it from history with `enrich rebuild --output {output.uri}`"
    )
    with pytest.raises(RunFailed) as error, scratch() as folder:
        publish.current_products(output, folder)
    assert str(error.value) == message
    with pytest.raises(RunFailed) as error:
        publish.publish(output, make_run("n2", 10))
    assert str(error.value) == message
    releasing.rebuild(output.uri)
    assert read_products(output).table.equals(before)


@pytest.mark.parametrize("data", [None, b"no listing"], ids=["missing", "damaged"])
def test_a_lost_listing_asks_for_a_new_run_which_makes_the_table_anew(output: Store, data: bytes | None) -> None:
    two_nights(output)
    output.delete("products.parquet")
    output.delete("runs/n2/source.parquet")
    if data:
        output.put("runs/n2/source.parquet", data)
    with pytest.raises(RunFailed, match="start a new run"):
        releasing.rebuild(output.uri)
    with scratch() as folder:  # as the new run does when it plans
        found = publish.current_products(output, folder)
        assert found.rows == 4
    enrich_night(output, make_run("n3", 20), listing(*KEYS))
    assert read_products(output).table.height == 4


def test_an_output_without_runs_has_nothing_to_be_made_anew(output: Store) -> None:
    with pytest.raises(UsageError, match="no published run"):
        releasing.rebuild(output.uri)
