"""What the doctor finds here, and what it says is missing."""

import importlib.util
import os
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from enrich import doctor
from enrich.doctor import Finding, examine
from enrich.pages import fonts
from enrich.pipeline import versions
from enrich.settings.models import DEFAULT_MODEL
from enrich.settings.storage import S3Settings
from tests.testing.s3_server import IGNORES_CONDITIONS, REFUSES_IF_MATCH, S3Server


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials from this machine."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def findings(output: str | None = None, *, lock: bool = False) -> dict[str, Finding]:
    found = examine(output, S3Settings(lock=lock))
    named = {finding.what: finding for finding in found}
    assert len(named) == len(found)
    return named


def test_where_the_tests_run_all_that_is_required_is_here() -> None:
    found = findings()

    assert [f.what for f in found.values() if f.required and not f.ok] == []
    for what in ("Python", "torch", "transformers", "peft", "polars", "prefect", "phi3v-tiny", "memory", "cores"):
        assert found[what].here not in ("", "-")
    assert found["phi3v-tiny"].here == "16 MB"
    assert "output" not in found


@pytest.mark.parametrize(
    ("missing", "joins", "here", "ok", "fix"),
    [
        ([], True, "10 scripts of 10", True, "fonts-noto-cjk"),
        (["Thai", "Japanese"], True, "no font for Thai, Japanese", False, "apt-get install fonts-noto-cjk fonts-noto"),
        ([], False, "no libraqm or libfribidi", False, "apt-get install libfribidi0"),
    ],
)
def test_scripts_that_pictures_cannot_show_are_named(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], joins: bool, here: str, ok: bool, fix: str
) -> None:
    monkeypatch.setattr(fonts, "undrawable", lambda: missing)
    monkeypatch.setattr(fonts, "joins_letters", lambda: joins)
    found = findings()["fonts"]
    assert (found.here, found.ok, found.required) == (here, ok, False)
    assert fix in found.fix


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", nothing)
    monkeypatch.setattr(doctor, "TINY_MODEL_PATH", tmp_path)

    found = findings()

    install = "pip install -c constraints.txt"
    assert found["torch"] == Finding("torch", "-", False, True, f"{install} enrich")
    assert found["vLLM"] == Finding("vLLM", "-", False, False, f"{install} 'enrich[vllm]'")
    assert found["Ray"] == Finding("Ray", "-", False, False, f"{install} 'enrich[ray]'")
    assert found["phi3v-tiny"] == Finding(
        "phi3v-tiny", "-", False, True, "reinstall the package: the tiny base is part of it"
    )


def test_without_torch_no_device_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))

    assert not [what for what in findings() if what.startswith("GPU")]


def test_without_a_gpu_the_tiny_base_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    assert findings()["GPU"] == Finding(
        "GPU",
        "-",
        False,
        False,
        f"a CUDA GPU with 16 GiB or more runs {DEFAULT_MODEL}; without one the tiny base is used",
    )


def test_each_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [SimpleNamespace(name="Big", total_memory=80 << 30), SimpleNamespace(name="Small", total_memory=8 << 30)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])

    found = findings()

    assert "GPU" not in found
    assert (found["GPU 0"].here, found["GPU 0"].ok) == ("Big, 80 GiB", True)
    assert (found["GPU 1"].here, found["GPU 1"].ok) == ("Small, 8 GiB", False)


@pytest.mark.parametrize(("memory", "free", "ok"), [(2, 0, False), (64, 100, True)])
def test_memory_and_disk_are_judged(monkeypatch: pytest.MonkeyPatch, memory: int, free: int, ok: bool) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else (memory << 30) // 4096)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free << 30))

    found = findings()

    assert (found["memory"].here, found["memory"].ok) == (f"{memory} GiB", ok)
    assert (found["free disk"].here, found["free disk"].ok) == (f"{free} GiB", ok)


