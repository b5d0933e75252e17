"""What Prefect and Ray cost a run, compared with the plain library call.

    python -m benchmarks.orchestration.run --adapter ADAPTER [--shards 1000] [--big-shards 4]

The same runs four ways: `run_enrichment` and the flow `enrich-catalog`, each with the runners inline and ray (one
worker). The engine answers at once and photos are not read, so that nothing hides what is measured; planning, commits,
publishing, the report and a Prefect server on this machine are real. Runs of few and of many shards of 4 photos tell
what a run costs once and what each shard adds, runs of few and of many shards of 2,048 what each photo adds (with its
part of the shard). Shares are of the time that a GPU of 50 photos a second takes for 1,000 shards. Besides wall time,
the CPU time of the process that leads the run: it hardly changes with what else runs. Results: orchestration.md.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from benchmarks.results import record

SHARD, RATE = 2048, 50.0  # photos, photos a second
SMALL = 4  # photos in a shard where shards are counted
WAYS = ("plain", "prefect", "ray", "prefect+ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--big-shards", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3, help="the least of so many runs counts")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="enrich-orchestration-") as folder:
        set_up_prefect(Path(folder))
        measure(Path(folder), options)


def set_up_prefect(folder: Path) -> None:
    """A server of our own, before Prefect is imported."""
    from flows.home import own_server

    os.environ.pop("PREFECT_API_URL", None)
    os.environ |= own_server(folder / "prefect")
    os.environ |= {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600"}


def measure(folder: Path, options: argparse.Namespace) -> None:
    from prefect import flow

    sizes = {
        "few": (10, SMALL), "many": (options.shards, SMALL),
        "few big": (2, SHARD), "many big": (options.big_shards, SHARD),
    }  # fmt: skip
    for name, (shards, photos) in sizes.items():
        (folder / name).mkdir()
        for number in range(shards * photos):
            (folder / name / f"{number:07}.jpg").write_bytes(b"photo")
    flow(lambda: None, name="warm-up")()  # starts the server
    run("plain", folder / "few", options.adapter, folder / "warm-up", SMALL)  # imports what is imported late
    took: dict[tuple[str, str], tuple[float, float]] = {}  # wall and CPU, seconds
    for repeat in range(options.repeat):
        for way, (name, (shards, photos)) in product(WAYS, sizes.items()):
            wall, cpu = time.perf_counter(), time.process_time()
            run(way, folder / name, options.adapter, folder / f"{WAYS.index(way)} {name} {repeat}", photos)
            now = time.perf_counter() - wall, time.process_time() - cpu
            least = took.get((way, name), now)
            took[way, name] = min(least[0], now[0]), min(least[1], now[1])
            print(f"{way}: {shards} shards of {photos}: {now[0]:.2f} s, {now[1]:.2f} s of CPU", flush=True)
    tables: dict[str, list[dict[str, object]]] = {"Wall time": [], "CPU time of the leading process": []}
    for kind, rows in enumerate(tables.values()):
        for way in WAYS[1:]:
            extra = {name: took[way, name][kind] - took["plain", name][kind] for name in sizes}
            shard = (extra["many"] - extra["few"]) / (options.shards - 10)
            once = extra["few"] - 10 * shard
            photo = (extra["many big"] - extra["few big"]) / (options.big_shards - 2) / SHARD
            share = (once + 1000 * SHARD * max(photo, shard / SHARD)) / (1000 * SHARD / RATE)
            rows.append(
                {
                    "runner": way,
                    "once a run, s": once,
                    "a shard, ms": shard * 1e3,
                    "a photo, us": photo * 1e6,
                    "share of a GPU's time, %": share * 100,
                }
            )
    record("orchestration", tables)


def run(way: str, images: Path, adapter: str, output: Path, shard_size: int) -> None:
    from enrich.pipeline.run import enrichment, ray_runner
    from enrich.pipeline.run.request import RunRequest
    from enrich.settings.run import GateSettings, RaySettings, RunSettings
    from flows.enrich_catalog import enrich_catalog

    settings = RunSettings(
        engine="transformers", device="cpu", shard_size=shard_size, gate=GateSettings(enabled=False),
        runner="ray" if "ray" in way else "inline", ray=RaySettings(workers=1),
    )  # fmt: skip
    places = str(images), adapter, str(output)
    with patch.object(enrichment, "open_session", at_once), patch.object(ray_runner, "Worker", fake_worker()):
        if "prefect" in way:
            enrich_catalog(*places, settings=json.dumps({"run": settings.model_dump(mode="json", exclude_unset=True)}))
        else:
            enrichment.run_enrichment(RunRequest(*places, settings))


@contextmanager
def at_once(run: Any, *_: Any, **__: Any) -> Iterator[Any]:
    """In the place of `open_session`: photos that are not read, and an engine that answers before it is asked."""
    import numpy as np

    from enrich.answers.parse import Answer
    from enrich.answers.postprocess import Prediction
    from enrich.engines.base import EngineClock
    from enrich.photos.decode import Photo
    from enrich.photos.fetch import Fetched, FetchedPhoto
    from enrich.pipeline.run.session import Session

    page = np.zeros((8, 8, 3), np.uint8)

    class AtOnce:
        def answer(self, images: Iterable[Any]) -> Iterator[tuple[str, Prediction]]:
            for image in images:
                yield image.key, Prediction(answer=Answer("Plain Coat", "COATS", 100), confidence=0.9)

    def fetch(items: Iterable[Any]) -> Iterator[Fetched]:
        for item in takewhile(bool, items):
            [listed] = item.photos
            photo = FetchedPhoto(listed, listed.etag, listed.key.encode().hex(), Photo(page, 8, 8))
            yield Fetched(item, (photo,), 0.0, 0.0, time.monotonic())

    yield Session(run, "fake", AtOnce(), fetch, EngineClock(), uuid4().hex)  # type: ignore[arg-type]


def fake_worker() -> Any:
    """Ray's worker with `at_once` in its process."""
    from enrich.pipeline.run.ray_worker import Started, Worker

    class FakeWorker(Worker):
        def start(self, *job: Any) -> Started:
            from enrich.pipeline.run import ray_worker

            ray_worker.open_session = at_once  # type: ignore[assignment]
            return super().start(*job)

    return FakeWorker


if __name__ == "__main__":
    main()
