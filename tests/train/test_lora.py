"""Where the adapter sits."""

import copy
from collections.abc import Callable

import pytest
import torch

from enrich.errors import UsageError
from enrich.settings.training import TrainSettings
from enrich.train.lora import add_lora, count_parameters, merge_only, optimizer
from tests.testing.tiny_phi3v import Tiny


def test_only_the_language_model_is_trained_in_float32_on_a_bf16_base(
    tiny: Tiny, make_settings: Callable[..., TrainSettings]
) -> None:
    base = copy.deepcopy(tiny.model).to(torch.bfloat16)
    adapted = add_lora(base, make_settings(lora_r=4, lora_alpha=8))
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0] for name in trained} == {
        f"base_model.model.model.layers.{layer}.{module}"
        for layer in (0, 1)
        for module in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    frozen = {parameter.dtype for name, parameter in adapted.named_parameters() if name not in trained}
    assert frozen == {torch.bfloat16}
    # r * (in + out): 32 hidden, 96 fused query, key and value, 48 of the MLP twice
    each_layer = 4 * ((32 + 96) + (32 + 32) + (32 + 96) + (48 + 32))
    assert count_parameters(adapted) == (2 * each_layer, tiny.model.num_parameters() + 2 * each_layer)


def test_an_unknown_target_module_is_refused(tiny: Tiny, make_settings: Callable[..., TrainSettings]) -> None:
    with pytest.raises(UsageError) as raised:
        add_lora(copy.deepcopy(tiny.model), make_settings(target_modules=("qkv_proj", "q_proj")))
    assert str(raised.value) == (
        "target_modules: no decoder layer has 'q_proj'; choose from down_proj, gate_up_proj, o_proj, qkv_proj"
    )


def test_the_output_layer_learns_at_its_own_rate(tiny: Tiny, make_settings: Callable[..., TrainSettings]) -> None:
    for asked, rates in (({"output_learning_rate": 1e-2}, {1e-3: 16, 1e-2: 2}), ({}, {1e-3: 16})):
        settings = make_settings(learning_rate=1e-3, **asked)
        adapted = add_lora(copy.deepcopy(tiny.model), settings)
        # A and B of four modules in each of two layers, and of lm_head
        assert {group["lr"]: len(group["params"]) for group in optimizer(adapted, settings).param_groups} == rates


def test_the_vision_side_is_adapted_where_asked_for_but_its_dead_layer(
    tiny: Tiny, make_settings: Callable[..., TrainSettings]
) -> None:
    adapted = add_lora(copy.deepcopy(tiny.model), make_settings(adapt_vision=True, target_modules=["o_proj"]))
    names = {name.split(".lora_")[0].removeprefix("base_model.model.model.") for name, _ in adapted.named_parameters()}
    vision = "vision_embed_tokens"
    assert {name for name in names if "lora" not in name and name.startswith(vision) and "weight" not in name} >= {
        f"{vision}.img_projection.0",
        f"{vision}.img_projection.2",
        *(
            f"{vision}.img_processor.vision_model.encoder.layers.{layer}.{module}"
            for layer in (0, 1)  # of 3
            for module in (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
        ),
    }
    assert not any(
        "encoder.layers.2" in name and parameter.requires_grad for name, parameter in adapted.named_parameters()
    )


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ()),
        ({"use_rslora": True, "lora_r": 512, "output_learning_rate": 1e-3}, ()),
        ({"adapt_vision": True}, ("adapt_vision: vLLM has LoRA on the language model only",)),
        ({"use_dora": True, "lora_r": 513}, ("use_dora: vLLM has no DoRA", "lora_r 513: vLLM takes at most 512")),
    ],
)
def test_what_vllm_could_not_serve_unmerged_is_told(
    changes: dict[str, object], reasons: tuple[str, ...], make_settings: Callable[..., TrainSettings]
) -> None:
    assert merge_only(make_settings(**changes)) == reasons
