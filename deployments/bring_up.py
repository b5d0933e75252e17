"""Prefect on this machine in one command, until Ctrl-C: server, work pools, automations, deployments and workers.

Everything that Prefect stores is in one directory, .ui in the repository. Its server listens on the loopback only,
requires a random password, and lets no other web page read its answers. Schedules are paused until turned on in the UI.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from deployments.apply import ENVIRONMENT, POOLS, apply
from deployments.deploy import Refused, deploy, schedules
from flows.home import own_server

ROOT = Path(__file__).resolve().parent.parent
PREFECT = (sys.executable, "-m", "prefect")
DEFAULT_PORT = 4200
START_SECONDS = 300.0  # a first start compiles Prefect and makes its database: 40 s, several times that if it is busy
PASSWORD_FILE = "password"
SHORTEST_PASSWORD = 20  # characters, of a password that the user wrote there
# Between a worker's polls for runs. With SQLite, polls sometimes fail in server 3.7.7 (database is locked, prefect
# #23051), and if Python collects the failed statement while the database is locked, the server hangs for a minute.
QUERY_SECONDS = "5"
STOP_SECONDS = 10.0  # an idle worker of Prefect 3.7.7 sometimes hangs when it is asked to stop


class NotUp(Exception):
    """A process did not start or ended by itself; the message says which, and where its log is."""


@dataclass(frozen=True)
class Part:
    """A process of ours, the leader of its own process group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def main() -> int:
    """0 if it was stopped, 1 if a process did not start or ended by itself."""
    arguments = _arguments()
    home = Path(arguments.home).resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts: list[Part] = []
    try:
        url = f"http://127.0.0.1:{_port(arguments.port)}"
        password = keep_password(home)
        os.environ.update(environment(home, url, password))
        _bring_up(parts, home, url)
        print(
            f"\n  {url}/deployments\n  password: {password}\n\n"
            f"The password is kept in {home / PASSWORD_FILE}, logs are in {home}. Ctrl-C stops everything.\n"
            f"Schedules: {_schedules() or 'none'}.",
            flush=True,
        )
        if arguments.ready_file:
            Path(arguments.ready_file).write_text(url)
        while True:
            _check(parts)
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    except (NotUp, Refused, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
        _stop(parts[1:])  # the workers first: they report to the server
        _stop(parts[:1])


def _bring_up(parts: list[Part], home: Path, url: str) -> None:
    print("Starting Prefect; the first time takes a minute.", flush=True)
    _start(parts, home, "server", "server", "start", "--host", "127.0.0.1", "--port", url.rpartition(":")[2])
    _wait(parts, "the server", lambda: _is_healthy(url))
    apply(webhook=os.environ.get("ENRICH_WEBHOOK_URL"))
    with (home / "deploy.log").open("wb") as log:
        deploy(log=log)
    for pool in POOLS:
        _start(parts, home, f"worker-{pool}", "worker", "start", "--pool", pool, "--name", pool)
    for pool in POOLS:
        _wait(parts, f"the worker of pool {pool}", lambda pool=pool: _has_worker(url, pool))  # type: ignore[misc]


def keep_password(home: Path) -> str:
    """The password of the UI and of our own processes: random, generated once, stored in `home` for its owner only."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / PASSWORD_FILE
    with suppress(FileExistsError), open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"admin:{secrets.token_urlsafe(24)}")
    path.chmod(0o600)
    password = path.read_text().strip()
    if len(password) < SHORTEST_PASSWORD or not password.isascii():
        raise NotUp(f"{path} does not contain a password; remove it and start again")
    return password


def environment(home: Path, url: str, password: str) -> dict[str, str]:
    """Settings for all processes started here, whatever the user's Prefect profile says."""
    return {
        **own_server(home),
        **ENVIRONMENT,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_WORKER_QUERY_SECONDS": QUERY_SECONDS,
        # The same string on both sides. It also keeps out web pages whose name resolves to us (DNS rebinding).
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{url},{url.replace('127.0.0.1', 'localhost')}",
    }


def _schedules() -> str:
    found = schedules().items()
    return ", ".join(f"{name} at {cron!r} is {'active' if active else 'paused'}" for (name, cron), active in found)


def _start(parts: list[Part], home: Path, name: str, *arguments: str) -> None:
    log = home / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*PREFECT, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    parts.append(Part(name, process, log))


def _wait(parts: list[Part], what: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        _check(parts)
        if time.monotonic() > deadline:
            raise NotUp(f"{what} was not ready after {START_SECONDS:.0f} s; see {parts[-1].log}")
        time.sleep(0.5)


def _check(parts: list[Part]) -> None:
    for part in parts:
        if part.process.poll() is not None:
            raise NotUp(f"{part.name} ended with exit code {part.process.returncode}; see {part.log}")


def _stop(parts: list[Part]) -> None:
    """Ask the processes and their groups to stop, then kill what is left.

    A worker's group includes the flow runs that it started: given the time, they report that they were stopped.
    """
    for part in parts:
        _signal(part, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(_signal(part, 0) for part in parts) and time.monotonic() < deadline:
        time.sleep(0.1)
    for part in parts:
        _signal(part, signal.SIGKILL)
        part.process.wait()


def _signal(part: Part, number: int) -> bool:
    """Send a signal to the group of `part`. False if nothing is left of it."""
    part.process.poll()  # reaps it: a zombie would keep its group alive
    try:
        os.killpg(part.process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def _has_worker(url: str, pool: str) -> bool:
    try:
        name, _, secret = os.environ["PREFECT_API_AUTH_STRING"].partition(":")
        workers = f"{url}/api/work_pools/{pool}/workers/filter"
        answer = httpx.post(workers, json={}, timeout=30, auth=(name, secret)).raise_for_status()
    except httpx.HTTPError:
        return False
    return any(worker["status"] == "ONLINE" for worker in answer.json())


def _port(asked: int | None) -> int:
    """The port asked for (0: any free one). By default Prefect's own, or any free one if that is taken."""
    for port in (DEFAULT_PORT, 0) if asked is None else (asked,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise NotUp(f"port {asked} of 127.0.0.1 is taken; name another one or none")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help=f"port of the server (default: {DEFAULT_PORT}, or a free one)")
    parser.add_argument("--home", default=ROOT / ".ui", help="directory of Prefect's database and logs (default: .ui)")
    parser.add_argument("--ready-file", help="write the URL there once everything is up")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
