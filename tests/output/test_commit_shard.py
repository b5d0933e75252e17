import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from enrich.errors import RunFailed
from enrich.output import history, parquet
from enrich.output.history import commit_shard, committed_shards, shard_key
from enrich.output.run_record import RunInfo
from enrich.output.schema import HISTORY_SCHEMA, ROW_SCHEMA, SOURCE_SCHEMA, Attribute, Row, RowPhoto
from enrich.storage import Body, Store, open_store
from enrich.vocabulary import Alternative, ErrorKind
from tests.testing.rows import Wrapped, as_read, make_row, make_run

RUN = make_run()
KEY = "history/run_date=2026-11-22/run_id=night-1/shard-00003.parquet"


def shard(*keys: str, **changes: Any) -> list[Row]:
    return [make_row(RUN, key, shard=3, **changes) for key in keys]


def commit(output: Store, rows: list[Row]) -> bool:
    return commit_shard(output, RUN, 3, rows, [row.product_id for row in rows])


def test_a_shard_holds_its_rows_with_the_declared_types(local: Store) -> None:
    full = replace(
        shard("a.jpg")[0],
        photos=(
            RowPhoto(key="a.jpg", uri="s3://photos/a.jpg", etag="e1", sha256="00ff", width=750, height=1000),
            RowPhoto(key="b.jpg", uri="s3://photos/b.jpg", etag="e2", error_kind="truncated"),
        ),
        category_path=("WOMAN", "COATS"),
        category_id="166",
        attributes={"colour": Attribute("navy", 0.5), "fabric": Attribute(None, None)},
        category_confidence=0.5,
        category_alternatives=(Alternative("Bags", 0.25), Alternative("Hüte", 0.125)),
        price_low=80.0,
        price_high=130.5,
        needs_review=True,
        review_reasons=("wide_price", "low_confidence"),
        prompt_tokens=800,
        output_tokens=30,
    )
    rows = [full, *shard("b.jpg", error_kind=ErrorKind.TRUNCATED)]
    assert commit(local, rows)
    data, _ = local.get(KEY)
    assert pq.read_schema(io.BytesIO(data)).equals(HISTORY_SCHEMA)
    table, _ = parquet.decode(data, ROW_SCHEMA, KEY)
    expected = [as_read(row) for row in rows]
    expected[0]["category_path"] = ["WOMAN", "COATS"]
    assert table.to_dicts() == expected


def test_a_shard_says_who_wrote_it(local: Store) -> None:
    commit(local, shard("a.jpg"))
    _, metadata = parquet.decode(local.get(KEY)[0], ROW_SCHEMA, KEY)
    assert RunInfo.from_json(metadata["enrich.run"]) == RUN
    assert metadata["enrich.run_id"] == "night-1"
    assert metadata["enrich.shard"] == "3"
    assert metadata["enrich.schema_version"] == "3"
    assert len(metadata["enrich.writer_id"]) == 32
    assert metadata["enrich.created_at"].endswith("+00:00")


def test_rows_are_sorted_by_category_and_product_with_nulls_last(local: Store) -> None:
    rows = [
        *shard("failed.jpg", error_kind=ErrorKind.EMPTY),
        *shard("z.jpg", category="Bags"),
        *shard("b/x.jpg", "a/x.jpg", "é.jpg", "a.jpg"),
        *shard("also.jpg", error_kind=ErrorKind.EMPTY),
    ]
    commit(local, rows)
    table, _ = parquet.decode(local.get(KEY)[0], ROW_SCHEMA, KEY)
    assert table["product_id"].to_list() == [
        "z.jpg", "a.jpg", "a/x.jpg", "b/x.jpg", "é.jpg", "also.jpg", "failed.jpg",
    ]  # fmt: skip
    group = pq.read_metadata(io.BytesIO(local.get(KEY)[0])).row_group(0)
    assert [column.column_index for column in group.sorting_columns] == [3, 0]
    assert {group.column(number).compression for number in range(group.num_columns)} == {"ZSTD"}


def test_duckdb_and_polars_read_history_as_it_lies(tmp_path: Path) -> None:
    output = open_store(str(tmp_path), create=True)
    later = make_run("night-2", 60 * 24)
    commit(output, shard("a.jpg", "b.jpg"))
    commit_shard(output, later, 0, [make_row(later, "a.jpg", error_kind=ErrorKind.EMPTY)], ["a.jpg"])
    glob = f"{tmp_path}/history/**/*.parquet"
    query = "select run_date::varchar, run_id, count(*), sum(price) from read_parquet('{}') group by all order by 1"
    assert duckdb.execute(query.format(glob)).fetchall() == [
        ("2026-11-22", "night-1", 2, 200.0),
        ("2026-11-23", "night-2", 1, None),
    ]
    table = pl.scan_parquet(glob, hive_partitioning=True).filter(pl.col("run_id") == "night-2").collect()
    assert table.select(pl.col("run_date").cast(pl.String), "product_id").rows() == [("2026-11-23", "a.jpg")]


def test_a_shard_that_stands_is_never_replaced(output: Store) -> None:
    commit(output, shard("a.jpg", title="first"))
    before = output.head(KEY)
    assert before is not None
    assert not commit(output, shard("a.jpg", title="second"))
    assert output.head(KEY) == before


