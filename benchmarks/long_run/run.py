"""A long run: memory from the first thousand photos to the last, and what a killed engine costs.

    python -m benchmarks.long_run.run --photos 100000             # memory of every process over the run
    python -m benchmarks.long_run.run --photos 100000 --device cuda --max-num-seqs 256 --decoders 12
    python -m benchmarks.long_run.run --photos 2000 --kills 3     # kills the engine three times, then counts rows

The whole job runs, from a folder of JPEGs to Parquet, with the real vLLM and the smallest model that answers: what is
measured is everything but the model. Memory is the proportional set size, which counts shared pages once. Results of a
run: see README.md.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.made_up import SMALLEST, begin_run, make_checkpoint, prompt
from benchmarks.results import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=0, help="of the engine, evenly over the run")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--decoders", type=int, default=2, help="decoding processes")
    options = parser.parse_args()
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        make_small_photos(Path(folder) / "photos", options.photos)
        make_checkpoint(Path(folder) / "model", SMALLEST)
        run_job(Path(folder), options)


def make_small_photos(folder: Path, count: int) -> None:
    """Different JPEGs of 56 x 56 pixels."""
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (7, 7, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / f"{index:06d}.jpg").write_bytes(buffer.getvalue())


def run_job(folder: Path, options: argparse.Namespace) -> None:
    # Here, for the decoding processes import this file too.
    from enrich.engines.predictor import Predictor
    from enrich.engines.vllm_engine import VllmEngine, engine_arguments
    from enrich.engines.vllm_process import EngineProcess
    from enrich.models.checkpoint import load_processor
    from enrich.models.device import device_and_dtype
    from enrich.models.registry import family_of
    from enrich.output.history import read_shards
    from enrich.photos.fetch import fetcher
    from enrich.pipeline.run.deadline import Deadline
    from enrich.pipeline.run.session import Session
    from enrich.settings.run import RunSettings
    from enrich.storage import open_store

    settings = RunSettings(
        engine="vllm", device=options.device, decode_processes=options.decoders,
        # The model is tiny, and something else may run there.
        vllm={"max_num_seqs": options.max_num_seqs, "gpu_memory_utilization": 0.2},
    )  # fmt: skip
    model = family_of(folder / "model").load()
    arguments = {**engine_arguments(settings, *device_and_dtype(options.device), model), "model": str(folder / "model")}
    processor = load_processor(folder / "model")
    start = partial(EngineProcess, arguments, cpu=options.device == "cpu")
    engine = VllmEngine(start, processor, prompt(), in_flight=options.max_num_seqs * 5 // 4)
    source, target = open_store(str(folder / "photos")), open_store(str(folder / "output"), create=True)
    run = begin_run(source, target, folder / "model", settings)
    predictor = Predictor(engine, engine.tokens, run.adapter.calibration, settings.review)
    kills = [options.photos * (kill + 1) // (options.kills + 1) for kill in range(options.kills)]
    marks = [photos for photos in MARKS if photos < options.photos] + [options.photos]
    used: list[dict[str, Any]] = []
    started = time.monotonic()
    with fetcher(source, settings, run.adapter.preparation) as fetch:
        session = Session(run, "vllm", predictor, fetch, engine.clock, "benchmark")
        for done in session.answer(run.manifest.shards, Deadline()):
            while marks and done >= marks[0]:
                rate = done / (time.monotonic() - started)
                used.append({"photos": marks.pop(0), **memory(engine), "photos/s": rate})
                print(used[-1], file=sys.stderr, flush=True)
            if kills and done >= kills[0]:
                kills.pop(0)
                for pid in engine.process.pids:
                    os.kill(pid, signal.SIGKILL)
    restarts = engine.restarts
    engine.close()
    rows = read_shards(target, run.info)
    keys = set(rows["product_id"])
    wanted = {f"{index:06d}" for index in range(options.photos)}
    outcome = {
        "photos": options.photos, "kills": options.kills, "restarts": restarts, "seconds": time.monotonic() - started,
        "rows": rows.height, "photos with a row": len(keys & wanted), **Counter(rows["status"]),
    }  # fmt: skip
    record("long_run", {"Memory": used, "Rows": [outcome]})


MARKS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
ROLES = ("this process, MB", "decoders, MB", "engine, MB", "all, MB")


def memory(engine: Any) -> dict[str, float]:
    """Proportional set size, MB, by role."""
    used = dict.fromkeys(ROLES, 0.0)
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        size = process.memory_full_info().pss / 1e6
        engines = {process.pid, *(parent.pid for parent in process.parents())} & set(engine.process.pids)
        role = ROLES[0] if process.pid == here.pid else ROLES[2] if engines else ROLES[1]
        used[role] += size
        used[ROLES[3]] += size
    return used


if __name__ == "__main__":
    main()
