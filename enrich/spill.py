"""Tables larger than memory: rows are spread over local files by where they belong in an order, a piece at a time fits.

The cuts between the pieces come from a sample, so they decide how even the pieces are, never what is in the table.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

# 250,000 rows of products are some 150 MB, and a sort or a join holds them three times.
PIECE_ROWS = 250_000
_MOST_PIECES = 256  # open files at a time; above 64 million rows the pieces grow instead
_BATCH = 100_000  # rows spread at a time
SAMPLE_EVERY = 500  # one row in so many tells where to cut


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the local disk (TMPDIR) for what does not fit into memory, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="enrich-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cut(sample: pl.DataFrame, order: Sequence[str], rows: int) -> pl.DataFrame:
    """Where to cut a table of `rows` rows into pieces of about PIECE_ROWS: rows of a sample, in `order`, nulls last.

    None where it fits as a whole.
    """
    pieces = min(_MOST_PIECES, -(-rows // PIECE_ROWS))
    if pieces < 2:
        return sample.select(order).clear()
    ordered = sample.select(order).unique().sort(order, nulls_last=True)
    at = sorted({ordered.height * number // pieces for number in range(1, pieces)} - {0})
    return ordered[[place for place in at if place < ordered.height]]


class Pieces:
    """Rows by where they lie between cuts; those that equal a cut belong to the piece above it.

    Within a piece rows keep the order in which they were added. Without cuts everything stays in memory.
    """

    def __init__(self, folder: Path, cuts: pl.DataFrame) -> None:
        self._cuts, self._order = cuts, cuts.columns
        self._paths = [folder / f"{number:03}.arrow" for number in range(cuts.height + 1)]
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._held: list[pl.DataFrame] = []
        if cuts.height:
            folder.mkdir()

    def __len__(self) -> int:
        return len(self._paths)

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
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def read(self, number: int) -> pl.DataFrame | None:
        """The rows of one piece, None for none; its file is deleted."""
        if not self._cuts.height:
            held, self._held = self._held, []
            return pl.concat(held) if held else None
        path = self._paths[number]
        if not path.exists():
            return None
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_stream(file).read_all()
        path.unlink()
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _spread(self, frame: pl.DataFrame) -> None:
        for (number,), part in (
            frame.with_columns(self._places(frame))
            .partition_by(_PLACE, as_dict=True, include_key=False, maintain_order=True)
            .items()
        ):
            table = part.to_arrow()
            if number not in self._writers:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writers[int(number)] = pa.ipc.new_stream(str(self._paths[number]), table.schema, options=options)
            self._writers[int(number)].write_table(table)

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


def sampled(frames: Iterable[pl.DataFrame], columns: Sequence[str]) -> pl.DataFrame:
    """Every SAMPLE_EVERY-th row of some columns of strings; at least one of each frame."""
    samples = [frame.select(columns).gather_every(SAMPLE_EVERY) for frame in frames if frame.height]
    return pl.concat([pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), *samples])