def test_of_eight_writers_one_wins_and_all_agree(output: Store) -> None:
    barrier = threading.Barrier(8)

    def write(number: int) -> tuple[int, bool]:
        rows = shard("a.jpg", title=f"writer {number}")
        barrier.wait()
        return number, commit(output, rows)

    with ThreadPoolExecutor(8) as pool:
        commits = list(pool.map(write, range(8)))
    winners = [number for number, ours in commits if ours]
    assert len(winners) == 1
    assert history.read_shards(output, RUN)["title"].to_list() == [f"writer {winners[0]}"]


class LostResponse(Wrapped):
    """Creates, then says that there was something: what a retried request meets after its first response was lost."""

    def after(self, number: int, name: str, result: Any) -> Any:
        return False if name == "create" else result


def test_a_writer_whose_response_was_lost_knows_its_own_shard(output: Store) -> None:
    assert commit(LostResponse(output), shard("a.jpg"))
    assert not commit(LostResponse(output), shard("a.jpg"))


def test_a_shard_that_can_be_neither_created_nor_read_fails_the_run(tmp_path: Path) -> None:
    class Refuses(Wrapped):
        def create(self, key: str, data: Body) -> bool:
            return False

    output = open_store(str(tmp_path))
    with pytest.raises(RunFailed) as error:
        commit(Refuses(output), shard("a.jpg"))
    assert str(error.value) == f"{output.uri_of(KEY)} could be neither created nor read; start the run again"


BUG = "nothing was written, please report this as a bug"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (shard("a.jpg"), f"1 rows for 2 products, 'b.jpg' is missing, duplicated or from another shard; {BUG}"),
        (
            shard("a.jpg", "c.jpg"),
            f"2 rows for 2 products, 'b.jpg' is missing, duplicated or from another shard; {BUG}",
        ),
        (
            shard("a.jpg", "b.jpg", "b.jpg"),
            f"3 rows for 2 products, 'b.jpg' is missing, duplicated or from another shard; {BUG}",
        ),
        ([], f"0 rows for 2 products, 'a.jpg' is missing, duplicated or from another shard; {BUG}"),
        (
            [*shard("a.jpg"), make_row(RUN, "b.jpg", shard=4)],
            f"the row of 'b.jpg' says run night-1, shard 4, fingerprint f1; {BUG}",
        ),
        (
            [*shard("a.jpg"), make_row(make_run("other", fingerprint="f2"), "b.jpg", shard=3)],
            f"the row of 'b.jpg' says run other, shard 3, fingerprint f2; {BUG}",
        ),
    ],
)
def test_rows_that_are_not_the_shards_are_not_written(tmp_path: Path, rows: list[Row], message: str) -> None:
    output = open_store(str(tmp_path))
    with pytest.raises(RunFailed) as error:
        commit_shard(output, RUN, 3, rows, ["a.jpg", "b.jpg"])
    assert str(error.value) == f"run night-1, shard 3: {message}"
    assert list(output.list()) == []


def test_a_foreign_file_in_a_shards_place_is_named_and_kept(tmp_path: Path) -> None:
    output = open_store(str(tmp_path))
    uri = output.uri_of(KEY)
    output.put(KEY, b"not Parquet")
    with pytest.raises(RunFailed) as error:
        commit(output, shard("a.jpg"))
    assert str(error.value) == f"{uri} is not a readable Parquet file; move it away and start the run again"
    assert output.get(KEY)[0] == b"not Parquet"

    output.put(KEY, parquet.encode(parquet.empty(SOURCE_SCHEMA), SOURCE_SCHEMA, {}))
    with pytest.raises(RunFailed, match="has unexpected columns"):
        commit(output, shard("a.jpg"))


@pytest.mark.parametrize(
    ("run", "number", "keys"),
    [(RUN, 3, ["a.jpg", "b.jpg"]), (RUN, 4, ["a.jpg"]), (make_run("night-2"), 3, ["a.jpg"])],
    ids=["other products", "other shard", "other run"],
)
def test_another_shards_file_in_a_shards_place_is_named(
    tmp_path: Path, run: RunInfo, number: int, keys: list[str]
) -> None:
    output = open_store(str(tmp_path))
    commit_shard(output, run, number, [make_row(run, key, shard=number) for key in keys], keys)
    output.put(KEY, output.get(shard_key(run, number))[0])
    with pytest.raises(RunFailed) as error:
        commit(output, shard("a.jpg"))
    assert str(error.value) == (
        f"{output.uri_of(KEY)} holds other rows than shard 3 of run night-1; move it away and start the run again"
    )


def test_committed_shards_are_those_of_the_run(output: Store) -> None:
    assert committed_shards(output, RUN) == set()
    commit(output, shard("a.jpg"))
    for run, number in ((RUN, 123_456), (make_run("night-10"), 5), (make_run("night-1", 60 * 24), 6)):
        commit_shard(output, run, number, [make_row(run, "a.jpg", shard=number)], ["a.jpg"])
    output.put(f"{RUN.history}shard-00009.parquet.part", b"")
    assert committed_shards(output, RUN) == {3, 123_456}
