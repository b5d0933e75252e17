"""Runs that are killed, along with undisturbed twins, behind a proxy that misbehaves, until they are done."""

import io
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from PIL import Image

from tests.testing.faults import job
from tests.testing.faults.invariants import Seen, copy_output, violations
from tests.testing.faults.proxy import Proxy

KINDS = ("plan", "parent", "fetcher", "engine", "writer", "publisher", "report")  # in the order of a run
# One request in ten has something happen to it.
DISTURBED = {
    "slow_down": 0.03, "error": 0.02, "reset": 0.01, "delay": 0.004, "truncate": 0.01, "corrupt": 0.01, "lost": 0.02,
}  # fmt: skip
_STAGE_SECONDS, _JOB_SECONDS = 90.0, 600.0  # many times what they take on two cores

_processes = multiprocessing.get_context("forkserver")
_stages: list[Any] = []


@dataclass
class Place:
    """A bucket behind a proxy, and what is done to the runs that use it."""

    client: Any  # boto3, past the proxy
    bucket: str
    proxy: Proxy
    adapter: Path
    lock_object: bool
    random: random.Random
    log: Path
    broken: str | None = None
    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    found: list[str] = field(default_factory=list)


def make_place(
    client: Any, upstream: str, adapter: Path, folder: Path, *, lock_object: bool, seed: int, broken: str | None = None,
    rates: Mapping[str, float] = DISTURBED,
) -> Place:  # fmt: skip
    bucket = f"faults-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    proxy = Proxy(upstream, rates, seed)
    log = folder / f"{bucket}.log"
    return Place(client, bucket, proxy, adapter, lock_object, random.Random(seed), log, broken)


class Bucket:
    """Products of two photos of one colour, so that a title says whose it is, whichever photo was read."""

    def __init__(self, place: Place, prefix: str) -> None:
        self.place, self.prefix, self.titles = place, prefix, dict[str, str]()

    def put(self, key: str) -> None:
        colour = tuple(self.place.random.randrange(256) for _ in range(3))
        for number, width in enumerate((32, 48), start=1):
            file = io.BytesIO()
            Image.new("RGB", (width, 32), colour).save(file, "PNG")
            photo = f"{self.prefix}/{key}/{number}.png"
            self.place.client.put_object(Bucket=self.place.bucket, Key=photo, Body=file.getvalue())
        self.titles[key] = job.title_of(*colour)

    def delete(self, key: str) -> None:
        for number in (1, 2):
            self.place.client.delete_object(Bucket=self.place.bucket, Key=f"{self.prefix}/{key}/{number}.png")
        del self.titles[key]


def start(place: Place, images: str, output: str, run_id: str) -> tuple[BaseProcess, Any]:
    """A job's process and what it is doing. It is forked from one that has imported everything."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the fork server looks nowhere else for what to import
    _processes.set_forkserver_preload(["tests.testing.faults.job"])
    stage = _processes.Value("i", 0, lock=False)
    arguments = (
        f"s3://{place.bucket}/{images}", str(place.adapter), f"s3://{place.bucket}/{output}", run_id,
        place.proxy.endpoint, place.lock_object, place.broken, stage, str(place.log),
    )  # fmt: skip
    process = _processes.Process(target=job.work, args=arguments)
    with _no_main_module():
        process.start()
    _stages.append(stage)  # the job has no more than a reference to it
    return process, stage


@contextmanager
def _no_main_module() -> Iterator[None]:
    """A job, and each of its decoders, would import ours again: seconds, where that is pytest or imports torch."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    yield
    sys.modules["__main__"] = main


def run_killed(place: Place, images: str, output: str, run_id: str, kills: list[str], twin: bool) -> bool:
    """A run, killed at each of `kills` and started again, along with a twin at first; whether it ended well at last."""
    other = start(place, images, output, run_id)[0] if twin else None
    process, stage = start(place, images, output, run_id)
    for kind in kills:
        if not _kill_at(place, process, stage, kind) and process.is_alive():
            continue  # one of its decoders was killed: it continues
        process.join()
        place.restarts += 1
        if process.exitcode == 0:
            break
        process, stage = start(place, images, output, run_id)
    for _ in range(8):  # what a disturbed run may fail of, it may be started again for
        _wait(place, process, f"run {run_id}")
        if process.exitcode == 0:
            break
        place.restarts += 1
        process, stage = start(place, images, output, run_id)
    else:
        place.found.append(f"failed: run {run_id} ended with {process.exitcode}, see {place.log}")
    if other:
        _wait(place, other, f"the twin of run {run_id}")
    return process.exitcode == 0


