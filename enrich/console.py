"""Terminal output: progress bars, tables of scores, the outcome of a run, one-line errors."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from threading import Event, Thread
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
from enrich.phases import describe_start
from enrich.pipeline.progress import describe_duration, describe_progress
from enrich.vocabulary import TRANSIENT, ErrorKind

if TYPE_CHECKING:
    from enrich.output.run_record import RunRecord
    from enrich.pipeline.progress import Progress as Callback


class _Console(Console):
    """A console whose reader may leave: `enrich run ... | head` still publishes all of its answers."""

    def on_broken_pipe(self) -> None:
        """Discard all further output. Rich's own handler would end the process silently."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what is still buffered goes there when the process ends
        os.close(nowhere)


# No markup and no emoji: paths, labels and external messages may contain brackets and colons.
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class _Redacted(logging.Formatter):
    """Libraries may log URLs with passwords or signatures."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def quiet_libraries() -> None:
    """Let libraries print only warnings and errors; enrich itself prints progress and results."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # about the base's name, which is right
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns about a missing package at each import
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for stream in (sys.stdout, sys.stderr):  # printing a path that is not valid UTF-8 must not stop the work
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_scores(metrics: dict[str, Any]) -> None:
    from enrich.pages.looks import looks_table
    from enrich.pages.report import score_table

    rows = score_table(metrics)
    columns = [Column(name, min_width=max(map(len, name.split()))) for name in rows[0][1]]  # 80 characters in all
    table = Table(Column("", no_wrap=True), *columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, scores in rows:
        table.add_row(name, *scores.values())
    console.print(table)
    if intervals := metrics["intervals"]:
        console.print(
            f"price intervals at {intervals['level']:.0%}: {intervals['coverage']:.1%} of the true prices inside, "
            f"mean width a factor of {intervals['mean_ratio']:.2f}"
        )
    if "second_looks" in metrics:
        console.print(f"second looks: {metrics['second_looks']:.1%} of the products")
    if looks := looks_table(metrics):
        table = Table(*looks[0], box=None, pad_edge=False)
        for way in looks:
            table.add_row(*way.values())
        console.print("by number of crops; in brackets the difference from the second row, 95 % interval")
        console.print(table)
    for verdict in metrics.get("verdicts", ()):
        if not verdict["ok"]:
            console.print(verdict["text"], style="red")


def print_estimates(metrics: dict[str, Any]) -> None:
    """Every metric with its error bar, and its upper bound if known."""
    table = Table("", "value", "95 % between", "best possible", box=None, pad_edge=False)
    for name, one in metrics["estimates"].items():
        ideal = (metrics["ideal"] or {}).get(name)
        between = f"{one['low']:.3f} and {one['high']:.3f}"
        table.add_row(name.replace("_", " "), f"{one['value']:.3f}", between, "" if ideal is None else f"{ideal:.3f}")
    for level, found in metrics.get("category_by_level", {}).items():
        for name, value in found.items():
            table.add_row(f"category {name} to level {level}", f"{value:.3f}", "", "")
    console.print(table)
    for verdict in metrics["verdicts"]:
        if verdict["ok"]:
            console.print(verdict["text"])


def print_record(record: "RunRecord", output: str) -> None:
    counts = record.counts
    if record.state == "nothing_to_do":
        console.print(_describe_nothing(record))
    else:
        why = ", ".join(f"{count} {reason}" for reason, count in record.by_reason.items()) or "none new"
        console.print(f"{counts['rows']} products ({why}): {counts['ok']} ok, {counts['failed']} failed")
    if record.same_bytes:
        console.print(f"{record.same_bytes:,} of them have a new etag but the same bytes, and keep their answer")
    if record.older:
        console.print(f"{record.older:,} products keep an older adapter's answer for now; later runs refresh them")
    if record.changes and record.changes.gone:
        gone = f"{record.changes.gone:,} products of earlier runs are gone from {record.run.images_uri}"
        console.print(gone, style="yellow")
    for kind, count in record.by_error_kind.items():
        console.print(f"  {count} {kind}")
    if record.stages:
        from enrich.pipeline.run.bottleneck import describe_stages

        console.print(describe_stages(record.stages))
    if record.start:
        console.print(f"start: {describe_start(record.start)}")
    if record.missing_shards:
        console.print(
            f"{record.missing_shards} of {record.shards} shards are left; continue with --run-id {record.run.run_id}"
        )
    if record.state == "published":
        console.print(f"products: {output}/products.parquet")
    console.print(f"report: {output}/{record.run.folder}report.html")


_TRIED_AGAIN = {  # the setting that makes a failure eligible for a retry, besides other photos or another adapter
    ErrorKind.TOO_LARGE: "limits.max_bytes",
    ErrorKind.TOO_MANY_PIXELS: "limits.max_pixels",
    ErrorKind.NOT_AN_IMAGE: "limits",
    ErrorKind.ANSWER_TRUNCATED: "max_new_tokens",
    **dict.fromkeys(TRANSIENT, "max_attempts"),
}


def _describe_nothing(record: "RunRecord") -> str:
    """One line about the existing answers, if a run had nothing to do."""
    failed = record.failed_before
    if not failed:
        return f"nothing to do: every product of {record.run.images_uri} has its answer"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
    settings = sorted({_TRIED_AGAIN[kind] for kind in map(ErrorKind, failed) if kind in _TRIED_AGAIN})
    raised = f" or other settings ({', '.join(settings)})" if settings else ""
    return (
        f"nothing to do: {record.answered_before or 0:,} products of {record.run.images_uri} have their answer, "
        f"{sum(failed.values()):,} failed ({kinds}) and are not retried without other bytes, another adapter"
        f"{raised}"
    )


class _Rate(ProgressColumn):
    """Items per second, once it can be computed."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress_bars(what: str, every_seconds: float = 20.0) -> "Iterator[Callback]":
    """Show the progress of long work, on standard error.

    A terminal gets a bar for each kind of work, with its rate and the time left. A file or a pipe gets a line every
    `every_seconds`, even while the work reports nothing. `what` names the work until it reports its first step.
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(),
    )  # fmt: skip
    on_terminal = errors.is_terminal
    with Progress(*columns, console=errors, transient=True, disable=not (on_terminal and speaks())) as bars:
        tasks = {what: bars.add_task(what, total=None)}
        current = what

        def update(what: str, done: int, total: int) -> None:
            nonlocal current
            kind = what.partition(",")[0]
            if kind != current and bars.tasks[tasks[current]].total is None:
                bars.update(tasks[current], visible=False)  # a bar without a total would never fill
            if kind not in tasks:
                tasks[kind] = bars.add_task(what, total=total or None)
            bars.update(tasks[kind], description=what, completed=done, total=total or None, visible=True)
            current = kind

        if on_terminal or not speaks():
            yield update
            return
        with _repeated(lambda: errors.print(_describe(bars.tasks[tasks[current]])), every_seconds):
            yield update


@contextmanager
def _repeated(act: Callable[[], object], every_seconds: float) -> Iterator[None]:
    """Call `act` at intervals, on a thread, until the block ends."""
    done = Event()

    def repeat() -> None:
        while not done.wait(every_seconds):
            act()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _describe(task: Task) -> str:
    """`products: 120 of 3,000, 3.0/s, 16 min 0 s left (40 s so far)`."""
    rate = 0.0 if task.finished else task.speed or 0.0
    line = describe_progress(task.description, int(task.completed), int(task.total or 0), rate)
    if task.finished:
        line += ", next step in progress"
    return f"{line} ({describe_duration(task.get_time() - (task.start_time or 0))} so far)"


def speaks() -> bool:
    """Whether this process prints: of several processes that train together, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def say_error(error: EnrichError | str) -> None:
    errors.print(Text.assemble(("error: ", "red"), str(error)))
