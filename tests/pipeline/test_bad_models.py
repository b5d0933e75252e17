"""Models that cannot be trained or served: exit code 2 and one line from the commands, before a photo is decoded."""

import importlib.machinery
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from enrich.answers.calibration import CALIBRATION_FILE, Calibration
from enrich.answers.prompt import make_prompt
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.registry import supported
from enrich.settings.training import TrainSettings
from enrich.train.export import write_adapter
from enrich.train.lora import add_lora
from enrich.vocabulary import RECORD_FILE
from tests.testing.badweb import Answer, reply, reset, serve
from tests.testing.catalogs import write_catalog
from tests.testing.cli import RunCli
from tests.testing.hub import Hub
from tests.testing.tiny_families import write_member

CHOOSE = f"choose one of {supported()}"
WHOLE = "give the directory of a checkpoint with config.json and *.safetensors"
FULL = "give the model in full precision (load_in_4bit: true makes 4 bits of it)"
FILES = "its configuration, tokenizer or settings of photos cannot be used"
DAMAGED = "{m}/config.json is damaged: not a JSON object; fetch it again"
LORA = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4, "lora_alpha": 8})


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_member("qwen3_vl", tmp_path_factory.mktemp("base") / "member")


@pytest.fixture
def model(member: Path, tmp_path: Path) -> Path:
    """A whole checkpoint, to be damaged."""
    return Path(shutil.copytree(member, tmp_path / "model"))


@pytest.fixture
def refusal(tmp_path: Path, run_cli: RunCli) -> Callable[..., str]:
    """The line with which fine-tuning refuses a model, on a catalog of which no photo can be decoded."""
    catalog = tmp_path / "catalog"
    write_catalog(catalog, *[f"Coat {number}" for number in range(20)])
    for photo in (catalog / "images").iterdir():
        photo.write_bytes(b"no photo")

    def refused(model: object, settings: str = "") -> str:
        (tmp_path / "settings.yaml").write_text(f"device: cpu\n{settings}")
        code, out, err = run_cli(
            "finetune --dry-run --catalog", catalog, "--model", model, "--config", tmp_path / "settings.yaml"
        )
        [line] = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out) == (2, "")
        assert "no photo" not in err
        return line.removeprefix("error: ")

    return refused


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as web:
        yield Hub(web, tmp_path / "cache", monkeypatch)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def only(model: Path, name: str, text: str) -> None:
    """The directory holds nothing but this file."""
    for file in model.iterdir():
        file.unlink()
    (model / name).write_text(text)


