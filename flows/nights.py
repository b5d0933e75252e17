"""What a nightly run learns about the others from the server."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.events.filters import EventFilter
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

PUBLISHERS = "enrich-publish"  # a concurrency limit that deployments/apply.py creates, for `tasks.in_turn`
SILENT = 3  # heartbeats that a run may miss; deployments/automations.py marks a run that missed more as crashed


def this_run() -> FlowRun | None:
    """The current flow run; None outside of one."""
    context = FlowRunContext.get()
    return context.flow_run if context else None


def superseded() -> str | None:
    """The name of a run of the same deployment that was due after this one and is due by now, if there is one.

    A worker that was down finds a run for every night that it missed; the last of them does the work of all.
    """
    run = this_run()
    if run is None or run.deployment_id is None or not run.auto_scheduled or run.expected_start_time is None:
        return None
    due = {"after_": run.expected_start_time, "before_": datetime.now(UTC)}
    chosen = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": [run.deployment_id]},
            "state": {"type": {"any_": [StateType.SCHEDULED]}},
            "expected_start_time": due,
        }
    )
    with get_client(sync_client=True) as client:
        later = [found for found in client.read_flow_runs(flow_run_filter=chosen) if found.id != run.id]
    return max(later, key=lambda found: str(found.expected_start_time)).name if later else None


def still_at_work() -> str | None:
    """The name of a run of the same deployment that started before this one and still sends heartbeats, if any.

    A run without heartbeats does not count, whatever its state: its process was killed, and nothing reported it.
    """
    run, every = this_run(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    if run is None or run.deployment_id is None or run.start_time is None or every is None:
        return None
    chosen = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": [run.deployment_id]},
            "state": {"type": {"any_": [StateType.RUNNING]}},
            "start_time": {"before_": run.start_time},
        }
    )
    with get_client(sync_client=True) as client:
        for found in client.read_flow_runs(flow_run_filter=chosen):
            if found.id != run.id and heard_of(client, found.id, timedelta(seconds=SILENT * every)):
                return found.name
    return None


def heard_of(client: SyncPrefectClient, run: UUID, within: timedelta) -> bool:
    """Whether a flow run's process has sent a heartbeat in that time."""
    beats = EventFilter.model_validate(
        {
            "occurred": {"since": datetime.now(UTC) - within},
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
        }
    )
    return bool(client.read_events(beats, limit=1).events)
