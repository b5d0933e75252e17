"""Checkpoints as they are published: 592 tensors in shards, the raw config.json of either model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from enrich.models.checkpoint import load_model
from enrich.models.hub import resolve
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM
from enrich.models.registry import supported
from tests.testing.published_phi3v import ORIGINAL_FILE, expected_tensors

# Narrow, but of the published depth, with one head of the published width.
NARROW: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "img_processor": {
        **ORIGINAL_FILE["img_processor"],
        "image_dim_out": 16,
        "num_img_tokens": 4,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    },
}
# What Phi-3.5-vision's config.json says otherwise; its factors are other numbers of the same kind.
PHI_3_5: dict[str, Any] = {
    "_name_or_path": "Phi-3.5-vision-instruct",
    "embd_pdrop": 0.0,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rope_scaling": {
        "long_factor": [factor * 1.1 for factor in ORIGINAL_FILE["rope_scaling"]["long_factor"]],
        "short_factor": [1.0 + 0.02 * index for index in range(48)],
        "type": "su",
    },
    "sliding_window": 262144,
    "transformers_version": "4.38.1",
}
CPU: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cpu"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def publish(path: Path, changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write a checkpoint as the original is: raw config.json, two shards and their index. Returns its tensors."""
    config = {**ORIGINAL_FILE, **NARROW, **changes}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Phi3VForCausalLM(Phi3VConfig.from_pretrained(path))
    torch.manual_seed(0)
    tensors = {name: torch.randn(tensor.shape).bfloat16() for name, tensor in model.state_dict().items()}
    names = list(tensors)
    weight_map = {name: SHARDS[number >= len(names) // 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        held = {name: tensor for name, tensor in tensors.items() if weight_map[name] == shard}
        save_file(held, path / shard, metadata={"format": "pt"})
    total_size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def stored(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a sharded checkpoint, found where its index says."""
    index = json.loads((path / "model.safetensors.index.json").read_text())
    found = {}
    for shard in set(index["weight_map"].values()):
        with safe_open(path / shard, "pt") as file:
            assert set(file.keys()) == {name for name, where in index["weight_map"].items() if where == shard}
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
    return found


@pytest.mark.parametrize("changes", [{}, PHI_3_5], ids=["phi-3-vision", "phi-3.5-vision"])
def test_published_shards_load_and_are_saved_under_their_names(tmp_path: Path, changes: dict[str, Any]) -> None:
    published = publish(tmp_path / "published", changes)
    assert published.keys() == expected_tensors().keys()
    assert len(published) == 592
    model = load_model(tmp_path / "published", **CPU)
    assert model.config.rope_parameters["short_factor"] == {**ORIGINAL_FILE, **changes}["rope_scaling"]["short_factor"]
    model.save_pretrained(tmp_path / "saved", max_shard_size="5MB")
    assert len(list((tmp_path / "saved").glob("model-*-of-*.safetensors"))) > 2
    load_model(tmp_path / "saved", **CPU).save_pretrained(tmp_path / "again", max_shard_size="5MB")
    for directory in ("saved", "again"):
        found = stored(tmp_path / directory)
        assert found.keys() == published.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in published.items())


def lose_a_shard(path: Path) -> str:
    (path / SHARDS[1]).unlink()
    return f"{path}: no {SHARDS[1]}; give a complete checkpoint directory"


def lose_the_index(path: Path) -> str:
    (path / "model.safetensors.index.json").unlink()
    missing = "no model.safetensors and no model.safetensors.index.json"
    return f"{path}: {missing}; give a complete checkpoint directory"


def cut_a_shard(path: Path) -> str:
    (path / SHARDS[1]).write_bytes((path / SHARDS[1]).read_bytes()[:-100])
    reason = "Error while deserializing header: incomplete metadata, file not fully covered"
    return f"{path}/{SHARDS[1]} is damaged: {reason}; fetch it again"


def cut_the_index(path: Path) -> str:
    (path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    return f"{path}/model.safetensors.index.json is damaged; fetch it again"


def change_the_architecture(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    why = "model_type 'llava' needs code from its own repository (auto_map), which is never run"
    return f"{path}: {why}; choose one of {supported()}"


@pytest.mark.parametrize("harm", [lose_a_shard, lose_the_index, cut_a_shard, cut_the_index, change_the_architecture])
def test_a_checkpoint_that_is_not_whole_is_one_clear_message(tmp_path: Path, harm: Any) -> None:
    publish(tmp_path / "published", {"num_hidden_layers": 1})
    message = harm(tmp_path / "published")
    for attempt in (lambda: resolve(str(tmp_path / "published")), lambda: load_model(tmp_path / "published", **CPU)):
        with pytest.raises((OSError, ValueError)) as caught:
            attempt()
        assert str(caught.value) == message
