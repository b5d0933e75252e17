"""The training loop's set-up and what is left of it when it is over."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import set_seed

from enrich.errors import RunFailed
from enrich.models.phi3_vision import Phi3VForCausalLM
from enrich.settings.training import TrainSettings
from enrich.train.callbacks import MAX_SKIPPED_IN_A_ROW, FiniteGuard, Reporter, Schedule
from enrich.train.collate import Collator, Photos
from enrich.train.evaluate import evaluate
from enrich.train.kernels import compile_layers, worth_compiling
from enrich.train.lora import add_lora, count_parameters, optimizer
from enrich.train.record import Stopped, Training, TrainProgress
from enrich.train.tracking import PROJECT, UNTRACKED, Tracking
from enrich.train.trainer import AnswerTrainer, early_stopping, last_checkpoint, training_arguments


def fit(
    model: Phi3VForCausalLM,
    photos: Photos,
    unseen: Photos,
    settings: TrainSettings,
    checkpoints: Path,
    *,
    progress: Callable[[TrainProgress], None],
    tracking: Tracking = UNTRACKED,
    deadline: float = math.inf,
) -> tuple[PeftModel, Training]:
    """Train an adapter on `photos`, from the last of `checkpoints` if there is one, and return its best state.

    Args:
        model: the base; the adapter is added to it in place.
        unseen: what the evaluations are made on.
        tracking: see `tracked`.
        deadline: on time.monotonic's clock; past it the run evaluates once more and stops.

    Raises:
        RunFailed: gradients stayed non-finite, or GPU memory ran out. Checkpoints stay.
    """
    set_seed(settings.seed)
    adapted = add_lora(model, settings)
    length = 0
    if worth_compiling(settings, model.device, len(photos)):
        compile_layers(model)
        length = max(len(example.input_ids) for example in photos.examples)
    schedule, guard, reporter = Schedule(settings.evaluations, deadline), FiniteGuard(), Reporter(progress)
    arguments = training_arguments(
        settings, checkpoints, device=model.device, dtype=model.dtype, workers=photos.workers
    )
    arguments.report_to, arguments.run_name, arguments.project = list(tracking.report_to), tracking.run_name, PROJECT
    trainer = AnswerTrainer(
        model=adapted,
        args=arguments,
        photos=photos,
        settings=settings,
        guard=guard,
        evaluate_step=lambda step: evaluate(adapted, unseen, settings, step=step, said=tracking.said),
        callbacks=[schedule, reporter, early_stopping(settings), *tracking.callbacks],
        eval_dataset=unseen,
        data_collator=Collator(photos.processor.tokenizer.pad_token_id, length, settings.price_weight),
        optimizers=(optimizer(adapted, settings), None),
    )
    last = last_checkpoint(checkpoints)
    try:
        # Under autocast A and B are cast to bf16 in the product; PEFT would cast their inputs to float32 instead and
        # keep those for the backward pass, a fifth of the peak memory.
        with disable_input_dtype_casting(adapted, active=model.dtype == torch.bfloat16):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"training: GPU memory ran out at batch_size {settings.batch_size}; lower it (effective_batch_size keeps "
            "the result), or set gradient_checkpointing: true, and start again: it goes on from its last checkpoint"
        ) from error
    if guard.diverged:
        raise RunFailed(_diverged(trainer))
    return adapted, _training(trainer, schedule, reporter)


def _training(trainer: AnswerTrainer, schedule: Schedule, reporter: Reporter) -> Training:
    trainable, parameters = count_parameters(trainer.model)
    state = trainer.state
    cut: Stopped = "out of time" if schedule.out_of_time else "no improvement"
    return Training(
        trainable_parameters=trainable,
        parameters=parameters,
        steps=state.global_step,
        planned_steps=state.max_steps,
        skipped_steps=len(trainer.skipped),
        skipped=tuple(trainer.skipped),
        stopped="finished" if state.global_step >= state.max_steps else cut,
        evaluations=tuple(trainer.evaluations),
        best=max(trainer.evaluations, key=lambda evaluation: evaluation.score),
        images_per_second=reporter.images_per_second(trainer.args),
    )


def _diverged(trainer: AnswerTrainer) -> str:
    kept, last = trainer.state.best_model_checkpoint, trainer.skipped[-1]
    return (
        f"training: {MAX_SKIPPED_IN_A_ROW} steps in a row, the last of them {last.step} ({last.named}), had a "
        f"non-finite gradient; lower learning_rate and start again"
        + (f"; the best adapter so far is kept in {kept}" if kept else "")
    )
