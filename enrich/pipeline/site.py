"""The pages of an output for `enrich serve`: the reports of its runs, the review page, score pages."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from pydantic import ValidationError

from enrich.errors import UsageError
from enrich.output.run_record import RunRecord
from enrich.pages.index_page import RunLine, render_index
from enrich.storage import ObjectInfo, StorageError, Store

NEWEST = 200  # runs on the first page
MAX_PAGE_BYTES = 512 << 20
_READERS = 8  # records of runs that are read at once
_RUN = r"runs/(?P<run>[A-Za-z0-9][A-Za-z0-9._-]{0,99})/"
_OF_RUN = re.compile(rf"{_RUN}(?P<name>report|scores)\.html")
_OF_OUTPUT = {
    "review.html": "products to review",
    "scores.html": "scores",
    "scores/scores.html": "scores",
    "scores/holdout/scores.html": "scores on the hold-out",
}
_RECORD, _MANIFEST = re.compile(rf"{_RUN}run\.json"), re.compile(rf"{_RUN}manifest\.parquet")
_EPOCH = datetime.min.replace(tzinfo=UTC)


class Site:
    """The pages of one output. Reads only; the records of runs are kept in memory for as long as they do not change."""

    def __init__(self, output: Store) -> None:
        """Raises UsageError if no run was ever started."""
        self.output = output
        self._records: dict[str, tuple[str, RunRecord | None]] = {}  # key -> etag and record
        if next(iter(output.list("runs")), None) is None:
            raise UsageError(f"output {output.uri}: no runs; make one with `enrich run`, or check the location")

    def page(self, key: str) -> bytes | None:
        """The page at this key; None if there is none, or if it is not a page."""
        if key not in _OF_OUTPUT and not _OF_RUN.fullmatch(key):
            return None
        if self.output.head(key) is None:
            return None
        return self.output.get(key, MAX_PAGE_BYTES)[0]

    def index(self) -> bytes:
        """The first page: the newest runs."""
        found = list(self.output.list("runs"))
        records = self._read([info for info in found if _RECORD.fullmatch(info.key)])
        pages: dict[str, list[tuple[str, str]]] = {}
        for info in found:
            if match := _OF_RUN.fullmatch(info.key):
                pages.setdefault(match["run"], []).append((match["name"], info.key))
        started = {match["run"] for info in found if (match := _MANIFEST.fullmatch(info.key))}
        lines = [
            RunLine(run_id, records.get(run_id), run_id not in records, tuple(pages.get(run_id, ())))
            for run_id in {*started, *records}
        ]
        lines.sort(key=_place, reverse=True)
        whole = [(name, key) for key, name in _OF_OUTPUT.items() if self.output.head(key)]
        return render_index(self.output.uri, lines[:NEWEST], len(lines), whole).encode()

    def _read(self, found: list[ObjectInfo]) -> dict[str, RunRecord | None]:
        """The record of each run, None where it is damaged; those that changed are read."""
        news = [info for info in found if self._records.get(info.key, ("",))[0] != info.etag]
        with ThreadPoolExecutor(_READERS) as pool:
            for info, record in zip(news, pool.map(partial(_read_record, self.output), news), strict=True):
                self._records[info.key] = (info.etag, record)
        return {info.key.split("/")[1]: self._records[info.key][1] for info in found}


def _read_record(output: Store, info: ObjectInfo) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(output.get(info.key)[0])
    except (ValidationError, StorageError):
        return None


def _place(line: RunLine) -> tuple[bool, datetime, str]:
    """Runs that are not finished come first, then the newest."""
    return line.unfinished, line.record.run.created_at if line.record else _EPOCH, line.run_id
