"""prefect.yaml and the command that brings it up."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from deployments.apply import POOLS
from deployments.bring_up import NotUp, keep_password
from deployments.deploy import to_try
from enrich.settings.run import RunSettings
from flows.nightly import sibling
from flows.parameters import ANSWERING, NightlySettings, read_text

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in FILE["deployments"]}


def test_the_deployments_are_there() -> None:
    assert set(DEPLOYMENTS) == {
        "nightly",
        "enrich-adhoc",
        "release-held",
        "promote-adapter",
        "finetune-adapter",
        "sample-catalog",
    }


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_starts_a_flow_with_parameters_that_pass(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    fields = parameter_schema(flow).model_dump_for_openapi()["properties"]
    schedules = deployment.get("schedules", [])

    for parameters in [deployment["parameters"], *(schedule.get("parameters", {}) for schedule in schedules)]:
        assert set(parameters) <= set(fields)
        optional = {name: field["default"] for name, field in fields.items() if "default" in field}
        asked = {"release-held": {}, "promote-adapter": {"adapter": "demo/adapters/a"}}.get(name, {})
        flow.validate_parameters(optional | asked | deployment["parameters"] | parameters)


def test_the_nightly_run_keeps_the_demo_s_adapter_until_it_has_a_better_one() -> None:
    parameters = DEPLOYMENTS["nightly"]["parameters"]
    more = read_text(NightlySettings, parameters["settings"], "run", ANSWERING)

    assert (more.adapter, sibling(parameters["output"], "adapters")) == ("demo/adapter", "demo/adapters")
    assert more.run == RunSettings()
    assert len(parameters["settings"].splitlines()) == 3  # more would not fit on a screen


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_says_what_it_is_and_where_it_runs(name: str) -> None:
    deployment = DEPLOYMENTS[name]

    assert deployment["work_pool"]["name"] in POOLS
    assert "job_variables" not in deployment["work_pool"]
    assert deployment["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    assert deployment["version"] == version("enrich")
    assert deployment["description"]
    assert deployment["tags"]


def test_the_nightly_run_is_scheduled_once_in_a_time_zone_and_never_twice_at_a_time() -> None:
    nightly = DEPLOYMENTS["nightly"]
    [schedule] = nightly["schedules"]

    assert (schedule["slug"], schedule["cron"], schedule["timezone"]) == ("every-night", "0 4 * * *", "Europe/Berlin")
    assert "concurrency_limit" not in nightly  # its slot may leak; see flows.nights


def test_the_file_is_for_the_prefect_that_is_installed() -> None:
    assert FILE["prefect-version"] == version("prefect")


def test_a_schedule_that_somebody_switched_on_stays_on_and_a_real_deployment_is_active() -> None:
    [schedule] = DEPLOYMENTS["nightly"]["schedules"]
    assert schedule["active"]

    path, name = ROOT / "deployments" / "prefect.yaml", ("nightly", schedule["cron"])
    for active, stays in ((set(), False), ({name}, True), ({("nightly", "1 1 * * *")}, False)):
        file = to_try(path, active)
        found = {deployment["name"]: deployment for deployment in file["deployments"]}
        assert found["nightly"]["schedules"][0]["active"] is stays
        assert found.keys() == DEPLOYMENTS.keys()


def test_the_demo_s_data_may_be_in_s3() -> None:
    file = to_try(ROOT / "deployments" / "prefect.yaml", set(), "s3://demo")
    places = {
        word
        for deployment in file["deployments"]
        for value in deployment["parameters"].values()
        for word in str(value).split()
        if "/" in word
    }

    assert places == {f"s3://demo/{name}" for name in ("catalog", "bucket", "adapter", "adapters", "output")}


def test_the_password_is_made_once(tmp_path: Path) -> None:
    first = keep_password(tmp_path / "home")

    assert keep_password(tmp_path / "home") == first != keep_password(tmp_path / "other")


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("\n")

    with pytest.raises(NotUp, match="does not contain a password; remove it and start again"):
        keep_password(tmp_path)
