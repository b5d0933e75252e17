"""Estimates beside measurements, and which settings are advised where a GPU is too small."""

import pytest
import torch

from enrich.settings.training import TrainSettings
from enrich.train.estimate import (
    Shape,
    Work,
    first_that_fits,
    memory,
    seconds,
    smaller_settings,
    sustained_rate,
)

# Phi-3-vision's language model alone, as it was measured: random weights in bf16, LoRA r 16 on all linear layers.
PHI3 = Shape(
    parameters=3_821_079_552,
    trainable=25_165_824,
    layer_parameters=32 * (9216 * 3072 + 3072 * 3072 + 16384 * 3072 + 3072 * 8192),
    vision_parameters=0,
    layers=32,
    hidden=3072,
    intermediate=8192,
    key_value=3072,
    vocabulary=32064,
    crop_positions=577,
    vision_layers=23,
    vision_hidden=1024,
    itemsize=2,
)
LENGTH, ANSWER = 817, 45
# One NVIDIA H200, torch 2.11, transformers 5.17, peft 0.21, November 2026: sequences of 817 positions given as
# embeddings (45 of them answer), SDPA, fused AdamW, full steps.
#   batch, logits at, checkpointing, compiled: samples/s, peak GiB
MEASURED = [
    (1, LENGTH, False, False, 6.0, 11.5),
    (8, LENGTH, False, False, 21.1, 39.1),
    (8, ANSWER + 1, False, False, 21.5, 36.4),
    (16, ANSWER + 1, False, False, 22.2, 65.3),
    (16, ANSWER + 1, True, False, 15.4, 12.8),
    (32, ANSWER + 1, True, False, 15.7, 18.1),
    (8, ANSWER + 1, False, True, 32.2, 31.0),
    (16, ANSWER + 1, False, True, 33.0, 54.5),
]


@pytest.mark.parametrize(("rows", "kept", "checkpointing", "compiled", "_", "measured"), MEASURED)
def test_memory_is_what_an_h200_measured(
    rows: int, kept: int, checkpointing: bool, compiled: bool, _: float, measured: float
) -> None:
    found = memory(PHI3, rows=rows, length=LENGTH, kept=kept, checkpointing=checkpointing, compiled=compiled)
    assert (found.weights + found.adapter + found.training) / 2**30 == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    ("rows", "checkpointing", "rate"),
    [(rows, checkpointing, rate) for rows, _, checkpointing, compiled, rate, _ in MEASURED if not compiled],
)
def test_time_is_what_an_h200_measured(
    rows: int, checkpointing: bool, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    device = torch.device("cuda")
    settings = TrainSettings(
        batch_size=rows, effective_batch_size=rows, gradient_checkpointing=checkpointing, evaluations=1
    )
    work = Work(photos=0, unseen=0, steps=1000, mean_length=LENGTH, answer=ANSWER)
    took = seconds(PHI3, work, settings, device, sustained_rate(device, torch.bfloat16))
    assert 1000 * rows / took == pytest.approx(rate, rel=0.15)


def test_time_counts_features_once_or_at_every_look() -> None:
    work = Work(photos=100, unseen=10, steps=100, mean_length=LENGTH, answer=ANSWER)
    shape = Shape(**{**vars(PHI3), "vision_parameters": 3e8})
    cpu = torch.device("cpu")
    cached, fresh = (
        seconds(shape, work, TrainSettings(cache_vision_features=cache, evaluations=2), cpu, rate=1e14)
        for cache in (True, False)
    )
    one = 2 * 3e8 * 5 * 577 / 1e14
    assert fresh - cached == pytest.approx((100 * 16 + 2 * 10 - 110) * one)


def test_an_evaluation_may_need_more_than_a_step_with_checkpoints() -> None:
    found = memory(PHI3, rows=1, length=4000, kept=1, checkpointing=True)
    keys_and_values = 2 * 32 * 2 * 3072 * 4000
    assert found.evaluation > max(keys_and_values, found.training)
    assert found.total == found.weights + found.adapter + found.evaluation


def test_the_rate_of_this_machine_is_timed() -> None:
    rate = sustained_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e13


def test_an_unknown_gpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr("enrich.train.estimate._matmul_rate", lambda device, dtype: 1e14)
    assert sustained_rate(torch.device("cuda"), torch.bfloat16) == pytest.approx(0.35e14)


def test_smaller_settings_lower_the_batch_then_recompute() -> None:
    settings = TrainSettings(batch_size=6, effective_batch_size=12)
    sizes = [6, 4, 3, 2, 1]

    def tried(settings: TrainSettings) -> list[tuple[int, bool, bool]]:
        found = smaller_settings(settings)
        return [(each.batch_size, each.gradient_checkpointing, each.load_in_4bit) for each in found]

    ways = [(False, False), (True, False), (True, True)]
    assert tried(settings) == [(size, *way) for way in ways for size in sizes]
    assert tried(settings.model_copy(update={"gradient_checkpointing": True})) == tried(settings)[5:]
    assert tried(settings.model_copy(update={"use_dora": True})) == tried(settings)[:10]


@pytest.mark.parametrize(
    ("available", "fits"),
    [
        (44, (8, False, False)),
        (16, (2, False, False)),
        (10, (4, True, False)),
        (7, (8, True, True)),
        (1, None),
    ],
)
def test_the_first_settings_that_fit_are_advised(available: float, fits: tuple[int, bool, bool] | None) -> None:
    def needed(settings: TrainSettings) -> int:
        return memory(
            PHI3,
            rows=settings.batch_size,
            length=LENGTH,
            kept=ANSWER + 1,
            checkpointing=settings.gradient_checkpointing,
            load_in_4bit=settings.load_in_4bit,
        ).total

    found = first_that_fits(smaller_settings(TrainSettings(batch_size=16)), needed, int(available * 2**30))
    assert (found and (found.batch_size, found.gradient_checkpointing, found.load_in_4bit)) == fits


def test_an_adapted_tower_keeps_what_its_backward_pass_needs() -> None:
    given = {"rows": 2, "length": LENGTH, "kept": 46, "checkpointing": False}
    more = memory(PHI3, **given, adapted_crops=5).training - memory(PHI3, **given).training
    assert more == 2 * 5 * 577 * 23 * 34 * 1024
    given["checkpointing"] = True
    more = memory(PHI3, **given, adapted_crops=5).training - memory(PHI3, **given).training
    assert more == 2 * 5 * 577 * (23 * 2 + 34) * 1024


def test_a_4bit_base_takes_a_quarter_of_its_layers() -> None:
    given = {"rows": 1, "length": LENGTH, "kept": 46, "checkpointing": True}
    saved = memory(PHI3, **given).weights - memory(PHI3, **given, load_in_4bit=True).weights
    assert saved == int(1.48 * PHI3.layer_parameters)
