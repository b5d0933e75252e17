"""Where the adapter sits."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from enrich.errors import UsageError
from enrich.models.registry import vision_model
from enrich.settings.load import load_settings
from enrich.settings.training import OPTIMIZER_FIELDS, TrainSettings
from enrich.train import trainer
from enrich.train.lora import add_lora, count_parameters, merge_only, optimizer
from tests.testing.tiny_job import TinyJob


def test_only_the_language_model_is_trained_in_float32_on_a_bf16_base(job: TinyJob) -> None:
    base = job.model().to(torch.bfloat16)
    adapted = add_lora(base, job.settings(lora_r=4, lora_alpha=8))
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
    assert count_parameters(adapted) == (2 * each_layer, job.tiny.model.num_parameters() + 2 * each_layer)


def test_an_unknown_target_module_is_refused(job: TinyJob) -> None:
    with pytest.raises(UsageError) as raised:
        add_lora(job.model(), job.settings(target_modules=("qkv_proj", "q_proj")))
    assert str(raised.value) == (
        "target_modules: no decoder layer has 'q_proj'; choose from down_proj, gate_up_proj, o_proj, qkv_proj"
    )


def test_the_output_layer_learns_at_its_own_rate(job: TinyJob, tmp_path: Path) -> None:
    for asked, rates in (({"output_learning_rate": 1e-2}, {1e-3: 16, 1e-2: 2}), ({}, {1e-3: 16})):
        settings = job.settings(learning_rate=1e-3, **asked)
        adapted = add_lora(job.model(), settings)
        # A and B of four modules in each of two layers, and of lm_head
        made = optimizer(adapted, settings, job.arguments(settings, tmp_path))
        assert {group["lr"]: len(group["params"]) for group in made.param_groups} == rates


def test_the_optimizer_mapping_reaches_the_optimiser(job: TinyJob, tmp_path: Path) -> None:
    def made(**given: object) -> torch.optim.Optimizer:
        settings = job.settings(optimizer=given, output_learning_rate=1e-2)
        return optimizer(add_lora(job.model(), settings), settings, job.arguments(settings, tmp_path))

    plain, changed = made(), made(weight_decay=0.1, adam_beta2=0.95)
    assert {(type(plain), group["weight_decay"], group["betas"]) for group in plain.param_groups} == {
        (torch.optim.AdamW, 0.0, (0.9, 0.999))
    }
    assert {(group["weight_decay"], group["betas"]) for group in changed.param_groups} == {(0.1, (0.9, 0.95))}
    assert type(made(optim="adafactor")).__name__ == "Adafactor"


def test_the_schedule_is_a_cosine_after_a_warm_up_unless_the_mapping_says_otherwise(
    job: TinyJob, tmp_path: Path
) -> None:
    plain = job.arguments(job.settings(), tmp_path)
    assert (plain.lr_scheduler_type, plain.warmup_steps, plain.max_grad_norm) == ("cosine", 0.03, 1.0)
    given = {"lr_scheduler_type": "linear", "warmup_steps": "1e-1", "max_grad_norm": 2}
    changed = job.arguments(job.settings(optimizer=given), tmp_path)
    assert (changed.lr_scheduler_type, changed.warmup_steps, changed.max_grad_norm) == ("linear", 0.1, 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"weight_decay": "much"},
            "optimizer.weight_decay: Input should be a valid number, unable to parse string as a number; change that "
            "value",
        ),
        (
            {"lr_scheduler_type": "steep"},
            "optimizer: steep is not a valid SchedulerType, please select one of ['linear', ",
        ),
        ({"optim": "sgdd"}, "optimizer: sgdd is not a valid OptimizerNames, please select one of "),
    ],
)
def test_a_wrong_value_of_the_optimizer_mapping_is_refused(
    job: TinyJob, tmp_path: Path, given: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        job.arguments(job.settings(optimizer=given), tmp_path)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", ["wieght_decay", "output_dir", "learning_rate", "hub_token"])
def test_a_field_that_is_unknown_or_set_by_enrich_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_settings(TrainSettings, optimizer={name: 1})
    assert str(raised.value) == (
        f"settings: optimizer: {name!r} cannot be set here; choose from {', '.join(OPTIMIZER_FIELDS)}; "
        "change that value"
    )


def test_every_field_of_the_optimizer_mapping_is_one_of_transformers_and_not_set_by_enrich(
    job: TinyJob, tmp_path: Path
) -> None:
    fixed = trainer._fixed(job.settings(), tmp_path, torch.device("cpu"), torch.float32)
    assert set(OPTIMIZER_FIELDS) <= {field.name for field in fields(TrainingArguments)} - set(fixed)


def test_the_vision_side_is_adapted_where_asked_for_but_its_dead_layer(job: TinyJob) -> None:
    adapted = add_lora(job.model(), job.settings(adapt_vision=True, target_modules=["o_proj"]))
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
        ({"lora_r": 512, "output_learning_rate": 1e-3}, ()),
        (
            {"adapt_vision": True, "lora_r": 513},
            ("adapt_vision: vLLM has LoRA on the language model only", "lora_r 513: vLLM takes at most 512"),
        ),
    ],
)
def test_what_vllm_could_not_serve_unmerged_is_reported(
    changes: dict[str, object], reasons: tuple[str, ...], job: TinyJob
) -> None:
    assert merge_only(job.settings(**changes), vision_model("phi3_v")) == reasons
