"""The Dockerfile's promises that can be read from it; no image is built here."""

import json
import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def stage(name: str) -> list[list[str]]:
    """The steps of a stage, those of the stages it is made from first."""
    starts = {re.split(r"(?i)\s+as\s+", rest)[1]: n for n, (word, rest) in enumerate(STEPS) if word == "FROM"}
    if name not in starts:
        return []
    start = starts[name]
    end = min((n for n in starts.values() if n > start), default=len(STEPS))
    return stage(STEPS[start][1].split()[0]) + STEPS[start + 1 : end]


def test_everything_copied_is_there_and_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {
        source
        for word, rest in STEPS
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert sources == let_through
    for source in sources:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_target_runs_a_checked_worker_as_nobody_special(target: str) -> None:
    steps = stage(target)
    last = dict(steps)

    assert last["USER"] == "10001"
    assert json.loads(last["CMD"]) == ["prefect", "worker", "start", "--pool", target, "--with-healthcheck"]
    assert "http://127.0.0.1:8080/health" in last["HEALTHCHECK"]


def test_the_server_is_a_checked_process_of_nobody_special_and_newer_than_its_clients() -> None:
    last = dict(stage("server"))
    pins = dict(re.findall(r"(?m)^(\S+?)==(\S+)$", (ROOT / "deployments" / "server-constraints.txt").read_text()))
    clients = dict(re.findall(r"(?m)^(\S+?)==(\S+)$", (ROOT / "constraints.txt").read_text()))

    assert last["USER"] == "10001"
    assert json.loads(last["CMD"])[:3] == ["prefect", "server", "start"]
    assert "http://127.0.0.1:4200/api/health" in last["HEALTHCHECK"]
    assert "lease_storage.filesystem" in last["ENV"]
    assert {"prefect", "asyncpg", "SQLAlchemy", "fastapi"} <= pins.keys()
    assert Version(pins["prefect"]) >= Version(clients["prefect"])


def test_what_is_installed_is_pinned() -> None:
    installs = re.findall(r"pip install[^&\n]*", TEXT)
    assert installs
    for command in installs:
        pinned = re.search(r"--constraint (/tmp/server-)?constraints[.]txt", command) or "--no-deps" in command
        assert pinned or command.strip() == "pip install --no-cache-dir --upgrade pip", command
