import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from enrich.models.phi3_vision import Phi3VConfig, register
from tests.testing.published_phi3v import LONG, ORIGINAL_FILE, SHORT
from tests.testing.tiny_phi3v import random_model, tiny_config


def load(tmp_path: Path, changes: dict[str, Any]) -> Phi3VConfig:
    (tmp_path / "config.json").write_text(json.dumps({**ORIGINAL_FILE, **changes}))
    return AutoConfig.from_pretrained(tmp_path)


def test_the_original_file_loads_without_remote_code(tmp_path: Path) -> None:
    config = load(tmp_path, {})
    assert type(config) is Phi3VConfig
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (3072, 32, 32064)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 32000)
    assert config.dtype == torch.bfloat16
    assert config.sliding_window is None
    assert config._attn_implementation is None
    assert config.rope_parameters == {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 4096,
        "factor": 32.0,
    }
    vision = config.vision_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (1024, 4096, 24)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (16, 336, 14)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    assert config.tokens_per_side == 12


def test_phi_3_5_vision_loads(tmp_path: Path) -> None:
    changes = {"sliding_window": 262144, "pad_token_id": 32000, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    config = load(tmp_path, changes)
    assert config.sliding_window is None
    assert config.rope_parameters["rope_type"] == "longrope"


def test_a_saved_configuration_loads_alone_and_names_no_code(tmp_path: Path) -> None:
    config = load(tmp_path, {})
    saved = tmp_path / "saved"
    config.save_pretrained(saved)
    written = json.loads((saved / "config.json").read_text())
    assert written["model_type"] == "phi3_v"
    assert written["img_processor"] == ORIGINAL_FILE["img_processor"]
    assert written["embd_layer"] == ORIGINAL_FILE["embd_layer"]
    for name in ("rope_scaling", "rope_theta", "original_max_position_embeddings", "max_position_embeddings"):
        assert written[name] == ORIGINAL_FILE[name]  # code that knows no rope_parameters would take plain positions
    assert written["rope_parameters"] == config.rope_parameters
    assert "auto_map" not in written
    assert "_attn_implementation" not in written
    again = AutoConfig.from_pretrained(saved)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.rope_parameters == config.rope_parameters
    assert "rope_theta" not in vars(again)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == written


def test_a_saved_file_loses_nothing_that_only_the_newer_form_can_say(tmp_path: Path) -> None:
    rope = {**tiny_config().rope_parameters, "attention_factor": 1.5, "rope_theta": 5000.0}
    tiny_config(rope_scaling=None, rope_parameters=rope).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 5000.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


def test_plain_positions_are_written_as_such(tmp_path: Path) -> None:
    tiny_config(rope_scaling=None).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["rope_scaling"], written["rope_parameters"]["rope_type"]) == (None, "default")
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_type"] == "default"


def test_a_file_whose_two_forms_of_the_positions_differ_is_refused(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["rope_scaling"]["long_factor"][1] = 3.0
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"^long_factor of rope_scaling and of rope_parameters differ; drop"):
        AutoConfig.from_pretrained(tmp_path)


def test_sizes_of_the_vision_tower_come_from_the_file() -> None:
    config = tiny_config()
    assert config.vision_config.hidden_size == 16
    assert config.tokens_per_side == 2
    assert config.img_processor is not None
    assert (config.img_processor["image_dim_out"], config.img_processor["num_img_tokens"]) == (16, 4)
    # The original's own key for the width.
    assert Phi3VConfig(img_processor={"image_dim_out": 512}).vision_config.hidden_size == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_processor": {"image_size": 35, "patch_size": 7}}, "image_size 35 must be a multiple of twice the patch"),
        ({"img_processor": {"layer_idx": -1}}, "img_processor: layer_idx=-1 is not supported, only -2 is"),
        (
            {"img_processor": {"type_feature": "cls_patch"}},
            "img_processor: type_feature='cls_patch' is not supported",
        ),
        ({"img_processor": {"num_img_tokens": 100}}, "img_processor: num_img_tokens=100 is not supported, only 144 is"),
        (
            {"img_processor": {"hidden_size": 64, "image_dim_out": 32}},
            "img_processor: image_dim_out=32 is not supported, only 64 is",
        ),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "embd_layer: hd_transform_order='glb_sub' is not sup"),
        ({"embd_layer": {"use_hd_transform": False}}, "embd_layer: use_hd_transform=False is not supported"),
    ],
)
def test_what_is_not_implemented_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VConfig(**changes)


def test_attention_implementation_reaches_the_tower() -> None:
    for choice in ("eager", "sdpa"):
        config = tiny_config(attn_implementation=choice)
        model = random_model(config)
        assert model.config._attn_implementation == choice
        tower = model.model.vision_embed_tokens.img_processor["vision_model"]
        assert tower.config._attn_implementation == choice


def test_long_rope_scale_and_switch(tmp_path: Path) -> None:
    rope = Phi3RotaryEmbedding(load(tmp_path, {}))
    assert rope.attention_scaling == 1.1902380714238083
    assert rope.attention_scaling == math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    powers = 10000.0 ** (torch.arange(0, 96, 2) / 96)
    for positions, factors in ((4096, SHORT), (4097, LONG), (100, SHORT)):
        rope(torch.zeros(1), torch.arange(positions)[None])
        torch.testing.assert_close(rope.inv_freq, 1 / (torch.tensor(factors) * powers))


def test_registering_again_is_harmless() -> None:
    register()
    register()
    assert type(AutoConfig.for_model("phi3_v")) is Phi3VConfig
