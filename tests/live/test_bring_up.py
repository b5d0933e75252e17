"""`make ui`: one command brings a server and its worker up, for nobody but who started it."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.base import PrefectHttpxSyncClient

from tests.testing.live import ROOT, wait_for

PATIENCE = 300.0  # seconds; 20 where nothing else runs
pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]


@contextmanager
def bring_up(home: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`deployments/bring_up.py` as a user starts it, with its URL once it is ready; stopped at the end."""
    ready = home / "url"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "deployments.bring_up", "--port", "0", "--home", str(home)]
    command += ["--ready-file", str(ready)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield ready.read_text(), process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@dataclass(frozen=True)
class Up:
    """What `bring_up` started."""

    home: Path
    url: str
    process: subprocess.Popen[str]

    @property
    def password(self) -> str:
        return (self.home / "password").read_text()

    @property
    def parts(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def command_lines(self) -> list[str]:
        """Those of its processes that are alive: a flow run's may exit while it is looked at."""
        lines = []
        for part in self.parts:
            with suppress(psutil.NoSuchProcess):
                lines.append(" ".join(part.cmdline()))
        return lines

    def listening(self) -> set[tuple[str, int]]:
        """Address and port of every socket on which one of its processes accepts connections."""
        found = set()
        for part in self.parts:
            with suppress(psutil.NoSuchProcess):
                sockets = part.net_connections("inet")
                found |= {tuple(socket.laddr) for socket in sockets if socket.status == psutil.CONN_LISTEN}
        return found

    def client(self) -> PrefectHttpxSyncClient:
        """One that asks again where the answer is 503: the server's way to say that its SQLite file was locked."""
        return PrefectHttpxSyncClient(
            base_url=f"{self.url}/api",
            auth=tuple(self.password.split(":")),
            enable_csrf_support=False,
            raise_on_all_errors=False,
            timeout=60,
        )


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("up") / "home"
    home.mkdir()
    with bring_up(home) as (url, process):
        yield Up(home, url, process)


def start_run(api: httpx.Client, deployment: str, parameters: dict[str, Any]) -> httpx.Response:
    """What the form's button does."""
    found = api.get(f"/deployments/name/{deployment}").raise_for_status().json()
    path = f"/deployments/{found['id']}/create_flow_run"
    return api.post(path, json={"parameters": parameters, "state": {"type": "SCHEDULED"}})


def ended(api: httpx.Client, started: httpx.Response) -> dict[str, Any]:
    """The final state of a flow run."""
    run = started.raise_for_status().json()

    def final() -> dict[str, Any] | None:
        state: dict[str, Any] = api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state: dict[str, Any] = wait_for(f"the end of run {run['name']}", final, PATIENCE)
    return state


def test_one_command_brings_it_up_and_a_run_started_from_the_form_completes(up: Up, tmp_path: Path) -> None:
    places = {"catalog": f"{tmp_path}/catalog", "bucket": f"{tmp_path}/bucket"}
    nowhere = f"{tmp_path}/none"

    with up.client() as api:
        run = start_run(api, "sample-catalog/sample-catalog", places | {"products": 8, "unlabelled": 4})
        failing = start_run(api, "enrich-catalog/enrich-adhoc", {"photos": nowhere})
        refused = start_run(api, "enrich-catalog/enrich-adhoc", {"photos": ""})

        assert ended(api, run)["type"] == "COMPLETED"
        assert (tmp_path / "catalog" / "catalog.csv").is_file()
        assert ended(api, failing)["message"].endswith(f"UsageError: {nowhere}: no such directory; check the path")
        assert refused.status_code == 409
        assert "Validation failed for field 'photos'" in refused.json()["detail"]


@pytest.mark.parametrize("host", [None, "evil.example"])  # a name that resolves to this server (DNS rebinding)
@pytest.mark.parametrize("credentials", [None, ("admin", "guess"), ("", "")])
def test_nobody_gets_an_answer_without_the_password(
    up: Up, host: str | None, credentials: tuple[str, str] | None
) -> None:
    headers = {"Host": host} if host else {}
    for path in ("deployments/filter", "flow_runs/filter", "work_pools/filter", "block_documents/filter"):
        answer = httpx.post(f"{up.url}/api/{path}", json={}, auth=credentials, headers=headers)
        assert answer.status_code == 401, path
        assert "www-authenticate" not in answer.headers  # a browser would remember the password for every page


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://"])
def test_no_page_of_another_origin_may_call(up: Up, origin: str) -> None:
    asks = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }

    preflight = httpx.options(f"{up.url}/api/deployments/filter", headers=asks)
    plain = httpx.get(f"{up.url}/api/health", headers={"Origin": origin})
    own = httpx.options(f"{up.url}/api/deployments/filter", headers=asks | {"Origin": up.url})

    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in {**preflight.headers, **plain.headers}
    assert own.headers["access-control-allow-origin"] == up.url


def test_it_listens_on_the_loopback_only(up: Up) -> None:
    listening = up.listening()  # the server's port, and those of Prefect's processes among themselves

    assert ("127.0.0.1", int(up.url.rpartition(":")[2])) in listening
    assert {ip for ip, _ in listening} == {"127.0.0.1"}


def test_the_password_is_its_owners_alone_and_on_no_command_line(up: Up) -> None:
    secret = up.password.partition(":")[2]

    assert stat.S_IMODE((up.home / "password").stat().st_mode) == 0o600
    assert len(secret) >= 32
    lines = up.command_lines()
    assert len(lines) >= 3
    assert not any(secret in line for line in lines)
    logs = [path.read_text() for path in up.home.glob("*.log")]
    assert len(logs) >= 4
    assert not any(secret in log for log in logs)


@pytest.mark.parametrize("variable", ["command", "env", "working_dir", "labels", "name"])
def test_anyone_who_starts_a_run_sets_no_job_variables(up: Up, variable: str, tmp_path: Path) -> None:
    values = {"command": f"touch {tmp_path}/owned", "env": {"PYTHONSTARTUP": "x"}, "labels": {"a": "b"}}
    planted = {variable: values.get(variable, "x")}
    body = {"parameters": {}, "state": {"type": "SCHEDULED"}, "job_variables": planted}
    with up.client() as api:
        found = api.get("/deployments/name/enrich-catalog/enrich-adhoc").raise_for_status().json()
        place = f"/deployments/{found['id']}"

        assert api.post(f"{place}/create_flow_run", json=body).status_code in (409, 422)
        runs = {"deployments": {"id": {"any_": [found["id"]]}}}
        started = api.post("/flow_runs/filter", json=runs).raise_for_status().json()
        assert all(run["job_variables"] in (None, {}) for run in started)
    assert not (tmp_path / "owned").exists()


def test_schedules_are_paused_where_somebody_only_looks_around(up: Up) -> None:
    with up.client() as api:
        nightly = api.get("/deployments/name/nightly/nightly").raise_for_status().json()
        chosen = {
            "deployments": {"id": {"any_": [nightly["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }

        assert [schedule["active"] for schedule in nightly["schedules"]] == [False]
        assert api.post("/flow_runs/filter", json=chosen).raise_for_status().json() == []


def test_ctrl_c_stops_all_of_it(up: Up) -> None:
    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(60) == 0
    told = up.process.stdout.read() if up.process.stdout else ""
    assert up.password in told
    assert "nightly at '0 4 * * *' is paused" in told
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{up.url}/api/health")
