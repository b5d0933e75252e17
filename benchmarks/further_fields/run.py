"""What four further fields cost title, category and price, how good they are themselves, and what labels are worth.

Each adapter is the tiny base fine-tuned on the same sample products with the demo's settings, and is scored on the same
test split: with three fields, with seven, and with seven without labels in the answer (`terse`). With `--language ja`
the catalog, the question and the answers are Japanese.

    python -m benchmarks.further_fields.run --out fields
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.results import record
from benchmarks.sample_quality.run import demo_settings
from benchmarks.several_photos.run import differences
from enrich.catalog.read import read_catalog
from enrich.output import parquet
from enrich.output.schema import SCORE_SCHEMA
from enrich.pages.attributes import attribute_scores
from enrich.pipeline.finetuning import finetune
from enrich.scores.assess import SCORES_FILE
from enrich.settings.models import TINY_MODEL_PATH
from sample.generate import write_sample
from sample.make import DIALECTS

FIELDS = {name: {"kind": "choice"} for name in ("colour", "fabric", "sleeve", "closure")}
WAYS: dict[str, dict[str, Any]] = {
    "three fields": {},
    "seven fields": {"fields": FIELDS},
    "seven fields, terse": {"fields": FIELDS, "terse": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for catalog and adapters")
    parser.add_argument("--base", type=Path, default=Path(TINY_MODEL_PATH))
    parser.add_argument("--products", type=int, default=3000)
    parser.add_argument("--language", choices=tuple(DIALECTS), default="en")
    parser.add_argument("--seed", type=int, default=0, help="of the catalog")
    parser.add_argument("--ways", type=int, nargs="+", default=[*range(len(WAYS))], help="which rows: 0 to 2")
    parser.add_argument("--settings", type=json.loads, default={}, help="training settings as JSON, for every way")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()

    catalog = arguments.out / "catalog"
    if not catalog.exists():
        write_sample(catalog, arguments.products, seed=arguments.seed, dialect=DIALECTS[arguments.language], holdout=12)
    found: dict[str, tuple[dict[str, Any], dict[str, Any], pl.DataFrame]] = {}
    for name, changes in (list(WAYS.items())[way] for way in arguments.ways):
        found[name] = trained(arguments, catalog, name, changes)
        print(f"{name}: {found[name][1]['test']}", file=sys.stderr, flush=True)
    record("further_fields", tables(found))


def trained(
    arguments: argparse.Namespace, catalog: Path, name: str, changes: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], pl.DataFrame]:
    """train.json, metrics.json and the scored test split of an adapter, which is made unless it is there."""
    adapter = arguments.out / name.replace(", ", "-").replace(" ", "-")
    if not (adapter / "train.json").exists():
        rows = len(read_catalog(catalog).products)
        finetune(
            str(catalog), str(adapter), demo_settings(arguments, rows, {"language": arguments.language, **changes})
        )
    made, metrics = (json.loads((adapter / name).read_text("utf-8")) for name in ("train.json", "metrics.json"))
    return made, metrics, parquet.decode((adapter / SCORES_FILE).read_bytes(), SCORE_SCHEMA, SCORES_FILE)[0]


def tables(found: dict[str, tuple[dict[str, Any], dict[str, Any], pl.DataFrame]]) -> dict[str, Any]:
    first, *others = found
    rows = [
        {
            "answers": name,
            "category": metrics["test"]["category_accuracy"],
            "title exact": metrics["test"]["title_exact"],
            "MdAPE": metrics["test"]["price"]["mdape"],
            "category ECE": metrics["category_ece"],
            "to review": table["needs_review"].mean(),
            "positions of prompt and answer": made["preflight"]["length"]["median"],
            "trained, products/s": made["images_per_second"],
        }
        for name, (made, metrics, table) in found.items()
    ]
    told = {
        f"{found[first][2].height} products of the test split": rows,
        f"Compared with {first}, on the same products: difference and 95 % interval of the bootstrap": [
            {"answers": name, **differences(found[first][2], found[name][2])} for name in others
        ],
    }
    return told | {
        f"The further fields: {name}": attribute_scores(metrics)
        for name, (_, metrics, _) in found.items()
        if metrics["fields"]
    }


if __name__ == "__main__":
    main()
