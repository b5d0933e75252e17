"""`enrich doctor --prefect` on a real server: a line for all that keeps nights from starting, and no change unasked."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running, Scheduled

from enrich.doctor import Finding
from enrich.errors import UsageError
from flows import doctor
from flows.doctor import examine_prefect
from flows.nights import PUBLISHERS
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


def test_without_a_server_named_and_with_release_alone_it_is_refused(run_cli: RunCli) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(UsageError, match="set PREFECT_API_URL"):
        examine_prefect()
    assert run_cli("doctor", "--release")[0] == 2
    code, _, told = run_cli("doctor", "--prefect", "--output", "output", "--newer-than", "26h")
    assert code == 2
    assert "a call of its own" in told
