"""Fine-tuning of a tiny random base on solid colours, whose titles name them: learnable only from the photo."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from enrich.answers.prompt import Prompt
from enrich.settings.training import TrainSettings
from enrich.train.collate import Photos
from enrich.train.examples import Example, build_examples
from enrich.train.features import FeatureCache
from enrich.train.record import Dropped, TrainProgress, TrainReport
from enrich.train.run import train
from enrich.train.trainer import training_arguments
from enrich.vocabulary import Product
from tests.testing.tiny_phi3v import Tiny


@dataclass(frozen=True)
class TinyJob:
    """What to teach, and the base to teach it to."""

    tiny: Tiny  # or a Member, which has path, processor and model as well
    products: list[Product]
    prompt: Prompt
    own: Mapping[str, object] = field(default_factory=dict)  # settings that suit the base

    def settings(self, **changes: object) -> TrainSettings:
        values: dict[str, object] = {
            "model": str(self.tiny.path),
            "learning_rate": 1e-2,
            "epochs": 80,
            "batch_size": 5,
            "effective_batch_size": 5,
            "evaluations": 2,
            "device": "cpu",
        }
        return TrainSettings.model_validate({**values, **self.own, **changes})

    def model(self) -> Any:
        """The base, to be changed."""
        return copy.deepcopy(self.tiny.model)

    def build(
        self, products: Sequence[Product], prompt: Prompt | None = None, **changes: object
    ) -> tuple[list[Example], list[Dropped]]:
        return build_examples(products, self.tiny.processor, prompt or self.prompt, self.settings(**changes))

    def arguments(self, settings: TrainSettings, folder: Path) -> TrainingArguments:
        return training_arguments(settings, folder, device=torch.device("cpu"), dtype=torch.float32)

    def photos(self, cache: FeatureCache | None = None) -> Photos:
        return Photos(self.build(self.products)[0], self.tiny.processor, self.settings().limits, cache)

    def train(
        self,
        workdir: Path,
        products: Sequence[Product] | None = None,
        base: Path | None = None,
        on_progress: Callable[[TrainProgress], None] = lambda state: None,
        on_message: Callable[[str], object] = lambda line: None,
        **changes: object,
    ) -> tuple[TrainReport, list[TrainProgress]]:
        """Fine-tune with changed settings; the report, and the progress that was told."""
        told: list[TrainProgress] = []

        def progress(state: TrainProgress) -> None:
            told.append(state)
            on_progress(state)

        rows = products or self.products
        report = train(
            rows, rows, self.prompt, self.settings(**changes), base or self.tiny.path, workdir,
            data_fingerprint="data", on_progress=progress, on_message=on_message,
        )  # fmt: skip
        return report, told


def weights(workdir: Path) -> dict[str, torch.Tensor]:
    """Of the adapter that was trained there."""
    return load_file(workdir / "adapter" / "adapter_model.safetensors")
