"""Experiment trackers. The numbers go through transformers' own integrations (`report_to`). Weights & Biases also gets,
at each evaluation, a table of photos with their true and predicted texts, as the tutorial logs it."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import strftime
from typing import Any

from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from enrich.errors import UsageError
from enrich.photos.decode import shrink
from enrich.photos.decoders import Decoders
from enrich.settings.photos import PhotoLimits
from enrich.settings.training import TrainSettings
from enrich.train.evaluate import SamplePrediction
from enrich.train.examples import read_again

PROJECT = "enrich"  # at W&B and Trackio, unless WANDB_PROJECT names another
COLUMNS = ("Image", "Ground Truth Text", "Predicted Text")
ROWS = 8  # in a table: at 336 x 336 pixels about 1 MB
SIDE = 336  # pixels
_LONGEST = 1000  # characters of a cell


class SampleTable(TrainerCallback):
    """Logs a W&B table of the first rows of each evaluation: `keep` receives them, then Trainer reports the evaluation.

    W&B shows strings as data, never as markup.
    """

    def __init__(self, limits: PhotoLimits) -> None:
        self._limits = limits
        self._kept: Sequence[SamplePrediction] = ()
        self._photos: dict[str, Image.Image] = {}  # the same few at every evaluation

    def keep(self, predictions: Sequence[SamplePrediction]) -> None:
        """Remember the first predictions of an evaluation."""
        self._kept = predictions[:ROWS]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        import wandb

        data = [
            [wandb.Image(self._photo(row.image_path)), _plain(row.truth), _plain(row.predicted)] for row in self._kept
        ]
        wandb.log({"samples": wandb.Table(columns=list(COLUMNS), data=data), "train/global_step": state.global_step})

    def _photo(self, path: str) -> Image.Image:
        if path not in self._photos:
            with Decoders(partial(shrink, side=SIDE), self._limits, 1, most_pixels=SIDE * SIDE) as decoders:
                picture = read_again(path, self._limits, decoders).page
            self._photos[path] = Image.fromarray(picture).resize((SIDE, SIDE))
        return self._photos[path]


@dataclass(frozen=True)
class Tracking:
    """The trackers' part of the training loop's arguments."""

    callbacks: Sequence[TrainerCallback] = ()
    report_to: Sequence[str] = ()  # for TrainingArguments; TensorBoard's integration is among the callbacks
    run_name: str | None = None
    keep_samples: Callable[[Sequence[SamplePrediction]], None] = lambda predictions: None


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
    """The trackers of `settings.report_to`. A W&B run opened here ends with the block, as failed after an error.

    Accounts, servers and folders are configured at the trackers: WANDB_MODE, MLFLOW_TRACKING_URI,
    TENSORBOARD_LOGGING_DIR (default: runs/NAME).

    Raises:
        UsageError: Weights & Biases is not logged in.
    """
    name = settings.run_name or strftime("finetune-%Y%m%d-%H%M%S")
    others = [tracker for tracker in settings.report_to if tracker != "tensorboard"]
    callbacks: list[TrainerCallback] = []
    if "tensorboard" in settings.report_to:
        callbacks.append(_tensorboard(name))
    with ExitStack() as stack:
        if "wandb" not in settings.report_to:
            yield Tracking(callbacks, others, name)
            return
        _open_wandb(name, stack)
        table = SampleTable(settings.limits)
        yield Tracking([*callbacks, table], others, name, table.keep)


def _tensorboard(name: str) -> TrainerCallback:
    """TensorBoard's integration. Its own default folder is the work directory, which is removed after training."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(os.environ.get("TENSORBOARD_LOGGING_DIR") or os.path.join("runs", name)))


def _open_wandb(name: str, stack: ExitStack) -> None:
    """Open a W&B run, which ends with `stack`. A run that the caller has opened is used, and left to the caller."""
    import wandb

    if wandb.run is not None:
        return
    try:
        run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=name)
    except wandb.errors.Error as error:
        raise UsageError(f"report_to: wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline") from error
    stack.push(lambda kind, error, trace: run.finish(exit_code=int(kind is not None)))


def _plain(text: str) -> str:
    """A model's text as a cell: control characters replaced, at most _LONGEST characters."""
    kept = "\n\u200c\u200d"  # the last two join letters, as in Persian
    shown = "".join(char if char.isprintable() or char in kept else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."
