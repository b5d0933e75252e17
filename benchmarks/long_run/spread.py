"""A long run spread over two nodes of a Ray cluster, of which workers, an engine and a node are killed on the way.

    python -m benchmarks.long_run.spread --photos 200000                            # an engine that only writes answers
    python -m benchmarks.long_run.spread --photos 200000 --engine vllm --gpus 4     # the smallest model that answers

The whole job runs by `runner: ray`, from a folder of JPEGs to products.parquet. With `--engine writes` everything is
real but the model: completions are written down with their log-probabilities. That engine, like `transformers`, is in
the worker's process and dies with it, so a decoder is killed in its place. Memory is the proportional set size, which
counts shared pages once.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from benchmarks.long_run.run import make_small_photos
from benchmarks.made_up import SMALLEST, make_adapter, make_checkpoint
from benchmarks.results import record

MARKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the run, at which memory is read
WORKER, DECODER = "ray::Worker", "enrich.photos.decoder_process"  # in the command lines of their processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--engine", choices=("writes", "transformers", "vllm"), default="writes")
    parser.add_argument(
        "--gpus", type=int, default=0, help="of this machine, half of them each node's; 0: a core a node"
    )
    parser.add_argument("--shard-size", type=int, default=2048)
    options = parser.parse_args()
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "RAY_DEDUP_LOGS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        make_small_photos(Path(folder) / "photos", options.photos)
        make_checkpoint(Path(folder) / "model", SMALLEST)
        make_adapter(Path(folder) / "adapter", Path(folder) / "model")
        run_job(Path(folder), options)


def run_job(folder: Path, options: argparse.Namespace) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from enrich.pipeline.run import ray_runner
    from enrich.pipeline.run.enrichment import run_enrichment
    from enrich.pipeline.run.request import RunRequest
    from enrich.settings.run import GateSettings, RunSettings

    engine = "transformers" if options.engine == "writes" else options.engine
    vllm = {"max_num_seqs": 64, "gpu_memory_utilization": 0.2}
    if options.gpus:  # two engines may share one, and each would count the other's memory when it measures what is free
        vllm["kv_cache_memory_bytes"] = 4 << 30
    settings = RunSettings(
        engine=engine, device="cuda" if options.gpus else "cpu", runner="ray", shard_size=options.shard_size,
        gate=GateSettings(enabled=False), vllm=vllm,
        decode_processes=None if options.gpus else 1,
    )  # fmt: skip
    size = {"num_cpus": max(1, 4 * options.gpus // 2), "num_gpus": options.gpus // 2}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**size), cluster.add_node(**size)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    watch = Watch(options.photos, options.engine, cluster, nodes[0], size)
    worker = writing_worker() if options.engine == "writes" else ray_runner.Worker
    started = time.monotonic()
    try:
        with patch.object(ray_runner, "Worker", worker):
            request = RunRequest(str(folder / "photos"), str(folder / "adapter"), str(folder / "output"), settings)
            run_enrichment(request, watch.on_progress, lambda line: print(line, file=sys.stderr))
    finally:
        ray.shutdown()
        cluster.shutdown()
    outcome = {"photos": options.photos, "seconds": time.monotonic() - started, **count_rows(folder / "output")}
    record("long_run", {"Memory": watch.used, "Killed": watch.killed, "Rows": [outcome]})


def count_rows(output: Path) -> dict[str, int]:
    """Rows of the run's history, products among them, and rows of the current table by status."""
    import polars as pl

    history = pl.scan_parquet(output / "history/*/*/*.parquet").select("product_id").collect()
    table = pl.scan_parquet(output / "products.parquet").select("product_id", "status").collect()
    return {
        "rows": history.height, "products with a row": history.n_unique(), "rows in products.parquet": table.height,
        **Counter(table["status"]),
    }  # fmt: skip


