"""Tables larger than memory, partitioned by ranges."""

import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich.output import gate, parquet, spill
from enrich.output.schema import LISTING_SCHEMA
from enrich.output.spill import RangePartitions, partition_bounds, sampled
from enrich.storage.scratch import scratch


def table(rows: int) -> pl.DataFrame:
    number = pl.int_range(rows, eager=True)
    return pl.DataFrame({"key": ((number * 7919) % rows).cast(pl.String).str.zfill(9), "size": number})


@pytest.mark.parametrize("partition_rows", [50, 10_000])
def test_rows_come_back_in_order_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition_rows: int
) -> None:
    monkeypatch.setattr(spill, "PARTITION_ROWS", partition_rows)
    monkeypatch.setattr(spill, "SAMPLE_EVERY", 3)
    monkeypatch.setattr(spill, "_BATCH", 70)
    rows = table(2000)
    parts = [rows[start : start + 130] for start in range(0, 2000, 130)]
    bounds = partition_bounds(sampled(parts, ["key"]), ["key"], rows.height)
    frames = list(RangePartitions(bounds, tmp_path / "ranges", rows.to_arrow().schema).add(parts).in_order())
    assert pl.concat(frames).equals(rows.sort("key"))
    assert len(frames) == (1 if partition_rows > 2000 else 40)
    assert list(tmp_path.rglob("*.arrow")) == []


@pytest.mark.parametrize(
    ("rows", "expected"), [(["e", "a", "d"], [["a"], [], ["e", "d"]]), ([], [[], [], []])], ids=["some", "none"]
)
def test_each_range_is_a_frame(tmp_path: Path, rows: list[str], expected: list[list[str]]) -> None:
    frame = pl.DataFrame({"key": rows}, schema={"key": pl.String})
    ranges = RangePartitions(pl.DataFrame({"key": ["b", "d"]}), tmp_path / "ranges", frame.to_arrow().schema)
    ranges.add([frame] if rows else [])
    found = list(ranges)
    assert [one["key"].to_list() for one in found] == expected
    assert {one.schema == frame.schema for one in found} == {True}


def test_open_files_do_not_grow_with_the_ranges(tmp_path: Path) -> None:
    rows, before = table(5000), open_files()
    most = []
    for wanted in (10, 500):
        every = rows.height // wanted
        bounds = rows.sort("key").gather_every(every, every).select("key")
        ranges = RangePartitions(bounds, tmp_path / f"{wanted}", rows.to_arrow().schema).add([rows])
        most.append(open_files() - before)
        count = 0
        for part in ranges:
            count += part.height
            most.append(open_files() - before)
        assert count == rows.height
    assert max(most) == 1
    assert open_files() <= before  # fewer where garbage of earlier tests went meanwhile


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_reading_a_file_keeps_nothing_of_it_in_memory() -> None:
    """A row group at a time: pyarrow would keep what it has read of the file, as much as the file has bytes."""
    with scratch() as folder:
        size, path = 40_000, folder / "listing.parquet"
        rows = pl.DataFrame({"key": [os.urandom(32).hex() for _ in range(size)], "size": 1, "etag": "e"})
        parquet.write(path, [rows] * 20, LISTING_SCHEMA, {})
        before, most = pa.total_allocated_bytes(), 0
        for frame in parquet.frames(path, LISTING_SCHEMA):
            assert frame.height
            most = max(most, pa.total_allocated_bytes() - before)
        assert path.stat().st_size > 20e6
        assert most < 15e6


def test_a_sample_keeps_no_more_than_itself() -> None:
    with scratch() as folder:
        path = folder / "listing.parquet"
        rows = pl.DataFrame({"key": [os.urandom(32).hex() for _ in range(40_000)], "size": 1, "etag": "e"})
        parquet.write(path, [rows] * 10, LISTING_SCHEMA, {})
        before = pa.total_allocated_bytes()
        sample = sampled(parquet.frames(path, LISTING_SCHEMA), ["key"])
        assert sample.height > 600
        assert pa.total_allocated_bytes() - before < 1e6


@given(st.lists(st.one_of(st.none(), st.integers(0, 9).map(float)), max_size=30))
def test_the_median_of_counted_prices_is_that_of_the_prices(prices: list[float | None]) -> None:
    rows = pl.DataFrame({"price": prices}, schema={"price": pl.Float64})
    counted = rows.drop_nulls("price").group_by("price").len().sort("price")
    assert gate._median(counted) == rows["price"].median()