def _wait(place: Place, process: BaseProcess, what: str) -> None:
    """Until a process ends; one that hangs is killed, and that it hung is wrong."""
    process.join(_JOB_SECONDS)
    if process.is_alive():
        place.found.append(f"hung: {what}")
        with suppress(ProcessLookupError):
            job.kill(process.pid)  # type: ignore[arg-type]
        process.join()


def _kill_at(place: Place, process: BaseProcess, stage: Any, kind: str) -> bool:
    """SIGKILL when the job does what `kind` names, after a moment; to its decoders for `fetcher`. Whether it was."""
    if kind == "parent":
        time.sleep(place.random.uniform(0.0, 1.5))
    else:
        wanted, until = job.STAGES.index("engine" if kind == "fetcher" else kind), time.monotonic() + _STAGE_SECONDS
        while process.is_alive() and stage.value != wanted and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(place.random.uniform(0.0, 0.03))
    if not process.is_alive():
        return False
    pid = process.pid
    assert pid is not None
    with suppress(OSError):
        if kind == "fetcher":
            for decoder in job.decoders_of(pid):
                os.kill(decoder, signal.SIGKILL)
                place.kills[kind] += 1
            return False  # it continues
        job.kill(pid)
        place.kills[kind] += 1
        return True
    return False


def look(
    place: Place, output: str, seen: Seen, titles: Mapping[str, str], finished: list[str], *,
    several_buckets: bool = False,
) -> list[str]:  # fmt: skip
    """What is wrong with an output now; also kept in `place.found`."""
    with tempfile.TemporaryDirectory() as folder:
        etags = copy_output(place.client, place.bucket, output, Path(folder))
        wrong = violations(Path(folder), etags, seen, titles, finished, several_buckets)
    place.found += [f"{output}: {one}" for one in wrong]
    return wrong


def nights(
    place: Place, name: str, *, photos: int, kills_a_night: int, count: int = 2,
    between: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Some nights over a bucket that changes, each run killed and restarted; what is wrong ends up in `place.found`."""
    output, seen, finished = f"{name}/output", Seen(), list[str]()
    bucket = Bucket(place, f"{name}/photos")
    for number in range(photos):
        bucket.put(f"{number:04}")
    for night in range(count):
        if night:
            keys = sorted(bucket.titles)
            for key in place.random.sample(keys, len(keys) // 2):
                bucket.put(key)
            bucket.put(f"new-{night} %ü.1")
            bucket.delete(place.random.choice([key for key in keys if not key.startswith("new")]))
        kills = sorted(place.random.choices(KINDS, k=kills_a_night), key=KINDS.index)
        run_id = f"night-{night}"
        twin = place.random.random() < 0.3
        look(place, output, seen, bucket.titles, finished if not night else [])
        if run_killed(place, bucket.prefix, output, run_id, kills, twin):
            finished.append(run_id)
        look(place, output, seen, bucket.titles, finished)
        between()
        if place.found:
            return


def rivals(place: Place, name: str, rounds: int) -> None:
    """Two runs over other photos that start, and so publish, at once: products.parquet must have both."""
    for number in range(rounds):
        output, titles = f"{name}-{number}/output", dict[str, str]()
        both = []
        for run_id in ("one", "two"):
            bucket = Bucket(place, f"{name}-{number}/{run_id}")
            for photo in range(4):
                bucket.put(f"{run_id}-{photo}")
            titles |= bucket.titles
            both.append((run_id, bucket.prefix))
        started = [start(place, prefix, output, run_id)[0] for run_id, prefix in both]
        for process in started:
            process.join(_JOB_SECONDS)
        for (run_id, prefix), process in zip(both, started, strict=True):
            if process.exitcode != 0:  # what a disturbed run may fail of
                run_killed(place, prefix, output, run_id, [], twin=False)
        look(place, output, Seen(), titles, ["one", "two"], several_buckets=True)
        if place.found:
            return


def twins(place: Place, name: str, photos: int) -> None:
    """One run by two processes at once, as where a scheduler takes a live one for dead; looked at all the while."""
    output, seen, bucket = f"{name}/output", Seen(), Bucket(place, f"{name}/photos")
    for number in range(photos):
        bucket.put(f"{number}")
    both = [start(place, bucket.prefix, output, "night")[0] for _ in range(2)]
    while any(process.is_alive() for process in both) and not place.found:
        look(place, output, seen, bucket.titles, [])
        time.sleep(0.05)
    for process in both:
        process.join(_JOB_SECONDS)
    if all(process.exitcode for process in both):
        run_killed(place, bucket.prefix, output, "night", [], twin=False)
    look(place, output, seen, bucket.titles, ["night"])