class Watch:
    """Reads memory and kills, during the run."""

    def __init__(self, photos: int, engine: str, cluster: Any, node: Any, size: dict[str, int]) -> None:
        self.used: list[dict[str, Any]] = []
        self.killed: list[dict[str, Any]] = []
        self._photos, self._cluster, self._node, self._size = photos, cluster, node, size
        self._marks = [int(photos * mark) for mark in MARKS]
        inner = ("an engine", _kill_engine) if engine == "vllm" else ("a decoder", lambda: _kill(DECODER))
        worker = "a worker", lambda: _kill(f"{WORKER}.answer", WORKER)  # better one with a shard
        kills = {0.25: worker, 0.45: ("a node", self._kill_node), 0.65: inner, 0.85: worker}
        self._kills = {int(photos * mark): kill for mark, kill in kills.items()}
        self._started = 0.0

    def on_progress(self, what: str, done: int, total: int) -> None:
        """As `run_enrichment` calls it."""
        if what != "products" or not done:
            return
        self._started = self._started or time.monotonic()
        while self._marks and done >= self._marks[0]:
            seconds = time.monotonic() - self._started
            self.used.append({"photos": self._marks.pop(0), **memory(), "seconds": seconds})
            print(self.used[-1], file=sys.stderr, flush=True)
        for at in [at for at in self._kills if done >= at]:
            what, kill = self._kills.pop(at)
            self.killed.append({"at": done, "what": what, "process": kill()})
            print(self.killed[-1], file=sys.stderr, flush=True)

    def _kill_node(self) -> str:
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._cluster.add_node(**self._size)
        return "raylet"


def _kill(*names: str) -> str:
    for name in names:
        for process in _ours():
            with suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    process.kill()
                    return name
    return "none found"


def _kill_engine() -> str:
    for process in _ours():
        if process.pid in _engines():
            process.kill()
            return f"engine {process.pid}"
    return "none found"


def _ours() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _engines() -> set[int]:
    """Processes of vLLM's engines, by their records: what they are called depends on how they were started."""
    from enrich.engines.orphans import engines_folder

    found = set[int]()
    for file in engines_folder().glob("*.json"):
        with suppress(OSError, ValueError):  # an engine that ends removes its record
            found |= {known["pid"] for known in json.loads(file.read_text())["engine"] if known}
    return found


def memory() -> dict[str, float]:
    """Proportional set size, MB, by role; of workers and engines of a node that was killed too, while they last."""
    used = {"this process, MB": 0.0, "workers, MB": 0.0, "decoders, MB": 0.0, "engines, MB": 0.0, "Ray, MB": 0.0}
    engines, roles = _engines(), {WORKER: "workers", DECODER: "decoders"}
    used["this process, MB"] = psutil.Process().memory_full_info().pss / 1e6
    for process in _ours():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            role = next((role for name, role in roles.items() if name in line), "Ray")
            role = "engines" if process.pid in engines else role
            used[f"{role}, MB"] += process.memory_full_info().pss / 1e6
    return used


def writing_worker() -> Any:
    """Ray's worker with an engine that writes the answer to every photo."""
    from enrich.pipeline.run import ray_worker

    class Worker(ray_worker.Worker):  # Ray names its process by it
        def start(self, *job: Any) -> ray_worker.Started:
            from enrich.pipeline.run import session

            session.start_verified_engine = lambda run, *_: Writes(run.adapter.path)  # type: ignore[assignment]
            return super().start(*job)

    return Worker


class Writes:
    """An engine in whose answers all tokens are certain."""

    name = "writes"

    def __init__(self, adapter: Path) -> None:
        import numpy as np

        from enrich.answers.completion import TOP_K, Completion
        from enrich.engines.base import EngineClock
        from enrich.models.checkpoint import load_processor

        text = "Product: Plain Coat\nCategory: BAGS\nFull Price: 120"
        ids = load_processor(adapter).tokenizer.encode(text, add_special_tokens=False)
        top, certain = np.zeros((len(ids), TOP_K), np.int32), np.full((len(ids), TOP_K), -np.inf, np.float32)
        top[:, 0], certain[:, 0] = ids, 0.0
        zeros = np.zeros(len(ids), np.float32)
        self.clock = EngineClock()
        self._answer = Completion("", text, tuple(ids), zeros, top, certain, finished=True, prompt_tokens=100)

    def complete(self, requests: Iterable[Any], *, grammar: bool = False) -> Iterator[Any]:
        """Answer at once."""
        for request in requests:
            yield replace(self._answer, id=request.id)

    def close(self) -> None:
        """Nothing is held."""


if __name__ == "__main__":
    main()
