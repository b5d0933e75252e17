"""Phi-3-vision at full size through vLLM on one GPU: the stock path, what could be had at best, and this engine.

    python -m benchmarks.vllm_serving.run                        # every part, each in a process of its own
    python -m benchmarks.vllm_serving.run fp8 --photos 2048       # some of them
    python -m benchmarks.vllm_serving.run --tiny                  # a small model on a CPU, to try the script

    stock  vLLM as shipped: LLM.generate with its own model class, PIL images decoded beforehand; and prompts of the
           same length without a photo
    bf16   in one engine: prompts of the same length without a photo, the encoder alone, with vLLM's code and
           with this project's, and the ceiling 1 / (1 / text + 1 / encoder) for both; then this engine from the bytes
           of JPEG files; where AWS_ENDPOINT_URL is set, the whole job from S3 (AWS_ACCESS_KEY_ID, ...) to Parquet,
           once more with 1 % of the photos cut short; answers of 16 tokens; num_crops 1 and 16; smaller steps
    fp8    the same with fp8 weights and fp8 keys and values
    photos products of 1 photo (4 crops), of 3 (4 + 1 + 1 crops) and of 3 of 4 crops each, in one bf16 engine: from JPEG
           bytes, compared with the ceiling 1 / (1 / text + the encoder's time of each photo), and the whole job from a
           folder
    job    in one bf16 engine: from JPEG bytes, the whole job from a folder, from JPEG bytes
    answers  answers of as many tokens as title, category and price take, with and without their labels, and as these
           and five more fields take; in one bf16 engine, then in one fp8 engine; each length twice, in turns
    NAME=VALUE,...   this engine in bf16 with other settings, or vLLM's own as vllm.NAME, twice over the photos, such as
                     max_num_batched_tokens=8192 or vllm.block_size=144

The checkpoint is made up, and always answers the same 32 tokens. Photos are 1000x1333 JPEGs of the sample generator,
all different; num_crops is 4 (757 image tokens). Rates are of all photos from the first request to the last answer,
after a warm-up. Results of a run: see README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.made_up import FULL, TINY, begin_run, make_checkpoint, make_photos, preparation, prompt
from benchmarks.results import record
from benchmarks.vllm_serving.measured_engine import (
    Bench,
    clock,
    photo_bytes,
    run_in_engine,
    run_tower_as_vllm,
    run_tower_compiled,
    text_prompts,
    warm_up,
)

ROOT = Path(__file__).parents[2]
# What a part's processes load as vLLM's plugin. The stock part gets the configuration and the processor only.
STOCK, PLUGIN = "enrich.models.phi3_vision.auto:register", "enrich.models.phi3_vision.vllm_plugin:register"
FP8 = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
Row = tuple[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["stock", "bf16", "fp8"])
    parser.add_argument("--photos", type=int, help="how many; 1024, or 6 where --tiny")
    parser.add_argument("--workers", type=int, help="decoding processes; by default all cores but three")
    parser.add_argument("--folder", type=Path, help="where photos and checkpoint are made, or were")
    parser.add_argument("--profile", action="store_true", help="say which kernels took the GPU's time")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script on a CPU")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.photos = options.photos or (6 if options.tiny else 1024)
    options.workers = options.workers or max(1, (os.cpu_count() or 4) - 3)
    if options.one:
        for what, result in measure(options.parts[0], options):
            print(json.dumps({"what": what, **{name: result.get(name, "") for name in CELLS}}), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        make_photos(options.folder / "photos", options.photos + warm_up(options))
        make_checkpoint(options.folder / "model", TINY if options.tiny else FULL)
        record("vllm_serving", {part: run_alone(part, options) for part in options.parts})


CELLS = ("a second", "GPU busy", "CPU s/image", "ready after s")


def run_alone(part: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a part in a process of its own, which shares neither memory nor compiled code with another's."""
    environment = engine_environment(options.folder, stock=part == "stock", tiny=options.tiny)
    command = [sys.executable, "-m", "benchmarks.vllm_serving.run", part, "--one", "--folder", str(options.folder)]
    command += ["--photos", str(options.photos), "--workers", str(options.workers)]
    command += [f"--{name}" for name in ("tiny", "profile") if getattr(options, name)]
    rows = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):  # the rest is what a profile says
                rows.append(json.loads(line))
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        rows.append({"what": f"failed with exit code {process.returncode}", **dict.fromkeys(CELLS, "")})
    return rows


