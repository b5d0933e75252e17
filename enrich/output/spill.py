"""Sorting and joining tables larger than memory: rows go to a local file by range of their sort key, and one range at a
time is read back.

The bounds of the ranges come from a sample. They decide how even the ranges are, never what the result is.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import polars as pl
import pyarrow as pa

from enrich.output import parquet

# 30,000 rows of products with three photos take about 36 MB, and a sort or a join holds them three times.
PARTITION_ROWS = 30_000
MAX_PARTITIONS = 1024  # above 30 million rows the ranges grow; more of them would get a few dozen rows of each batch
SAMPLE_EVERY = 500  # one row in this many is sampled
_BATCH = 100_000  # rows distributed at a time
_ROW, _PLACE = "__row", "__place"


def partition_bounds(sample: pl.DataFrame, order: Sequence[str], rows: int) -> pl.DataFrame:
    """The lower bounds of every range but the first, for a table of `rows` rows in ranges of about PARTITION_ROWS.

    Returns rows of `sample`, columns `order`, ascending with nulls last. None if the table fits into one range.
    """
    partitions = min(MAX_PARTITIONS, -(-rows // PARTITION_ROWS))
    if partitions < 2:
        return sample.select(order).clear()
    ordered = sample.select(order).unique().sort(order, nulls_last=True)
    places = sorted({ordered.height * number // partitions for number in range(1, partitions)} - {0})
    return ordered[[place for place in places if place < ordered.height]]


class RangePartitions:
    """Rows partitioned by ranges of the columns of `bounds`; a row that equals a bound belongs to the range above it.

    Add all rows, then iterate once, over one frame for each range. Within a range rows keep the order in which they
    were added. All ranges share one file, so the number of open files does not grow: `_batches` holds the positions of
    each range's record batches in it. Without bounds everything stays in memory.

    Args:
        schema: of every frame that is added, and of the frames of ranges without rows.
    """

    def __init__(self, bounds: pl.DataFrame, folder: Path, schema: pa.Schema) -> None:
        self._bounds, self._order, self._empty = bounds, bounds.columns, parquet.empty(schema)
        self._path = folder / "partitions.arrow"
        self._batches: list[list[int]] = [[] for _ in range(bounds.height + 1)]
        self._written = 0
        self._writer: pa.RecordBatchFileWriter | None = None
        self._held: list[pl.DataFrame] = []
        if bounds.height:
            folder.mkdir()

    def add(self, frames: Iterable[pl.DataFrame]) -> Self:
        """Distribute the rows of `frames`."""
        for frame in frames:
            if not self._bounds.height:
                self._held.append(frame)
                continue
            for start in range(0, frame.height, _BATCH):
                self._distribute(frame.slice(start, _BATCH))
        return self

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The rows of each range, in order of the ranges. The file is deleted after the last."""
        writer, self._writer = self._writer, None  # a reference would keep the file open
        if writer is None:
            held, self._held = self._held, []
            yield pl.concat([self._empty, *held])
            yield from (self._empty for _ in range(self._bounds.height))
            return
        writer.close()
        del writer
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for batches in self._batches:
                # No name for the table, which would keep it in memory together with the frame.
                yield pl.DataFrame(pa.Table.from_batches(map(reader.get_batch, batches), reader.schema))
        self._path.unlink()

    def in_order(self) -> Iterator[pl.DataFrame]:
        """All rows in the order of the columns of the bounds, nulls last, one range at a time."""
        return (rows.sort(self._order, nulls_last=True) for rows in self if rows.height)

    def _distribute(self, frame: pl.DataFrame) -> None:
        for (number,), part in (
            frame.with_columns(self._places(frame))
            .partition_by(_PLACE, as_dict=True, include_key=False, maintain_order=True)
            .items()
        ):
            table = part.to_arrow()
            if self._writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writer = pa.ipc.new_file(str(self._path), table.schema, options=options)
            for batch in table.to_batches():
                self._writer.write_batch(batch)
                self._batches[int(number)].append(self._written)
                self._written += 1

    def _places(self, frame: pl.DataFrame) -> pl.Series:
        """The number of each row's range: how many bounds are not above it."""
        rows = frame.select(self._order).with_row_index(_ROW).cast({_ROW: pl.Int64})
        bounds = self._bounds.with_columns(pl.lit(-1, pl.Int64).alias(_ROW)).select(rows.columns)  # sort before equals
        ordered = pl.concat([rows, bounds]).sort(*self._order, _ROW, nulls_last=True)
        counted = ordered.with_columns((pl.col(_ROW) == -1).cum_sum().alias(_PLACE)).filter(pl.col(_ROW) >= 0)
        return counted.sort(_ROW)[_PLACE]


def ranges_of(
    listed: pl.LazyFrame, column: str, frames: Iterable[pl.DataFrame], schema: pa.Schema, folder: Path
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The rows of `listed` by `column`, PARTITION_ROWS at a time, each part with the rows of `frames` in its range.

    `listed` is sorted by `column`; `frames` (of `schema`) have rows in any order.
    """
    rows = listed.select(pl.len()).collect().item()
    size = max(PARTITION_ROWS, -(-rows // MAX_PARTITIONS))
    names = listed.select(column)
    bounds = [detached(names.slice(place, 1).collect()) for place in range(size, rows, size)]
    parts = RangePartitions(pl.concat([names.limit(0).collect(), *bounds]), folder, schema).add(frames)
    for number, part in enumerate(parts):
        yield listed.slice(number * size, size).collect(), part


def detached(rows: pl.DataFrame) -> pl.DataFrame:
    """A copy of some rows. A selection itself would keep all strings of the frame that it is from in memory."""
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=rows.schema)


def sampled(frames: Iterable[pl.DataFrame], columns: Sequence[str]) -> pl.DataFrame:
    """Every SAMPLE_EVERY-th row of some columns of strings; at least one of each frame."""
    samples = [detached(frame.select(columns).gather_every(SAMPLE_EVERY)) for frame in frames if frame.height]
    return pl.concat([pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), *samples])
