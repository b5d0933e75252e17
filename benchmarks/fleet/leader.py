"""What many workers cost the process that leads a run over Ray: its own loop, with workers that only say they work.

    python -m benchmarks.fleet.leader --workers 8 64 512

All workers are threads of one process, and a shard takes them some seconds of sleep, with news every two seconds as
always. CPU is that of the leading process, all threads, once every worker has a shard.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray

from benchmarks.results import record
from enrich.pipeline.run import ray_runner
from enrich.pipeline.run.deadline import Deadline
from enrich.pipeline.run.ray_worker import NEWS_SECONDS, News, Started
from enrich.pipeline.run.request import RunRequest

SHARD_SECONDS = 8.0


class Idle:
    """All workers of a run."""

    def start(self, *_: object) -> Started:
        return Started("none", "node", "here", [])

    def answer(self, shards: Sequence[int], more: bool) -> Iterator[News]:
        started = time.monotonic()
        time.sleep(NEWS_SECONDS * (shards[0] % 97) / 97)  # workers do not beat in time
        while time.monotonic() - started < SHARD_SECONDS:
            yield News((), shards[0] % 2048, [])
            time.sleep(NEWS_SECONDS)
        yield News(tuple(shards), 0, [])


def lead(count: int, seconds: float) -> dict[str, float]:
    """CPU of the leading process with `count` workers, over `seconds`."""
    one = ray.remote(Idle).options(num_cpus=0, max_concurrency=count + 10).remote()
    handle = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: one))
    manifest, place = SimpleNamespace(rows_in=lambda shards: 2048 * len(shards)), SimpleNamespace(uri="none")
    info = SimpleNamespace(run_id="none")
    run: Any = SimpleNamespace(manifest=manifest, images=place, output=place, info=info, request=RunRequest("", "", ""))
    with patch.object(ray_runner.ray, "remote", lambda _: handle):
        workers = ray_runner.Workers(run, count, {"num_cpus": 1}, print)
        workers.await_first()
        while len(workers._free) < count:
            for ref in workers._ready():
                workers._hear(ref)
        progress = workers.answer(range(1_000_000), Deadline())
        until = time.monotonic() + SHARD_SECONDS
        next(turn for turn in progress if time.monotonic() > until)
        wall, cpu = time.monotonic(), time.process_time()
        next(turn for turn in progress if time.monotonic() > wall + seconds)
        took, used = time.monotonic() - wall, time.process_time() - cpu
    ray.kill(one)
    news = count * (SHARD_SECONDS // NEWS_SECONDS + 1) / SHARD_SECONDS
    return {
        "workers": count, "news a second": news, "shards a second": count / SHARD_SECONDS,
        "cores": used / took, "ms of a core a piece of news": 1000 * used / took / news,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 512])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=2, object_store_memory=100 << 20)
    rows = []
    for count in options.workers:
        rows.append(lead(count, options.seconds))
        print(rows[-1], flush=True)
    record("fleet", {"The leading process": rows})


if __name__ == "__main__":
    main()
