"""`enrich doctor --prefect`: whether scheduled runs can start on this server, and what to do if they cannot."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import prefect
from packaging.version import Version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from enrich.doctor import Finding
from enrich.errors import RunFailed, UsageError, first_line, redact
from flows.home import HEARTBEAT_SECONDS
from flows.nights import PUBLISHERS, SILENT, heard_of

AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]  # states in which a run may hold slots
LATE = timedelta(minutes=15)  # a worker looks for runs every 15 s
ANSWER_SECONDS = 15.0
_WHERE = "set PREFECT_API_URL to its address, with /api at the end"
MOST_RUNS = 200  # the most that Prefect lists at once, and more than can be active


def examine_prefect(release: bool = False) -> list[Finding]:
    """Check the server at PREFECT_API_URL: versions, automations, pools, late and silent runs, limits.

    Args:
        release: Free slots of limits that belong to no live run. Nothing else is changed.

    Raises:
        UsageError: no server is named.
        RunFailed: the server fails to answer a request.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise UsageError("no Prefect server is named; set PREFECT_API_URL, as in http://127.0.0.1:4200/api")
    unreachable = _unreachable(url)
    if unreachable:
        return [unreachable]
    try:
        return _examine(release)
    except httpx.HTTPError as error:
        raise RunFailed(f"Prefect server {redact(url)}: {first_line(error)}; look at its log") from error
    except ValueError as error:  # of JSON, pydantic or a version: something between here and the server answered
        reason = f"does not answer as a Prefect server does ({first_line(error)})"
        raise RunFailed(f"Prefect server {redact(url)}: {reason}; {_WHERE}") from error


def _examine(release: bool) -> list[Finding]:
    with get_client(sync_client=True) as client:
        version = _version(client)
        if not version.ok:
            return [version]  # an older server lacks some of what is asked below
        checks: list[Callable[[SyncPrefectClient], Iterator[Finding]]] = [
            _automations, _pools, _schedules, _silent,
        ]  # fmt: skip
        found = [finding for check in checks for finding in check(client)]
        return [version, *found, *_limits(client, release)]


def _unreachable(url: str) -> Finding | None:
    """Why this machine cannot use the server, by a single request; Prefect's client would retry for minutes."""
    auth = PREFECT_API_AUTH_STRING.value()
    user, colon, password = (auth or "").partition(":")
    if auth and not colon:
        raise UsageError("PREFECT_API_AUTH_STRING has no colon; it is the server's user:password")
    credentials = httpx.BasicAuth(user, password) if auth else None
    try:
        answer = httpx.post(f"{url}/flows/count", json={}, auth=credentials, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fix = f"{first_line(error)}; start it (`prefect server start`), or set PREFECT_API_URL to its address"
        return Finding("Prefect server", f"{redact(url)} does not answer", False, True, fix)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        fix = "set PREFECT_API_AUTH_STRING to the server's user:password"
        return Finding("Prefect server", f"{redact(url)} requires a password", False, True, fix)
    if not answer.is_success:
        fix = f"look at its log, or {_WHERE}"
        return Finding("Prefect server", f"{redact(url)} answers {answer.status_code}", False, True, fix)
    if not answer.text.strip().isdecimal():
        return Finding("Prefect server", f"{redact(url)} is not a Prefect server", False, True, _WHERE)
    return None


def _version(client: SyncPrefectClient) -> Finding:
    server, here = client.api_version(), prefect.__version__
    fix = "update the server first: clients may be older than their server, not newer"
    return Finding(
        "Prefect server",
        f"{redact(str(client.api_url))}: {server}, client {here}",
        Version(server) >= Version(here),
        True,
        fix,
    )


def _automations(client: SyncPrefectClient) -> Iterator[Finding]:
    ours = [automation for automation in client.read_automations() if automation.name.startswith("enrich: ")]
    off = [automation.name for automation in ours if not automation.enabled]
    here = f"off: {', '.join(off)}" if off else f"{len(ours)} on" if ours else "-"
    fix = "python -m deployments.apply; without them runs whose worker was killed never end"
    yield Finding("automations", here, bool(ours) and not off, True, fix)


def _pools(client: SyncPrefectClient) -> Iterator[Finding]:
    """The pools of deployments; one without an online worker starts nothing."""
    for name in sorted({found.work_pool_name for found in client.read_deployments() if found.work_pool_name}):
        pool = client.read_work_pool(name)
        online = sum(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(name))
        what = f"pool {name}"
        if pool.is_paused:
            yield Finding(what, "paused", False, True, f"prefect work-pool resume {name}")
        else:
            fix = f"prefect worker start --pool {name}"
            yield Finding(what, f"{online or 'no'} worker{'s' * (online != 1)} online", online > 0, True, fix)


def _schedules(client: SyncPrefectClient) -> Iterator[Finding]:
    """Deployments with an active schedule that has created no future runs, and those whose runs are late."""
    now = datetime.now(UTC)
    for deployment in client.read_deployments():
        scheduled = _runs(
            client, deployment_id={"any_": [deployment.id]}, state={"type": {"any_": [StateType.SCHEDULED]}}
        )
        due = sorted(run.expected_start_time for run in scheduled if run.expected_start_time)
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules):
            ahead = [time for time in due if time > now]
            here = f"next at {_at(ahead[0])}" if ahead else "it has created no future runs"
            fix = "look for scheduler errors in the server's log, and restart the server"
            yield Finding(f"schedule of {deployment.name}", here, bool(ahead), True, fix)
        if late := [time for time in due if time < now - LATE]:
            here = f"{len(late)} due and not started, the first at {_at(late[0])}"
            fix = f"start a worker for the pool {deployment.work_pool_name}, or check what holds its slots"
            yield Finding(f"runs of {deployment.name}", here, False, True, fix)


