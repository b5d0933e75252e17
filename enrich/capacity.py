"""Which published models fit this machine's memory: estimates from their sizes, without their weights.

The trial step of `enrich finetune --dry-run` measures what these numbers estimate.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

from enrich.models.base import Family, Published
from enrich.models.registry import families
from enrich.photos.prompt_size import MOST_TOKENS
from enrich.pipeline.versions import VLLM, installed
from enrich.settings.training import TrainSettings

GIB = 1 << 30
_ROW = 800  # tokens of a product in training: a photo of 757, the question and the answer
_SPARE = 1.5 * GIB  # CUDA itself, the vision tower's activations, logits
_VLLM_SHARE = 0.9  # of the memory, which vLLM takes


@dataclass(frozen=True)
class Machine:
    """Where models are trained and served: the largest GPU, else the process's memory."""

    name: str
    memory: int  # bytes
    number_bytes: int  # of a weight: bfloat16 on a GPU, float32 without one


@dataclass(frozen=True)
class Need:
    """The memory that a model needs, in bytes."""

    family: Family
    model: Published
    train: float  # with the default batch_size
    train_least: float  # with batch_size 1 and gradient_checkpointing
    serve: float  # with room for one prompt of the greatest length; more room answers more photos at a time
    missing: tuple[str, ...]  # packages that an installed vLLM lacks for it

    def fits(self, machine: Machine) -> str:
        """What this machine can do with the model; `train*` as in `train_least`."""
        does = {
            "train": self.train <= machine.memory,
            "train*": self.train_least <= machine.memory < self.train,
            "serve": self.serve <= machine.memory,
        }
        found = ", ".join(what for what, fits in does.items() if fits) or "too large"
        return found + (f"; vLLM needs {', '.join(self.missing)}" if does["serve"] and self.missing else "")


def this_machine() -> Machine:
    """Loads torch."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if gpus:
        largest = max(gpus, key=lambda gpu: gpu.total_memory)
        return Machine(largest.name, largest.total_memory, 2)
    return Machine("CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 4)


def needs(machine: Machine) -> Iterator[Need]:
    """The needs of all published models of the families on such a machine. Loads torch and transformers."""
    for family in families():
        wanted = family.load().vllm_imports if installed(*VLLM) else ()
        missing = tuple(name for name in wanted if importlib.util.find_spec(name) is None)
        for model in family.published:
            yield Need(family, model, *_memory(model, machine.number_bytes), missing)


def _memory(model: Published, number: int) -> tuple[float, float, float]:
    """The memory for training, for training with as little as possible, and for serving."""
    settings = TrainSettings()
    weights = number * model.parameters * 1e9
    # Inputs and outputs of the linears of a layer; A and B with gradient and both moments of AdamW, in float32.
    adapter = 16 * settings.lora_r * model.layers * (9 * model.hidden + 3 * model.intermediate)
    layer = number * (10 * model.hidden + 5 * model.intermediate)  # what a token leaves for the backward pass
    train = settings.batch_size * _ROW * model.layers * layer
    least = _ROW * (layer + number * model.layers * model.hidden)
    keys_and_values = MOST_TOKENS * model.kv_bytes * number / 2
    fixed = weights + adapter + _SPARE
    return fixed + train, fixed + least, (weights + keys_and_values + _SPARE) / _VLLM_SHARE
