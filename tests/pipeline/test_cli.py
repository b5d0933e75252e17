"""The command: bad input ends with exit code 2 and one line: what, where and what to do. Nothing is written."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest

from enrich.settings.models import TINY_MODEL_PATH
from tests.testing.cli import RunCli


def test_the_version_is_printed_and_no_arguments_print_the_help(run_cli: RunCli) -> None:
    assert run_cli("--version") == (0, f"enrich {version('enrich')}\n", "")
    code, out, err = run_cli()
    assert code == 2
    assert "rollback" in out
    assert err == ""


def test_importing_the_command_loads_nothing_heavy() -> None:
    check = (
        "import sys, enrich.cli; print([name for name in ('torch', 'vllm', 'prefect', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --images {tmp}/none --adapter {adapter} --output {tmp}/out", "none: no such directory"),
        ("run --images {tmp}/empty --adapter {adapter} --output {tmp}/out", "empty: no photos there; check the bucket"),
        ("run --images {bucket} --adapter {tmp}/none --output {tmp}/out", "none: no such directory"),
        ("run --images {bucket} --adapter {tmp}/empty --output {tmp}/out", "adapter_config.json is missing"),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/file", "file"),
        ("run --images {bucket} --adapter {adapter} --output {bucket}/out", "overlap; keep them apart"),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/link/out --dry-run", "overlap; keep them apart"),
        ("run --images {adapter}/.. --adapter {adapter} --output {tmp}/out", "is inside the images"),
        ("run --images {bucket} --adapter {adapter} --output {adapter}/out", "is inside the adapter"),
        ("finetune --catalog {catalog} --out {catalog}/images/x/..", "is inside the photos"),
        ("finetune --catalog {catalog}/catalog.csv --out {catalog}/images/x/..", "is inside the photos"),
        ("finetune --catalog {catalog}/catalog.csv --out {catalog}", "would be replaced; name another location"),
        ("finetune --catalog {catalog} --out {catalog}/..", "would be replaced; name another location"),
        ("merge --adapter {adapter} --out {adapter}/..", "would be replaced; name another location"),
        ("score --adapter {adapter} --catalog {catalog} --out {adapter}/x/..", "is the adapter itself"),
        ("catalog sample --out {tmp}/out --bucket {tmp}/out/images", "overlap; keep them apart"),
        ("run --images gs://bucket --adapter {adapter} --output {tmp}/out", "gs://bucket: unknown scheme; use s3://"),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/out --limit 0", "limit 0: a run needs at least 1"),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/out --run-id a/b", "run id 'a/b' is not valid"),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/out --engine warp", "settings: engine: "),
        (
            "run --images {bucket} --adapter {adapter} --output {tmp}/out --config {tmp}/bad.yaml",
            "unknown key 'shards'",
        ),
        ("run --images {bucket} --adapter {adapter} --output {tmp}/out --config {tmp}/no.yaml", "no.yaml: "),
        ("run --output {tmp}/out", "Missing option '--images'"),
        ("publish --output {tmp}/empty --run-id last", "run last: not in "),
        ("report --output {tmp}/empty", "no finished run;"),
        ("finetune --catalog {tmp}/none --out {tmp}/out", "none: no such directory"),
        ("finetune --catalog {tmp}/empty --out {tmp}/out", "catalog.csv"),
        ("finetune --catalog {tmp}/torn --out {tmp}/out", "torn"),
        ("finetune --catalog {tmp}/photoless --out {tmp}/out", "photoless"),
        ("finetune --catalog {tmp}/columnless --out {tmp}/out", "no column 'title'"),
        ("finetune --catalog {catalog} --out {tmp}/out --model {tmp}/empty", "model {tmp}/empty: "),
        (
            "finetune --catalog {catalog} --out {tmp}/out --model {tmp}/llama",
            "model_type 'llama'",
        ),
        ("finetune --catalog {catalog} --out {tmp}/out --model {tmp}/cut", "{tmp}/cut/model.safetensors is damaged: "),
        ("finetune --catalog {catalog} --out {tmp}/out --model {tmp}/shardless", "no model-00002-of-00002.safetensors"),
        ("finetune --catalog {catalog} --out {tmp}/file --model phi3v-tiny", "file: is a file; name a directory"),
        ("finetune --catalog {catalog} --out {tmp}/out --config {tmp}/bad.yaml", "unknown key 'shards'"),
        ("finetune --catalog {catalog}", "fine-tuning needs --out (or --dry-run or --overfit-one-batch)"),
        ("finetune --catalog {tmp}/none --overfit-one-batch", "none: no such directory"),
        ("score --adapter {tmp}/empty --catalog {catalog}", "adapter_config.json is missing"),
        ("catalog sample --out {tmp}/out --products 0", "settings: products: "),
        ("catalog sample --out {tmp}/out --products many", "Invalid value for '--products'"),
        ("catalog sample --out {tmp}/out --seed -1", "settings: seed: "),
        ("catalog sample --out {tmp}/out --photos 5", "settings: photos: "),
        ("catalog sample --out {tmp}/out --language fr", "settings: language: Input should be 'en' or 'ja'"),
        ("catalog sample --out {tmp}/file", "sample directory {tmp}/file: File exists; choose another directory"),
        ("catalog sample --out {tmp}/torn --overwrite", "torn/catalog.csv is not a sample's; move it elsewhere"),
        ("catalog sample --out {tmp}/llama", "llama is not empty ("),
        ("catalog sample --out {tmp}/llama --overwrite", "llama/config.json is not a sample's; move it elsewhere"),
        ("catalog fetch --source {tmp}/none.csv --out {tmp}/out", "none.csv"),
        ("dance", "No such command 'dance'"),
    ],
)
def test_bad_input(story: Any, tmp_path: Path, run_cli: RunCli, arguments: str, message: str) -> None:
    make_bad_things(tmp_path)
    (tmp_path / "link").symlink_to(story.bucket)
    before = sorted(tmp_path.rglob("*"))
    places = {"tmp": tmp_path, "bucket": story.bucket, "adapter": story.adapter, "catalog": story.catalog}
    code, _, err = run_cli(arguments.format(**places))
    assert code == 2, err
    assert message.format(**places) in err.replace("\n", " ")
    assert "Traceback" not in err
    if err.startswith("error: "):
        assert len(err.strip().splitlines()) == 1
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name != "out"]
    assert left == []
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def make_bad_things(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "file").write_text("a file")
    (root / "bad.yaml").write_text("shards: 3\n")
    for name, text in {
        "torn": b"\xff\xfe\x00 not a table \x00",
        "photoless": b"product_code,title,category3_code,local_image_path\n1,Coat,COATS,images/1.jpg\n",
        "columnless": b"product_code,name,category3_code,local_image_path\n1,Coat,COATS,images/1.jpg\n",
    }.items():
        (root / name).mkdir()
        (root / name / "catalog.csv").write_bytes(text)
    weights = (TINY_MODEL_PATH / "model.safetensors").read_bytes()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": {"a": first, "b": second}}).encode()
    for name, model_type, files in [
        ("llama", "llama", {"model.safetensors": weights}),
        ("cut", "phi3_v", {"model.safetensors": weights[:-1]}),
        ("shardless", "phi3_v", {first: weights, "model.safetensors.index.json": index}),
    ]:
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"model_type": model_type}))
        for file, data in files.items():
            (root / name / file).write_bytes(data)


def test_a_missing_bucket_is_a_usage_error(story: Any, s3_bucket: str, run_cli: RunCli, tmp_path: Path) -> None:
    code, _, err = run_cli(f"run --images {s3_bucket}-gone --adapter {story.adapter} --output {tmp_path}/out")
    assert code == 2
    assert f"{s3_bucket}-gone" in err
    assert len(err.strip().splitlines()) == 1


def test_an_adapter_of_another_base_is_a_usage_error(story: Any, run_cli: RunCli, tmp_path: Path) -> None:
    from tests.testing.tiny_phi3v import tiny_phi3v

    other = tiny_phi3v(tmp_path / "other")
    adapter = tmp_path / "adapter"
    shutil.copytree(story.adapter, adapter)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"phi3v-tiny"', f'"{other.path}"'))
    code, _, err = run_cli(f"run --images {story.bucket} --adapter {adapter} --output {tmp_path}/out")
    assert code == 2, err
    assert "it does not fit its base" in err
    assert not (tmp_path / "out" / "products.parquet").exists()


def test_a_run_and_its_report(story: Any, tmp_path: Path, run_cli: RunCli) -> None:
    config = tmp_path / "short.yaml"
    config.write_text("gate: {allow_weak_adapter: true}\n")  # 80 steps do not teach it 32 categories
    command = f"run --images {story.bucket} --adapter {story.adapter} --output {tmp_path} --config {config}"
    code, out, _ = run_cli(f"{command} --run-id one")
    assert code == 0
    assert "5 failed" in out
    assert f"products: {tmp_path}/products.parquet" in out
    assert f"report: {tmp_path}/runs/one/report.html" in out
    code, out, _ = run_cli(command)
    assert code == 0
    assert out.startswith(
        f"nothing to do: 27 products of {story.bucket} have their answer, 5 failed (1 empty, 2 not_an_image, "
    )
    code, out, _ = run_cli(f"report --output {tmp_path} --run-id one")
    assert code == 0
    assert f"report: {tmp_path}/runs/one/report.html" in out


def test_a_held_run_exits_with_3(story: Any, tmp_path: Path, run_cli: RunCli) -> None:
    config = tmp_path / "strict.yaml"
    config.write_text("gate: {min_rows: 1, max_failed: 0.0}\n")
    output = tmp_path / "output"
    command = f"run --images {story.bucket} --adapter {story.adapter} --output {output} --run-id strict"
    code, _, err = run_cli(f"{command} --config {config}")
    assert code == 3
    assert "run strict is held back: " in err
    assert not (output / "products.parquet").exists()
    code, out, _ = run_cli(f"publish --output {output} --run-id strict")
    assert code == 0
    assert f"products: {output}/products.parquet" in out


def test_scores_of_an_adapter(story: Any, run_cli: RunCli) -> None:
    code, out, _ = run_cli(f"score --adapter {story.adapter} --catalog {story.catalog}")
    assert code == 0
    assert "products of the test split" in out
    assert "category median" in out


@pytest.mark.parametrize(("rate", "code"), [("1e-3", 0), ("1e-9", 1)])
def test_one_batch_is_learned_by_heart_or_not(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli, rate: str, code: int
) -> None:
    monkeypatch.setattr("enrich.train.overfit.MAX_STEPS", 40)
    config = tmp_path / "rate.yaml"
    config.write_text(f"learning_rate: {rate}\noutput_learning_rate: {rate}\nbatch_size: 2\nmodel: phi3v-tiny\n")
    stopped, out, err = run_cli(f"finetune --catalog {story.catalog} --config {config} --overfit-one-batch")
    assert stopped == code, err
    if code:
        assert "error: one batch of 2 photos was not memorised in 40 steps at learning_rate 1e-09; " in err
    else:
        assert out.startswith("loss of steps ")
        assert f"one batch of {story.catalog} was memorised; no adapter was written" in out
    assert [path.name for path in tmp_path.iterdir()] == ["rate.yaml"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_command_that_is_stopped_says_so_and_takes_its_processes_along(tmp_path: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "enrich.cli", *f"catalog sample --products 3000 --out {tmp_path}/c".split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not any((tmp_path / "c").rglob("*.jpg")):  # the processes that draw are at work
            assert process.poll() is None
            time.sleep(0.1)
        drawing = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(stop)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "committed work is kept" in output
    assert psutil.wait_procs(drawing, timeout=10)[1] == []
