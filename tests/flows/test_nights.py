"""What a night finds out about others from a real server: one at work, one that went silent, a slot that leaked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Running

from flows import nights, tasks

pytestmark = pytest.mark.usefixtures("prefect_server")
EVERY = 30  # seconds between heartbeats


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def deployment(client: SyncPrefectClient) -> UUID:
    @flow
    def some_night() -> None:
        pass

    return client.create_deployment(client.create_flow(some_night), f"night-{uuid4().hex}")


def start(client: SyncPrefectClient, deployment: UUID) -> FlowRun:
    """A run that its process reports as Running."""
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    return client.read_flow_run(run.id)


def beat(client: SyncPrefectClient, run: FlowRun, seconds_ago: float = 0) -> None:
    event = {
        "event": "prefect.flow-run.heartbeat",
        "occurred": (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(),
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        "id": str(uuid4()),
    }
    client.request("POST", "/events", json=[event]).raise_for_status()
    until = time.monotonic() + 30
    while not nights.heard_of(client, run.id, timedelta(seconds=seconds_ago + 60)):  # stored a moment later
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def within(run: FlowRun) -> Iterator[None]:
    """In the process of a flow run whose worker asked for heartbeats."""
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: EVERY}),
        FlowRunContext.model_construct(flow_run=run),
    ):
        yield


def test_a_nightly_run_that_is_at_work_is_seen_by_the_next_one_and_not_the_other_way_round(
    client: SyncPrefectClient, deployment: UUID
) -> None:
    first, second = start(client, deployment), start(client, deployment)
    for run in (first, second):
        beat(client, run)

    with within(second):
        assert nights.still_at_work() == first.name
    with within(first):
        assert nights.still_at_work() is None


def test_a_nightly_run_that_went_silent_blocks_no_other_though_the_server_calls_it_running(
    client: SyncPrefectClient, deployment: UUID
) -> None:
    zombie, night = start(client, deployment), start(client, deployment)
    beat(client, zombie, seconds_ago=4 * EVERY)

    assert client.read_flow_run(zombie.id).state_type == "RUNNING"
    with within(night):
        assert nights.still_at_work() is None


def test_a_nightly_run_of_another_deployment_does_not_count(client: SyncPrefectClient, deployment: UUID) -> None:
    flow_id = client.read_deployment(deployment).flow_id
    other = start(client, client.create_deployment(flow_id, f"night-{uuid4().hex}"))
    night = start(client, deployment)
    beat(client, other)

    with within(night):
        assert nights.still_at_work() is None


def test_a_slot_that_leaked_delays_a_publisher_and_stops_none(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client.upsert_global_concurrency_limit_by_name(nights.PUBLISHERS, 1)
    client.increment_concurrency_slots([nights.PUBLISHERS], 1, mode="concurrency")
    monkeypatch.setattr(tasks, "TURN_SECONDS", 1.0)

    @flow
    def publishes() -> str:
        with tasks.in_turn():
            return "published"

    try:
        assert publishes() == "published"
    finally:
        client.delete_global_concurrency_limit_by_name(nights.PUBLISHERS)
    assert "the limit enrich-publish had no slot for 1 s; publishing without" in caplog.text


def test_a_server_that_is_away_stops_no_publisher(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(PrefectClient, "increment_concurrency_slots_with_lease", refused)

    @flow
    def publishes() -> str:
        with tasks.in_turn():
            return "published"

    assert publishes() == "published"
    told = (
        "Unable to acquire concurrency slots on ['enrich-publish'] (All connection attempts failed); "
        "publishing without a slot"
    )
    assert told in caplog.text
