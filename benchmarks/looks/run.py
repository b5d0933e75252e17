"""Two looks: quality and cost of `looks: [1, 4]`, compared with always four crops and always one.

python -m benchmarks.looks.run quality --out looks --products 3000     # on a CPU, or on a GPU with --device cuda
python -m benchmarks.looks.run speed                                   # one GPU, at full size
python -m benchmarks.looks.run speed --tiny                            # a small model on a CPU, to try the script

quality  the tiny base is fine-tuned twice on one sample catalog with the demo's settings: at num_crops 4, and with
         looks [1, 4]. The second adapter answers the test split three times: at the first look alone, closely alone,
         and as it is served. Each is compared with the first adapter, product by product.
speed    whole jobs from JPEG files to committed rows in one engine with the made-up full-size checkpoint: always 4
         crops, always 1, and both looks with given shares of second ones, then always 4 once more. Which products
         get a second look is drawn, because the checkpoint answers all of them alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.made_up import FULL, TINY, begin_run, make_checkpoint, make_photos
from benchmarks.results import record
from benchmarks.vllm_serving.measured_engine import Bench, clock, warm_up
from benchmarks.vllm_serving.run import engine_environment

LOOKS = (1, 4)
SHARES = (0.1, 0.2, 0.3, 0.5)
CELLS = ("products a second", "relative to always 4", "GPU busy", "CPU s/product")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "speed"))
    parser.add_argument("--out", type=Path, help="quality: a folder for catalog and adapters")
    parser.add_argument("--products", type=int, default=3000, help="quality: of the catalog")
    parser.add_argument("--seed", type=int, default=0, help="quality: of the catalog")
    parser.add_argument("--settings", type=json.loads, default={}, help="quality: training settings as JSON, for both")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="quality")
    parser.add_argument("--photos", type=int, help="speed: how many; 2048, or 6 where --tiny")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="speed: of second looks")
    parser.add_argument("--workers", type=int, help="speed: decoding processes; by default all cores but three")
    parser.add_argument("--folder", type=Path, help="speed: where photos and checkpoint are made, or were")
    parser.add_argument("--tiny", action="store_true", help="speed: a small model, to try the script on a CPU")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "quality":
        if options.out is None:
            parser.error("quality needs --out")
        record("looks", measure_quality(options))
        return
    options.photos = options.photos or (6 if options.tiny else 2048)
    options.workers = options.workers or max(1, (os.cpu_count() or 4) - 3)
    if options.one:
        for what, result in measure_speed(options):
            print(json.dumps({"way": what, **{name: result.get(name, "") for name in CELLS}}), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        make_photos(options.folder / "photos", options.photos + warm_up(options))
        make_checkpoint(options.folder / "model", replace(TINY, num_crops=LOOKS[1]) if options.tiny else FULL)
        record("looks", {"Photos of 1000x1333, from files to committed rows": run_alone(options)})


def measure_quality(options: argparse.Namespace) -> dict[str, Any]:
    """Both adapters' scores on the same test split."""
    import polars as pl

    from benchmarks.sample_quality.run import demo_settings
    from benchmarks.several_photos.run import differences
    from enrich.catalog.read import read_catalog
    from enrich.pipeline.finetuning import finetune
    from enrich.settings.models import TINY_MODEL_PATH
    from sample.generate import write_sample

    catalog = options.out / "catalog"
    if not catalog.exists():
        write_sample(catalog, options.products, seed=options.seed, holdout=12)
    options.base, options.language = Path(TINY_MODEL_PATH), "en"
    made: dict[str, dict[str, Any]] = {}
    for name, changes in {"plain": {"num_crops": LOOKS[1]}, "looks": {"looks": LOOKS}}.items():
        adapter = options.out / name
        if not (adapter / "train.json").exists():
            settings = demo_settings(options, len(read_catalog(catalog).products), changes)
            finetune(str(catalog), str(adapter), settings)
        made[name] = json.loads((adapter / "metrics.json").read_text("utf-8"))
    tables = [pl.read_parquet(options.out / name / "scores.parquet") for name in made]
    plain, ways = made["plain"]["test"], made["looks"]["looks"]
    rows = [
        {
            "way": "num_crops 4, an adapter of its own",
            "category": plain["category_accuracy"],
            "title exact": plain["title_exact"],
            "MdAPE": plain["price"]["mdape"],
            "prompt tokens": ways[1]["prompt_tokens"],
            "second looks": "",
        }
    ]
    for way in ways:
        scores = {name: one["value"] for name, one in way["scores"].items()}
        rows.append(
            {
                "way": f"looks {way['looks']}",
                "category": scores["category_accuracy"],
                "title exact": scores["title_exact"],
                "MdAPE": scores["price_mdape"],
                "prompt tokens": way["prompt_tokens"],
                "second looks": way["second_looks"],
            }
        )
    beside = [
        {"way": f"looks {way['looks']}", **{name: _signed(one) for name, one in way["scores"].items()}} for way in ways
    ]
    return {
        f"{plain['rows']} products of the test split": rows,
        "Compared with close looks of the same adapter: difference and 95 % interval of the bootstrap": beside,
        "As served, compared with the adapter of num_crops 4": [{"way": "looks [1, 4]", **differences(*tables)}],
    }


