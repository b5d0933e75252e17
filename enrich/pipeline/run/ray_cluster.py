"""The Ray cluster that a run's workers are on, and how many of them it has room for."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from enrich.errors import UsageError
from enrich.settings.run import RaySettings, RunSettings

CPUS_BESIDE_GPU = 4  # at least; a worker takes its GPU's share of the node's cores (ray_worker)
OBJECT_STORE_BYTES = 100 << 20  # of a Ray of our own, which keeps next to nothing there


def find_room(settings: RunSettings, nodes: Sequence[dict[str, Any]]) -> tuple[dict[str, int], int]:
    """What a worker asks Ray for, and how many of them the `nodes` (of `ray.nodes()`) hold."""
    free = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [node for node in free if node.get("GPU", 0) >= 1] if settings.device != "cpu" else []
    if not gpus:
        return {"num_cpus": 1}, sum(int(node.get("CPU", 0)) for node in free)
    cpus = max(1, min(CPUS_BESIDE_GPU, *(int(node["CPU"] // node["GPU"]) for node in gpus)))
    return {"num_cpus": cpus, "num_gpus": 1}, sum(int(min(node["GPU"], node["CPU"] // cpus)) for node in gpus)


def words_for(needs: dict[str, int]) -> str:
    """A worker's resources in words."""
    cores = f"{needs['num_cpus']} core{'s' if needs['num_cpus'] > 1 else ''}"
    return f"{cores} and a GPU" if needs.get("num_gpus") else cores


@contextmanager
def connected(settings: RaySettings) -> Iterator[None]:
    """Connect to the cluster in the settings, or to a private Ray instance that ends with the run."""
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        raise UsageError(
            f"ray.address {address}: the driver must be on a node of the cluster, not a Ray client; start the Prefect "
            "worker or `enrich run` on a node, and leave the address at auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where: dict[str, Any] = {"address": address} if address else {
        "address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES,
    }  # fmt: skip
    with _own_sigterm():
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"ray.address {address or 'local'}: no Ray there ({reason}); start it with "
                "`ray start --head`, and this process on one of its nodes"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler that Ray replaces: Prefect's ends a cancelled flow in good order."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
