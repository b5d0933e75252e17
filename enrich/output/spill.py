"""Tables larger than memory: rows go to a local file by where they belong in an order, and a piece at a time fits.

The cuts between the pieces come from a sample, so they decide how even the pieces are, never what is in the table.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pyarrow as pa

# 100,000 rows of products are some 60 MB, and a sort or a join holds them three times.
PIECE_ROWS = 100_000
MOST_PIECES = 1024  # above 100 million rows the pieces grow instead; more would be a few dozen rows of each batch
_BATCH = 100_000  # rows spread at a time
SAMPLE_EVERY = 500  # one row in so many tells where to cut


def cut(sample: pl.DataFrame, order: Sequence[str], rows: int) -> pl.DataFrame:
    """Where to cut a table of `rows` rows into pieces of about PIECE_ROWS: rows of a sample, in `order`, nulls last.

    None where it fits as a whole.
    """
    pieces = min(MOST_PIECES, -(-rows // PIECE_ROWS))
    if pieces < 2:
        return sample.select(order).clear()
    ordered = sample.select(order).unique().sort(order, nulls_last=True)
    at = sorted({ordered.height * number // pieces for number in range(1, pieces)} - {0})
    return ordered[[place for place in at if place < ordered.height]]


class Pieces:
    """Rows by where they lie between cuts; those that equal a cut belong to the piece above it.

    Within a piece rows keep the order in which they were added. All pieces are in one file, whatever their number, as
    the record batches of which `_batches` tells the places. Without cuts everything stays in memory.
    """

    def __init__(self, folder: Path, cuts: pl.DataFrame) -> None:
        self._cuts, self._order = cuts, cuts.columns
        self._path, self._file = folder / "pieces.arrow", ExitStack()
        self._batches: list[list[int]] = [[] for _ in range(cuts.height + 1)]
        self._written, self._left = 0, cuts.height + 1
        self._writer: pa.RecordBatchFileWriter | None = None
        self._reader: pa.RecordBatchFileReader | None = None
        self._held: list[pl.DataFrame] = []
        if cuts.height:
            folder.mkdir()

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, frames: Iterable[pl.DataFrame]) -> None:
        """Take rows in. All frames that a set of pieces takes have the same columns."""
        for frame in frames:
            if not self._cuts.height:
                self._held.append(frame)
                continue
            for start in range(0, frame.height, _BATCH):
                self._spread(frame.slice(start, _BATCH))

    def close(self) -> None:
        """Nothing more comes."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None  # it would keep the file open
            self._reader = pa.ipc.open_file(self._file.enter_context(pa.OSFile(str(self._path))))

    def read(self, number: int) -> pl.DataFrame | None:
        """The rows of one piece, None for none; each is read once, and the file is deleted after the last."""
        if not self._cuts.height:
            held, self._held = self._held, []
            return pl.concat(held) if held else None
        frame, reader = None, self._reader
        if reader is not None and self._batches[number]:
            table = pa.Table.from_batches(reader.get_batch(place) for place in self._batches[number])
            frame = pl.DataFrame(table)
        self._left -= 1
        if not self._left:
            self._file.close()
            self._path.unlink(missing_ok=True)
        return frame

    def _spread(self, frame: pl.DataFrame) -> None:
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
        """For each row how many cuts are not above it."""
        rows = frame.select(self._order).with_row_index(_ROW).cast({_ROW: pl.Int64})
        cuts = self._cuts.with_columns(pl.lit(-1, pl.Int64).alias(_ROW)).select(rows.columns)  # sorts before its equals
        ordered = pl.concat([rows, cuts]).sort(*self._order, _ROW, nulls_last=True)
        counted = ordered.with_columns((pl.col(_ROW) == -1).cum_sum().alias(_PLACE)).filter(pl.col(_ROW) >= 0)
        return counted.sort(_ROW)[_PLACE]


_ROW, _PLACE = "__row", "__place"


def in_order(frames: Iterable[pl.DataFrame], cuts: pl.DataFrame, folder: Path) -> Iterator[pl.DataFrame]:
    """All rows of `frames` in the order of the columns of `cuts`, nulls last, a piece at a time."""
    pieces = Pieces(folder, cuts)
    pieces.add(frames)
    pieces.close()
    for number in range(len(pieces)):
        rows = pieces.read(number)
        if rows is not None:
            yield rows.sort(cuts.columns, nulls_last=True)


def detached(rows: pl.DataFrame) -> pl.DataFrame:
    """A copy of some rows; a selection itself would keep all strings of the frame it is from in memory."""
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=rows.schema)


def sampled(frames: Iterable[pl.DataFrame], columns: Sequence[str]) -> pl.DataFrame:
    """Every SAMPLE_EVERY-th row of some columns of strings; at least one of each frame."""
    samples = [detached(frame.select(columns).gather_every(SAMPLE_EVERY)) for frame in frames if frame.height]
    return pl.concat([pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), *samples])
