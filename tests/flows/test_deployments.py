"""prefect.yaml and the command that brings it up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.base import PrefectHttpxSyncClient
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from deployments.apply import POOLS

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in FILE["deployments"]}
PATIENCE = 300.0  # seconds; 20 where nothing else runs


def test_the_deployments_are_there() -> None:
    assert set(DEPLOYMENTS) == {"nightly", "enrich-adhoc", "release-held", "finetune-adapter", "sample-catalog"}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_starts_a_flow_with_parameters_that_pass(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    fields = parameter_schema(flow).model_dump_for_openapi()["properties"]
    schedules = deployment.get("schedules", [])

    for parameters in [deployment["parameters"], *(schedule.get("parameters", {}) for schedule in schedules)]:
        assert set(parameters) <= set(fields)
        flow.validate_parameters({field: fields[field]["default"] for field in fields} | parameters)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_says_what_it_is_and_where_it_runs(name: str) -> None:
    deployment = DEPLOYMENTS[name]

    assert deployment["work_pool"]["name"] in POOLS
    assert deployment["work_pool"]["job_variables"] == {"working_dir": "."}
    assert deployment["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    assert deployment["version"] == version("enrich")
    assert deployment["description"]
    assert deployment["tags"]


def test_the_night_is_scheduled_once_in_a_time_zone_and_never_twice_at_a_time() -> None:
    nightly = DEPLOYMENTS["nightly"]
    [schedule] = nightly["schedules"]

    assert (schedule["slug"], schedule["cron"], schedule["timezone"]) == ("every-night", "0 4 * * *", "Europe/Berlin")
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_the_file_is_for_the_prefect_that_is_installed() -> None:
    assert FILE["prefect-version"] == version("prefect")


@contextmanager
def bring_up(home: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`deployments/bring_up.py` as a user starts it, with its URL once it is ready; stopped at the end."""
    ready = home / "url"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "deployments.bring_up", "--port", "0", "--home", home, "--ready-file", ready]
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


def client(api: str) -> PrefectHttpxSyncClient:
    """One that asks again where the answer is 503: the server's way to say that its SQLite file was locked."""
    return PrefectHttpxSyncClient(base_url=api, enable_csrf_support=False, raise_on_all_errors=False, timeout=60)


def start_run(api: httpx.Client, deployment: str, parameters: dict[str, Any]) -> httpx.Response:
    """What the form's button does."""
    found = api.get(f"/deployments/name/{deployment}").raise_for_status().json()
    path = f"/deployments/{found['id']}/create_flow_run"
    return api.post(path, json={"parameters": parameters, "state": {"type": "SCHEDULED"}})


def ended(api: httpx.Client, started: httpx.Response) -> dict[str, Any]:
    """The final state of a flow run."""
    run = started.raise_for_status().json()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        state = api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(0.5)
    raise AssertionError(f"the run is {state['name']} after {PATIENCE:.0f} s")


@pytest.mark.timeout(900)
def test_one_command_brings_it_up_and_a_run_started_from_the_form_completes(tmp_path: Path) -> None:
    places = {"catalog": f"{tmp_path}/catalog", "bucket": f"{tmp_path}/bucket"}
    nowhere = f"{tmp_path}/none"

    with bring_up(tmp_path / "home") as (url, process), client(f"{url}/api") as api:
        run = start_run(api, "sample-catalog/sample-catalog", places | {"settings": {"products": 8, "bucket": 4}})
        failing = start_run(api, "enrich-catalog/enrich-adhoc", {"images": nowhere})
        refused = start_run(api, "enrich-catalog/enrich-adhoc", {"limit": 0})

        assert ended(api, run)["type"] == "COMPLETED"
        assert (tmp_path / "catalog" / "catalog.csv").is_file()
        assert ended(api, failing)["message"].endswith(f"UsageError: {nowhere}: no such directory; check the path")
        assert refused.status_code == 409
        assert "Validation failed for field 'limit'" in refused.json()["detail"]

    assert process.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/api/health")
