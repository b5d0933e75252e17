"""Pools, automations and what a worker makes of the templates; no container is started here."""

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import jsonschema
import pytest
from docker.types import DeviceRequest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkPool
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.process import ProcessJobConfiguration

from deployments.apply import ENVIRONMENT, POOLS, apply, pool_template
from deployments.automations import resumption, zombies
from deployments.bring_up import environment

KINDS = ("process", "docker", "kubernetes")


def job(kind: str, pool: str, **variables: Any) -> dict[str, Any]:
    """What a worker starts: the template with the defaults of its variables and what a deployment says."""
    template = pool_template(kind, pool)
    fields = template["variables"]["properties"]
    values = {name: field["default"] for name, field in fields.items() if "default" in field}
    return dict(apply_values(template["job_configuration"], values | variables))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_variable_of_a_template_is_used_and_every_placeholder_is_one(kind: str, pool: str) -> None:
    template = pool_template(kind, pool)

    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}

    assert used == set(template["variables"]["properties"])


def test_workers_of_the_ui_store_json_and_tell_that_they_live(tmp_path: Path) -> None:
    assert environment(tmp_path, "http://127.0.0.1:4200", "secret").items() >= ENVIRONMENT.items()


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_starts_no_command_and_environment_that_a_deployment_was_changed_to(pool: str) -> None:
    planted = {"command": "touch owned", "env": {"PYTHONPATH": "/tmp"}, "env.PYTHONSTARTUP": "x", "working_dir": "/"}

    template = pool_template("process", pool)
    made: Any = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, planted, client=AsyncMock()))

    assert (made.command, made.env, str(made.working_dir)) == (None, {}, ".")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", POOLS)
def test_job_variables_are_sizes_at_most_and_all_others_are_refused(kind: str, pool: str) -> None:
    variables = pool_template(kind, pool)["variables"]

    assert set(variables["properties"]) <= {"gpus", "cpu", "memory", "mem_limit", "shared_memory"}
    assert variables["additionalProperties"] is False
    for name, field in variables["properties"].items():
        jsonschema.validate({name: field["default"]}, variables)
        for attack in ("{{ prefect.blocks.secret.shop-key }}", "1; touch /tmp/x", {"a": "b"}, None):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({name: attack}, variables)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_takes_nothing_else_from_a_run_even_where_no_server_checked_it(kind: str, pool: str) -> None:
    for variable in (
        "command", "env", "image", "volumes", "privileged", "networks", "namespace", "working_dir", "labels", "name",
        "service_account_name", "job_manifest", "cluster_config", "model_cache", "data", "registry_credentials",
    ):  # fmt: skip
        assert job(kind, pool, **{variable: "planted"}) == job(kind, pool), variable


def test_a_pod_gets_gpu_shared_memory_node_and_model_cache() -> None:
    made = job("kubernetes", "gpu", gpus=2)

    pod = made["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container["image"] == "enrich:gpu"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == "enrich-models"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/models", "/dev/shm"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert made["job_manifest"]["spec"]["backoffLimit"] == 0  # Prefect restarts it


def test_a_container_gets_gpu_shared_memory_and_model_cache() -> None:
    made = job("docker", "gpu", gpus=-1)

    [request] = [DeviceRequest(**request) for request in made["container_create_kwargs"]["device_requests"]]
    assert (request.driver, request.count, request.capabilities) == ("nvidia", -1, [["gpu"]])
    assert made["container_create_kwargs"]["shm_size"] == "8g"
    assert "enrich-models:/models" in made["volumes"]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_takes_pools_and_automations_any_number_of_times(kind: str) -> None:
    apply(kind)
    apply(kind)

    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("gpu")
        assert isinstance(pool, WorkPool)
        assert (pool.type, pool.concurrency_limit) == (kind, 1)
        for automation in (zombies(), resumption()):
            assert len(client.read_automations_by_name(automation.name)) == 1
        assert client.read_global_concurrency_limit_by_name("enrich-publish").limit == 1
        for name in POOLS:
            client.delete_work_pool(name)  # a pool keeps its type
        client.delete_global_concurrency_limit_by_name("enrich-publish")
        for automation in (zombies(), resumption()):
            client.delete_automation(client.read_automations_by_name(automation.name)[0].id)


def test_a_crash_is_followed_by_two_more_tries_at_most() -> None:
    trigger = json.loads(resumption().model_dump_json())["trigger"]

    assert trigger["match"]["prefect.run-count"] == ["1", "2"]
    assert trigger["after"] == ["prefect.flow-run.Crashed"]
    assert trigger["posture"] == "Proactive"  # after the last report of the crash, not the first