def plugin_environment(folder: Path, entry: str, checkout: Path = ROOT) -> dict[str, str]:
    """Of a process that runs the code of a checkout, installed or not, with `entry` as vLLM's only plugin."""
    plugin = folder / "enrich_benchmark-0.dist-info"
    plugin.mkdir(parents=True, exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: enrich-benchmark\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(f"[vllm.general_plugins]\nenrich_benchmark = {entry}\n")
    paths = [str(folder), str(checkout), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VLLM_PLUGINS": "enrich_benchmark",  # and not the installed package's, in whose place it is
        "HF_HUB_OFFLINE": "1",
    }


def engine_environment(folder: Path, *, stock: bool, tiny: bool) -> dict[str, str]:
    """Of a process with an engine, vLLM as shipped or with this project's plugin, which is written to `folder`."""
    environment = plugin_environment(folder / f"plugin-{stock}", STOCK if stock else PLUGIN) | {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # functions of this file run in the engine's process
        "TOKENIZERS_PARALLELISM": "false",
    }
    if tiny:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment["OMP_NUM_THREADS"] = str(os.cpu_count())
    return environment


def measure(part: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one part: what was measured, and its figures."""
    if part == "stock":
        yield from measure_stock(options)
    elif part == "photos":
        yield from measure_photos(options)
    elif part == "job":
        yield from measure_files_job(options)
    elif part == "answers":
        yield from measure_answers(options)
    elif part in ("bf16", "fp8"):
        yield from measure_engine(part, FP8 if part == "fp8" and not options.tiny else {}, options)
    else:
        settings = dict(setting.split("=") for setting in part.split(","))
        with Bench(settings, options) as bench:
            for _ in range(2):
                yield f"this engine, {part}", bench.from_jpeg()


def measure_stock(options: argparse.Namespace) -> Iterator[Row]:
    from io import BytesIO

    from PIL import Image
    from vllm import LLM, SamplingParams

    from enrich.models.checkpoint import load_processor
    from enrich.models.phi3_vision.processing import render_turn

    started = time.perf_counter()
    plain = {"enforce_eager": True, "max_num_seqs": 8} if options.tiny else {}
    model = options.folder / "model"
    llm = LLM(str(model), max_model_len=4096, limit_mm_per_prompt={"image": 1}, disable_log_stats=True, **plain)
    count = warm_up(options)
    images = [Image.open(BytesIO(data)).convert("RGB") for data in photo_bytes(options, 0, options.photos + count)]
    prompts = [{"prompt": render_turn(prompt().instruction), "multi_modal_data": {"image": image}} for image in images]
    greedy = SamplingParams(temperature=0.0, max_tokens=FULL.answer_tokens, ignore_eos=True)
    llm.generate(prompts[options.photos :], greedy, use_tqdm=False)
    ready = time.perf_counter() - started
    with clock(options.photos) as result:
        llm.generate(prompts[: options.photos], greedy, use_tqdm=False)
    yield "stock: LLM.generate, PIL images in memory", {**result, "ready after s": ready}
    texts = text_prompts(load_processor(model), options)
    with clock(options.photos) as result:
        llm.generate(texts, greedy, use_tqdm=False)
    yield "stock, text alone", result


def measure_engine(name: str, settings: dict[str, str], options: argparse.Namespace) -> Iterator[Row]:
    with Bench({**settings, "shard_size": "512"}, options) as bench:
        yield f"{name}, text alone", (text := bench.text())
        for how, run in (("as vLLM runs it", run_tower_as_vllm), ("compiled", run_tower_compiled)):
            run_in_engine(bench.engine, run)
            yield f"{name}, encoder alone, {how}", (encoder := bench.encoder())
            yield f"{name}, ceiling with it", {"a second": 1 / (1 / text["a second"] + 1 / encoder["a second"])}
        yield f"{name}, this engine from JPEG bytes", bench.from_jpeg()
        if options.profile:
            print(bench.profile(), flush=True)
        if name == "bf16" and os.environ.get("AWS_ENDPOINT_URL"):
            yield from measure_job(name, bench)
        yield f"{name}, this engine, answers of 16 tokens", bench.from_jpeg(tokens=16)
        yield f"{name}, this engine, num_crops 1", bench.from_jpeg(crops=[1])
        if not options.tiny:
            yield f"{name}, this engine, num_crops 16", bench.from_jpeg(crops=[16], count=options.photos // 4)
        yield f"{name}, this engine once more", bench.from_jpeg()
        if not options.tiny:  # on a CPU the scheduler is out of reach
            most = bench.arguments["max_num_batched_tokens"]
            for tokens in (most // 2, most // 4 * 3):
                bench.set_step_tokens(tokens)
                yield f"{name}, this engine, {tokens} tokens a step", bench.from_jpeg()


# Tokens of an answer in Phi-3's vocabulary: a label takes 2 or 3, a title about 8, any other value about 3.
ANSWERS = {"three fields": 32, "three fields, terse": 24, "eight fields": 60, "eight fields, terse": 37}


def measure_answers(options: argparse.Namespace) -> Iterator[Row]:
    """Answers of as many tokens as declared fields take, from JPEG bytes."""
    for name, settings in {"bf16": {}, "fp8": {} if options.tiny else FP8}.items():
        with Bench({**settings, "shard_size": "512"}, options) as bench:
            for what, tokens in [*ANSWERS.items()] * 2:
                yield f"{name}, {what}: {tokens} tokens", bench.from_jpeg(tokens=tokens)


SHOWN = {"1 photo": [4], "3 photos, 4 + 1 + 1 crops": [4, 1, 1], "3 photos of 4 crops": [4, 4, 4]}


def measure_photos(options: argparse.Namespace) -> Iterator[Row]:
    """Products with one photo and with three."""
    with Bench({"shard_size": "512", "group_by": "folder"}, options, photos=3) as bench:
        encoder = {crops: bench.encoder(crops)["a second"] for crops in (4, 1)}
        for crops, rate in encoder.items():
            yield f"encoder alone, images of {crops} crops", {"a second": rate}
        for name, crops in SHOWN.items():
            yield f"{name}: text alone", (text := bench.text(crops))
            seconds = 1 / text["a second"] + sum(1 / encoder[number] for number in crops)
            yield f"{name}: ceiling", {"a second": 1 / seconds}
            for _ in range(2):
                yield f"{name}: this engine from JPEG bytes", bench.from_jpeg(crops=crops)
            with tempfile.TemporaryDirectory() as scratch:
                folder = product_folders(bench, Path(scratch, "photos"), len(crops))
                how = preparation(options.folder / "model")
                several = (
                    {"photos_per_product": len(crops), "more_crops": 1 if options.tiny else crops[-1]}
                    if len(crops) > 1
                    else {}
                )
                job = whole_job(bench, str(folder), f"{scratch}/output", replace(how, **several))
                yield f"{name}: whole job, from files to Parquet", job


def measure_files_job(options: argparse.Namespace) -> Iterator[Row]:
    """The whole job between two runs of the engine alone, so that two commits can be compared on one machine."""
    with Bench({"shard_size": "512"}, options) as bench, tempfile.TemporaryDirectory() as scratch:
        photos = product_folders(bench, Path(scratch, "photos"), 1)
        yield "bf16, this engine from JPEG bytes", bench.from_jpeg()
        # Once: the engine would know the photos of a second job again.
        job = whole_job(bench, str(photos), f"{scratch}/output", preparation(options.folder / "model"))
        yield "bf16, whole job, from files to Parquet", job
        yield "bf16, this engine once more", bench.from_jpeg()


def product_folders(bench: Bench, folder: Path, photos: int) -> Path:
    """The benchmark's photos in folders of as many."""
    for index in range(bench.options.photos // photos * photos):
        path = folder / f"{index // photos}" / f"{index % photos}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(bench.options.folder / "photos" / f"{index}.jpg")
    return folder


def measure_job(name: str, bench: Bench) -> Iterator[Row]:
    """The whole job on the same photos, on them with 1 % cut short, and the engine alone between them."""
    import boto3

    s3 = boto3.session.Session().client("s3")
    for bucket in ("whole", "faulty"):
        s3.create_bucket(Bucket=bucket)
        for index, data in enumerate(photo_bytes(bench.options, 0, bench.options.photos)):
            cut = bucket == "faulty" and index % 100 == 50
            s3.put_object(Bucket=bucket, Key=f"{index}.jpg", Body=data[: len(data) // 2] if cut else data)
    with tempfile.TemporaryDirectory() as output:
        yield f"{name}, job: S3 to Parquet", whole_job(bench, "s3://whole", f"{output}/1")
        yield f"{name}, this engine from JPEG bytes", bench.from_jpeg()
        yield f"{name}, job, 1 % of the photos cut short", whole_job(bench, "s3://faulty", f"{output}/2")
        yield f"{name}, job: S3 to Parquet", whole_job(bench, "s3://whole", f"{output}/3")


def whole_job(bench: Bench, photos: str, output: str, how: Any = None) -> dict[str, float]:
    """List, plan, download, decode, answer, judge and commit; all but starting engine and decoders, the gate and the
    report. `how` the photos are prepared: as the checkpoint says, or otherwise."""
    from enrich.engines.predictor import Predictor
    from enrich.engines.vllm_render import sampling
    from enrich.models.checkpoint import stop_ids
    from enrich.output.history import read_shards
    from enrich.photos.fetch import fetcher
    from enrich.pipeline.run.deadline import Deadline
    from enrich.pipeline.run.session import Session
    from enrich.storage import open_store

    bench.engine._free = sampling(stop_ids(bench.processor), 64)
    source, target = open_store(photos, must_exist=True), open_store(output, create=True)
    model = bench.options.folder / "model"
    how = how or preparation(model)
    with fetcher(source, bench.settings, how, needed=how.photos_per_product) as fetch:
        time.sleep(10)  # the decoding processes start while the engine does, which takes a minute (see `open_session`)
        with clock(bench.options.photos // how.photos_per_product) as result:
            run = begin_run(source, target, model, bench.settings, how)
            predictor = Predictor(bench.engine, bench.engine.tokens, run.adapter.calibration, bench.settings.review)
            session = Session(run, "vllm", predictor, fetch, bench.engine.clock, "benchmark")
            for _ in session.answer(run.manifest.shards, Deadline()):
                pass
    counts = read_shards(target, run.info)["status"].value_counts().sort("status").rows()
    print(f"rows: {dict(counts)}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
