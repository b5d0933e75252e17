"""An adapter whose base was moved: found next to it or where the user says, and never another model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enrich.engines.transformers_engine import base_of, load_engine, open_adapter
from enrich.errors import UsageError
from enrich.models.checkpoint import weights_signature
from enrich.settings.load import load_settings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.train.recipe import resolve_model
from tests.testing.random_adapter import write_random_adapter
from tests.testing.tiny_phi3v import tiny_phi3v


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """An adapter and its base, which then were moved into a folder each."""
    torch.set_num_threads(1)
    base = tiny_phi3v(tmp_path / "made").path
    adapter = write_random_adapter(tmp_path / "adapter", base, num_crops=2)
    (adapter / "train.json").write_text(json.dumps({"base_weights": weights_signature(base)}))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    return adapter.rename(tmp_path / "a/adapter"), base.rename(tmp_path / f"b/{base.name}")


def test_a_moved_base_is_named_and_served(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, base = places
    with pytest.raises(UsageError, match=r"no such directory.*; or say where its base is now with --base$"):
        open_adapter(adapter)
    opened = open_adapter(adapter, str(base))
    assert base_of(opened) == base
    load_engine(opened, RunSettings(device="cpu")).close()
    monkeypatch.chdir(base.parent)
    assert load_settings(RunSettings, base=base.name).base == str(base)  # workers on other machines start elsewhere


def test_a_base_that_was_moved_with_its_adapter_is_found_next_to_it(places: tuple[Path, Path]) -> None:
    adapter, base = places
    beside = base.rename(adapter.parent / base.name)
    assert base_of(open_adapter(adapter)) == beside


def test_another_model_of_the_same_shape_is_not_taken_for_the_base(places: tuple[Path, Path]) -> None:
    adapter, base = places
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"has other weights than the base it was made from .* with --base, or fine-tune"
    ):
        open_adapter(adapter, str(base))


def test_a_copy_of_the_base_in_another_precision_is_the_base(places: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, base = places
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    weights = load_file(base / "model.safetensors")
    save_file({name: t.to(torch.bfloat16) for name, t in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    assert base_of(open_adapter(adapter, str(copy))) == copy


def test_a_relative_model_is_recorded_in_full(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, base = places
    monkeypatch.chdir(base.parent)
    assert resolve_model(TrainSettings(model=base.name), gpu=False).model == str(base)
