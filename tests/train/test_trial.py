"""The trial step before training: it changes nothing, covers the longest rows, and refuses what does not fit."""

import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from enrich.errors import UsageError
from enrich.settings.training import TrainSettings
from enrich.train import opening, trial
from enrich.train import run as run_module
from enrich.train.collate import Photos
from enrich.train.features import FeatureCache
from enrich.train.fit import adapt
from enrich.train.run import rehearse
from enrich.train.trial import Trial, try_longest_batch
from tests.testing.tiny_families import MAKERS, write_member
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
    monkeypatch.setattr(run_module, "try_longest_batch", lambda *_: Trial(0, 1.0))
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
    trial = try_longest_batch(adapted, cached, settings, arguments)
    assert len(stepped) == 2 * 16  # A and B of four modules in each of two layers; the second step is timed
    assert any(moment.any() for moment in stepped)
    assert trial.memory_bytes > 2**20
    assert 0.1 < trial.products_per_second < 1000
    assert all(torch.equal(weight, expected[name]) for name, weight in adapted.state_dict().items())
    assert all(parameter.grad is None for parameter in adapted.parameters())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert cached.cache is not None
    assert not any(cached.cache.has([row]) for row in range(len(photos)))


def test_the_longest_rows_are_tried_in_a_step_and_an_evaluation(
    photos: Photos, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Photos] = []

    def seen(_: object, longest: Photos, *__: object, **___: object) -> torch.Tensor:
        tried.append(longest)
        return torch.zeros(())

    for name in ("_step", "generate"):
        monkeypatch.setattr(trial, name, seen)
    settings = job.settings(batch_size=2, effective_batch_size=2)
    arguments = job.arguments(settings, tmp_path)
    try_longest_batch(adapt(job.model(), settings, len(photos)), photos, settings, arguments)
    lengths = sorted(len(example.input_ids) for example in photos.examples)
    assert [[len(example.input_ids) for example in longest.examples] for longest in tried] == [lengths[:-3:-1]] * 3


def _full(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation.")


def _refused(job: TinyJob, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(run_module, "fit", trained)
    with pytest.raises(UsageError) as raised:
        job.train(folder, **changes)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 4, "effective_batch_size": 4},
            "4 photos; set load_in_4bit: true, lower photo_tokens, or use a larger GPU",
        ),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "adapt_vision": True, "num_crops": 2},
            "photo; lower num_crops, or use a larger GPU",
        ),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "adapt_vision": True, "num_crops": 1},
            "photo; use a larger GPU",
        ),
    ],
)
def test_where_no_batch_fits_the_gpu_training_is_refused_with_what_to_change(
    changes: dict[str, Any], message: str, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", _full)
    expected = f"GPU memory: it ran out in a trial step on the longest {message}"
    assert _refused(job, tmp_path, monkeypatch, **changes) == expected


@pytest.mark.parametrize(
    ("rows", "checkpointed_rows", "changes", "advice"),
    [
        (2, 2, {"batch_size": 4}, "set batch_size: 2, which"),
        (1, 4, {"batch_size": 4}, "set batch_size: 1, which"),
        (0, 4, {"batch_size": 4}, "set gradient_checkpointing: true, which"),
        (0, 1, {"batch_size": 4}, "set batch_size: 1 and gradient_checkpointing: true, which"),
        (0, 1, {"batch_size": 4, "gradient_checkpointing": True}, "set batch_size: 1, which"),
        (0, 1, {"batch_size": 1}, "set gradient_checkpointing: true, which"),
    ],
)
def test_too_small_a_gpu_is_refused_with_settings_that_fit(
    rows: int, checkpointed_rows: int, changes: dict[str, Any], advice: str,
    job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A GPU with room for so many rows, or with gradient checkpointing for so many, once the last step has left it."""
    make = trial._step
    held: list[weakref.ref[torch.Tensor]] = []

    def step(model: PeftModel, photos: Photos, items: Any, settings: TrainSettings, arguments: Any) -> torch.Tensor:
        assert not any(tensor() is not None for tensor in held)
        activations = torch.ones(1)
        held.append(weakref.ref(activations))
        loss = make(model, photos, items, settings, arguments)
        if len(photos) > (checkpointed_rows if settings.gradient_checkpointing else rows):
            _full()
        return loss

    monkeypatch.setattr(trial, "_step", step)
    refusal = _refused(job, tmp_path, monkeypatch, effective_batch_size=4, **changes)
    ran_out, _, fits = refusal.removeprefix("GPU memory: it ran out in a trial step on the longest ").partition("; ")
    assert ran_out == ("4 photos" if changes["batch_size"] > 1 else "photo")
    assert fits.startswith(advice)
    assert fits.endswith("GiB without changing results, or use a larger GPU")


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_a_base_that_does_not_fit_is_refused(
    load_in_4bit: bool, job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_model", _full)
    advice = "" if load_in_4bit else "set load_in_4bit: true, or "
    assert _refused(job, tmp_path, monkeypatch, load_in_4bit=load_in_4bit) == (
        f"GPU memory: it ran out in loading the base; {advice}use a larger GPU"
    )


def test_the_measured_memory_stands_next_to_the_size_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 16 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    told = "measured in a trial step on the largest photos and longest answers; the 1,200 steps take"
    assert Trial(12 << 30, 33.0).describe(torch.device("cuda"), 33 * 60 * 17, 1200) == (
        f"memory: 12.0 GiB of the GPU's 16.0 GiB, and 33 products/s, {told} at most 17 min, without evaluations"
    )
    assert Trial(3 << 29, 5.81).describe(CPU, 100, 1200) == (
        f"memory: 1.5 GiB of the process, and 5.81 products/s, {told} at most 1 min, without evaluations"
    )


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_member_of_any_family_is_tried(kind: str, job: TinyJob, tmp_path: Path) -> None:
    base = write_member(kind, tmp_path / "base")
    prompt, settings = job.prompt, job.settings(model=str(base), photo_tokens=64, batch_size=2, effective_batch_size=2)
    told: list[str] = []
    tried = rehearse(job.products, job.products, prompt, settings, base, on_message=told.append)
    assert told[-1] == tried.describe(CPU, len(job.products) * settings.epochs, 240)
    assert [line.partition(":")[0] for line in told] == ["trained", "learned of product P0", "photos", "memory"]
