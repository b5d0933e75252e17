"""When a run evaluates, saves and stops, how it handles non-finite gradients, and how it reports progress."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from enrich.train.device import broadcast
from enrich.train.record import Evaluation, Skipped, TrainProgress

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 300.0  # of work that a killed run loses at most; a checkpoint takes about a second
WARM_UP_STEPS = 3  # left out of rates: layers are compiled, kernels chosen and memory allocated in them
MAX_SKIPPED_IN_A_ROW = 5  # one bad batch passes, a model that has diverged does not


class Schedule(TrainerCallback):
    """Evaluates and saves at `evaluations` even steps, the last of them the end, and saves in between by the clock."""

    def __init__(self, evaluations: int, deadline: float = math.inf) -> None:
        self._evaluations = evaluations
        self._deadline = deadline  # on time.monotonic's clock
        self._steps: set[int] = set()
        self._saved = time.monotonic()
        self.out_of_time = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        self._steps = {
            math.ceil(state.max_steps * part / self._evaluations) for part in range(1, self._evaluations + 1)
        }

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        if state.global_step < state.max_steps and broadcast(now > self._deadline):
            self.out_of_time = control.should_training_stop = True
        control.should_evaluate = self.out_of_time or state.global_step in self._steps
        control.should_save = control.should_evaluate or broadcast(now - self._saved > CHECKPOINT_SECONDS)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()


class Epochs(TrainerCallback):
    """Tells `begin` the number of each epoch, from 0, before its first batch is loaded; also of one that is resumed."""

    def __init__(self, begin: Callable[[int], object]) -> None:
        self._begin = begin

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begin(int(state.epoch or 0))  # a whole number, or within the epoch that is resumed


class FiniteGuard(TrainerCallback):
    """Skips steps whose gradient is not finite (after a NaN loss, for example), and stops after several in a row.

    One NaN would enter AdamW's moments and from there every weight, for good. The products of a skipped step are
    logged and, with Trainer's history, written to checkpoints and train.json.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._batches: list[tuple[Sequence[str], torch.Tensor]] = []
        self.diverged = False

    def trained(self, product_codes: Sequence[str], loss: torch.Tensor) -> None:
        """Remember a batch of the current step. Its loss is not read yet: that would wait for the GPU."""
        self._batches.append((product_codes, loss))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._batches.clear()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: torch.nn.Module, **_: Any
    ) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            self._in_a_row = 0
            return
        model.zero_grad(set_to_none=True)  # the optimiser passes over parameters without a gradient
        self._in_a_row += 1
        skipped = Skipped(step=state.global_step + 1, product_codes=self._culprits())
        logger.warning("step %d skipped: its gradient is not finite (%s)", skipped.step, skipped.named)
        state.log_history.append({"skipped": True, **skipped.model_dump(mode="json")})  # kept with checkpoints
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            self.diverged = control.should_training_stop = True

    def _culprits(self) -> tuple[str, ...]:
        """Products of the batches whose own loss is not finite; of all where only the gradient is not."""
        broken = [codes for codes, loss in self._batches if not loss.isfinite()]
        return tuple(chain.from_iterable(broken or [codes for codes, _ in self._batches]))


class Reporter(TrainerCallback):
    """Turns Trainer's logs into TrainProgress, once a step, and measures the rate of training proper."""

    def __init__(self, progress: Callable[[TrainProgress], None]) -> None:
        self._progress = progress
        self._evaluation: Evaluation | None = None
        self._started = 0.0
        self._seconds: list[float] = []  # of each step

    def images_per_second(self, args: TrainingArguments) -> float:
        """Photos trained a second, without evaluation and saving, and without the first `WARM_UP_STEPS`."""
        counted = self._seconds[WARM_UP_STEPS:] or self._seconds[-1:]
        images = len(counted) * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return images / sum(counted) if counted else 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        # Here, not at the step's end: the loss has been read, so the GPU has done the step.
        self._seconds.append(time.perf_counter() - self._started)
        self._progress(
            TrainProgress(
                stage="training",
                step=state.global_step,
                steps=state.max_steps,
                loss=logs["loss"],
                evaluation=self._evaluation,
            )
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **_: Any
    ) -> None:
        self._evaluation = metrics["evaluation"]
