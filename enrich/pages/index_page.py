"""The first page of `enrich serve`: the runs of an output, with links to their pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from enrich.output.run_record import RunRecord
from enrich.pages.report import template


@dataclass(frozen=True)
class RunLine:
    """A run and its existing pages. Its record is None before it is finished, or if it cannot be read."""

    run_id: str
    record: RunRecord | None
    unfinished: bool = False
    pages: tuple[tuple[str, str], ...] = ()  # (name, key)


def render_index(output: str, runs: Sequence[RunLine], total: int, pages: Sequence[tuple[str, str]]) -> str:
    """A page that lists the newest `runs` of `total`, and links to the pages of the whole output: (name, key)."""
    return template("index.html.jinja", escape=True).render(output=output, runs=runs, total=total, pages=pages)
