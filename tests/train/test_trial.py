"""The trial step before training: it changes nothing, covers the longest rows, and refuses what does not fit."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enrich.errors import UsageError
from enrich.train import run as run_module
from enrich.train import trial
from enrich.train.collate import Photos
from enrich.train.device import describe_memory
from enrich.train.features import FeatureCache
from enrich.train.fit import adapt
from enrich.train.trial import try_longest_batch
from tests.testing.tiny_job import TinyJob

CPU = torch.device("cpu")
# Two batches in a step, a smaller last batch, decay, and random noise in the embeddings.
MIXED = {"batch_size": 2, "effective_batch_size": 4, "optimizer": {"weight_decay": 0.1, "neftune_noise_alpha": 1}}


@pytest.mark.parametrize("changes", [{}, {"adapt_vision": True}, {"gradient_checkpointing": True}, MIXED], ids=str)
def test_training_is_bit_for_bit_what_it_is_without_the_trial(
    changes: dict[str, Any], job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> tuple[bytes, list[float | None]]:
        _, told = job.train(tmp_path / name, epochs=4, evaluations=2, **changes)
        weights = (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        return weights, [state.loss for state in told]

    tried = run("with")
    monkeypatch.setattr(run_module, "try_longest_batch", lambda *_: 0)
    assert run("without") == tried


def test_a_real_step_is_made_and_nothing_of_it_stays(
    photos: Photos, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job.settings(batch_size=2, effective_batch_size=2)
    expected = adapt(job.model(), settings, len(photos)).state_dict()
    stepped: list[torch.Tensor] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        step(self)
        stepped.extend(state["exp_avg"].clone() for state in self.state.values())

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    lengths = [example.num_image_tokens for example in photos.examples]
    cached = job.photos(FeatureCache(tmp_path / "features", lengths, 32, torch.float32))
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    adapted = adapt(job.model(), settings, len(photos))
    torch.set_rng_state(before[0])
    arguments = job.arguments(settings, tmp_path)
    peak = try_longest_batch(adapted, cached, settings, arguments)
    assert len(stepped) == 16  # A and B of four modules in each of two layers
    assert any(moment.any() for moment in stepped)
    assert peak > 2**20
    assert all(torch.equal(weight, expected[name]) for name, weight in adapted.state_dict().items())
    assert all(parameter.grad is None for parameter in adapted.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert cached.cache is not None
    assert not any(cached.cache.has([row]) for row in range(len(photos)))


def test_the_longest_rows_are_tried_in_a_step_and_an_evaluation(
    photos: Photos, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Photos] = []
    for name in ("_step", "generate"):
        monkeypatch.setattr(trial, name, lambda model, longest, *_, **__: tried.append(longest))
    settings = job.settings(batch_size=2, effective_batch_size=2)
    arguments = job.arguments(settings, tmp_path)
    try_longest_batch(adapt(job.model(), settings, len(photos)), photos, settings, arguments)
    lengths = sorted(len(example.input_ids) for example in photos.examples)
    assert [[len(example.input_ids) for example in longest.examples] for longest in tried] == [lengths[:-3:-1]] * 2


def _full(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 4, "effective_batch_size": 4},
            "4 photos; lower batch_size (effective_batch_size keeps the result), set gradient_checkpointing: true, "
            "set load_in_4bit: true, lower num_crops, or use a larger GPU",
        ),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "adapt_vision": True},
            "photo; lower num_crops, or use a larger GPU",
        ),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "adapt_vision": True, "num_crops": 1},
            "photo; use a larger GPU",
        ),
    ],
)
def test_a_step_that_the_gpu_has_no_memory_for_is_refused_before_training_with_what_to_change(
    changes: dict[str, Any], message: str, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(torch.optim.AdamW, "step", _full)
    monkeypatch.setattr(run_module, "fit", trained)
    with pytest.raises(UsageError) as raised:
        job.train(tmp_path, **changes)
    assert str(raised.value) == f"GPU memory: it ran out in a trial step on the longest {message}"


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_base_that_does_not_fit_is_refused(
    load_in_4bit: bool, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load_model", _full)
    with pytest.raises(UsageError) as raised:
        job.train(tmp_path, load_in_4bit=load_in_4bit)
    advice = "" if load_in_4bit else "set load_in_4bit: true, or "
    assert str(raised.value) == f"GPU memory: it ran out in loading the base; {advice}use a larger GPU"


def test_the_measured_memory_stands_beside_the_size_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 16 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert describe_memory(12 << 30, torch.device("cuda")) == (
        "memory: 12.0 GiB of the GPU's 16.0 GiB, measured in a trial step on the longest photos and answers"
    )
    assert describe_memory(3 << 29, CPU) == (
        "memory: 1.5 GiB of the process, measured in a trial step on the longest photos and answers"
    )
