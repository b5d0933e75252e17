"""What fine-tuning the tiny base on the sample catalog reaches: num_crops 1, 4, 9 and 16, vision frozen or with LoRA.

Every way starts from the same base, with the demo's settings, on the same catalog, and is scored on its test split and
on the hold-out, whose colour x fabric x kind no other split shows. The base without an adapter
and the best possible price error are in the table. Needs neither boto3 nor Prefect.

    python -m benchmarks.sample_quality.run --base enrich/assets/phi3v-tiny --out quality
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.results import record
from enrich.catalog.read import read_catalog
from enrich.models.protocols import Processor
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.scoring import score_adapter
from enrich.settings.models import TINY_MODEL
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.train.opening import open_processor
from enrich.train.recipe import tiny_recipe
from sample.generate import write_sample
from sample.make import DIALECTS

WAYS: dict[str, dict[str, Any]] = {
    "4 crops, vision frozen": {"num_crops": 4},
    "1 crop, vision frozen": {"num_crops": 1},
    "9 crops, vision frozen": {"num_crops": 9},
    "16 crops, vision frozen": {"num_crops": 16},
    "4 crops, vision LoRA": {"num_crops": 4, "adapt_vision": True},
}


@dataclass
class Clock:
    """Photos answered a second, between the first progress of a stage and its last."""

    started: float = 0.0
    first: int = 0
    ended: float = 0.0
    last: int = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if done <= self.last or not self.started:
            self.started, self.first = now, done
        self.ended, self.last = now, done

    @property
    def rate(self) -> float:
        return (self.last - self.first) / max(self.ended - self.started, 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for catalog and adapters")
    parser.add_argument("--products", type=int, default=1500)
    parser.add_argument("--holdout", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="of the catalog")
    parser.add_argument("--language", choices=tuple(DIALECTS), default="en", help="of the catalog and of the answers")
    parser.add_argument("--ways", type=int, nargs="+", default=[*range(len(WAYS))], help="which rows: 0 to 4")
    parser.add_argument("--settings", type=json.loads, default={}, help="training settings as JSON, for every way")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()

    catalog = arguments.out / "catalog"
    dialect = DIALECTS[arguments.language]
    write_sample(catalog, arguments.products, seed=arguments.seed, dialect=dialect, holdout=arguments.holdout)
    best = json.loads((catalog / "truth.json").read_text("utf-8"))["best_mdape"]
    rows: list[dict[str, Any]] = []
    for name, changes in (list(WAYS.items())[way] for way in arguments.ways):
        found = measure(arguments, catalog, name, changes)
        if not rows:
            rows.append(row("the base, no adapter", {}, found["base"], None, best))
        rows.append(row(name, found, found["test"], found["holdout"], best))
        print(rows[-1], file=sys.stderr, flush=True)
    of = f"{arguments.products} products, {arguments.language}"
    record("sample_quality", {f"{of}, best possible MdAPE {best:.1%}": rows})


def measure(arguments: argparse.Namespace, catalog: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Fine-tunes one way and scores it."""
    adapter = arguments.out / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(adapter, ignore_errors=True)
    settings = demo_settings(arguments, len(read_catalog(catalog).products), changes)
    done = finetune(str(catalog), str(adapter), settings)
    clock = Clock()
    run = RunSettings(engine="transformers", device=arguments.device, batch_size=settings.batch_size)
    holdout = score_adapter(str(adapter), str(catalog / "holdout"), run, progress=clock)[0].metrics["test"]
    trained = json.loads((adapter / "train.json").read_text("utf-8"))
    return {
        "test": done.metrics["test"],
        "base": done.metrics["base"],
        "intervals": done.metrics["intervals"],
        "holdout": holdout,
        "image_tokens": image_tokens(open_processor(arguments.base, settings), catalog),
        "trained_per_second": trained["images_per_second"],
        "answered_per_second": clock.rate,
        "seconds": trained["seconds"],
        "evaluations": trained["evaluations"],
    }


def demo_settings(arguments: argparse.Namespace, rows: int, changes: dict[str, Any]) -> TrainSettings:
    """The settings that the tiny base gets where nothing is said, on the base named here."""
    asked = TrainSettings.model_validate(
        {"model": TINY_MODEL, "device": arguments.device, "language": arguments.language} | changes | arguments.settings
    )
    return tiny_recipe(asked, arguments.base, rows)


def image_tokens(processor: Processor, catalog: Path) -> int:
    """Tokens of the median photo."""
    counts = []
    for product in read_catalog(catalog).products[:200]:
        with Image.open(product.image_paths[0]) as photo:
            counts.append(processor.photo_tokens(*photo.size).total)
    return sorted(counts)[len(counts) // 2]


def row(
    name: str, found: dict[str, Any], test: dict[str, Any], holdout: dict[str, Any] | None, best: float
) -> dict[str, Any]:
    """A line of the table. Shares are from 0 to 1."""
    mdape = test["price"]["mdape"]
    return {
        "way": name,
        "image tokens": found.get("image_tokens", ""),
        "trained for, s": found.get("seconds", ""),
        "trained, photos/s": found.get("trained_per_second", ""),
        "answered, photos/s": found.get("answered_per_second", ""),
        "category": test["category_accuracy"],
        "title exact": test["title_exact"],
        "title F1": test["title_token_f1"],
        "MdAPE": mdape,
        "MdAPE / best": mdape / best,
        "parsed": test["parse_rate"],
        "hold-out category": holdout["category_accuracy"] if holdout else "",
        "hold-out title F1": holdout["title_token_f1"] if holdout else "",
        "hold-out MdAPE": holdout["price"]["mdape"] if holdout else "",
    }


if __name__ == "__main__":
    main()
