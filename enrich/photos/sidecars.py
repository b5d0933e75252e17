"""Files among the photos that are not photos: skipped by name, and counted."""

import re
from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from enrich.storage.store import ObjectInfo


class Skipped:
    """Filters a listing by the setting `skip`, and counts what it skips.

    Case is ignored. A pattern with a slash is matched with the end of the path, one without a slash with the name.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        parts = [re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") for pattern in patterns]
        self._pattern = f"(?i)(?:^|/)(?:{'|'.join(parts)})$" if parts else None
        self.count, self.first = 0, ""

    @property
    def warning(self) -> str | None:
        """One line about the skipped files; None if there are none."""
        if not self.count:
            return None
        files = "1 file is" if self.count == 1 else f"{self.count:,} files are"
        return f"{files} skipped as non-photos (setting skip), such as {self.first!r}"

    def photos(self, objects: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
        """The objects of a listing that are not left out."""
        found = re.compile(self._pattern) if self._pattern else None
        for one in objects:
            if found is not None and found.search(one.key):
                self._saw(1, one.key)
            else:
                yield one

    def photos_of(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The same for the rows of an inventory. Each call reads all rows, so it counts from 0."""
        self.count = 0
        for frame in frames:
            if self._pattern is None:
                yield frame
                continue
            left_out = frame["key"].str.contains(self._pattern)
            if left_out.any():
                self._saw(int(left_out.sum()), frame["key"].filter(left_out)[0])
            yield frame.filter(~left_out)

    def _saw(self, count: int, key: str) -> None:
        self.first = self.first if self.count else key
        self.count += count
