"""Fine-tuning as most scripts do it: stock transformers.Trainer and PEFT, a plain collator, logits everywhere."""

import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from enrich.models.auto.processor import PhotoProcessor
from enrich.models.protocols import Processor
from enrich.photos.decode import decode
from enrich.settings.training import TrainSettings
from enrich.train.examples import IGNORED, Example
from enrich.train.lora import add_lora


class PlainPhotos(Dataset[dict[str, Any]]):
    """What most scripts do: the image processor's output, float32 pixels and all."""

    def __init__(self, examples: list[Example], processor: Processor, settings: TrainSettings) -> None:
        self.examples, self.processor, self.settings = examples, processor, settings

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        photo = decode(Path(example.product.image_paths[0]).read_bytes(), self.settings.limits)
        return {
            "input_ids": torch.tensor(example.input_ids),
            "labels": torch.tensor(example.labels),
            "images": _image_tensors(self.processor, photo),
        }


def _image_tensors(processor: Processor, photo: Image.Image) -> dict[str, torch.Tensor]:
    """The image processor's own, with a dimension of photos where it makes one."""
    if isinstance(processor, PhotoProcessor):
        made = processor.images(photo, return_tensors="pt")
        return {name: made[name] for name in processor.facts.tensors}
    made = processor.image_processor(photo)
    return {name: made[name] for name in ("pixel_values", "image_sizes")}


def collate_plainly(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def padded(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    return {
        "input_ids": ids,
        "labels": padded("labels", IGNORED),
        "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        **{name: torch.cat([item["images"][name] for item in items]) for name in items[0]["images"]},
    }


class StepClock(TrainerCallback):
    def __init__(self, steps: list[tuple[float, float]]) -> None:
        self.steps = steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.steps.append((time.perf_counter(), logs["loss"]))


def train_plainly(
    model: PreTrainedModel, examples: list[Example], processor: Processor, settings: TrainSettings, work: Path,
    steps: list[tuple[float, float]],
) -> None:  # fmt: skip
    """The same adapter on the same data through stock transformers.Trainer and stock PEFT."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work), per_device_train_batch_size=settings.batch_size, num_train_epochs=settings.epochs,
        gradient_accumulation_steps=settings.effective_batch_size // settings.batch_size,
        learning_rate=settings.learning_rate, bf16=cuda, use_cpu=not cuda, dataloader_num_workers=8 if cuda else 0,
        remove_unused_columns=False, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    dataset = PlainPhotos(examples, processor, settings)
    adapted = add_lora(model, settings)
    Trainer(adapted, arguments, collate_plainly, dataset, callbacks=[StepClock(steps)]).train()
