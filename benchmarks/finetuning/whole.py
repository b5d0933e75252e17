"""Fine-tuning at full size from products to a verified adapter, merge check and all, as `enrich finetune` does it.

    python -m benchmarks.finetuning.whole                 # plain, 4bit and vision, each in a process of its own
    python -m benchmarks.finetuning.whole 4bit            # one of them
    python -m benchmarks.finetuning.whole 4bit --compile  # as fast as a run of thousands of photos
    python -m benchmarks.finetuning.whole --tiny          # a model of a few layers, to try the script on a CPU

Each prints one line of JSON: photos a second (the first steps of compiling left out), peak GPU memory, the merge check,
and how long the parts took; or the error that ended it. Weights are random, photos are 1000x1333 JPEGs of the sample
generator, all different. Results of a run: see README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetuning.run import catalog, make_model, make_photos
from benchmarks.results import record
from enrich.errors import EnrichError
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision import Phi3VImageProcessor, Phi3VProcessor
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from enrich.train.record import TrainReport
from enrich.train.run import train

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "4bit": {"load_in_4bit": True},
    "vision": {"adapt_vision": True},
}
UNSEEN = 8  # validation photos, as many as the merge check takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--photos", type=int, default=256, help="to train on, in one epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing: less memory, slower")
    parser.add_argument("--compile", action="store_true", help="the layers, as a run of more photos does by itself")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tiny", action="store_true", help="a model of a few layers, to try the script on a CPU")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, folder = arguments.one
        print(json.dumps(measure(name, Path(folder), arguments)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        count = arguments.photos + UNSEEN
        make_photos(Path(folder), count)
        base = Path(folder, "base")
        make_model(_device(), tiny=arguments.tiny).save_pretrained(base)
        crops = 1 if arguments.tiny else 4
        Phi3VProcessor(Phi3VImageProcessor(num_crops=crops), load_processor(TINY_MODEL_PATH).tokenizer).save_pretrained(
            base
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = []
        for name in arguments.variants or VARIANTS:
            command = [sys.executable, "-m", "benchmarks.finetuning.whole", *sys.argv[1:], "--one", name, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            found = json.loads(done.stdout) if done.stdout.strip() else {"error": f"exit code {done.returncode}"}
            rows.append({"variant": name, **found})
            print(rows[-1], file=sys.stderr, flush=True)
    failed = [row for row in rows if row["error"]]
    record("finetuning", {"": [row for row in rows if not row["error"]], **({"Failed": failed} if failed else {})})


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune as `name` says; its numbers, or the error that ended it."""
    started = time.monotonic()
    settings = TrainSettings.model_validate(
        {
            "model": str(folder / "base"), "epochs": 1, "evaluations": 1, "batch_size": arguments.batch_size,
            "effective_batch_size": arguments.batch_size, "learning_rate": arguments.learning_rate,
            "gradient_checkpointing": arguments.checkpointing, "num_crops": 1 if arguments.tiny else 4,
            "compile": arguments.compile or None, **VARIANTS[name],
        }
    )  # fmt: skip
    products, prompt = catalog(folder, arguments.photos + UNSEEN)
    workdir = folder / f"work-{name}"
    moments: dict[str, float] = {}

    def told(state: Any) -> None:
        if state.stage == "training":
            moments.setdefault("first_step", time.monotonic())
            moments["last_step"] = time.monotonic()

    error = None
    try:
        train(
            products[UNSEEN:], products[:UNSEEN], prompt, settings, folder / "base", workdir, data_fingerprint="x",
            on_progress=told, on_message=lambda line: print(line, file=sys.stderr),
        )  # fmt: skip
    except EnrichError as failure:
        error = str(failure)
    result: dict[str, Any] = {
        "error": error,
        "first_step_seconds": round(moments.get("first_step", started) - started, 1),
        "after_training_seconds": round(time.monotonic() - moments.get("last_step", started), 1),
        "peak_gib_with_merge_check": _peak_gib(),
    }
    trained = next((file for file in workdir.glob("*/train.json")), None)
    if trained is None:
        return result
    report = TrainReport.model_validate_json(trained.read_bytes())
    return {
        **result,
        "photos_per_second": round(report.images_per_second, 2),
        "steps": report.steps,
        "trainable_parameters": report.trainable_parameters,
        "trial_gib": round(report.trial_memory_bytes / 2**30, 1),
        **{f"merge_check_{name}": value for name, value in report.merge_check.model_dump().items()},
        "seconds": round(report.seconds, 1),
        "kept_in": trained.parent.name,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _peak_gib() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else 0.0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
