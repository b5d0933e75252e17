"""Manifests are what Kubernetes, KubeRay and Prefect's worker take; there is no cluster here."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from deployments.apply import pool_template

FOLDER = Path(__file__).parents[1] / "deployments" / "kubernetes"
MANIFESTS = [document for file in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text())]
OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes


def _closed(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **schema}


# Fields of a RayCluster that are not Kubernetes' own, written from KubeRay 1.6, raycluster_types.go in
# ray-operator/apis/ray/v1. The schema published there is in no package and has 0.7 MB, nearly all of which is that of
# a pod, twice.
_flag, _text, _count = {"type": "boolean"}, {"type": "string"}, {"type": "integer", "minimum": 0}
_texts = {"type": "object", "additionalProperties": _text}
_group = {"rayStartParams": _texts, "template": {"type": "object"}}
RAY_CLUSTER = _closed(
    required=["headGroupSpec"],
    properties={
        "rayVersion": _text,
        "suspend": _flag,
        "enableInTreeAutoscaling": _flag,
        "headServiceAnnotations": _texts,
        "autoscalerOptions": _closed(
            properties={
                "idleTimeoutSeconds": _count,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            }
        ),
        "authOptions": _closed(properties={"mode": {"enum": ["disabled", "token"]}, "secretName": _text}),
        "headGroupSpec": _closed(
            required=["rayStartParams", "template"], properties=_group | {"serviceType": _text, "enableIngress": _flag}
        ),
        "workerGroupSpecs": {
            "type": "array",
            "items": _closed(
                required=["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                properties=_group
                | {"groupName": _text, "suspend": _flag}
                | dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"), _count),
            ),
        },
    },
)


def check(manifest: dict[str, Any]) -> None:
    """Validate against the schemas of Kubernetes, where unknown fields are errors; the pods of a RayCluster too."""
    if manifest["kind"] == "RayCluster":
        assert manifest["apiVersion"] == "ray.io/v1"
        jsonschema.validate(manifest["spec"], RAY_CLUSTER)
        for group in groups(manifest):
            check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": group["template"]})
        return
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def of_kind(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return dict(found)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and pod specs of all that runs pods."""
    for manifest in MANIFESTS:
        if manifest["kind"] == "RayCluster":
            yield from (("ray", group["template"]["spec"]) for group in groups(manifest))
        elif manifest["kind"] == "Deployment":
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]
    yield "job", prefect_job()["spec"]["template"]["spec"]


def prefect_job(**variables: Any) -> dict[str, Any]:
    """The Job that Prefect's worker makes of the pool's template for a flow run."""
    made: Any = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            pool_template("kubernetes", "gpu"), variables, client=AsyncMock()
        )
    )
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="careful-otter"))
    return dict(made.job_manifest)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_are_valid(manifest: dict[str, Any]) -> None:
    check(manifest)


def test_an_unknown_field_a_wrong_type_and_a_missing_field_are_found() -> None:
    for path, value in [
        (("spec", "workerGroups"), []),
        (("spec", "workerGroupSpecs", 0, "replicas"), "8"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "serviceAccount_name"), "enrich"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers"), None),
    ]:
        cluster: Any = json.loads(json.dumps(of_kind("RayCluster", "enrich")))
        at = cluster
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(cluster)


def test_prefects_worker_makes_a_valid_job_of_the_template() -> None:
    made = prefect_job(gpus=2, memory="64Gi")

    pod = made["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert {"name": "ENRICH_CACHE", "value": "/models/enrich"} in pod["containers"][0]["env"]
    # Prefect's worker demands these two in the pod, where Kubernetes has no such fields and leaves them out.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    check(made)


def test_what_manifests_refer_to_is_there() -> None:
    claims = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "PersistentVolumeClaim"}
    accounts = {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "ServiceAccount"} | {None}
    for name, pod in pods():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounts == set(volumes), name
        assert {
            one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "emptyDir" not in one
        } <= claims, name
        assert pod.get("serviceAccountName") in accounts, name
    binding = of_kind("RoleBinding", "prefect-worker")
    assert of_kind(binding["roleRef"]["kind"], binding["roleRef"]["name"])
    assert [of_kind(subject["kind"], subject["name"]) for subject in binding["subjects"]]


def test_ray_of_the_cluster_is_the_ray_of_the_image_and_its_lead_joins_with_the_clusters_token() -> None:
    cluster = of_kind("RayCluster", "enrich")
    [lead] = of_kind("Deployment", "enrich-lead")["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one for one in lead["env"]}

    assert cluster["spec"]["rayVersion"] == ray.__version__
    assert cluster["spec"]["authOptions"]["mode"] == environment["RAY_AUTH_MODE"]["value"] == "token"
    secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": cluster["metadata"]["name"], "key": "auth_token"}  # made by KubeRay
    assert f"ray start --address {cluster['metadata']['name']}-head-svc:6379 --num-cpus 0" in lead["command"][-1]


def test_no_password_stands_in_a_manifest() -> None:
    for name, pod in pods():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if variable["name"].endswith(("AUTH_STRING", "TOKEN", "PASSWORD", "KEY")) and "value" in variable:
                    assert variable["name"].endswith("SECRET_KEY"), (name, variable)