def _silent(client: SyncPrefectClient) -> Iterator[Finding]:
    """Runs whose process is gone without the server knowing: they hold their pool's slot."""
    within = timedelta(seconds=SILENT * (PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or HEARTBEAT_SECONDS))
    for run in _runs(client, state={"type": {"any_": AT_WORK}}):
        changed = run.state.timestamp if run.state else None
        if changed and datetime.now(UTC) - changed > max(within, LATE) and not heard_of(client, run.id, within):
            name = run.state.name if run.state else ""
            fix = f"if its process is gone: prefect flow-run cancel {run.id}; the next nightly run continues its work"
            yield Finding(f"run {run.name}", f"{name} since {_at(changed)}, without heartbeats", False, True, fix)


def _limits(client: SyncPrefectClient, release: bool) -> Iterator[Finding]:
    """Slots that belong to no live run. Limits are read before and after the runs, which may start or end meanwhile."""
    before = client.read_global_concurrency_limits()
    holders = {limit.id: _may_hold(client, limit) for limit in before if limit.active_slots}
    after = {limit.id: limit.active_slots for limit in client.read_global_concurrency_limits()}
    for limit in before:
        leaked = min(limit.active_slots, after.get(limit.id, 0)) - holders.get(limit.id, 0)
        here = f"{limit.active_slots} of {limit.limit} slots taken"
        if leaked <= 0 or limit.slot_decay_per_second:
            yield Finding(f"limit {limit.name}", here, True, False, "")
            continue
        if release:
            client.release_concurrency_slots([limit.name], leaked, occupancy_seconds=1.0)  # for statistics
            yield Finding(f"limit {limit.name}", f"{here}, {leaked} released", True, True, "")
        else:
            fix = "enrich doctor --prefect --release"
            yield Finding(f"limit {limit.name}", f"{here}, {leaked} of them leaked", False, True, fix)


def _may_hold(client: SyncPrefectClient, limit: GlobalConcurrencyLimitResponse) -> int:
    """Upper bound on the slots of a limit that active runs hold."""
    kind, _, rest = limit.name.partition(":")
    if kind == "deployment":
        return len(_runs(client, deployment_id={"any_": [rest]}, state={"type": {"any_": AT_WORK}}))
    running: dict[str, Any] = {"state": {"type": {"any_": [StateType.RUNNING]}, "name": None}}
    flows = FlowRunFilter.model_validate({"state": {"type": {"any_": AT_WORK}}})
    if kind == "tag":
        running["tags"] = {"all_": [rest]}
    tasks = client.read_task_runs(flow_run_filter=flows, task_run_filter=TaskRunFilter.model_validate(running))
    if limit.name == PUBLISHERS:
        return sum(task.name.startswith(("publish", "release")) for task in tasks)
    return len(tasks) + (0 if kind == "tag" else len(_runs(client, state={"type": {"any_": AT_WORK}})))


def _runs(client: SyncPrefectClient, **chosen: Any) -> list[FlowRun]:
    return client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(chosen), limit=MOST_RUNS)


def _at(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else "?"
