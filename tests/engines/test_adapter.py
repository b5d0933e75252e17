"""An adapter directory is read whole or refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from enrich.answers.calibration import Calibration
from enrich.answers.prompt import make_prompt
from enrich.engines.adapter import adapter_id, check_base, read_adapter
from enrich.errors import UsageError
from enrich.models.base import PREPARATION_VERSION, Preparation
from enrich.models.registry import supported
from enrich.settings.models import TINY_MODEL_PATH

PROMPT = make_prompt(("BAGS", "HATS"), "EUR")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    lora = {
        "peft_type": "LORA", "base_model_name_or_path": "base/model", "revision": "abc", "r": 2, "lora_alpha": 4,
    }  # fmt: skip
    files: dict[str, Any] = {
        "adapter_config.json": lora,
        "config.json": {"model_type": "phi3_v"},
        "preprocessor_config.json": {"num_crops": 4},
        "tokenizer.json": json.loads((TINY_MODEL_PATH / "tokenizer.json").read_text()),
        "prompt.json": PROMPT.model_dump(mode="json"),
        "calibration.json": Calibration.uncalibrated().model_dump(mode="json"),
        "train.json": {"preflight": {"merge_only": ["adapt_vision: why"]}},
        "metrics.json": {},
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    save_file({"lora_A.weight": torch.ones(2, 2)}, path / "adapter_model.safetensors")
    (path / "README.md").write_text("# An adapter")
    return path


def test_a_whole_adapter_is_read(adapter: Path) -> None:
    read = read_adapter(adapter)

    assert (read.path, read.base, read.revision) == (adapter, "base/model", "abc")
    assert read.preparation == Preparation(num_crops=4, image_size=336, fast_decode=False, version=1)
    assert read.merge_only == ("adapt_vision: why",)
    assert read.prompt == PROMPT
    assert read.calibration == Calibration.uncalibrated()
    assert read.id == adapter_id(adapter)
    assert len(read.id) == 16


def test_an_adapter_of_a_later_way_to_prepare_photos_is_refused(adapter: Path) -> None:
    file = adapter / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "preparation_version": PREPARATION_VERSION + 1}))
    with pytest.raises(UsageError, match="update enrich"):
        read_adapter(adapter)


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none"

    with pytest.raises(UsageError) as caught:
        read_adapter(path)

    assert str(caught.value) == f"adapter {path}: no such directory; make one with `enrich finetune --out {path}`"


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json", "adapter_model.safetensors", "config.json", "preprocessor_config.json",
        "tokenizer.json", "prompt.json", "train.json", "calibration.json",
    ],
)  # fmt: skip
def test_a_missing_file_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()

    with pytest.raises(UsageError) as caught:
        read_adapter(adapter)

    assert str(caught.value) == (
        f"adapter {adapter}: {name} is missing; the adapter is incomplete; make it again with `enrich finetune`"
    )


NO_LORA = "adapter {adapter}: adapter_config.json names no LoRA adapter with a base; make it with `enrich finetune`"
NO_CROPS = "adapter {adapter}: preprocessor_config.json names no num_crops; make the adapter again"
NOT_JSON = "{adapter}/{name}: not readable as JSON (Expecting value: line 1 column 1 (char 0)); make the adapter again"
OTHER = f"adapter {{{{adapter}}}}: made for another kind of model: {{}}; choose one of {supported()}"
NO_CALIBRATION = (
    "adapter {adapter}: calibration.json is damaged or of another version; fine-tune again with this version"
)
LORA = '{"peft_type": "LORA", "base_model_name_or_path": %s, "r": 2, "lora_alpha": 4}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "config.json",
            '{"model_type": "llama"}',
            OTHER.format("model_type 'llama' reads text only, and products are photos"),
        ),
        ("config.json", "{}", OTHER.format("config.json names no model_type")),
        ("config.json", "", NOT_JSON),
        ("config.json", "[]", "{adapter}/config.json: is not a JSON object; make the adapter again"),
        ("adapter_config.json", "oops", NO_LORA),
        ("adapter_config.json", '{"peft_type": "IA3", "base_model_name_or_path": "base"}', NO_LORA),
        ("adapter_config.json", '{"peft_type": "LORA"}', NO_LORA),
        ("adapter_config.json", LORA % '""', NO_LORA),
        ("adapter_config.json", LORA % '["base"]', NO_LORA),
        ("adapter_config.json", LORA % '"base", "target_modules": "(q_proj"', NO_LORA),
        ("preprocessor_config.json", "", NO_CROPS),
        ("preprocessor_config.json", "{}", NO_CROPS),
        ("preprocessor_config.json", '{"num_crops": "many"}', NO_CROPS),
        ("preprocessor_config.json", '{"num_crops": 0}', NO_CROPS),
        ("calibration.json", "{", NO_CALIBRATION),
        (
            "calibration.json",
            '{"version": 1, "price": null, "category": {"slope": 1, "intercept": 0, "rows": 0}}',
            NO_CALIBRATION,
        ),
        (
            "prompt.json",
            '{"categories": []}',
            "{adapter}/prompt.json: instruction: Field required; fine-tune again with this version",
        ),
    ],
)
def test_a_damaged_file_is_named(adapter: Path, name: str, text: str, message: str) -> None:
    (adapter / name).write_text(text)

    with pytest.raises(UsageError) as caught:
        read_adapter(adapter)

    assert str(caught.value) == message.format(adapter=adapter, name=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: append(path / "adapter_model.safetensors"),
        lambda path: append(path / "prompt.json"),
        lambda path: append(path / "calibration.json"),
        lambda path: append(path / "tokenizer.json"),
        lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
        lambda path: (path / "tokenizer.json").rename(path / "tokenizer.model"),
    ],
)
def test_the_id_follows_what_shapes_answers(adapter: Path, change: Callable[[Path], object]) -> None:
    before = adapter_id(adapter)
    change(adapter)
    assert adapter_id(adapter) != before


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


def test_the_id_follows_neither_records_nor_the_place(adapter: Path) -> None:
    before = adapter_id(adapter)
    for name in ("metrics.json", "train.json", "README.md"):
        (adapter / name).write_text("another")
    assert adapter_id(adapter.rename(adapter.parent / "moved")) == before


ROPE = {"short_factor": [1.0, 1.1], "long_factor": [1.0, 4.0]}
ORIGINAL_FORM: dict[str, Any] = {"rope_scaling": {"type": "su", **ROPE}, "rope_theta": 10000.0}
NEWER_FORM: dict[str, Any] = {
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, **ROPE}
}


@pytest.mark.parametrize("mine", [ORIGINAL_FORM, NEWER_FORM, ORIGINAL_FORM | NEWER_FORM])
@pytest.mark.parametrize("theirs", [ORIGINAL_FORM, NEWER_FORM, ORIGINAL_FORM | NEWER_FORM])
def test_a_base_written_anew_with_the_other_form_of_its_positions_still_fits(
    adapter: Path, tmp_path: Path, mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    (adapter / "config.json").write_text(json.dumps({"model_type": "phi3_v", **mine}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3_v", **theirs}))
    check_base(read_adapter(adapter), tmp_path)


@pytest.mark.parametrize(
    "theirs",
    [
        {**ORIGINAL_FORM, "rope_theta": 500.0},
        {**ORIGINAL_FORM, "rope_scaling": {**ORIGINAL_FORM["rope_scaling"], "long_factor": [1.0, 5.0]}},
        {},
        {"rope_scaling": "su"},
    ],
)
def test_a_base_with_other_positions_does_not_fit(adapter: Path, tmp_path: Path, theirs: dict[str, Any]) -> None:
    (adapter / "config.json").write_text(json.dumps({"model_type": "phi3_v", **NEWER_FORM}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3_v", **theirs}))
    with pytest.raises(UsageError, match=r"does not fit its base base/model: rope_parameters differs; "):
        check_base(read_adapter(adapter), tmp_path)
