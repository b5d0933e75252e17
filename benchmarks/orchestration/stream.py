"""The gain from a Ray worker starting its next shard before the last answers of the one before.

    python -m benchmarks.orchestration.stream [--shards 8] [--shard-size 2048] [--rate 100]

The same run twice with each hand-out, in turns: with `each drained` a worker gets a shard when it has committed the one
before, with `one stream` when it has asked for that one's last photo. Two workers, photos of 56x56 in a folder;
decoding, commits and Ray are real. The engine writes the same answer for every photo, in the time that one like vLLM
takes: a step takes in so many photos at most and always takes as long, and a photo's answer comes some steps later.
Measured from the first hand-out, when all workers have started, to the last commit.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.long_run.run import make_small_photos
from benchmarks.long_run.spread import Writes, count_rows
from benchmarks.made_up import SMALLEST, make_adapter, make_checkpoint
from benchmarks.results import record

WORKERS = 2
STEP = 4  # photos that a step takes in at most
DEPTH = 32  # steps from a photo to its answer, so that 128 photos are in a full engine
WAYS = ("each drained", "one stream", "one stream", "each drained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=100.0, help="photos a second of a full engine")
    options = parser.parse_args()
    os.environ["RATE"] = str(options.rate)  # for the workers
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_small_photos(Path(folder) / "photos", options.shards * options.shard_size)
        make_checkpoint(Path(folder) / "model", SMALLEST)
        make_adapter(Path(folder) / "adapter", Path(folder) / "model")
        for number, way in enumerate(WAYS):
            seconds = answer(way, Path(folder), Path(folder) / f"output {number}", options.shard_size)
            rate = options.shards * options.shard_size / seconds
            rows.append(
                {"hand-out": way, "seconds": seconds, "rows/s": rate, "of full engines": rate / WORKERS / options.rate}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    mean = {way: sum(row["rows/s"] for row in rows if row["hand-out"] == way) / 2 for way in WAYS}
    ratio = mean["one stream"] / mean["each drained"]
    record("orchestration", {"Shards of a worker": rows, "Ratio": [{"one stream / each drained": ratio}]})


def answer(way: str, folder: Path, output: Path, shard_size: int) -> float:
    """Seconds from the first hand-out to the last commit; every photo has one row then."""
    from enrich.pipeline.run import ray_runner
    from enrich.pipeline.run.deadline import Deadline
    from enrich.pipeline.run.finish import finish_run
    from enrich.pipeline.run.request import RunRequest
    from enrich.pipeline.run.start import start_run
    from enrich.settings.run import GateSettings, RaySettings, RunSettings

    settings = RunSettings(
        engine="transformers", device="cpu", runner="ray", ray=RaySettings(workers=WORKERS), shard_size=shard_size,
        gate=GateSettings(enabled=False), decode_processes=1,
    )  # fmt: skip
    may_start = ray_runner.Workers._may_start if way == "one stream" else drained
    request = RunRequest(str(folder / "photos"), str(folder / "adapter"), str(output), settings)
    with (
        patch.object(ray_runner, "Worker", worker()),
        patch.object(ray_runner.Workers, "_may_start", may_start),
        start_run(request) as run,
        ray_runner.open_workers(run) as workers,
    ):
        while len(workers._free) < WORKERS:
            for ref in workers._ready():
                workers._hear(ref)
        started = time.monotonic()
        for _ in workers.answer(run.missing_shards(), Deadline()):
            pass
        seconds = time.monotonic() - started
        finish_run(run)
    found = count_rows(output)
    assert found["rows"] == found["products with a row"] == found["ok"] == run.manifest.rows, found
    return seconds


def drained(_: Any, hand: Any, queue: Sequence[int], __: Any) -> bool:
    """In the place of `Workers._may_start`."""
    return bool(queue) and not hand.shards


def worker() -> Any:
    """Ray's worker with `Steps` for its engine."""
    from enrich.pipeline.run import ray_worker

    class Worker(ray_worker.Worker):
        def start(self, *job: Any) -> ray_worker.Started:
            from enrich.pipeline.run import session

            session.start_verified_engine = lambda run, *_: Steps(run.adapter.path)  # type: ignore[assignment]
            return super().start(*job)

    return Worker


class Steps(Writes):
    """An engine whose steps take the same time however few photos they take in."""

    def complete(self, requests: Iterable[Any], *, grammar: bool = False) -> Iterator[Any]:
        """Each answer DEPTH steps after its photo."""
        stream, inside, seconds = iter(requests), deque[list[Any]](maxlen=DEPTH), STEP / float(os.environ["RATE"])
        due = time.monotonic()
        while True:
            taken = list(islice(stream, STEP))
            inside.append(taken)
            if not any(inside):
                return
            due = (
                max(due, time.monotonic() - seconds) + seconds
            )  # the work of this process overlaps with a step, not after it
            time.sleep(max(0.0, due - time.monotonic()))
            if len(inside) == DEPTH:
                for request in inside[0]:
                    yield replace(self._answer, id=request.id)
                inside.popleft()


if __name__ == "__main__":
    main()
