"""What further photos of a product are worth: photos_per_product 1, 2 and 3, and folding, on the sample catalog.

Each adapter is the tiny base fine-tuned on the same products of 1 to 4 photos, with the demo's settings. It is scored
on the catalog's test split with the photos that one prompt shows, and with all photos in several prompts, folded. Every
way is compared with the main photo alone, product by product.

    python -m benchmarks.several_photos.run --out several
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.results import record
from benchmarks.sample_quality.run import demo_settings
from enrich.catalog.read import read_catalog
from enrich.pipeline.finetuning import finetune
from enrich.pipeline.scoring import Scored, score_adapter
from enrich.scores.metrics import compared
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from sample.generate import write_sample

ALL = 4  # photos of a product at most
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for catalog and adapters")
    parser.add_argument("--base", type=Path, default=Path(TINY_MODEL_PATH))
    parser.add_argument("--products", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0, help="of the catalog")
    parser.add_argument("--photos", type=int, nargs="+", default=[1, 2, 3], help="photos_per_product of the adapters")
    parser.add_argument("--settings", type=json.loads, default={}, help="training settings as JSON, for every adapter")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--fold", action=argparse.BooleanOptionalAction, default=True, help="score all photos, folded")
    arguments = parser.parse_args()

    catalog = arguments.out / "catalog"
    if not catalog.exists():
        write_sample(catalog, arguments.products, seed=arguments.seed, holdout=12, photos=ALL)
    found: dict[str, tuple[dict[str, Any], Scored, float]] = {}
    for photos in arguments.photos:
        adapter = arguments.out / f"adapter-{photos}"
        trained = train(arguments, catalog, adapter, photos)
        for shown in sorted({photos, ALL} if arguments.fold else {photos}):
            name = f"{photos} a prompt" + (f", {shown} folded" if shown > photos else "")
            scored, seconds = score(arguments, catalog, adapter, shown)
            found[name] = trained, scored, seconds
            print(f"{name}: {scored.metrics['test']}", file=sys.stderr, flush=True)
    record("several_photos", tables(found, json.loads((catalog / "truth.json").read_text("utf-8"))["optimum"]))


def train(arguments: argparse.Namespace, catalog: Path, adapter: Path, photos: int) -> dict[str, Any]:
    """Fine-tunes an adapter, unless it is there; returns its train.json."""
    if not (adapter / "train.json").exists():
        rows = len(read_catalog(catalog).products)
        finetune(str(catalog), str(adapter), demo_settings(arguments, rows, {"photos_per_product": photos}))
    made: dict[str, Any] = json.loads((adapter / "train.json").read_text("utf-8"))
    return made


def score(arguments: argparse.Namespace, catalog: Path, adapter: Path, shown: int) -> tuple[Scored, float]:
    """The scores on the test split with so many photos of each product, and the products answered a second."""
    ended: list[tuple[int, float]] = []
    settings = RunSettings(engine="transformers", device=arguments.device, batch_size=32, photos_answered=shown)
    scored = score_adapter(
        str(adapter), str(catalog), settings, progress=lambda what, done, total: ended.append((done, time.time()))
    )[0]
    test = ended[: next((i for i, (done, _) in enumerate(ended) if done == scored.table.height), 0) + 1]
    (first, started), (last, stopped) = next(one for one in test if one[0]), test[-1]
    return scored, (last - first) / max(stopped - started, 1e-9)


def tables(found: dict[str, tuple[dict[str, Any], Scored, float]], optimum: dict[str, Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for name, (trained, scored, rate) in found.items():
        test = scored.metrics["test"]
        rows.append(
            {
                "photos": name,
                "category": test["category_accuracy"],
                "title exact": test["title_exact"],
                "MdAPE": test["price"]["mdape"],
                "category ECE": scored.metrics["category_ece"],
                "90 % intervals cover": scored.metrics["intervals"]["coverage"],
                "to review": scored.table["needs_review"].mean(),
                "trained, products/s": trained["images_per_second"],
                "answered, products/s": rate,
            }
        )
    for name, best in (("optimum, main photo", "main_photo"), ("optimum, all photos", "all_photos")):
        known = {"title exact": optimum[best]["title_exact"], "MdAPE": optimum[best]["best_mdape"]}
        rows.append({**dict.fromkeys(rows[0], ""), "photos": name, **known})
    first, *others = found
    return {
        f"{found[first][1].table.height} products of the test split": rows,
        f"Compared with {first}, on the same products: difference and 95 % interval of the bootstrap": [
            {"photos": name, **differences(found[first][1].table, found[name][1].table)} for name in others
        ],
    }


def differences(before: pl.DataFrame, after: pl.DataFrame) -> dict[str, str]:
    """Of each score, from one table of scores to another of the same products."""
    if before["product_code"].to_list() != after["product_code"].to_list():
        raise ValueError("the tables are of different products")
    old, new = compared(before), compared(after)
    metrics: dict[str, Callable[[dict[str, np.ndarray], np.ndarray], float]] = {
        "category": lambda columns, rows: float(columns["right"][rows].mean()),
        "title exact": lambda columns, rows: float(columns["title_exact"][rows].mean()),
        "MdAPE": lambda columns, rows: float(np.nanmedian((columns["absolute"] / columns["price"])[rows])),
    }
    rng, count = np.random.default_rng(0), before.height
    draws = [np.arange(count), *rng.integers(0, count, (RESAMPLES, count))]
    told = {}
    for name, metric in metrics.items():
        value, *resampled = (metric(new, rows) - metric(old, rows) for rows in draws)
        low, high = np.quantile(resampled, [0.025, 0.975])
        told[name] = f"{value:+.1%} ({low:+.1%} to {high:+.1%})"
    return told


if __name__ == "__main__":
    main()
