"""Deploy what prefect.yaml lists, for trials: schedules are paused until turned on in the UI."""

import re
import subprocess
import sys
from collections.abc import Set
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"
DEMO = "demo"  # folder of the data in the parameters of prefect.yaml
DEPLOY_SECONDS = 300.0

Schedule = tuple[str, str]  # deployment, cron


class Refused(Exception):
    """`prefect deploy` failed; what it printed says why."""


def deploy(demo: str = DEMO, log: IO[bytes] | None = None) -> None:
    """Deploy to the server at PREFECT_API_URL, with the demo's data at `demo`, a folder or s3://bucket/prefix.

    The output of `prefect deploy` is written to `log`, or else to this process's own output.
    """
    active = {name for name, is_active in schedules().items() if is_active}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(to_try(PREFECT_FILE, active, demo)))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log and subprocess.STDOUT, timeout=DEPLOY_SECONDS)
    if done.returncode:
        raise Refused(f"the deployments were refused{f'; see {log.name}' if log else ''}")


def to_try(prefect_file: Path, active: Set[Schedule], demo: str = DEMO) -> dict[str, Any]:
    """The content of `prefect_file` with the demo's data at `demo`, and only the schedules in `active` not paused."""
    wanted = dict(yaml.safe_load(prefect_file.read_text()))
    for deployment in wanted["deployments"]:
        for schedule in deployment.get("schedules", ()):
            schedule["active"] = (deployment["name"], schedule["cron"]) in active
        for name, value in deployment["parameters"].items():
            if isinstance(value, str):
                deployment["parameters"][name] = re.sub(rf"(^|\s){DEMO}/", rf"\1{demo}/", value)
    return wanted


def schedules() -> dict[Schedule, bool]:
    """The schedules on the server at PREFECT_API_URL, and whether they are active."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {
            (found.name, getattr(scheduled.schedule, "cron", "")): scheduled.active
            for found in client.read_deployments()
            for scheduled in found.schedules
        }
