"""Checkpoints that cannot be used: one line each, with what to do. No code of a checkpoint is ever run."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig

from enrich.models.checkpoint import load_model, load_processor
from enrich.models.hub import resolve
from enrich.models.registry import CheckpointError
from tests.testing.tiny_families import write_member

SUPPORTED = "Gemma 4 (gemma4), Phi-3-vision (phi3_v), Qwen3-VL (qwen3_vl), SmolVLM2 (smolvlm)"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_member("qwen3_vl", tmp_path / "model")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        resolve(str(path))
    [line] = str(raised.value).splitlines()
    return line


def test_a_model_that_reads_text_only(whole: Path) -> None:
    LlamaConfig(num_hidden_layers=1).save_pretrained(whole)
    assert refusal(whole) == (
        f"{whole}: model_type 'llama' reads text only, and products are photos; choose one of {SUPPORTED}"
    )


@pytest.mark.parametrize("kind", ["kosmos-2.5", "qwen9_vl", 7])
def test_a_family_that_is_not_supported(whole: Path, kind: object) -> None:
    edit(whole / "config.json", lambda config: config.update(model_type=kind))
    assert refusal(whole) == f"{whole}: model_type {kind!r} is not supported; choose one of {SUPPORTED}"


def test_a_checkpoint_with_code_of_its_own_only(whole: Path) -> None:
    (whole / "modeling_own.py").write_text("raise SystemExit('it ran')")
    own = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    edit(whole / "config.json", lambda config: config.update(model_type="own_vl", auto_map=own))
    assert refusal(whole) == (
        f"{whole}: model_type 'own_vl' needs code from its own repository (auto_map), which is never run; "
        f"choose one of {SUPPORTED}"
    )


def test_code_next_to_a_known_family_is_not_run(whole: Path) -> None:
    (whole / "own.py").write_text("raise SystemExit('it ran')")
    maps = {
        "config.json": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"},
        "preprocessor_config.json": {"AutoImageProcessor": "own.Own"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.Own", "own.Own"]},
    }
    for name, own in maps.items():
        edit(whole / name, lambda config: config.update(auto_map=own))  # noqa: B023
    assert type(load_model(whole, dtype=torch.float32, device="cpu")).__module__.startswith("transformers.")
    processor: Any = load_processor(whole)
    assert type(processor.images).__module__.startswith("transformers.")


@pytest.mark.skipif(bool(find_spec("torchvision")), reason="the package is installed")
def test_a_processor_that_needs_a_package(whole: Path) -> None:
    """This one has no Pillow backend, and torchvision is not installed."""
    edit(whole / "preprocessor_config.json", lambda config: config.update(image_processor_type="Sam2ImageProcessor"))
    with pytest.raises(CheckpointError) as raised:
        load_processor(whole)
    assert str(raised.value) == (
        f"{whole}: its photos or text need the package torchvision; install it, or choose another model"
    )


@pytest.mark.parametrize("own", [{}, {"auto_map": {"AutoImageProcessor": "own.OwnImageProcessor"}}])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_photos_that_need_an_image_processor_of_the_checkpoints_own(
    whole: Path, file: str, own: dict[str, Any]
) -> None:
    (whole / "own.py").write_text("raise SystemExit('it ran')")
    photos, settings = whole / "preprocessor_config.json", {"image_processor_type": "OwnImageProcessor", **own}
    if file == photos.name:
        edit(photos, lambda config: config.update(settings))
    else:
        images = json.loads(photos.read_text()) | settings
        photos.unlink()
        edit(whole / file, lambda config: config.update(image_processor=images))
    with pytest.raises(CheckpointError) as raised:
        load_processor(whole)
    assert str(raised.value) == (
        f"{whole}: its photos need OwnImageProcessor, which transformers {transformers.__version__} does not have, and "
        "code from a model's repository is never run; give it the preprocessor_config.json of the model that it was "
        "tuned from"
    )


def test_a_base_that_does_not_follow_instructions(whole: Path) -> None:
    (whole / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template; use an instruction-tuned model"):
        load_processor(whole)


def test_a_checkpoint_without_settings_of_photos(whole: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        (whole / name).unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config.json; give a complete checkpoint directory"):
        load_processor(whole)


def test_newer_checkpoints_keep_settings_of_photos_in_the_processors_file(whole: Path) -> None:
    images = json.loads((whole / "preprocessor_config.json").read_text())
    (whole / "preprocessor_config.json").unlink()
    edit(whole / "processor_config.json", lambda config: config.update(image_processor=images))
    processor = load_processor(whole)
    assert processor.preparation.num_crops == 24
    processor.save(whole)  # one of the two places, so that they cannot disagree
    assert "image_processor" not in json.loads((whole / "processor_config.json").read_text())


def test_other_arrangements_of_patches(whole: Path) -> None:
    edit(whole / "preprocessor_config.json", lambda config: config.update(temporal_patch_size=4))
    with pytest.raises(CheckpointError, match="its image processor does not arrange photos as those of qwen3_vl;"):
        load_processor(whole)
