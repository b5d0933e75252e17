"""Which product a photo belongs to, by its key; and whether the pattern makes one product of many."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

MOST_PHOTOS = 20  # of one product in one folder; shops show fewer
_BATCH = 100_000  # keys at a time
_IDS_AT_A_TIME = 1_000_000  # some 150 MB while they are counted


@dataclass(frozen=True)
class SharedIds:
    """Product ids that photos share which may not be of one product."""

    photos: int
    ids: int
    example: str  # the id with the most photos
    most: int  # photos of the example

    @property
    def warning(self) -> str:
        """One line."""
        ids = "1 product id" if self.ids == 1 else f"{self.ids:,} product ids"
        return (
            f"{self.photos:,} photos share {ids}, e.g. {self.example!r} ({self.most:,} photos): set "
            "product_id_pattern, unless they show one product each"
        )


def product_id(pattern: re.Pattern[str] | str, key: str) -> str:
    """The product a key belongs to: the pattern's group product_id, or the whole key where it does not match."""
    match = re.fullmatch(pattern, key)
    return match["product_id"] if match and match["product_id"] else key


def find_shared(listing: Path, pattern: str, folder: Path) -> SharedIds | None:
    """Ids that are given to photos in different folders, or to more than MOST_PHOTOS; None if there are none.

    Memory holds _IDS_AT_A_TIME ids, however many there are.

    Args:
        listing: a Parquet file with a column key.
        folder: on the local disk, for what does not fit into memory.
    """
    path = folder / "product_ids.parquet"
    rows = _write_ids(path, listing, pattern)
    parts = max(1, -(-rows // _IDS_AT_A_TIME))
    photos, number, largest = 0, 0, (0, "")
    for part in range(parts):
        ids = pl.scan_parquet(path).filter(pl.col("id").hash() % parts == part).group_by("id")
        # The ends of the order tell whether there are several folders, without holding them.
        counted = ids.agg(photos=pl.len(), several=pl.col("folder").min() != pl.col("folder").max())
        shared = counted.filter(pl.col("several") | (pl.col("photos") > MOST_PHOTOS)).collect(engine="streaming")
        photos, number = photos + int(shared["photos"].sum()), number + shared.height
        for most, example in shared.sort("photos", "id").tail(1).select("photos", "id").iter_rows():
            largest = max(largest, (most, example))
    path.unlink()
    return SharedIds(photos, number, largest[1], largest[0]) if number else None


def _write_ids(path: Path, listing: Path, pattern: str) -> int:
    """Write the id and the folder of each key; returns how many there are."""
    schema, rows = pa.schema([("id", pa.string()), ("folder", pa.string())]), 0
    with pq.ParquetWriter(path, schema) as writer:
        for keys in _keys(listing):
            ids = [product_id(pattern, key) for key in keys]
            folders = [key.rpartition("/")[0] for key in keys]
            writer.write_table(pa.table([ids, folders], schema=schema))
            rows += len(keys)
    return rows


def _keys(listing: Path) -> Iterator[list[str]]:
    with pq.ParquetFile(listing) as file:
        for batch in file.iter_batches(_BATCH, columns=["key"]):
            yield batch.column("key").to_pylist()
