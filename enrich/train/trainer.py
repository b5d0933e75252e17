"""transformers' Trainer with generation-based evaluation, and adapters as its checkpoints."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from accelerate import PartialState
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from enrich.errors import UsageError, first_line
from enrich.settings.training import TrainSettings
from enrich.train.callbacks import FiniteGuard
from enrich.train.collate import Collator, Item, Photos, embed_images
from enrich.train.lora import optimizer
from enrich.train.record import Evaluation, Skipped

_NEVER = 10**9  # steps; callbacks.Schedule decides
WARMUP = 0.03  # share of the steps in which the learning rate rises, unless `optimizer` says otherwise


class AnswerTrainer(Trainer):
    """Trainer whose evaluation is `evaluate_step(step)`.

    The loss is the sum over the answer tokens of an optimiser step divided by their number (num_items_in_batch), so
    neither accumulation, unequal answers nor the number of GPUs change its scale.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        model: PeftModel,
        args: TrainingArguments,
        photos: Photos,
        settings: TrainSettings,
        evaluate_step: Callable[[int], Evaluation],
        callbacks: list[TrainerCallback],
        length: int = 0,  # see `Collator`
    ) -> None:
        self.guard = FiniteGuard()
        super().__init__(
            model,
            args,
            Collator(photos.processor, length, settings.price_weight),
            train_dataset=photos,
            eval_dataset=photos,  # never read, but Trainer asks for one
            callbacks=[self.guard, *callbacks],
            optimizers=(optimizer(model, settings, args), None),
        )
        self.remove_callback(PrinterCallback)
        self._photos = photos
        self._settings = settings
        self._evaluate_step = evaluate_step

    def get_train_dataloader(self) -> DataLoader[Item]:
        """Stock, with workers that end by themselves."""
        loader = super().get_train_dataloader()
        loader.base_dataloader.worker_init_fn = _without_exit_hooks  # of the one that accelerate's loader wraps
        return loader

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Stock, after the batch's photos are made ready. New features are cached during the GPU's backward pass.

        An epoch's last batch may have fewer rows. It runs uncompiled: code for it would cost more than it saves.
        """
        rows = inputs["rows"]
        full = len(rows) == self.args.per_device_train_batch_size
        with torch.compiler.set_stance("default" if full else "force_eager"):
            batch = embed_images(self.model, inputs, self._photos, self._settings)
            # Trainer switches the cache off in the outer configuration; a language model with its own would keep keys
            # and values, and be compiled once a layer, up to the limit of 8.
            loss = super().training_step(model, {**batch, "use_cache": False}, *args, **kwargs)
        self.guard.trained([self._photos.examples[row].product.product_code for row in rows], loss)
        self._photos.keep()
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Score generated answers; `eval_score` chooses the weights that are kept."""
        evaluation = self._evaluate_step(self.state.global_step)
        logged = {f"eval_{name}": value for name, value in evaluation.model_dump(exclude={"step"}).items()}
        self.log(logged)
        metrics = {**logged, "evaluation": evaluation}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Adapter weights only. Left to itself, PEFT asks the hub on each save whether the vocabulary grew."""
        self.model.save_pretrained(output_dir or self.args.output_dir, save_embedding_layers=False)

    @property
    def evaluations(self) -> list[Evaluation]:
        """All so far, those before a resumption included."""
        return [
            Evaluation(step=entry["step"], **{name: entry[f"eval_{name}"] for name in _EVALUATED})
            for entry in self.state.log_history
            if "eval_score" in entry
        ]

    @property
    def skipped(self) -> list[Skipped]:
        """Steps skipped because their gradient was not finite, including those before a resumption."""
        return [
            Skipped(step=entry["step"], product_codes=tuple(entry["product_codes"]))
            for entry in self.state.log_history
            if "skipped" in entry
        ]


def _without_exit_hooks(_worker: int) -> None:
    """Let a forked worker end without the exit hooks of its parent's threads.

    Prefect's (3.7.7) raises in a worker once a flow has logged, since a fork does not copy the thread that it waits
    for. The DataLoader takes the worker's exit code 1 for a failure, and training would stop at the end of the epoch.
    """
    threading._threading_atexits.clear()  # type: ignore[attr-defined]


_EVALUATED = [name for name in Evaluation.model_fields if name != "step"]


def training_arguments(
    settings: TrainSettings, output_dir: Path, *, device: torch.device, dtype: torch.dtype
) -> TrainingArguments:
    """`settings` as Trainer's arguments. A bf16 base runs under autocast, since the adapter on it is float32.

    Raises:
        UsageError: the processes' batches do not make up an effective batch, or `optimizer` holds a wrong value.
    """
    processes = PartialState().num_processes
    if settings.effective_batch_size % (settings.batch_size * processes):
        raise UsageError(
            f"effective_batch_size {settings.effective_batch_size} is not a multiple of batch_size "
            f"{settings.batch_size} times {processes} processes; lower batch_size or raise effective_batch_size"
        )
    chosen = {"lr_scheduler_type": "cosine", "warmup_steps": WARMUP} | _checked(settings.optimizer)
    try:
        arguments = TrainingArguments(**_fixed(settings, output_dir, device, dtype), **chosen)
    except ValueError as error:  # of a choice, such as lr_scheduler_type
        raise UsageError(f"optimizer: {first_line(error)}; change that value") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # Trainer would split batches over all GPUs it sees (DataParallel)
    return arguments


def _checked(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the types of TrainingArguments' fields, which it does not check itself."""
    kinds, checked = get_type_hints(TrainingArguments), {}
    for name, value in optimizer.items():
        try:
            checked[name] = TypeAdapter(kinds[name]).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"optimizer.{name}: {error.errors()[0]['msg']}; change that value") from error
    return checked


def _fixed(settings: TrainSettings, output_dir: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """All arguments except those that `settings.optimizer` may contain."""
    accumulated = settings.effective_batch_size // (settings.batch_size * PartialState().num_processes)
    return {
        "output_dir": str(output_dir.absolute()),
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "bf16": dtype == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": settings.seed,
        "dataloader_pin_memory": device.type == "cuda",
        "accelerator_config": {"non_blocking": device.type == "cuda"},
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # it would wait for the GPU at every pass; callbacks.FiniteGuard sees to it
        "remove_unused_columns": False,  # batches are built for the model's forward
        "eval_strategy": "steps",
        "eval_steps": _NEVER,
        "save_strategy": "steps",
        "save_steps": _NEVER,
        "save_total_limit": 2,  # the newest and the best
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_score",
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,  # early stopping's count
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a process may have died in the middle of the next one."""
    found = [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _is_whole(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())  # Trainer writes it last
    except (OSError, ValueError):
        return False
    return True
