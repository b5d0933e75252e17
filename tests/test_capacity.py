"""How much memory published models need: their sizes are those of their configurations, the estimate is near what was
measured, and `enrich doctor` shows all of them."""

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.gemma4.configuration_gemma4 import Gemma4Config
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

from enrich import capacity
from enrich.capacity import GIB, Machine, Need, needs
from enrich.models.base import Published
from enrich.models.phi3_vision import Phi3VConfig, Phi3VForCausalLM
from enrich.models.registry import families
from tests.testing.cli import RunCli

H200 = Machine("a GPU", 140 * GIB, 2)


def qwen(hidden: int, layers: int, intermediate: int, heads: int, *vision: int) -> Any:
    width, depth, inner = vision
    return Qwen3VLConfig(
        text_config={
            "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate,
            "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        vision_config={"hidden_size": width, "depth": depth, "intermediate_size": inner, "out_hidden_size": hidden},
        tie_word_embeddings=hidden < 4096,
    )  # fmt: skip


def smol(hidden: int, layers: int, intermediate: int, kv_heads: int, *vision: int) -> Any:
    width, depth, inner, size, patch, scale = vision
    return SmolVLMConfig(
        text_config={
            "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": 49280,
            "intermediate_size": intermediate, "num_attention_heads": hidden // 64, "num_key_value_heads": kv_heads,
            "head_dim": 64, "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": width, "num_hidden_layers": depth, "intermediate_size": inner, "image_size": size,
            "patch_size": patch, "num_attention_heads": 12 if width == 768 else 16,
        },
        scale_factor=scale,
        tie_word_embeddings=False,
    )  # fmt: skip


def gemma(hidden: int, layers: int, intermediate: int, kv_heads: int, shared: int, every: int) -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma4Config(
        text_config={
            "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": intermediate,
            "num_key_value_heads": kv_heads, "num_kv_shared_layers": shared, "use_double_wide_mlp": every == 5,
            "layer_types": [kinds[number % every == 0] for number in range(1, layers + 1)],
        },
        vision_config={"hidden_size": 768},
        audio_config={"hidden_size": 1024},
    )  # fmt: skip


CONFIGS = {
    "microsoft/Phi-3-vision-128k-instruct": Phi3VConfig(),
    "microsoft/Phi-3.5-vision-instruct": Phi3VConfig(),
    "Qwen/Qwen3-VL-2B-Instruct": qwen(2048, 28, 6144, 16, 1024, 24, 4096),
    "Qwen/Qwen3-VL-4B-Instruct": qwen(2560, 36, 9728, 32, 1024, 24, 4096),
    "Qwen/Qwen3-VL-8B-Instruct": qwen(4096, 36, 12288, 32, 1152, 27, 4304),
    "google/gemma-4-E2B-it": gemma(1536, 35, 6144, 1, 20, 5),
    "google/gemma-4-E4B-it": gemma(2560, 42, 10240, 2, 18, 6),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": smol(576, 30, 1536, 3, 768, 12, 3072, 512, 16, 4),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": smol(960, 32, 2560, 5, 768, 12, 3072, 512, 16, 4),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": smol(2048, 24, 8192, 32, 1152, 27, 4304, 384, 14, 3),
}
PUBLISHED = {model.name: model for family in families() for model in family.published}


def kv_bytes(text: Any) -> int:
    """In 16 bits, by the layers that keep their own."""
    own = text.num_hidden_layers - getattr(text, "num_kv_shared_layers", 0)
    heads = text.num_key_value_heads
    if text.model_type == "gemma4_text":  # heads of 256, those of full attention of 512
        return 2 * 2 * heads * 256 * (own + text.layer_types[:own].count("full_attention"))
    return 2 * 2 * heads * own * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_sizes_are_those_of_the_configuration(name: str) -> None:
    config, model = CONFIGS[name], PUBLISHED[name]
    with torch.device("meta"):
        empty: Any = (
            Phi3VForCausalLM(config)
            if isinstance(config, Phi3VConfig)
            else AutoModelForImageTextToText.from_config(config)
        )
    parameters = sum(parameter.numel() for parameter in empty.parameters()) / 1e9
    text = config.get_text_config()
    assert model.parameters == pytest.approx(parameters, rel=0.001)
    assert (model.layers, model.hidden) == (text.num_hidden_layers, text.hidden_size)
    assert (model.intermediate, model.kv_bytes) == (text.intermediate_size, kv_bytes(text))


def need(name: str, machine: Machine = H200) -> Need:
    return next(one for one in needs(machine) if one.model.name == name)


def test_the_estimate_is_near_what_was_measured() -> None:
    """benchmarks/finetuning: 36.5 GiB in batches of 8 on an H200; with gradient checkpointing they fit in 13."""
    found = need("microsoft/Phi-3-vision-128k-instruct")
    assert found.train / GIB == pytest.approx(36.5, rel=0.1)
    assert 8 < found.train_least / GIB < 13
    assert found.serve > (2 * 4.147e9 + 4096 * 393_216) / 0.9


def test_without_a_gpu_weights_are_twice_as_large() -> None:
    name = "Qwen/Qwen3-VL-4B-Instruct"
    assert need(name, Machine("CPU", 0, 4)).train_least - need(name).train_least > 2 * 4.4e9


@pytest.mark.parametrize(
    ("gibibytes", "missing", "fits"),
    [
        (80, (), "train, serve"),
        (16, (), "train*, serve"),
        (16, ("num2words",), "train*, serve; vLLM needs num2words"),
        (11, (), "train*"),
        (11, ("num2words",), "train*"),
        (4, ("num2words",), "too large"),
    ],
)
def test_what_fits_is_said(gibibytes: int, missing: tuple[str, ...], fits: str) -> None:
    model = Published("a/model", 4.0, 32, 3072, 8192, 393_216)
    found = Need(families()[0], model, 40 * GIB, 10 * GIB, 12 * GIB, missing)
    assert found.fits(Machine("a GPU", gibibytes * GIB, 2)) == fits


def test_packages_that_vllm_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    smallest = "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    monkeypatch.setattr(capacity, "installed", lambda *_: "0.32.0")
    assert need(smallest).missing == ("torchvision", "num2words")
    assert need("microsoft/Phi-3-vision-128k-instruct").missing == ()
    monkeypatch.setattr(capacity, "installed", lambda *_: None)  # transformers answers, which needs none of them
    assert need(smallest).missing == ()


def test_the_doctor_lists_all_of_them(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run_cli("doctor")
    for name in PUBLISHED:
        assert name in out, "names are whole on a terminal of 80 characters"
    assert "Estimated memory, for CPU with" in out
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert "Estimates" not in run_cli("doctor")[1]