def test_no_credentials_matter_only_to_s3(tmp_path: Path) -> None:
    fix = "for s3:// set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role"

    assert findings(str(tmp_path))["S3 credentials"] == Finding("S3 credentials", "-", False, False, fix)
    assert findings("s3://bucket/out")["S3 credentials"] == Finding("S3 credentials", "-", False, True, fix)


def test_credentials_are_found_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:password@s3.example:9000")

    found = findings()

    assert found["S3 credentials"].here == "env, endpoint https://s3.example:9000"
    for word in ("the-key", "the-secret", "password"):
        assert word not in str(found)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found; for s3:// set "),
        ({"AWS_ACCESS_KEY_ID": "half"}, "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY; for s3:// "),
    ],
)
def test_credentials_that_are_set_up_wrong_are_reported(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    found = findings()["S3 credentials"]

    assert (found.here, found.ok) == ("-", False)
    assert found.fix.startswith(reason)


def test_a_local_output_can_be_written(tmp_path: Path) -> None:
    output = str(tmp_path / "out")

    assert findings(output)["output"] == Finding("output", f"{output} supports conditional writes", True, True, "")


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("")

    assert findings(str(output))["output"] == Finding(
        "output", str(output), False, True, f"{output}: is a file; name a directory"
    )


def test_an_output_in_s3(s3_bucket: str) -> None:
    found = findings(f"{s3_bucket}/out")

    assert found["output"] == Finding("output", f"{s3_bucket}/out supports conditional writes", True, True, "")
    assert found["S3 credentials"].ok


def test_an_output_where_if_match_is_ignored(s3_bucket: str, s3_server: S3Server) -> None:
    s3_server.fault = REFUSES_IF_MATCH
    output = f"{s3_bucket}/out"
    here = f"{output} supports If-None-Match but ignores If-Match"

    found = findings(output)

    assert (found["output"].here, found["output"].ok, found["output"].required) == (here, False, True)
    assert found["output"].fix.endswith("or the setting `s3: {lock: true}`")
    works = "lets one publisher write at a time"
    assert found["lock object"] == Finding("lock object", works, True, False, "")

    found = findings(output, lock=True)

    assert found["output"] == Finding("output", here, True, True, "")
    assert found["lock object"] == Finding("lock object", works, True, True, "")


def test_a_lock_object_that_is_not_needed(s3_bucket: str) -> None:
    found = findings(f"{s3_bucket}/out", lock=True)

    assert found["output"] == Finding("output", f"{s3_bucket}/out supports conditional writes", True, True, "")
    assert found["lock object"].here == "not needed: If-Match is supported"


@pytest.mark.parametrize("lock", [False, True])
def test_an_output_without_conditional_writes(s3_bucket: str, s3_server: S3Server, lock: bool) -> None:
    s3_server.fault = IGNORES_CONDITIONS

    found = findings(f"{s3_bucket}/out", lock=lock)

    assert (found["output"].ok, found["output"].required) == (False, True)
    assert ": ignores conditional writes, so two runs could overwrite each other" in found["output"].fix
    assert "lock object" not in found


def test_a_bucket_that_is_not_there(s3_server: object) -> None:
    found = findings("s3://no-such-bucket/out")["output"]

    assert (found.here, found.ok, found.required) == ("s3://no-such-bucket/out", False, True)
    assert found.fix == "s3://no-such-bucket/out: there is no bucket no-such-bucket; create it or check the name"


@pytest.mark.parametrize(
    ("points", "here"), [(["enrich.models.phi3_vision.vllm_plugin:register"], "registered"), ([], "-")]
)
def test_a_vllm_that_does_not_know_the_plugin(monkeypatch: pytest.MonkeyPatch, points: list[str], here: str) -> None:
    monkeypatch.setattr(versions, "version", lambda package: "0.32.0")
    monkeypatch.setattr(doctor, "entry_points", lambda group: [SimpleNamespace(value=point) for point in points])

    found = findings()["vLLM plugin"]

    assert (found.here, found.ok, found.required) == (here, bool(points), False)
    assert found.fix == "reinstall enrich: its entry point is missing"