def _signed(one: dict[str, float]) -> str:
    return f"{one['difference']:+.1%} ({one['low']:+.1%} to {one['high']:+.1%})"


def run_alone(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of `measure_speed` from a process of its own, which has the project's plugin for vLLM."""
    command = [sys.executable, "-m", "benchmarks.looks.run", "speed", "--one", "--folder", str(options.folder)]
    command += ["--photos", str(options.photos), "--workers", str(options.workers)]
    command += ["--shares", *map(str, options.shares), *(["--tiny"] if options.tiny else [])]
    environment = engine_environment(options.folder, stock=False, tiny=options.tiny)
    rows = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                rows.append(json.loads(line))
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"the engine's process failed with exit code {process.returncode}")
    return rows


def measure_speed(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Each way of looking, in one engine."""
    settings = {"shard_size": "512", "decode_processes": str(options.workers)}
    with Bench(settings, options) as bench:
        ways: list[tuple[str, int, float | None]] = [
            ("always 4 crops", LOOKS[1], None),
            ("always 1 crop", LOOKS[0], None),
        ]
        ways += [(f"looks [1, 4], {share:.0%} second looks", LOOKS[1], share) for share in options.shares]
        closely = 0.0
        for what, crops, share in [*ways, ("always 4 crops, once more", LOOKS[1], None)]:
            result = job(bench, crops, share)
            closely = closely or result["a second"]
            yield (
                what,
                {
                    "products a second": result["a second"],
                    "relative to always 4": result["a second"] / closely,
                    "GPU busy": result.get("GPU busy", float("nan")),
                    "CPU s/product": result["CPU s/image"],
                },
            )


def job(bench: Bench, crops: int, share: float | None) -> dict[str, float]:
    """List, plan, download, decode, answer and commit; `share` of second looks, None: all products get one look."""
    from enrich.answers.calibration import Calibration, FirstLook
    from enrich.engines import predictor
    from enrich.engines.vllm_render import sampling
    from enrich.models.base import Preparation
    from enrich.models.checkpoint import stop_ids
    from enrich.output.history import read_shards
    from enrich.photos.fetch import fetcher
    from enrich.pipeline.run.deadline import Deadline
    from enrich.pipeline.run.session import Session
    from enrich.storage import open_store

    plain, draw = Calibration.uncalibrated(), Random(0)
    count = len(list((bench.options.folder / "photos").iterdir()))  # those of the warm-up too
    first = None if share is None else FirstLook(squares=LOOKS[0], calibration=plain, least_doubt=0.0)
    calibration = plain.model_copy(update={"first": first})
    predictor.needs_second = lambda *_: draw.random() < (share or 0.0)
    bench.engine._free = sampling(stop_ids(bench.processor), 64)
    bench.processor.image_processor.num_crops = crops  # as an adapter of so many has it
    how = Preparation(num_crops=crops, image_size=336)
    with tempfile.TemporaryDirectory() as scratch:
        source = open_store(str(bench.options.folder / "photos"), must_exist=True)
        target = open_store(f"{scratch}/output", create=True)
        with fetcher(source, bench.settings, how, first=calibration.first_squares) as fetch, clock(count) as result:
            run = begin_run(source, target, bench.options.folder / "model", bench.settings, how)
            made = predictor.Predictor(bench.engine, bench.engine.tokens, calibration, bench.settings.review)
            session = Session(run, "vllm", made, fetch, bench.engine.clock, "benchmark")
            for _ in session.answer(run.manifest.shards, Deadline()):
                pass
        rows = read_shards(target, run.info)
    if rows.filter(status="ok").height != count:
        raise RuntimeError(f"{rows['status'].value_counts().to_dicts()} instead of {count} answers")
    print(f"looks: {rows['looks'].value_counts().sort('looks').rows()}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
