"""Set up and run the training loop, and summarise it."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments, set_seed

from enrich.answers.prompt import Prompt
from enrich.errors import PermanentFailure, RunFailed
from enrich.models.registry import vision_model
from enrich.settings.training import TrainSettings
from enrich.train.callbacks import MAX_SKIPPED_IN_A_ROW, Epochs, Reporter, Schedule
from enrich.train.collate import Photos
from enrich.train.evaluate import evaluate
from enrich.train.kernels import worth_compiling
from enrich.train.lora import add_lora, count_parameters, uncast_lora_inputs
from enrich.train.record import Stopped, Training, TrainProgress
from enrich.train.tracking import PROJECT, UNTRACKED, Tracking
from enrich.train.trainer import AnswerTrainer, last_checkpoint


def adapt(model: PreTrainedModel, settings: TrainSettings, photos: int) -> PeftModel:
    """Add the adapter to `model` in place, drawn from the seed, and compile the layers if that pays for `photos`."""
    set_seed(settings.seed)
    adapted = add_lora(model, settings)
    if worth_compiling(settings, model.device, photos):
        vision_model(model.config.model_type).compile_layers(model)
    return adapted


def fit(
    adapted: PeftModel,
    photos: Photos,
    unseen: Photos,
    settings: TrainSettings,
    prompt: Prompt,
    arguments: TrainingArguments,
    *,
    on_progress: Callable[[TrainProgress], None],
    tracking: Tracking = UNTRACKED,
    deadline: float = math.inf,
) -> Training:
    """Train the adapter on `photos`, from the last checkpoint if there is one, and leave it in its best state.

    Args:
        adapted: see `adapt`.
        unseen: the photos that evaluations are made on.
        prompt: whose answers are learned.
        arguments: see `training_arguments`; checkpoints are written to their output_dir.
        tracking: see `tracked`.
        deadline: on time.monotonic's clock; past it the run evaluates once more and stops.

    Raises:
        RunFailed: gradients stayed non-finite, or GPU memory ran out. Checkpoints stay.
    """
    compiled = worth_compiling(settings, adapted.device, len(photos))
    length = len(photos.longest(1).examples[0].input_ids) if compiled else 0
    schedule, reporter = Schedule(settings.evaluations, deadline), Reporter(on_progress)
    patience = EarlyStoppingCallback(early_stopping_patience=settings.patience)
    arguments.dataloader_num_workers = photos.workers
    arguments.report_to, arguments.run_name, arguments.project = list(tracking.report_to), tracking.run_name, PROJECT
    trainer = AnswerTrainer(
        model=adapted,
        args=arguments,
        photos=photos,
        settings=settings,
        evaluate_step=lambda step: evaluate(
            adapted, unseen, settings, prompt, step=step, keep_samples=tracking.keep_samples
        ),
        callbacks=[Epochs(photos.set_epoch), schedule, reporter, patience, *tracking.callbacks],
        length=length,
    )
    last = last_checkpoint(Path(arguments.output_dir))
    try:
        with uncast_lora_inputs(adapted):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"training: GPU memory ran out at batch_size {settings.batch_size}; lower it (effective_batch_size keeps "
            "the result), or set gradient_checkpointing: true, and run again: it continues from its last checkpoint"
        ) from error
    if trainer.guard.diverged:
        raise PermanentFailure(_diverged(trainer))
    return _training(trainer, schedule, reporter)


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
        f"non-finite gradient; lower learning_rate and run again"
        + (f"; the best adapter so far is kept in {kept}" if kept else "")
    )
