"""A running Prefect, and a small bucket that the tiny base enriches."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from prefect.client.base import PrefectHttpxSyncClient

from tests.testing.forms import text

ROOT = Path(__file__).parents[2]
# The server's `prefect`, if it is not that of the workers: ENRICH_LIVE_SERVER=/opt/server/bin/prefect make test-live
SERVER = os.environ.get("ENRICH_LIVE_SERVER")
DATABASE = os.environ.get("ENRICH_LIVE_DATABASE")  # an empty one, as postgresql+asyncpg://...; without, SQLite
PREFECT = (sys.executable, "-m", "prefect")
PATIENCE = 400.0  # seconds; everything here takes a tenth of that where nothing else runs
PASSWORD = "operator:correct-horse"
WEBHOOK_SECRET = "T000-B000-planted-webhook-secret"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
Json = dict[str, Any]


def wait_for(what: str, ready: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `ready` returns, once that is true."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.3)
    raise AssertionError(f"{what}: not after {patience:.0f} s")


@dataclass
class Live:
    """A running Prefect and how to speak to it."""

    home: Path
    port: int
    environment: dict[str, str]
    server: subprocess.Popen[bytes] | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)  # what the webhook got

    @property
    def api(self) -> PrefectHttpxSyncClient:
        """One that asks again where no answer comes in a minute, or 503: the server's way to say that its SQLite file
        was locked."""
        return PrefectHttpxSyncClient(
            base_url=f"http://127.0.0.1:{self.port}/api",
            auth=tuple(PASSWORD.split(":")),
            enable_csrf_support=False,
            raise_on_all_errors=False,
            timeout=60,
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        with self.api as api:
            answer = api.request(method, path, json=body)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def command(self, *arguments: str) -> str:
        """Output of a command that ends by itself, such as `prefect deploy`."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def doctor(self, *options: str) -> tuple[int, str]:
        """Exit code and output of `enrich doctor --prefect`."""
        done = subprocess.run(
            [sys.executable, "-m", "enrich.cli", "doctor", "--prefect", *options], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def start_server(self) -> None:
        arguments = ("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.server = self._start("server", (SERVER,) if SERVER else PREFECT, arguments)
        wait_for("the server", self._healthy)

    def stop_server(self) -> None:
        assert self.server is not None
        self.server.terminate()
        self.server.wait(60)

    def start_worker(self, pool: str, **more: str) -> None:
        arguments = ("worker", "start", "--pool", pool, "--name", pool)
        self.workers[pool] = self._start(f"worker-{pool}", PREFECT, arguments, **more)

    def kill_worker(self, pool: str) -> None:
        """The worker and the flow runs it started, as when their machine goes."""
        os.killpg(self.workers[pool].pid, signal.SIGKILL)
        self.workers.pop(pool).wait()

    def stop(self) -> None:
        for process in [*self.workers.values(), *([self.server] if self.server else [])]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in [*self.workers.values(), *([self.server] if self.server else [])]:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment as its form does; the flow run's id. Asked again by `api`, the server starts no second."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": uuid4().hex}
        return str(self.call("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def state(self, run: str) -> Json:
        return dict(self.call("GET", f"/flow_runs/{run}")["state"] or {"name": "", "type": ""})

    def ended(self, run: str, patience: float = PATIENCE) -> Json:
        """The state of a flow run once it is final."""
        wait_for(f"the end of flow run {run}", lambda: self.state(run)["type"] in FINAL, patience)
        return self.state(run)

    def reached(self, run: str, name: str, patience: float = PATIENCE) -> None:
        wait_for(f"flow run {run} is {name}", lambda: self.state(run)["name"] == name, patience)

    def artifacts(self, run: str) -> dict[str, Json]:
        found = self.call("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, run: str) -> str:
        found = self.call("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        return "\n".join(line["message"] for line in found)

    def _start(
        self, name: str, prefect: Sequence[str], arguments: Sequence[str], **more: str
    ) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*prefect, *arguments], cwd=ROOT, env=self.environment | more, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def _healthy(self) -> bool:
        try:
            return self.api.get("/health").is_success
        except httpx.HTTPError:
            return False


def free_port() -> int:
    """A port of the loopback that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Shop:
    """A bucket of photos, an adapter with random weights, and a place for the output."""

    images: Path
    adapter: Path
    output: Path

    @property
    def speaking(self) -> "Shop":
        """With an adapter whose answers parse."""
        return replace(self, adapter=self.adapter.with_name("speaking"))

    def parameters(self, *, gate: bool = False, run: Mapping[str, Any] = {}, **more: Any) -> Json:
        """For enrich-adhoc, `more` in its text. Random weights answer noise: the gate would hold back any run."""
        usual = {
            "shard_size": 2, "engine": "transformers", "batch_size": 2, "decode_processes": 1,
            "max_new_tokens": 64 if self.adapter.name == "speaking" else 16, "gate": {"enabled": gate, "min_rows": 1},
        }  # fmt: skip
        places = {"photos": str(self.images), "adapter": str(self.adapter), "output": str(self.output)}
        return {**places, "settings": text(run={**usual, **run}, **more)}
