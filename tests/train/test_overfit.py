"""Memorising one batch."""

import math
from pathlib import Path

import pytest

from enrich.errors import RunFailed
from enrich.train import overfit
from enrich.train.overfit import LEARNED, describe_losses, overfit_one_batch
from enrich.train.record import TrainProgress
from tests.testing.tiny_job import TinyJob


def test_one_batch_is_learned_by_heart(job: TinyJob, tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    settings = job.settings(batch_size=4, effective_batch_size=8, optimizer={"neftune_noise_alpha": 50})
    losses = overfit_one_batch(job.products, job.prompt, settings, job.tiny.path, on_progress=told.append)
    assert losses[-1] < LEARNED <= min(losses[:-1])
    assert losses[0] > 1.0
    assert [progress.loss for progress in told] == list(losses)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_learned_is_a_failure_that_says_what_to_do(job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "MAX_STEPS", 7)
    with pytest.raises(RunFailed) as raised:
        overfit_one_batch(job.products, job.prompt, job.settings(learning_rate=1e-7), job.tiny.path)
    message = str(raised.value)
    assert message.startswith(
        "one batch of 5 photos was not memorised in 7 steps at learning_rate 1e-07; loss of steps 3 to 7: "
    )
    assert message.endswith(
        ", not below 0.01; lower learning_rate, then raise lora_r; if that changes nothing, photos, answers or model "
        "are at fault"
    )
    monkeypatch.setattr(overfit, "MAX_STEPS", 12)
    with pytest.raises(RunFailed, match=r"it is still falling: raise learning_rate$"):
        overfit_one_batch(job.products, job.prompt, job.settings(learning_rate=1e-2), job.tiny.path)


def test_losses_are_shown_from_their_end() -> None:
    assert describe_losses([3.0, 2.0, 1.0, 0.5, 0.1, 0.05, 0.009]) == (
        "loss of steps 3 to 7: 1.0000, 0.5000, 0.1000, 0.0500, 0.0090"
    )
    assert describe_losses([math.nan]) == "loss of steps 1 to 1: nan"
