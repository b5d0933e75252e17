"""What people see at a terminal: progress bars, tables of scores, what came of a run, errors in one line."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from enrich.errors import EnrichError, redact
from enrich.vocabulary import TRANSIENT, ErrorKind

if TYPE_CHECKING:
    from enrich.output.run_record import RunRecord
    from enrich.pipeline.progress import Progress as Callback

# No markup and no emoji: paths, labels and messages from outside may hold brackets and colons.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Redacted(logging.Formatter):
    """What libraries log may hold URLs with passwords or signatures."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def quiet_libraries() -> None:
    """Progress and results are ours to print; libraries speak up only when something is wrong."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # of the base's name, which is right
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a package at each import
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for stream in (sys.stdout, sys.stderr):  # a path that is not valid UTF-8 must not end what is done
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_scores(metrics: dict[str, Any]) -> None:
    from enrich.pages.report import score_table

    rows = score_table(metrics)
    columns = [Column(name, min_width=max(map(len, name.split()))) for name in rows[0][1]]  # 80 characters in all
    table = Table(Column("", no_wrap=True), *columns, box=None, pad_edge=False)
    for name, scores in rows:
        table.add_row(name, *scores.values())
    console.print(table)
    if intervals := metrics["intervals"]:
        console.print(
            f"price intervals at {intervals['level']:.0%}: {intervals['coverage']:.1%} of the true prices inside, "
            f"mean width a factor of {intervals['mean_ratio']:.2f}"
        )
    for verdict in metrics.get("verdicts", ()):
        if not verdict["ok"]:
            console.print(Text(verdict["text"], style="red"))


def print_estimates(metrics: dict[str, Any]) -> None:
    """Every metric with its error bar, and what nobody could beat where that is known."""
    table = Table("", "value", "95 % between", "best possible", box=None, pad_edge=False)
    for name, one in metrics["estimates"].items():
        ideal = (metrics["ideal"] or {}).get(name)
        between = f"{one['low']:.3f} and {one['high']:.3f}"
        table.add_row(name.replace("_", " "), f"{one['value']:.3f}", between, "" if ideal is None else f"{ideal:.3f}")
    for level, accuracy in metrics.get("category_accuracy_by_level", {}).items():
        table.add_row(f"category accuracy by {level}", f"{accuracy:.3f}", "", "")
    console.print(table)
    for verdict in metrics["verdicts"]:
        if verdict["ok"]:
            console.print(Text(verdict["text"]))


def print_record(record: "RunRecord", output: str) -> None:
    counts = record.counts
    if record.state == "nothing_to_do":
        console.print(Text(describe_nothing(record)))
    else:
        why = ", ".join(f"{count} {reason}" for reason, count in record.by_reason.items()) or "none new"
        console.print(f"{counts['rows']} photos ({why}): {counts['ok']} ok, {counts['failed']} failed")
    if record.same_bytes:
        console.print(
            f"{record.same_bytes:,} of them have the bytes of before under another etag, and keep their answer"
        )
    if record.changes and record.changes.gone:
        gone = f"{record.changes.gone:,} photos that were there before are gone from {record.run.images_uri}"
        console.print(Text(gone, style="yellow"))
    for kind, count in record.by_error_kind.items():
        console.print(f"  {count} {kind}")
    if record.stages:
        from enrich.pipeline.run.bottleneck import describe_stages

        console.print(describe_stages(record.stages))
    if record.missing_shards:
        console.print(
            f"{record.missing_shards} of {record.shards} shards are left: --run-id {record.run.run_id} goes on"
        )
    if record.state == "published":
        console.print(f"products: {output}/products.parquet")
    console.print(f"report: {output}/{record.run.folder}report.html")


_TRIED_AGAIN = {  # what makes a failure of a kind eligible again, where it is not a better photo or adapter
    ErrorKind.TOO_LARGE: "limits.max_bytes",
    ErrorKind.TOO_MANY_PIXELS: "limits.max_pixels",
    ErrorKind.NOT_AN_IMAGE: "limits",
    ErrorKind.ANSWER_TRUNCATED: "max_new_tokens",
    **dict.fromkeys(TRANSIENT, "max_attempts"),
}


def describe_nothing(record: "RunRecord") -> str:
    """What there is of answers where a run had nothing to do, in one line."""
    failed = record.failed_before
    if not failed:
        return f"nothing to do: every photo of {record.run.images_uri} has its answer"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
    settings = sorted({_TRIED_AGAIN[kind] for kind in map(ErrorKind, failed) if kind in _TRIED_AGAIN})
    raised = f" or other settings ({', '.join(settings)})" if settings else ""
    return (
        f"nothing to do: {record.answered_before or 0:,} photos of {record.run.images_uri} have their answer, "
        f"{sum(failed.values()):,} failed ({kinds}) and are not tried again without other bytes, another adapter"
        f"{raised}"
    )


class _Rate(ProgressColumn):
    """Items a second, once there is something to divide."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress_bars() -> "Iterator[Callback]":
    """A bar for each kind of work, with a rate and an estimate of the time left."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(),
    )  # fmt: skip
    seen = errors.is_terminal and speaks()  # into a file go blank lines at best
    with Progress(*columns, console=errors, transient=True, disable=not seen) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            kind = what.partition(",")[0]
            if kind not in tasks:
                tasks[kind] = bars.add_task(what, total=total or None)
            bars.update(tasks[kind], description=what, completed=done, total=total or None)

        yield update


def speaks() -> bool:
    """Whether this is the process that tells what all know: of several that train together the first."""
    return os.environ.get("RANK", "0") == "0"


def say_error(error: EnrichError) -> None:
    errors.print(Text.assemble(("error: ", "red"), str(error)))
