import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from enrich.engines.transformers_engine import find_base
from enrich.errors import Unreachable
from enrich.models import adapted, checkpoint, hub
from enrich.models.adapted import _rounded_to_bf16, load_adapted, load_merged, save_merged
from enrich.models.checkpoint import load_model
from enrich.models.generation import generate_answers
from enrich.models.hub import resolve
from enrich.models.phi3_vision import Phi3VForCausalLM, Phi3VImageProcessor
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.models.registry import CheckpointError
from tests.testing.tiny_phi3v import Tiny, prompt_inputs, random_model, tiny_config, tiny_phi3v

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
# Every linear that shows in an answer: the tower's last layer (here 2) does not.
ALL_TARGETS = (
    r".*(qkv_proj|o_proj|gate_up_proj|down_proj|lm_head|img_projection\.[02]|encoder\.layers\.[01]\..*(_proj|fc\d))"
)
CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_phi3v(tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", TARGETS)


def write_adapter(path: Path, targets: str | list[str]) -> Path:
    """A LoRA adapter of the tiny model whose B is not zero."""
    torch.manual_seed(2)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(random_model(tiny_config(265)), settings)
    model.save_pretrained(path, save_embedding_layers=False)
    return path


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_local_directory_is_used_as_it_is(tiny: Tiny) -> None:
    assert resolve(str(tiny.path), None) == tiny.path
    assert resolve(str(tiny.path), "any revision") == tiny.path


def test_only_safetensors_are_read(tmp_path: Path, tiny: Tiny) -> None:
    (tiny.path / "model.safetensors").rename(tiny.path / "pytorch_model.bin")
    message = f"{tiny.path}: weights as pytorch_model.bin, which are not read; give the directory of a checkpoint"
    for attempt in (lambda: resolve(str(tiny.path), None), lambda: load_model(tiny.path, **CPU)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert str(caught.value).startswith(message)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config.json; give a complete checkpoint directory"):
        resolve(str(tmp_path / "empty"), None)
    with pytest.raises(CheckpointError, match=r"no such directory; give a local checkpoint or a Hub name"):
        resolve(str(tmp_path / "missing"), None)


def test_the_hub_is_asked_for_data_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({**options, "name": name})
        return str(tiny.path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("microsoft/Phi-3-vision-128k-instruct", "c45209e") == tiny.path
    small = ["*.json", "tokenizer.model", "chat_template.jinja"]
    assert asked == [
        {"name": "microsoft/Phi-3-vision-128k-instruct", "revision": "c45209e", "allow_patterns": patterns}
        for patterns in (small, [*small, "*.safetensors"])
    ]


def test_an_unreachable_hub_is_one_clear_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(name: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot.\nLook up the docs. More.")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"cannot be fetched") as caught:
        resolve("microsoft/Phi-3-vision-128k-instruct", "c45209e")
    assert str(caught.value) == (
        "microsoft/Phi-3-vision-128k-instruct at revision c45209e: cannot be fetched (Cannot find an appropriate "
        "cached snapshot); check the name and the network, or give a local directory"
    )
    assert caught.value.away
    with pytest.raises(Unreachable, match="cannot be fetched"):
        find_base("microsoft/Phi-3-vision-128k-instruct", "c45209e")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"^no name: neither a local directory nor a Hub name$") as caught:
        resolve("no name", None)
    assert not caught.value.away


def test_a_model_loads_in_eval_mode_and_in_the_type_asked_for(tiny: Tiny) -> None:
    model = load_model(tiny.path, dtype=torch.bfloat16, device="cpu")
    assert type(model) is Phi3VForCausalLM
    assert model.dtype == torch.bfloat16
    assert not model.training
    expected = tiny.model.state_dict()
    for name, tensor in load_model(tiny.path, **CPU).state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 missing (first: model.norm.weight)"),
        (lambda t: t.update({"model.more": torch.zeros(1)}), "1 unexpected (first: model.more)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(5)}), "1 mismatched (first: model.norm.weight)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(tiny: Tiny, change: Callable, message: str) -> None:
    change_tensors(tiny.path / "model.safetensors", change)
    with pytest.raises(ValueError, match=r"do not match") as caught:
        load_model(tiny.path, **CPU)
    assert str(caught.value) == f"checkpoint {tiny.path}: tensors do not match the model: {message}"


def test_decoding_settings_of_a_checkpoint_change_no_answer(tiny: Tiny) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    expected = generate_answers(load_model(tiny.path, **CPU), inputs, max_new_tokens=8, stop_ids=[2])
    penalties = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 5.0}
    (tiny.path / "generation_config.json").write_text(json.dumps(penalties))

    answers = generate_answers(load_model(tiny.path, **CPU), inputs, max_new_tokens=8, stop_ids=[2])

    assert answers[0].token_ids == expected[0].token_ids
    assert answers[0].logprobs.tolist() == expected[0].logprobs.tolist()


def test_another_kind_of_model_is_refused(tiny: Tiny) -> None:
    config = json.loads((tiny.path / "config.json").read_text())
    (tiny.path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match=r"model_type 'llama' is not supported; choose one of .*\(phi3_v\)"):
        load_model(tiny.path, **CPU)
    (tiny.path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config.json is damaged: not a JSON object; fetch it again$"):
        load_model(tiny.path, **CPU)


def test_a_processor_needs_its_files(tiny: Tiny) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tiny.path / name).unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config.json"):
        checkpoint.load_processor(tiny.path)
    (tiny.path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.json"):
        checkpoint.load_processor(tiny.path)


def unmerged_logits(tiny: Tiny, adapter: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(load_model(tiny.path, **CPU), str(adapter)).eval()(**inputs).logits


def test_a_merged_model_answers_like_the_unmerged_one(tiny: Tiny, adapter: Path) -> None:
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    expected = unmerged_logits(tiny, adapter, inputs)
    merged = load_merged(tiny.path, adapter, **CPU)
    assert type(merged) is Phi3VForCausalLM
    assert merged.state_dict().keys() == tiny.model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        assert (tiny.model(**inputs).logits - expected).abs().max() > 0.1


def test_adapters_on_tower_and_projector_are_merged_too(tiny: Tiny, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "wide", ALL_TARGETS)
    names = load_file(adapter / "adapter_model.safetensors").keys()
    tower = "base_model.model.model.vision_embed_tokens.img_processor.vision_model.encoder.layers"
    assert {f"{tower}.{layer}.mlp.fc1.lora_A.weight" for layer in (0, 1)} <= names
    assert f"{tower}.2.mlp.fc1.lora_A.weight" not in names
    inputs = prompt_inputs(([5, 6], (56, 56), [7]))
    merged = load_merged(tiny.path, adapter, **CPU)
    changed = {n for n, tensor in tiny.model.state_dict().items() if not torch.equal(tensor, merged.state_dict()[n])}
    assert changed == {
        f"{name.removeprefix('base_model.model.').removesuffix('.lora_A.weight')}.weight"
        for name in names
        if name.endswith("lora_A.weight")
    }
    assert len(changed) == 2 * 4 + 1 + 2 + 2 * 6
    with torch.no_grad():
        expected = unmerged_logits(tiny, adapter, inputs)
        torch.testing.assert_close(load_adapted(tiny.path, adapter, **CPU)(**inputs).logits, expected)
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        images = inputs["pixel_values"], inputs["image_sizes"]
        features, before = (model.get_image_features(*images)[0] for model in (merged, tiny.model))
        assert (features - before).abs().max() > 0.1


def complete(adapter: Path, tiny: Tiny, num_crops: int) -> Path:
    """Give an adapter the files that training puts next to it."""
    for file in tiny.path.glob("*.json"):
        shutil.copyfile(file, adapter / file.name)
    (adapter / "processor_config.json").unlink()  # fine-tuning writes none
    Phi3VImageProcessor(num_crops=num_crops, image_size=28, patch_size=7).save_pretrained(adapter)
    return adapter


def test_a_merged_checkpoint_needs_nothing_else(
    tiny: Tiny, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(adapter, tiny, num_crops=1)
    merged, written = load_merged(tiny.path, adapter, dtype=torch.bfloat16, device="cpu"), tmp_path / "merged"
    monkeypatch.setattr(adapted, "_SHARD_SIZE", "50KB")
    save_merged(merged, adapter, written)
    assert len(list(written.glob("model-*-of-*.safetensors"))) > 1
    index = json.loads((written / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tiny.model.state_dict().keys()
    assert json.loads((written / "config.json").read_text())["dtype"] == "bfloat16"
    endings = [tiny.processor.tokenizer.get_vocab()[t] for t in ("<|end|>", "<|endoftext|>", "<|assistant|>")]
    assert json.loads((written / "generation_config.json").read_text())["eos_token_id"] == endings
    again = load_model(resolve(str(written)), dtype=torch.bfloat16, device="cpu")
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in again.state_dict().items())
    processor = load_processor(written)
    assert processor.image_processor.num_crops == 1
    assert processor("<|image_1|>a", [Image.new("RGB", (50, 50))])["input_ids"].shape[1] == 1 + 13 + 3
    with pytest.raises(FileExistsError):
        save_merged(merged, adapter, written)


def test_a_merged_checkpoint_must_know_where_answers_end(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    complete(adapter, tiny, num_crops=1)
    tokenizer = adapter / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|end|>", "<|stop|>"))
    with pytest.raises(ValueError, match=r"has no <\|end\|>, where an answer ends; give it its own tokenizer.json$"):
        save_merged(tiny.model, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_casts_once(tiny: Tiny, adapter: Path) -> None:
    exact = load_merged(tiny.path, adapter, **CPU).state_dict()
    cast = load_merged(tiny.path, adapter, dtype=torch.bfloat16, device="cpu").state_dict()
    adapted = 0
    for name, tensor in exact.items():
        beside = torch.nextafter(
            tensor.bfloat16(), torch.where(tensor > tensor.bfloat16(), torch.inf, -torch.inf).bfloat16()
        )
        neighbours = (cast[name] == tensor.bfloat16()) | (cast[name] == beside)
        assert neighbours.all()
        adapted += not torch.equal(cast[name], tensor.bfloat16())
    assert adapted == 2 * 4  # all other tensors are rounded to the nearest


def test_an_adapter_below_bf16s_last_bit_survives_merging(tiny: Tiny, adapter: Path) -> None:
    """The base's weights are bf16 numbers: rounded to the nearest, sums a quarter of a unit away are the base again."""
    change_tensors(tiny.path / "model.safetensors", lambda t: t.update({n: v.bfloat16().float() for n, v in t.items()}))
    change_tensors(
        adapter / "adapter_model.safetensors",
        lambda t: t.update({name: value * 1e-3 for name, value in t.items() if "lora_B" in name}),
    )
    base = load_model(tiny.path, **CPU).state_dict()
    exact = load_merged(tiny.path, adapter, **CPU).state_dict()
    merged = load_merged(tiny.path, adapter, dtype=torch.bfloat16, device="cpu").state_dict()
    again = load_merged(tiny.path, adapter, dtype=torch.bfloat16, device="cpu").state_dict()
    name = "model.layers.0.mlp.gate_up_proj.weight"
    wanted, got, nearest = (
        tensors[name].float() - base[name] for tensors in (exact, merged, {name: exact[name].bfloat16()})
    )
    assert (wanted * nearest).sum() < 0.5 * wanted.square().sum()
    assert (wanted * got).sum().item() == pytest.approx(wanted.square().sum().item(), rel=0.2)
    assert all(torch.equal(again[key], value) for key, value in merged.items())


def test_values_are_rounded_up_as_often_as_they_are_above_the_number_below() -> None:
    unit, count = 2.0**-7, 1 << 20  # of bf16's last bit, from 1 to 2
    above = torch.tensor([0.0, 0.1, 0.5, 0.9])[:, None].expand(4, count)
    up = [(_rounded_to_bf16(1 + above * unit, seed) - 1) / unit for seed in (7, 0xFFFFFFFF)]
    for one in up:
        assert set(one.unique().tolist()) == {0.0, 1.0}
        assert one.mean(1).tolist() == pytest.approx([0.0, 0.1, 0.5, 0.9], abs=0.002)  # four standard errors
        assert torch.corrcoef(one[1:]).fill_diagonal_(0).abs().max() < 0.005  # rows of a matrix tell nothing of others
        assert abs(torch.corrcoef(torch.stack([one[2, 1:], one[2, :-1]]))[0, 1]) < 0.005
    assert abs(torch.corrcoef(torch.stack([one[2] for one in up]))[0, 1]) < 0.005


def sharp_base(path: Path) -> Tiny:
    """A base with heads of 64, whose queries and keys are so large that attention tells each position from the next."""
    made = tiny_phi3v(path)
    rope = {"type": "su", "short_factor": [1 + n / 32 for n in range(32)], "long_factor": [1 + n for n in range(32)]}
    config = tiny_config(len(made.processor.tokenizer), hidden_size=128, num_attention_heads=2, rope_scaling=rope)
    model = random_model(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.qkv_proj.weight[: 2 * 128] *= 2
    model.save_pretrained(made.path)
    return Tiny(made.path, model, made.processor)


@pytest.mark.parametrize("length", [800, 3500])
def test_a_merged_model_in_bf16_says_what_its_checkpoint_says_when_read_from_disk(length: int, tmp_path: Path) -> None:
    """Rotary tables cast with the weights turned far positions elsewhere: the logits were off by their own size."""
    tiny, adapter = sharp_base(tmp_path), tmp_path / "adapter"
    torch.manual_seed(2)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
    get_peft_model(random_model(tiny.model.config), lora).save_pretrained(adapter, save_embedding_layers=False)
    complete(adapter, tiny, num_crops=1)
    bf16: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cpu"}
    merged = load_merged(tiny.path, adapter, **bf16)
    save_merged(merged, adapter, tmp_path / "merged")
    read = load_model(tmp_path / "merged", **bf16)
    written = dict(read.named_buffers())
    assert written["model.rotary_emb.inv_freq"].dtype == torch.float32
    for name, table in merged.named_buffers():
        assert (table.dtype, table.tolist()) == (written[name].dtype, written[name].tolist())
    ids = torch.randint(4, 200, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(merged(input_ids=ids).logits, read(input_ids=ids).logits)


def test_a_merged_checkpoint_says_everything_in_the_originals_form_too(tiny: Tiny, tmp_path: Path) -> None:
    """Of an adapter made before its files did, too."""
    adapter = complete(write_adapter(tmp_path / "adapter", TARGETS), tiny, num_crops=1)
    old = json.loads((adapter / "preprocessor_config.json").read_text())
    del old["num_img_tokens"]
    (adapter / "preprocessor_config.json").write_text(json.dumps(old))
    save_merged(load_merged(tiny.path, adapter, **CPU), adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["rope_scaling"] == {
        "type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]
    }  # fmt: skip
    assert (config["rope_theta"], config["rope_parameters"]["rope_type"]) == (10000.0, "longrope")
    processor = json.loads((tmp_path / "merged" / "preprocessor_config.json").read_text())
    assert (processor["num_img_tokens"], processor["num_crops"]) == (4, 1)


LAYER = "base_model.model.model.layers.0.self_attn.o_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.lora_A.weight"), f"1 missing (first: {LAYER}.lora_A.weight)"),
        (lambda t: t.update(more=torch.zeros(1)), "1 unexpected (first: more)"),
        (
            lambda t: t.update({f"{LAYER}.lora_A.weight": torch.zeros(4, 5)}),
            f"1 mismatched (first: {LAYER}.lora_A.weight)",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_an_error(tiny: Tiny, adapter: Path, change: Callable, message: str) -> None:
    change_tensors(adapter / "adapter_model.safetensors", change)
    with pytest.raises(ValueError, match=r"do not match") as caught:
        load_merged(tiny.path, adapter, **CPU)
    where = f"adapter {adapter} on base {tiny.path}"
    assert str(caught.value) == f"{where}: tensors do not match the model: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["query"]}, "does not fit base"),
        ({"init_lora_weights": "pissa"}, "only plain LoRA adapters can be merged"),
        ({"peft_type": "NO_SUCH_TYPE"}, "cannot be read"),
    ],
)
def test_other_adapters_are_refused(tiny: Tiny, adapter: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        load_merged(tiny.path, adapter, **CPU)
    assert str(caught.value).startswith(f"adapter {adapter}")


def test_an_incomplete_adapter_is_refused(tiny: Tiny, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"cannot be read"):
        load_merged(tiny.path, adapter, **CPU)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors"):
        load_merged(tiny.path, adapter, **CPU)
