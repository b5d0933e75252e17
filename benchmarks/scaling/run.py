"""Fine-tuning and runs at full size on 1, 2 and more GPUs of one machine, by `enrich` commands alone.

    python -m benchmarks.scaling.run --gpus 1 2              # both
    python -m benchmarks.scaling.run train --gpus 1 2 4      # `enrich finetune --processes N`
    python -m benchmarks.scaling.run serve --gpus 1 2 4      # `enrich run` with `runner: ray`, from photos to Parquet
    python -m benchmarks.scaling.run --gpus 1 2 --tiny       # small models on a CPU, to try the script

Each GPU gets as many photos however many GPUs there are, so that each part takes as long. Weights are made up, photos
are 1000x1333 JPEGs, all different. Rates leave the start out: of training, what train.json says; of a run, the
photos that were committed after each worker's first shard. Results: see README.md.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.made_up import FULL, SMALLEST, make_adapter, make_checkpoint, make_photos
from benchmarks.results import record
from benchmarks.vllm_serving.run import PLUGIN, plugin_environment
from sample.dialects import DEMO
from sample.products import sample_product

ROOT = Path(__file__).parents[2]
UNSEEN = 0.02  # of the labelled products, in each of validation, calibration and test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["train", "serve"], help="of train and serve")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2], help="how many, one after the other")
    parser.add_argument("--photos", type=int, help="for each GPU; 1024, or 96 where --tiny")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/enrich-scaling"), help="for 30 GB of files")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    options.photos = options.photos or (96 if options.tiny else 1024)
    make_photos(options.folder / "photos", options.photos * max(options.gpus))
    make_checkpoint(options.folder / "model", SMALLEST if options.tiny else FULL)
    tables: dict[str, list[dict[str, Any]]] = {}
    for part in options.parts:
        rows = tables.setdefault(part, [])
        for gpus in options.gpus:
            row = {"train": train, "serve": serve}[part](gpus, options)
            first = rows[0] if rows else row
            straight = gpus / first["GPUs"] * first["photos/s"]
            rows.append({**row, "of straight": row["photos/s"] / straight})
            print(rows[-1], file=sys.stderr, flush=True)
    record("scaling", tables)


def train(gpus: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune on the photos of so many GPUs, a process each."""
    place, out = options.folder / f"catalog-{gpus}", options.folder / f"trained-{gpus}"
    write_catalog(place, options.folder / "photos", options.photos * gpus)
    settings = {
        "model": str(options.folder / "model"), "epochs": 1, "evaluations": 1, "num_crops": 1 if options.tiny else 4,
        "batch_size": 16, "effective_batch_size": 16 * gpus, "cache_vision_features": False,
        "compile": not options.tiny,  # as a run of more photos does by itself
        "columns": {"category": "category"}, "split": {"validation": UNSEEN, "calibration": UNSEEN, "test": UNSEEN},
    }  # fmt: skip
    seconds = enrich(
        ["finetune", "--catalog", place, "--out", out, "--processes", gpus], settings, gpus, options, "train"
    )
    found = json.loads((out / "train.json").read_text())
    return {
        "GPUs": gpus, "photos/s": found["images_per_second"], "steps": found["steps"],
        "peak GiB": found["peak_memory_bytes"] / 2**30, "score": found["best"]["score"], "command, s": seconds,
        "phases, s": described(found["phases"]),
    }  # fmt: skip


def serve(gpus: int, options: argparse.Namespace) -> dict[str, Any]:
    """Enrich the photos of so many GPUs, an engine each."""
    adapter, out = options.folder / "adapter", options.folder / f"output-{gpus}"
    if not adapter.exists():
        make_adapter(adapter, options.folder / "model")
    photos = options.folder / f"photos-{gpus}"
    link_photos(options.folder / "photos", photos, options.photos * gpus)
    shard = options.photos // 8
    settings = {
        "runner": "ray", "engine": "vllm", "shard_size": shard, "gate": {"enabled": False}, "ray": {"workers": gpus},
        **({"device": "cpu", "vllm": {"max_num_seqs": 8}} if options.tiny else {}),
    }  # fmt: skip
    seconds = enrich(["run", "--images", photos, "--adapter", adapter, "--output", out], settings, gpus, options, "run")
    found = json.loads(next(out.glob("runs/*/run.json")).read_text())
    commits = sorted(file.stat().st_mtime for file in out.rglob("shard-*.parquet"))
    rate = (len(commits) - gpus) * shard / (commits[-1] - commits[gpus - 1])
    each = found["stages"]["photos_per_second"]
    return {
        "GPUs": gpus, "photos/s": rate, "rows": found["counts"]["ok"], "photos": options.photos * gpus,
        "an engine's own photos/s": each, "start, s": found["start"]["seconds"], "command, s": seconds,
        "phases, s": described(found["start"]["phases"]),
    }  # fmt: skip


def enrich(command: list[Any], settings: dict[str, Any], gpus: int, options: argparse.Namespace, name: str) -> float:
    """Run a command of `enrich` on the first so many GPUs; its seconds."""
    config = options.folder / f"{name}-{gpus}.yaml"
    config.write_text(json.dumps(settings))
    environment = plugin_environment(options.folder / "plugin", PLUGIN, ROOT) | {
        "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "ENRICH_CACHE": str(options.folder / "cache"),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
    }  # fmt: skip
    began = time.perf_counter()
    call = [sys.executable, "-m", "enrich.cli", *map(str, command), "--config", str(config)]
    code = subprocess.run(call, env=environment, cwd=ROOT, check=False).returncode
    if code not in (0, 3):  # 3: an adapter of made-up weights does not beat guessing
        raise SystemExit(f"{' '.join(call)}: exit code {code}")
    return time.perf_counter() - began


def described(phases: list[dict[str, Any]]) -> str:
    """Names and seconds of the phases of a record."""
    return ", ".join(f"{one['name']} {one['ended'] - one['began']:.0f}" for one in phases)


def link_photos(photos: Path, place: Path, count: int) -> None:
    """The first `count` photos in a folder of their own."""
    place.mkdir(parents=True)
    for index in range(count):
        os.link(photos / f"{index}.jpg", place / f"{index}.jpg")


def write_catalog(place: Path, photos: Path, count: int) -> None:
    """A labelled catalog of the first `count` photos."""
    link_photos(photos, place / "images", count)
    with (place / "catalog.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("product_code", "title", "category", "full_price", "currency_code", "local_image_path"))
        for index in range(count):
            own = sample_product(0, index, DEMO)
            row = (own.product_code, own.title, own.category, own.price, "EUR", f"images/{index}.jpg")
            table.writerow(row)


if __name__ == "__main__":
    main()
