"""`enrich doctor --prefect` on a real server: a line for all that keeps nights from starting, and no change unasked."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Running, Scheduled

from enrich.doctor import Finding
from enrich.errors import UsageError
from flows import doctor
from flows.doctor import examine_prefect
from flows.nights import PUBLISHERS
from tests.testing.badweb import Answer, reply, serve
from tests.testing.cli import RunCli


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def deployment(client: SyncPrefectClient) -> Iterator[UUID]:
    """A nightly one, in a pool without workers."""

    @flow
    def some_night() -> None:
        pass

    name = f"pool-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    made = client.create_deployment(
        client.create_flow(some_night), f"night-{uuid4().hex[:8]}", work_pool_name=name,
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 4 * * *"), active=True)],
    )  # fmt: skip
    yield made
    client.delete_deployment(made)
    client.delete_work_pool(name)


def found_now(*, release: bool = False) -> dict[str, Finding]:
    return {finding.what.partition(" ")[0]: finding for finding in examine_prefect(release)}


def test_what_keeps_a_nightly_run_from_starting_is_named(client: SyncPrefectClient, deployment: UUID) -> None:
    then = datetime.now(UTC) - timedelta(hours=3)
    client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=then))
    pool = client.read_deployment(deployment).work_pool_name

    found = found_now()

    assert found["Prefect"].ok
    assert (found["pool"].ok, found["pool"].here) == (False, "no workers online")
    assert found["pool"].fix == f"prefect worker start --pool {pool}"
    assert found["runs"].here == f"1 due and not started, the first at {then:%Y-%m-%d %H:%M} UTC"
    assert (found["automations"].ok, found["automations"].here) == (False, "-")


def test_a_schedule_that_makes_no_runs_is_named(client: SyncPrefectClient, deployment: UUID) -> None:
    for run in client.read_flow_runs():
        client.delete_flow_run(run.id)
    here = found_now()["schedule"].here
    assert here == "it has created no future runs" or here.startswith("next at ")  # the scheduler was faster

    client.create_flow_run_from_deployment(
        deployment, state=Scheduled(scheduled_time=datetime(2090, 1, 1, 4, tzinfo=UTC))
    )

    assert found_now()["schedule"].ok


@pytest.mark.usefixtures("deployment")
def test_a_slot_of_no_live_run_is_released_only_when_asked(client: SyncPrefectClient) -> None:
    client.upsert_global_concurrency_limit_by_name(PUBLISHERS, 1)
    client.increment_concurrency_slots([PUBLISHERS], 1, mode="concurrency")
    try:
        named = found_now()["limit"]
        assert (named.ok, named.here) == (False, "1 of 1 slots taken, 1 of them leaked")
        assert named.fix == "enrich doctor --prefect --release"
        assert client.read_global_concurrency_limit_by_name(PUBLISHERS).active_slots == 1

        assert found_now(release=True)["limit"].here == "1 of 1 slots taken, 1 released"
        assert client.read_global_concurrency_limit_by_name(PUBLISHERS).active_slots == 0
    finally:
        client.delete_global_concurrency_limit_by_name(PUBLISHERS)


def test_slots_that_a_run_may_hold_are_left(client: SyncPrefectClient, deployment: UUID) -> None:
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.upsert_global_concurrency_limit_by_name("somebody-elses", 3)
    client.increment_concurrency_slots(["somebody-elses"], 2, mode="concurrency")
    try:
        assert found_now(release=True)["limit"].here == "2 of 3 slots taken, 1 released"
        assert client.read_global_concurrency_limit_by_name("somebody-elses").active_slots == 1
        assert found_now(release=True)["limit"].ok
        assert client.read_global_concurrency_limit_by_name("somebody-elses").active_slots == 1
    finally:
        client.delete_global_concurrency_limit_by_name("somebody-elses")
        client.delete_flow_run(run.id)


def test_a_run_that_went_silent_is_named(
    client: SyncPrefectClient, deployment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert "run" not in found_now()
    monkeypatch.setattr(doctor, "LATE", timedelta(0))
    monkeypatch.setattr(doctor, "SILENT", 0)
    try:
        silent = found_now()["run"]
        assert silent.what == f"run {run.name}"
        assert silent.here.startswith("Running since ")
        assert f"prefect flow-run cancel {run.id}" in silent.fix
    finally:
        client.delete_flow_run(run.id)


def test_a_server_that_is_not_there_is_one_line(run_cli: RunCli) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        code, out, _ = run_cli("doctor", "--prefect")

    assert code == 1
    assert out.count("\n") == 1
    assert out.startswith("wrong   Prefect server: http://127.0.0.1:1/api does not answer; ")


Look = Callable[..., tuple[int, str]]


@pytest.fixture
def look(run_cli: RunCli) -> Iterator[Look]:
    """The exit code and the line about what answers in a server's place: by the end of a path, else with 404."""
    with serve() as web:

        def found(**answers: Answer) -> tuple[int, str]:
            here = {"flows__count": reply(200, b"0", Content_Type="application/json"), **answers}
            web.answers = {f"/api/{path.replace('__', '/')}": answer for path, answer in here.items()}
            with temporary_settings({PREFECT_API_URL: f"{web.url}/api"}):
                code, out, err = run_cli("doctor", "--prefect")
            [line] = (out + err).splitlines()
            return code, line.removeprefix("wrong   ").removeprefix("error: ").replace(f"{web.url}/api", "URL")

        yield found


WHERE = "set PREFECT_API_URL to its address, with /api at the end"


def test_what_is_no_prefect_server_is_one_line(look: Look) -> None:
    page = reply(200, b"<html>log in</html>")
    assert look(flows__count=page) == (
        1, f"Prefect server: URL is not a Prefect server; {WHERE}"
    )  # fmt: skip
    assert look(flows__count=reply(302, b"", Location="/login")) == (
        1, f"Prefect server: URL answers 302; look at its log, or {WHERE}"
    )  # fmt: skip
    version = reply(200, b'"of our own"', Content_Type="application/json")
    assert look(admin__version=version) == (
        1,
        "Prefect server URL: does not answer as a Prefect server does (Invalid version: 'of our own'); " + WHERE,
    )


def test_of_a_server_that_is_too_old_only_that_is_said(look: Look) -> None:
    version = reply(200, b'"2.20.1"', Content_Type="application/json")
    code, line = look(admin__version=version)
    assert code == 1
    assert line.startswith("Prefect server: URL/: 2.20.1, client ")
    assert line.endswith("; update the server first: clients may be older than their server, not newer")


def test_a_password_without_a_user(run_cli: RunCli) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_API_AUTH_STRING: "secret"}):
        code, _, err = run_cli("doctor", "--prefect")
    told = "error: PREFECT_API_AUTH_STRING has no colon; it is the server's user:password\n"
    assert (code, err) == (2, told)


def test_settings_that_prefect_cannot_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "enrich.cli", "doctor", "--prefect"], capture_output=True, text=True,
        env={**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://[::1/api"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: Prefect's settings (PREFECT_... and its profile) cannot be used: 1 validation error " in done.stderr
    assert "Invalid IPv6 URL" in done.stderr.splitlines()[-1]


def test_without_a_server_named_and_with_release_alone_it_is_refused(run_cli: RunCli) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(UsageError, match="set PREFECT_API_URL"):
        examine_prefect()
    assert run_cli("doctor", "--release")[0] == 2
    code, _, told = run_cli("doctor", "--prefect", "--output", "output", "--newer-than", "26h")
    assert code == 2
    assert "in a separate call" in told
