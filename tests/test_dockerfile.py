"""The Dockerfile's promises that can be read from it; no image is built here."""

import json
import re
import tomllib

import pytest
from packaging.version import Version

from tests.testing.dockerfile import ROOT, STEPS, TEXT, environment, stage

TARGETS = ["cpu", "gpu"]


def test_what_is_copied_and_installed_is_there_and_let_through_and_nothing_else() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for word, rest in STEPS if word == "COPY" for source in rest.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}

    assert copied | packages | {project["project"]["readme"], *project["project"]["license-files"]} == let_through
    for source in let_through:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_a_checked_worker_as_an_unprivileged_user(target: str) -> None:
    steps = stage(target)
    last = dict(steps)

    assert last["USER"] == "10001"
    assert json.loads(last["CMD"]) == ["prefect", "worker", "start", "--pool", target, "--with-healthcheck"]
    assert "http://127.0.0.1:8080/health" in last["HEALTHCHECK"]


def test_the_server_is_a_checked_process_of_an_unprivileged_user_and_newer_than_its_clients() -> None:
    last = dict(stage("server"))
    pins = dict(re.findall(r"(?m)^(\S+?)==(\S+)$", (ROOT / "deployments" / "server-constraints.txt").read_text()))
    clients = dict(re.findall(r"(?m)^(\S+?)==(\S+)$", (ROOT / "constraints.txt").read_text()))

    assert last["USER"] == "10001"
    assert json.loads(last["CMD"])[:3] == ["prefect", "server", "start"]
    assert "http://127.0.0.1:4200/api/health" in last["HEALTHCHECK"]
    assert "lease_storage.filesystem" in last["ENV"]
    assert {"prefect", "asyncpg", "SQLAlchemy", "fastapi"} <= pins.keys()
    assert Version(pins["prefect"]) >= Version(clients["prefect"])


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_writes_below_data_and_models_where_the_root_is_read_only(target: str) -> None:
    variables, last = environment(target), dict(stage(target))

    # ~/.prefect and ~/.cache (work on its way to S3, matplotlib, vLLM, Triton) follow HOME. A folder below /data would
    # not be there in a new volume, and Prefect does not make the parents of ~/.prefect.
    assert (variables["HOME"], variables["HF_HOME"]) == ("/data", "/models")
    assert last["WORKDIR"] == "/data"
    assert not {name for name in variables if name.endswith(("CACHE", "CACHE_HOME", "CACHE_DIR", "TMPDIR"))}


@pytest.mark.parametrize("target", TARGETS)
def test_a_change_of_code_makes_no_layer_of_dependencies(target: str) -> None:
    steps = stage(target)
    dependencies = max(n for n, (word, rest) in enumerate(steps) if "--constraint constraints.txt" in rest)
    before = {source for word, rest in steps[:dependencies] if word == "COPY" for source in rest.split()[:-1]}

    assert before == {"pyproject.toml", "constraints.txt"}
    assert not any("type=bind" in rest for _, rest in steps[: dependencies + 1])


def test_what_is_installed_is_pinned() -> None:
    installs = re.findall(r"pip install[^&\n]*", TEXT)
    assert installs
    for command in installs:
        pinned = re.search(r"--constraint (/tmp/server-)?constraints[.]txt", command) or "--no-deps" in command
        assert pinned or command.strip() == "pip install --no-cache-dir --upgrade pip", command
