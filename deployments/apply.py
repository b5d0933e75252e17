"""What a Prefect server needs in addition to its deployments: work pools, limits and automations. Idempotent.

    python -m deployments.apply                                  # with PREFECT_API_URL set; pools of processes
    python -m deployments.apply --type docker|kubernetes         # the gpu pool from pools/TYPE-gpu.json

Automations are under version control here; an existing one of the same name is updated. If ENRICH_WEBHOOK_URL is set,
it is sent {"text": ...} about runs that failed, crashed, are held or paused.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flows.home import HEARTBEAT_SECONDS

POOLS = {"cpu": 4, "gpu": 1}  # runs at once: the model has the GPU to itself
TEMPLATES = Path(__file__).parent / "pools"

# For every worker, which passes it to its runs. Prefect then stores JSON, never pickles, and its UI shows the library's
# log.
ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    "PREFECT_CLIENT_MAX_RETRIES": "8",  # 8 minutes without a server, 2 + 4 + ... + 256 s; the default 5 are one minute
    "PREFECT_LOGGING_EXTRA_LOGGERS": "enrich",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
}


def apply(kind: str = "process", webhook: str | None = None) -> None:
    """Create what is missing on the server at PREFECT_API_URL, and update what exists."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from deployments.automations import notification, resumption, save_webhook, zombies
    from flows.nights import PUBLISHERS

    with get_client(sync_client=True) as client:
        for name, limit in POOLS.items():
            pool = WorkPoolCreate(
                name=name, type=kind, base_job_template=pool_template(kind, name), concurrency_limit=limit
            )
            client.create_work_pool(pool, overwrite=True)
        client.upsert_global_concurrency_limit_by_name(PUBLISHERS, 1)
        for automation in [zombies(), resumption(), *([notification(save_webhook(webhook))] if webhook else [])]:
            standing = client.read_automations_by_name(automation.name)
            if standing:
                client.update_automation(standing[0].id, automation)
            else:
                client.create_automation(automation)


def pool_template(kind: str, pool: str) -> dict[str, Any]:
    """The base job template of a pool: our own for GPUs in containers, else Prefect's.

    Anyone who may start a run can set its job variables, and setting a command, an environment, an image or a volume
    means controlling the machine. So a template's only variables are sizes, and the server refuses runs with others.
    It does not check changes to a deployment, so no template has an `env` either: a worker would merge a deployment's
    `env` into it.
    """
    file = TEMPLATES / f"{kind}-{pool}.json"
    template = json.loads(file.read_text()) if file.exists() else _locked(kind, pool)
    template["variables"]["additionalProperties"] = False
    return dict(template)


def _locked(kind: str, pool: str) -> dict[str, Any]:
    """Prefect's own template with each variable's default in its place, and no variables."""
    from prefect.server.api import collections_data
    from prefect.utilities.templating import apply_values

    views = Path(collections_data.__path__[0]) / "views" / "aggregate-worker-metadata.json"
    workers = {name: worker for package in json.loads(views.read_text()).values() for name, worker in package.items()}
    template = workers[kind]["default_base_job_configuration"]
    fields = template["variables"]["properties"]
    values = {name: field["default"] for name, field in fields.items() if field.get("default") is not None}
    values |= {"working_dir": "."} if kind == "process" else {"image": f"enrich:{pool}"}
    return {
        "job_configuration": apply_values(template["job_configuration"], values),
        "variables": {"type": "object", "properties": {}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=("process", "docker", "kubernetes"), default="process", help="of the pools")
    kind = parser.parse_args().type
    apply(kind, os.environ.get("ENRICH_WEBHOOK_URL"))
    print(f"work pools {', '.join(POOLS)} ({kind}), limits and automations are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
