"""Fine-tuning a tiny random member of each generic family by the same call as the default model; one budget for all."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Cache

from enrich.models.adapted import load_merged
from enrich.models.base import crop_tokens
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.registry import vision_model
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from enrich.train.opening import open_processor
from enrich.train.record import TrainProgress
from tests.testing.tiny_families import MAKERS, write_member
from tests.testing.tiny_job import TinyJob, weights


@pytest.fixture(params=sorted(MAKERS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_member_of_each_family_learns_and_its_adapter_merges(family: str, job: TinyJob, tmp_path: Path) -> None:
    base = write_member(family, tmp_path / "base", vocabulary=0.2)
    report, told = job.train(
        tmp_path / "work", base=base, model=str(base), epochs=12, evaluations=1, photo_tokens=64, device="cpu"
    )
    losses = [progress.loss for progress in told if progress.loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    assert report.merge_check.ok
    assert (tmp_path / "work" / "train.features").exists()  # of the frozen tower, whatever the family makes
    adapter = tmp_path / "work" / "adapter"
    merged = load_merged(base, adapter, dtype=torch.float32, device="cpu")
    assert merged.config.model_type == family
    assert load_processor(adapter).preparation == open_processor(base, job.settings(photo_tokens=64)).preparation


def test_training_keeps_no_keys_and_values(any_job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take memory, and each layer would be compiled by itself. Generated answers need them."""
    kept, update = [], Cache.update

    def recorded(self: Cache, *given: Any, **named: Any) -> Any:
        kept.append(torch.is_grad_enabled())
        return update(self, *given, **named)

    monkeypatch.setattr(Cache, "update", recorded)
    any_job.train(tmp_path / "work", epochs=1, evaluations=1)
    assert set(kept) == {False}


def test_a_run_that_was_stopped_continues_as_if_nothing_had_happened(any_job: TinyJob, tmp_path: Path) -> None:
    """Between two checkpoints, with features that are cached by then and noise that must be drawn alike."""
    changes: dict[str, Any] = {
        "epochs": 4, "evaluations": 2, "batch_size": 2, "effective_batch_size": 4,
        "optimizer": {"neftune_noise_alpha": 1},
    }  # fmt: skip

    def stop(state: TrainProgress) -> None:
        if state.stage == "training" and state.step == 6:
            raise KeyboardInterrupt

    reference, _ = any_job.train(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        any_job.train(tmp_path / "stopped", on_progress=stop, **changes)
    resumed, told = any_job.train(tmp_path / "stopped", **changes)
    assert [state.step for state in told if state.stage == "training"] == [5, 6, 7, 8]
    assert resumed.evaluations == reference.evaluations
    found, expected = (weights(tmp_path / name) for name in ("stopped", "whole"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_4bit_base_of_each_family_learns_and_its_merge_is_what_was_trained(
    family: str, job: TinyJob, tmp_path: Path
) -> None:
    # bitsandbytes' CPU kernels take 64 numbers at a time.
    base = write_member(family, tmp_path / "base", vocabulary=0.2, hidden_size=128, intermediate_size=256)
    changes: dict[str, Any] = {"load_in_4bit": True, "epochs": 12, "evaluations": 1, "photo_tokens": 64}
    report, told = job.train(tmp_path / "work", base=base, model=str(base), **changes)
    losses = [progress.loss for progress in told if progress.loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    assert report.merge_check.ok
    assert report.merge_check.served is not None  # how far the full-precision base departs, which is reported
    packed = load_model(base, dtype=torch.float32, device="cpu", load_in_4bit=True)
    decoder = vision_model(family).decoder_linears(packed)
    quantized = [name for name, one in packed.named_modules() if type(one).__name__ == "Linear4bit"]
    assert quantized
    assert [name for name in quantized if not re.match(decoder, name)] == []  # tower, projector, output layer


@pytest.mark.parametrize(
    ("settings", "crops"),
    [
        ({}, (4, 1)),
        ({"num_crops": 9, "more_crops": 4}, (9, 4)),
        ({"photo_tokens": 250}, (1, 1)),
        ({"photo_tokens": 500, "more_photo_tokens": 750}, (2, 4)),
        ({"photo_tokens": 4096}, (16, 1)),
    ],
)
def test_one_budget_says_how_closely_the_default_model_looks(settings: dict[str, int], crops: tuple[int, int]) -> None:
    asked = TrainSettings.model_validate({"photos_per_product": 2, **settings})
    how = open_processor(TINY_MODEL_PATH, asked).preparation
    assert (how.num_crops, how.more_crops) == crops


def test_crops_said_in_tokens_are_the_same_crops() -> None:
    for crops in range(1, 17):
        how = load_processor(TINY_MODEL_PATH, photo_tokens=crop_tokens(crops)).preparation
        assert how.num_crops == crops


def test_two_ways_to_say_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="photo_tokens and num_crops set the same thing"):
        TrainSettings.model_validate({"photo_tokens": 500, "num_crops": 1})
