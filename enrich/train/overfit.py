"""The first test of any training: can it learn a single batch by heart? If not, no amount of photos will help."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from enrich.answers.prompt import Prompt
from enrich.errors import RunFailed
from enrich.models.phi3_vision.checkpoint import load_processor
from enrich.photos.decode import PREPARATION_VERSION
from enrich.settings.training import TrainSettings
from enrich.storage.scratch import scratch
from enrich.train.callbacks import FiniteGuard, Reporter
from enrich.train.collate import Collator
from enrich.train.device import device_and_dtype
from enrich.train.examples import build_examples
from enrich.train.kernels import load_base
from enrich.train.lora import add_lora, optimizer
from enrich.train.record import Evaluation, TrainProgress
from enrich.train.run import model_errors, open_photos
from enrich.train.trainer import AnswerTrainer, training_arguments
from enrich.vocabulary import Product

LEARNED = 0.01  # mean loss of an answer token: each is then given a probability of 0.99
MAX_STEPS = 300
_SHOWN = 5  # losses in a message


def overfit_one_batch(
    products: Sequence[Product],
    prompt: Prompt,
    settings: TrainSettings,
    base: Path,
    *,
    progress: Callable[[TrainProgress], None] = lambda told: None,
    max_steps: int | None = None,
) -> tuple[float, ...]:
    """Train on the first `settings.batch_size` products only, until the loss is below `LEARNED`.

    The way of training is the run's own, but for what works against learning by heart: no dropout, no weight decay, a
    constant learning rate. Nothing is evaluated and nothing is kept.

    Returns:
        The loss of each step, the last of them below `LEARNED`.

    Raises:
        UsageError: products or settings are no good.
        RunFailed: the loss was not reached in `max_steps` steps (by default `MAX_STEPS`); the message ends with what to
            look at.
    """
    batch = products[: settings.batch_size]
    steps = max_steps or MAX_STEPS
    changes = {"lora_dropout": 0.0, "weight_decay": 0.0, "epochs": float(steps)}
    settings = settings.model_copy(update={**changes, "batch_size": len(batch), "effective_batch_size": len(batch)})
    device, dtype = device_and_dtype(settings.device)
    with model_errors(settings):
        processor = load_processor(
            base,
            num_crops=settings.num_crops,
            fast_decode=settings.fast_decode,
            preparation_version=PREPARATION_VERSION,
        )
    examples, _ = build_examples(batch, processor, prompt, settings)
    set_seed(settings.seed)
    with model_errors(settings):
        model = load_base(base, settings, device=device, dtype=dtype)
    losses, guard = _Losses(), FiniteGuard()
    with scratch() as folder:
        photos = open_photos(model, examples, processor, settings, folder / "features")
        adapted = add_lora(model, settings)
        arguments = training_arguments(settings, folder / "none", device=device, dtype=dtype, workers=0)
        arguments.lr_scheduler_type = SchedulerType.CONSTANT
        trainer = AnswerTrainer(
            model=adapted,
            args=arguments,
            photos=photos,
            settings=settings,
            guard=guard,
            evaluate_step=_never,
            callbacks=[Reporter(progress), losses],
            eval_dataset=photos,
            data_collator=Collator(processor.tokenizer.pad_token_id),
            optimizers=(optimizer(adapted, settings), None),
        )
        with disable_input_dtype_casting(adapted, active=dtype == torch.bfloat16):  # as in `fit`
            trainer.train()
    if guard.diverged:
        raise RunFailed(_not_learned(losses.seen, settings, "; its gradient is not finite"))
    if losses.seen[-1] >= LEARNED:
        raise RunFailed(_not_learned(losses.seen, settings, ""))
    return tuple(losses.seen)


def describe_losses(losses: Sequence[float]) -> str:
    """The end of the curve, for people: the last few losses and where they stand."""
    shown = losses[-_SHOWN:]
    first = len(losses) - len(shown) + 1
    return f"loss of steps {first} to {len(losses)}: " + ", ".join(f"{loss:.4f}" for loss in shown)


class _Losses(TrainerCallback):
    """Keeps the loss of each step, stops once it is low enough, and lets nothing be saved or evaluated."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_evaluate = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.seen.append(logs["loss"])
            control.should_training_stop = control.should_training_stop or logs["loss"] < LEARNED


def _never(step: int) -> Evaluation:
    raise AssertionError(f"evaluated at step {step}")


def _not_learned(losses: Sequence[float], settings: TrainSettings, why: str) -> str:
    falling = losses[-1] < 0.7 * losses[len(losses) // 2] if all(map(math.isfinite, losses)) else False
    advice = (
        "it still falls: raise learning_rate"
        if falling
        else "lower learning_rate, then raise lora_r; if that changes nothing, photos, answers or model are at fault"
    )
    return (
        f"one batch of {settings.batch_size} photos was not learned by heart in {len(losses)} steps at learning_rate "
        f"{settings.learning_rate:g}{why}; {describe_losses(losses)}, not below {LEARNED}; {advice}"
    )
