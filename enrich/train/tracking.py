"""Experiment trackers. The numbers go through transformers' own integrations; a table of photos with what they should
say and what the model says of them, as the tutorial logs it, comes from here at each evaluation."""

import html
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import strftime
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from enrich.errors import UsageError
from enrich.photos.decode import shrink
from enrich.photos.decoders import Decoders
from enrich.settings.photos import PhotoLimits
from enrich.settings.training import TrainSettings
from enrich.train.evaluate import Said
from enrich.train.examples import read_photo

PROJECT = "enrich"  # unless the tracker's own environment variable names another
COLUMNS = ("Image", "Ground Truth Text", "Predicted Text")
ROWS = 8  # in a table: at 336 x 336 pixels about 1 MB
SIDE = 336  # pixels
_LONGEST = 1000  # characters of a cell
_TABLE = "samples"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>])")


@dataclass(frozen=True)
class Row:
    """A line of the table: a photo, and two texts that are safe to show as they are."""

    image: Image.Image
    truth: str
    predicted: str


LogTable = Callable[[int, Sequence[Row]], None]  # step, rows


class SampleTables(TrainerCallback):
    """Logs a table of the first rows of each evaluation. `said` is given them; Trainer then says that it evaluated."""

    def __init__(self, tables: Sequence[LogTable], limits: PhotoLimits) -> None:
        self._tables = tables
        self._limits = limits
        self._said: Sequence[Said] = ()
        self._photos: dict[str, Image.Image] = {}  # the same few at every evaluation

    def said(self, answers: Sequence[Said]) -> None:
        """Remember what the model said of the first photos of an evaluation."""
        self._said = answers[:ROWS]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._tables:
            return
        rows = [Row(self._photo(row.image_path), _plain(row.truth), _plain(row.predicted)) for row in self._said]
        for log in self._tables:
            log(state.global_step, rows)

    def _photo(self, path: str) -> Image.Image:
        if path not in self._photos:
            with Decoders(partial(shrink, side=SIDE), self._limits, 1, most_pixels=SIDE * SIDE) as decoders:
                picture = read_photo(path, self._limits, decoders).page
            self._photos[path] = Image.fromarray(picture).resize((SIDE, SIDE))
        return self._photos[path]


@dataclass(frozen=True)
class Tracking:
    """What the training loop needs of its trackers."""

    callbacks: Sequence[TrainerCallback] = ()
    report_to: Sequence[str] = ()  # for TrainingArguments; TensorBoard's integration is among the callbacks
    run_name: str | None = None
    said: Callable[[Sequence[Said]], None] = lambda answers: None


UNTRACKED = Tracking()


def require_trackers(settings: TrainSettings) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        UsageError: names the first and the command that installs it.
    """
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"report_to: {name} is not installed; run `pip install {name}`")


@contextmanager
def tracked(settings: TrainSettings) -> Iterator[Tracking]:
    """A run at each tracker of `settings.report_to`, ended with the block, as failed where an error leaves it.

    Accounts, servers and folders are the trackers' own affair: WANDB_MODE, MLFLOW_TRACKING_URI,
    TENSORBOARD_LOGGING_DIR (else runs/NAME).

    Raises:
        UsageError: a package is missing, or Weights & Biases is not logged in.
    """
    require_trackers(settings)
    name = settings.run_name or strftime("finetune-%Y%m%d-%H%M%S")
    with ExitStack() as stack:
        callbacks: list[TrainerCallback] = []
        tables: list[LogTable] = []
        for tracker in settings.report_to:
            if tracker == "tensorboard":
                # Left to itself the integration writes into the work directory, which goes when training is done.
                writer = _tensorboard_writer(name)
                stack.callback(writer.close)
                callbacks.append(TensorBoardCallback(writer))
                tables.append(_tensorboard_table(writer))
            else:
                tables.append(_OPEN[tracker](name, stack))
        samples = SampleTables(tables, settings.limits)
        others = [tracker for tracker in settings.report_to if tracker != "tensorboard"]
        yield Tracking([*callbacks, samples], others, name, samples.said)


def _tensorboard_writer(name: str) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.environ.get("TENSORBOARD_LOGGING_DIR") or os.path.join("runs", name))


def _tensorboard_table(writer: Any) -> LogTable:
    def log(step: int, rows: Sequence[Row]) -> None:
        lines = ["| " + " | ".join(("Row", *COLUMNS[1:])) + " |", "| --- | --- | --- |"]
        lines += [f"| {i} | {_escaped(row.truth)} | {_escaped(row.predicted)} |" for i, row in enumerate(rows)]
        writer.add_text(_TABLE, "\n".join(lines), step)
        for i, row in enumerate(rows):
            writer.add_image(f"{_TABLE}/{i}", np.asarray(row.image), step, dataformats="HWC")
        writer.flush()

    return log


def _open_wandb(name: str, stack: ExitStack) -> LogTable:
    import wandb

    if wandb.run is None:  # otherwise the caller opened this run and must close it
        try:
            run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=name)
        except wandb.errors.Error as error:
            raise UsageError(
                f"report_to: wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        stack.push(lambda kind, error, trace: run.finish(exit_code=int(kind is not None)))

    def log(step: int, rows: Sequence[Row]) -> None:
        # Strings are data there, never markup.
        data = [[wandb.Image(row.image), row.truth, row.predicted] for row in rows]
        wandb.log({_TABLE: wandb.Table(columns=list(COLUMNS), data=data), "train/global_step": step})

    return log


def _open_mlflow(name: str, stack: ExitStack) -> LogTable:
    import mlflow

    if mlflow.active_run() is None:
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        mlflow.start_run(run_name=name)
        stack.push(lambda kind, error, trace: mlflow.end_run("FINISHED" if kind is None else "FAILED"))

    def log(step: int, rows: Sequence[Row]) -> None:
        images = [mlflow.Image(row.image) for row in rows]
        columns = (images, [row.truth for row in rows], [row.predicted for row in rows])  # data there, never markup
        mlflow.log_table(dict(zip(COLUMNS, columns, strict=True)), artifact_file=f"{_TABLE}/step-{step:06d}.json")

    return log


def _open_trackio(name: str, stack: ExitStack) -> LogTable:
    import trackio

    def close() -> None:
        if trackio.context_vars.current_run.get() is not None:  # a second `finish` would raise
            trackio.finish()

    # Begun by the integration, whose `init` is not left out where a run is open, and ended by it, but for an error.
    stack.callback(close)

    def log(step: int, rows: Sequence[Row]) -> None:
        # Strings are Markdown there.
        data = [[trackio.Image(row.image), _escaped(row.truth), _escaped(row.predicted)] for row in rows]
        trackio.log({_TABLE: trackio.Table(columns=list(COLUMNS), data=data), "train/global_step": step})

    return log


_OPEN: dict[str, Callable[[str, ExitStack], LogTable]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}


def _plain(text: str) -> str:
    """What a model wrote, without characters that steer a terminal or a page, and not for ever."""
    shown = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."


def _escaped(text: str) -> str:
    """As text within a cell of a Markdown table that is rendered to HTML."""
    return html.escape(_MARKDOWN.sub(r"\\\1", text), quote=False).replace("\n", "<br>")
