"""`enrich merge`: a checkpoint that needs no adapter, compared before it is written, or nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enrich.engines.adapter import adapter_id
from enrich.errors import RunFailed, UsageError
from enrich.models.adapted import load_merged
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.hub import resolve
from enrich.pipeline import merging
from enrich.pipeline.merging import merge
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import MergeSettings
from enrich.storage import open_store
from enrich.train import merge_check
from tests.testing.cli import RunCli
from tests.testing.random_adapter import write_random_adapter
from tests.testing.tiny_phi3v import tiny_phi3v

FILES = {
    "chat_template.jinja", "config.json", "generation_config.json", "merge.json", "model.safetensors",
    "preprocessor_config.json", "prompt.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
FLOAT32 = MergeSettings(dtype="float32", max_new_tokens=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # more cost a tiny model more than they give
    return tiny_phi3v(tmp_path_factory.mktemp("base")).path


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("made") / "adapter", base, num_crops=2)


def test_a_checkpoint_is_written_and_says_what_it_is(adapter: Path, base: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    done = merge(str(adapter), str(tmp_path / "out"), FLOAT32, progress=lambda *step: told.append(step))
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert (done.uri, done.adapter) == (str(tmp_path / "out"), adapter_id(adapter))
    assert (done.check.rows, done.check.same_answers) == (4, 4)
    assert done.check.relative_difference < 1e-5
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["check"] == done.check.model_dump()
    assert done.check.ok
    assert (record["adapter"], record["base"], record["num_crops"]) == (done.adapter, str(base), 2)
    assert [step for _, step, _ in told] == [0, 1, 2, 3]
    checkpoint = resolve(str(tmp_path / "out"))
    expected = load_merged(base, adapter, dtype=torch.float32, device="cpu").state_dict()
    written = load_model(checkpoint, dtype=torch.float32, device="cpu").state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in expected.items())
    assert load_processor(checkpoint).preparation.num_crops == 2
    assert (checkpoint / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()


def test_an_older_merge_is_replaced_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    merge(str(adapter), str(tmp_path / "out"), FLOAT32)
    merge(str(adapter), str(tmp_path / "out"), MergeSettings(max_new_tokens=8))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    shutil.copytree(adapter, tmp_path / "adapter")
    before = {file: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    with pytest.raises(UsageError, match=r"and no merge.json; name an empty location$"):
        merge(str(adapter), str(tmp_path / "adapter"), FLOAT32)
    assert {file: file.read_bytes() for file in (tmp_path / "adapter").iterdir()} == before


def test_to_and_from_s3(adapter: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENRICH_CACHE", str(tmp_path))
    for file in adapter.iterdir():
        open_store(f"{s3_bucket}/adapter").put(file.name, file.read_bytes())
    merge(f"{s3_bucket}/adapter", f"{s3_bucket}/merged", FLOAT32)
    assert {info.key for info in open_store(f"{s3_bucket}/merged").list()} == FILES
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_merge_that_is_not_the_adapter_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(base: Path, adapter: Path, **options: Any) -> torch.nn.Module:
        merged, plain = load_merged(base, adapter, **options), load_model(base, **options).state_dict()
        half = {name: plain[name] for name in plain if name.startswith("model.layers.1.")}
        merged.load_state_dict(half, strict=False)
        return merged

    monkeypatch.setattr(merging.merge_check, "merged_model", lost)
    with pytest.raises(RunFailed) as caught:
        merge(str(adapter), str(tmp_path / "out"), MergeSettings(max_new_tokens=8))
    message = str(caught.value)
    assert message.startswith("the merged model is not the adapter: logits differ by ")
    assert "; nothing was written; the adapter is where it was: serve it unmerged (engine" in message
    assert list(tmp_path.iterdir()) == []


def test_the_limit_of_a_bf16_merge_follows_the_models_own_noise(adapter: Path, tmp_path: Path) -> None:
    check = merge(str(adapter), str(tmp_path / "out"), MergeSettings(max_new_tokens=8)).check
    assert 0 < check.noise < check.limit == merge_check.NOISE_FACTOR * check.noise
    assert 0.3 * check.noise < check.relative_difference < check.limit


def test_an_adapter_whose_tensors_do_not_fit_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(adapter, torn)
    tensors = load_file(torn / "adapter_model.safetensors")
    tensors.pop(first := min(tensors))
    save_file(tensors, torn / "adapter_model.safetensors")
    with pytest.raises(UsageError) as caught:
        merge(str(torn), str(tmp_path / "out"), FLOAT32)
    assert str(caught.value) == (
        f"adapter {torn}: it cannot be merged: adapter {torn} on base {base}: tensors do not match the model: "
        f"1 missing (first: {first}); fine-tune again, or name the base it was made from"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def test_the_command(adapter: Path, base: Path, tmp_path: Path, run_cli: RunCli) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/gone"}))
    command = f"merge --adapter {moved} --out {tmp_path}/out"
    code, _, err = run_cli(command)
    assert (code, err.strip()) == (
        2,
        f"error: adapter {moved}: model /gone: no such directory; give a local checkpoint or a Hub name; or say where "
        "its base is now with --base",
    )
    code, out, _ = run_cli(f"{command} --base {base} --dtype float32")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("merged and unmerged: logits differ by ")
    assert first.endswith(" of their size, 4 of 4 answers agree")
    assert second == f"checkpoint of adapter {adapter_id(moved)}: {tmp_path}/out"
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["base"] == str(base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--adapter {tmp}/none --out {tmp}/out", "{tmp}/none: no such directory; check the path"),
        ("--adapter {tmp} --out {tmp}/out", "adapter_config.json is missing; the adapter is incomplete"),
        ("--adapter {adapter} --out {tmp}/file", "{tmp}/file: is a file; name a directory"),
        (
            "--adapter {adapter} --out {tmp}/out --base {other}",
            "does not fit its base {other}: eos_token_id differs",
        ),
        ("--adapter {adapter} --out {tmp}/out --dtype int8", "settings: dtype: Input should be"),
    ],
)
def test_bad_input(adapter: Path, tmp_path: Path, run_cli: RunCli, arguments: str, message: str) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"tmp": tmp_path, "adapter": adapter, "other": TINY_MODEL_PATH}
    code, _, err = run_cli(f"merge {arguments}".format(**places))
    assert code == 2
    assert message.format(**places) in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