def eight_bits(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    eight = {name: one.to(torch.float8_e4m3fn) if "q_proj" in name else one for name, one in tensors.items()}
    save_file(eight, model / "model.safetensors", metadata={"format": "pt"})


def of_text(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_bytes())
    edit(model / "config.json", text_config={**config["text_config"], **changes})


def index(model: Path, **changes: Any) -> None:
    """The weights as one shard and its index."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "a.safetensors")
    found = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "a.safetensors"), **changes}
    (model / "model.safetensors.index.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: LlamaConfig(num_hidden_layers=1).save_pretrained(m),
         f"model_type 'llama' reads text only, and products are photos; {CHOOSE}"),
        (lambda m: edit(m / "config.json", model_type="kosmos_9"), f"model_type 'kosmos_9' is not supported; {CHOOSE}"),
        (lambda m: edit(m / "config.json", model_type="own_vl", auto_map={"AutoConfig": "own.Own"}),
         f"model_type 'own_vl' needs code from its own repository (auto_map), which is never run; {CHOOSE}"),
        (lambda m: (m / "config.json").unlink(), "no config.json; give a complete checkpoint directory"),
        (lambda m: (m / "config.json").write_text("[1]"), DAMAGED),
        (lambda m: (m / "config.json").write_text("{"), DAMAGED),
        (lambda m: of_text(m, num_attention_heads=0),
         "config.json describes no model (ZeroDivisionError: integer division or modulo by zero); fetch it again"),
        (lambda m: of_text(m, hidden_act="warp"), "config.json describes no model (KeyError: 'warp'); fetch it again"),
        (lambda m: of_text(m, rope_parameters={"rope_type": "spiral"}),
         "config.json describes no model (KeyError: 'spiral'); fetch it again"),
        (lambda m: index(m, metadata=None), "{m}/model.safetensors.index.json is damaged; fetch it again"),
        (lambda m: index(m, weight_map={"a": "../a.safetensors"}),
         "{m}/model.safetensors.index.json is damaged; fetch it again"),
        (lambda m: index(m, weight_map={"a": "b.safetensors"}),
         "no b.safetensors; give a complete checkpoint directory"),
        (lambda m: edit(m / "preprocessor_config.json", patch_size=7),
         "its settings of photos cut squares of 14 pixels, and the model takes 32; give it the settings that came with "
         "it"),
        (lambda m: (m / "preprocessor_config.json").write_text("{}"),
         "its settings of photos cut squares of 28 pixels, and the model takes 32; give it the settings that came with "
         "it"),
        (lambda m: edit(m / "preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
         "its image processor does not arrange photos as those of qwen3_vl; give it the preprocessor_config.json that "
         "came with it"),
        (lambda m: edit(m / "preprocessor_config.json", image_mean=[0.5]),
         FILES + " (ValueError: mean must have 3 elements if it is an iterable, got 1); fetch it again"),
        (lambda m: edit(m / "preprocessor_config.json", image_std=[0, 0, 0]),
         "its settings of photos make no finite numbers of pixels; fetch it again"),
        (lambda m: edit(m / "config.json", text_config=7),
         FILES + " (StrictDataclassFieldValidationError: Validation error for field 'text_config':); fetch it again"),
        (lambda m: (m / "adapter_config.json").write_text(LORA),
         "a LoRA adapter, not a model; give its base (some/base), or what `enrich merge` makes of the two"),
        (lambda m: only(m, "adapter_config.json", LORA),
         "a LoRA adapter, not a model; give its base (some/base), or what `enrich merge` makes of the two"),
        (lambda m: only(m, "model-Q4_K_M.gguf", "GGUF"), f"weights as model-Q4_K_M.gguf, which are not read; {WHOLE}"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
         f"weights as pytorch_model.bin, which are not read; {WHOLE}"),
        (lambda m: (m / "model.safetensors").unlink(),
         "no *.safetensors weights; give a complete checkpoint directory"),
        (lambda m: edit(m / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
         f"quantized weights (gptq); {FULL}"),
        (lambda m: edit(m / "config.json", quantization_config={"quant_method": "awq"}),
         f"quantized weights (awq); {FULL}"),
        (eight_bits, f"model.safetensors holds weights in F8_E4M3; {FULL}"),
        (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer.json; give a complete checkpoint directory"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), FILES + " (KeyError: 'added_tokens'); fetch it again"),
        (lambda m: edit(m / "config.json", image_token_id=3),
         "its tokenizer and config.json disagree on <|image_pad|>; give it its own tokenizer.json"),
        (lambda m: (m / "chat_template.jinja").unlink(),
         "no chat template; use an instruction-tuned model"),
        (lambda m: (m / "chat_template.jinja").write_text("{% for x in %}"),
         FILES + " (TemplateSyntaxError: Expected an expression, got 'end of statement block'); fetch it again"),
        (lambda m: (m / "preprocessor_config.json").write_text("[]"),
         FILES + " (AttributeError: 'list' object has no attribute 'get'); fetch it again"),
        pytest.param(
            lambda m: edit(m / "preprocessor_config.json", image_processor_type="Sam2ImageProcessor"),
            "its photos or text need the package torchvision; install it, or choose another model",
            marks=pytest.mark.skipif(bool(find_spec("torchvision")), reason="the package is installed"),
        ),
    ],
)  # fmt: skip
def test_a_directory(change: Callable[[Path], object], reason: str, model: Path, refusal: Callable[..., str]) -> None:
    change(model)
    assert refusal(model) == f"model {model}: {reason.replace('{m}', str(model))}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("target_modules: [qkv_proj]", "target_modules: no decoder layer has 'qkv_proj'; choose from down_proj, gate"),
        ("photo_tokens: 4096", "photos_per_product 1: a prompt and its answer could take 4,2"),
        ("photos_per_product: 5\nmore_photo_tokens: 1000", "photos_per_product 5: a prompt and its answer could take"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: str, message: str, model: Path, refusal: Callable) -> None:
    assert refusal(model, settings).startswith(message)


def test_a_prompt_that_is_longer_than_the_model_was_made_for(model: Path, refusal: Callable[..., str]) -> None:
    config = json.loads((model / "config.json").read_bytes())
    edit(model / "config.json", text_config={**config["text_config"], "max_position_embeddings": 512})
    line = refusal(model, "photo_tokens: 500")
    assert "tokens, more than 512: 500 for the main photo (photo_tokens, or num_crops) + " in line


def test_an_output_layer_that_is_the_embedding(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """Training one of the two alone would write an adapter that no merged model can hold."""
    tied = write_member("gemma4", tmp_path / "tied")
    assert refusal(tied, "output_learning_rate: 1e-3") == (
        "output_learning_rate: this model's output layer and embedding are one tensor, and an adapter would "
        "change only one of them; remove output_learning_rate"
    )


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3000}, {"vocab_size": 10**9}, None])
def test_a_model_that_is_larger_than_its_weights(
    change: dict[str, int] | None, model: Path, refusal: Callable[..., str]
) -> None:
    """Loading it would make up what is missing, terabytes of it, before it could say so."""
    config = json.loads((model / "config.json").read_bytes())
    edit(model / "config.json", text_config=change and config["text_config"] | change)  # None: the library's defaults
    line = refusal(model)
    assert line.startswith(f"model {model}: config.json describes a model of ")
    assert line.endswith(" numbers; give all files of one model")


def test_weights_that_are_not_numbers_are_found_by_a_dry_run(model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.language_model.norm.weight"] *= torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    write_catalog(tmp_path / "catalog", *[f"Coat {number}" for number in range(20)])
    (tmp_path / "settings.yaml").write_text("device: cpu\nphoto_tokens: 64\nmax_new_tokens: 100\n")
    places = ("--catalog", tmp_path / "catalog", "--model", model, "--config", tmp_path / "settings.yaml")
    code, _, err = run_cli("finetune --dry-run", *places)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: model {model}: its loss in a trial step, before anything is learned, is not a finite number; its "
        "weights are damaged: fetch it again"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 300, "neither a local directory nor a Hub name"),
        ("/" + "a" * 300, "no such directory; give a local checkpoint or a Hub name"),
        ("~nobody-of-that-name/model", "no such directory; give a local checkpoint or a Hub name"),
        ("maker/model\x1b[31m", "neither a local directory nor a Hub name"),
        ("模型/モデル", "neither a local directory nor a Hub name"),
    ],
)
def test_names_that_no_directory_can_have(name: str, reason: str, refusal: Callable[..., str]) -> None:
    assert refusal(name).endswith(f": {reason}")


def test_places_that_are_no_directory(tmp_path: Path, refusal: Callable[..., str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert refusal(tmp_path / "model.gguf") == f"model {tmp_path}/model.gguf: a file; {WHOLE}"
    missing = f"model {tmp_path}/none: no such directory; give a local checkpoint or a Hub name"
    assert refusal(tmp_path / "none") == missing


def test_a_model_that_the_hub_does_not_give(hub: Hub, model: Path, refusal: Callable[..., str]) -> None:
    hub.hold("maker/gated", model, gated=True)
    hub.refuse("maker/none", "RepoNotFound")
    hub.refuse("maker/old", "RevisionNotFound")
    login = "and log in: `hf auth login`, or HF_TOKEN"
    assert refusal("maker/gated") == (
        f"model maker/gated at revision main: gated; accept its terms at https://huggingface.co/maker/gated {login}"
    )
    assert refusal("maker/none") == (
        f"model maker/none at revision main: not found on the hub, or private; check the name {login}"
    )
    assert refusal("maker/old") == (
        "model maker/old at revision main: the hub has no such revision; leave it out, or give a full commit"
    )
    advice = "check the name and the network, or give a local directory"
    answers: dict[str, Answer] = {
        "maker/away": lambda request, _: reset(request),  # the connection breaks
        "maker/round": reply(302, b"", Location="/api/models/maker/round/revision/main"),
        "maker/login": reply(200, b"<html>log in to this network</html>"),
    }
    for name, answer in answers.items():
        hub.web.answers[f"/api/models/{name}/revision/main"] = answer
        line = refusal(name)
        assert line.startswith(f"model {name} at revision main: cannot be fetched (")
        assert line.endswith(f"); {advice}")
    assert refusal("not a name") == "model not a name: neither a local directory nor a Hub name"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: edit(m / "config.json", model_type="own", auto_map={}), "model_type 'own' is not supported"),
        (lambda m: only(m, "adapter_config.json", LORA), "a LoRA adapter, not a model; give its base (some/base)"),
        (lambda m: (m / "tokenizer.json").unlink(), "no tokenizer.json; give a complete checkpoint directory"),
        (lambda m: edit(m / "config.json", quantization_config={"quant_method": "fp8"}), "quantized weights (fp8)"),
    ],
)
def test_weights_of_a_model_that_is_of_no_use_are_not_fetched(
    change: Callable[[Path], object], reason: str, hub: Hub, model: Path, refusal: Callable[..., str]
) -> None:
    (model / "own.py").write_text("raise SystemExit('it ran')")
    change(model)
    hub.hold("maker/model", model)
    assert refusal("maker/model").startswith(f"model maker/model at revision main: {reason}")
    assert not any(hub.asked_for("maker/model", name) for name in ("model.safetensors", "own.py"))


def test_a_model_from_the_hub_is_tried_in_a_dry_run(hub: Hub, model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    write_catalog(tmp_path / "catalog", *[f"Coat {number}" for number in range(20)])
    (model / "pytorch_model.bin").write_bytes(b"pickled")
    hub.hold("maker/model", model)
    (tmp_path / "settings.yaml").write_text("device: cpu\nphoto_tokens: 64\nmax_new_tokens: 100\n")
    places = ("--catalog", tmp_path / "catalog", "--out", tmp_path / "out", "--config", tmp_path / "settings.yaml")
    code, out, err = run_cli("finetune --dry-run --model maker/model", *places)
    assert code == 0, err
    assert "in a trial step on the largest photos and longest answers" in out.replace("\n", " ")
    assert out.replace("\n", " ").rstrip().endswith("dry run; nothing was trained or written")
    assert hub.asked_for("maker/model", "model.safetensors")
    assert not hub.asked_for("maker/model", "pytorch_model.bin")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """One file that is not a photo."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "1.jpg").write_bytes(b"no photo")
    return tmp_path / "bucket"


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    made, settings = tmp_path / "adapter", TrainSettings(model=str(model))
    adapted = add_lora(load_model(model, dtype=torch.float32, device="cpu"), settings)
    write_adapter(made, adapted, load_processor(model), make_prompt(("BAGS", "HATS"), "EUR"), model)
    (made / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json())
    (made / RECORD_FILE).write_text("{}")
    return made


def test_a_family_that_vllm_cannot_serve_here(
    adapter: Path, bucket: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import fails
    places = ("--images", bucket, "--adapter", adapter, "--output", tmp_path / "out")
    code, _, err = run_cli("run --engine vllm", *places)
    assert code == 2
    assert err.startswith("error: engine vllm: for Qwen3-VL it needs torchvision: import of torchvision halted; ")
    assert err.endswith(", or use --engine transformers\n")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base, adapter: LlamaConfig(num_hidden_layers=1).save_pretrained(base),
         "adapter {adapter}: model {base}: model_type 'llama' reads text only"),
        (lambda base, adapter: (base / "adapter_config.json").write_text(LORA),
         "adapter {adapter}: model {base}: a LoRA adapter, not a model; give its base (some/base)"),
        (lambda base, adapter: edit(base / "config.json", quantization_config={"quant_method": "awq"}),
         "adapter {adapter}: model {base}: quantized weights (awq)"),
        (lambda base, adapter: edit(adapter / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}),
         "adapter {adapter}: made for another kind of model: model_type 'own' needs code from its own"),
        (lambda base, adapter: (adapter / "adapter_config.json").unlink(),
         "adapter {adapter}: adapter_config.json is missing; the adapter is incomplete"),
    ],
)  # fmt: skip
def test_an_adapter_of_such_a_model(
    change: Callable[[Path, Path], object], message: str,
    adapter: Path, model: Path, bucket: Path, tmp_path: Path, run_cli: RunCli,
) -> None:  # fmt: skip
    change(model, adapter)
    code, _, err = run_cli("run --images", bucket, "--adapter", adapter, "--output", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: " + message.format(adapter=adapter, base=model))
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_merged_model_is_a_model(adapter: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """What `enrich merge` wrote can be fine-tuned again, and is not an adapter."""
    write_catalog(tmp_path / "catalog", *[f"Coat {number}" for number in range(20)])
    (tmp_path / "settings.yaml").write_text("device: cpu\nphoto_tokens: 64\nmax_new_tokens: 100\n")
    merged = tmp_path / "merged"
    assert run_cli("merge --dtype float32 --adapter", adapter, "--out", merged)[0] == 0
    code, out, err = run_cli(
        "finetune --dry-run --catalog", tmp_path / "catalog", "--model", merged, "--config", tmp_path / "settings.yaml"
    )
    assert (code, "nothing was trained or written" in out.replace("\n", " ")) == (0, True), err
    code, _, err = run_cli("score --adapter", merged, "--catalog", tmp_path / "catalog")
    refused = f"a model, not an adapter; `enrich finetune --model {merged}` makes one of it"
    assert (code, err) == (2, f"error: adapter {merged}: {refused}\n")
