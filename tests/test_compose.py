"""compose.yaml, as far as it can be checked without Docker: its services fit each other, the image and the code."""

import importlib.util
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings

from deployments.apply import ENVIRONMENT, POOLS
from tests.testing.dockerfile import ROOT, environment, stage

FILE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = {name: service for name, service in OURS.items() if name.startswith("worker-")}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_to_its_volumes_and_tmp_only_and_gains_no_rights(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == ("postgres" if name == "database" else "10001:10001")
    if name in OURS and name != "volumes":
        home = service["environment"].get("HOME", environment(service["build"]["target"])["HOME"])
        assert home in [*service["tmpfs"], *(volume.partition(":")[2] for volume in service.get("volumes", []))]


def test_the_server_makes_its_pages_where_it_may_write() -> None:
    pages = environment("server")["PREFECT_UI_STATIC_DIRECTORY"]

    assert pages.startswith(tuple(f"{each}/" for each in SERVICES["server"]["tmpfs"]))


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_come_true(name: str) -> None:
    waits = SERVICES[name].get("depends_on", {})

    for other, wait in waits.items():
        if wait["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert (wait["condition"], SERVICES[other]["restart"]) == ("service_completed_successfully", "no")


def test_volumes_are_declared_and_used_by_one_service_besides_the_one_that_sets_their_owner() -> None:
    used = [
        volume.partition(":")[0]
        for name, service in SERVICES.items()
        if name != "volumes"
        for volume in service.get("volumes", [])
    ]

    assert sorted(used) == sorted(FILE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_versions_and_ports_are_the_loopback_s(name: str) -> None:
    service = SERVICES[name]

    if name in OURS:
        assert service["image"] == f"enrich:{service['build']['target']}"
        assert stage(service["build"]["target"])
    else:
        assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_each_pool_has_a_worker_of_the_image_that_reports_its_health() -> None:
    started = [service.get("command") or ["prefect", "worker", "start", "--pool", "cpu", "--with-healthcheck"]
               for service in WORKERS.values()]  # fmt: skip

    assert {command[command.index("--pool") + 1] for command in started} == set(POOLS)
    assert all("--with-healthcheck" in command for command in started)


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_s_runs_have_the_environment_that_every_worker_has(name: str) -> None:
    service = WORKERS[name]

    assert (environment(service["build"]["target"]) | service["environment"]).items() >= ENVIRONMENT.items()


@pytest.mark.parametrize("name", OURS)
def test_modules_and_settings_that_a_service_names_are_there(name: str) -> None:
    service = OURS[name]
    command = service.get("command", [])

    if command[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(command[2])
    known = _get_settings_fields(Settings)
    assert {variable for variable in service["environment"] if variable.startswith("PREFECT_")} <= set(known)


def test_the_names_and_passwords_of_both_sides_agree_and_say_what_they_are_for() -> None:
    database, storage, server = (SERVICES[name]["environment"] for name in ("database", "storage", "server"))
    url = urlsplit(server["PREFECT_API_DATABASE_CONNECTION_URL"])

    assert (url.username, url.password, url.hostname, url.path) == (
        database["POSTGRES_USER"], database["POSTGRES_PASSWORD"], "database", f"/{database['POSTGRES_USER']}"
    )  # fmt: skip
    for client in (SERVICES["setup"]["environment"], *(service["environment"] for service in WORKERS.values())):
        assert client["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
        assert client["AWS_ACCESS_KEY_ID"] == storage["ROOT_ACCESS_KEY"]
        assert client["AWS_SECRET_ACCESS_KEY"] == storage["ROOT_SECRET_KEY"]
        assert (urlsplit(client["PREFECT_API_URL"]).hostname, urlsplit(client["AWS_ENDPOINT_URL"]).hostname) == (
            "server", "storage"
        )  # fmt: skip
    secrets = [database["POSTGRES_PASSWORD"], storage["ROOT_SECRET_KEY"], server["PREFECT_SERVER_API_AUTH_STRING"]]
    assert all(secret.endswith("for-trying-only") for secret in secrets)
