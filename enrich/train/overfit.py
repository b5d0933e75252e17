"""The first test of any training: can it memorise a single batch? If not, no amount of photos will help."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments, set_seed

from enrich.answers.prompt import Prompt
from enrich.errors import PermanentFailure
from enrich.settings.training import TrainSettings
from enrich.storage.scratch import scratch
from enrich.train.callbacks import Reporter
from enrich.train.device import device_and_dtype
from enrich.train.examples import build_examples
from enrich.train.lora import add_lora, uncast_lora_inputs
from enrich.train.opening import open_model, open_photos, open_processor
from enrich.train.record import Evaluation, TrainProgress
from enrich.train.trainer import AnswerTrainer, training_arguments
from enrich.vocabulary import Product

LEARNED = 0.01  # mean loss of an answer token: each is then given a probability of 0.99
MAX_STEPS = 300
# Regularisation, which would only slow this down.
_PLAIN = {
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "weight_decay": 0.0,
    "neftune_noise_alpha": None,
}
_SHOWN = 5  # losses in a message


def overfit_one_batch(
    products: Sequence[Product],
    prompt: Prompt,
    settings: TrainSettings,
    base: Path,
    *,
    on_progress: Callable[[TrainProgress], None] = lambda state: None,
) -> tuple[float, ...]:
    """Train on the first `settings.batch_size` products only, until the loss is below `LEARNED`.

    Training is a run's own, except for a constant learning rate and no regularisation. Nothing is evaluated or kept.

    Returns:
        The loss of each step, the last of them below `LEARNED`.

    Raises:
        UsageError: products or settings are not usable.
        RunFailed: the loss was not reached in `MAX_STEPS` steps; the message ends with what to look at.
    """
    batch = products[: settings.batch_size]
    changes = {"optimizer": {**settings.optimizer, **_PLAIN}, "epochs": float(MAX_STEPS), "price_weight": 1}
    settings = settings.model_copy(update={**changes, "batch_size": len(batch), "effective_batch_size": len(batch)})
    device, dtype = device_and_dtype(settings.device)
    processor = open_processor(base, settings)
    examples, _ = build_examples(batch, processor, prompt, settings)
    set_seed(settings.seed)
    model = open_model(base, settings, device, dtype)
    losses = _Losses(on_progress)
    with scratch() as folder:
        photos = open_photos(model, examples, processor, settings, folder / "features")
        adapted = add_lora(model, settings)
        arguments = training_arguments(settings, folder / "none", device=device, dtype=dtype)
        trainer = AnswerTrainer(
            model=adapted,
            args=arguments,
            photos=photos,
            settings=settings,
            evaluate_step=_never,
            callbacks=[losses],
        )
        with uncast_lora_inputs(adapted):
            trainer.train()
    if trainer.guard.diverged:
        raise PermanentFailure(_not_learned(losses.seen, settings, "; its gradient is not finite"))
    if losses.seen[-1] >= LEARNED:
        raise PermanentFailure(_not_learned(losses.seen, settings, ""))
    return tuple(losses.seen)


def describe_losses(losses: Sequence[float]) -> str:
    """The last few losses with their steps, as a line to print."""
    shown = losses[-_SHOWN:]
    first = len(losses) - len(shown) + 1
    return f"loss of steps {first} to {len(losses)}: " + ", ".join(f"{loss:.4f}" for loss in shown)


class _Losses(Reporter):
    """Also keeps the loss of each step, stops once it is low enough, and lets nothing be saved or evaluated."""

    def __init__(self, progress: Callable[[TrainProgress], None]) -> None:
        super().__init__(progress)
        self.seen: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_evaluate = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        super().on_log(args, state, control, logs)
        if "loss" in logs:
            self.seen.append(logs["loss"])
            control.should_training_stop = control.should_training_stop or logs["loss"] < LEARNED


def _never(step: int) -> Evaluation:
    raise AssertionError(f"evaluated at step {step}")


def _not_learned(losses: Sequence[float], settings: TrainSettings, why: str) -> str:
    falling = all(map(math.isfinite, losses)) and losses[-1] < 0.7 * losses[len(losses) // 2]
    advice = (
        "it is still falling: raise learning_rate"
        if falling
        else "lower learning_rate, then raise lora_r; if that changes nothing, photos, answers or model are at fault"
    )
    return (
        f"one batch of {settings.batch_size} photos was not memorised in {len(losses)} steps at learning_rate "
        f"{settings.learning_rate:g}{why}; {describe_losses(losses)}, not below {LEARNED}; {advice}"
    )
