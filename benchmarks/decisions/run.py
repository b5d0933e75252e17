"""Whether price intervals, confidences and the review queue keep their promises.

    python -m benchmarks.decisions.run answer --adapter demo/adapter --catalog demo/catalog --answers answers.npz
    python -m benchmarks.decisions.run judge --adapter demo/adapter --answers answers.npz

`answer` asks the adapter about the calibration and test splits of its own catalog (and about the catalog's hold-out,
where it has one) and stores tokens, log-probabilities and products. `judge` fits everything on the calibration split's
answers, measures it on the others, and records the result. It loads no model, so that two versions of the code can be
compared on the same answers. First answers only: what a second pass would repair counts as wrong.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.results import record
from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.prompt import PROMPT_FILE, Prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.catalog.read import read_catalog
from enrich.catalog.split import HOLDOUT, split_catalog
from enrich.engines.base import Request
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import open_adapter
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.processing import END
from enrich.pipeline.calibrating import fit
from enrich.pipeline.predicting import photos_of
from enrich.pipeline.scoring import Truth, measure, read_truth, trained_with
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.vocabulary import Product

ARRAYS = ("token_ids", "logprobs", "top_ids", "top_logprobs")  # of a Completion, one row a token
FIELDS = ("id", "text", "finished", "prompt_tokens", "error")  # of a Completion, one value each


@dataclass(frozen=True)
class Part:
    """Products, the answers to their photos (None where a photo cannot be read), and what is known of a sample."""

    products: tuple[Product, ...]
    completions: Sequence[Completion | None] = ()  # none for the training split: only its prices are used
    truth: Truth | None = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("answer", "judge"))
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True, help="written by answer, read by judge")
    parser.add_argument("--catalog", type=Path, help="needed by answer")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    arguments = parser.parse_args()
    if arguments.what == "answer":
        write_answers(arguments.answers, *answer_all(arguments.adapter, arguments.catalog, arguments.engine))
    else:
        judge_all(arguments.adapter, *read_answers(arguments.answers))


def answer_all(path: Path, catalog: Path, engine_name: Any) -> tuple[dict[str, Part], float]:
    """Every part with its answers, and the seconds that an answer took."""
    adapter, settings = open_adapter(path), RunSettings(engine=engine_name)
    trained = trained_with(adapter)
    splits = split_catalog(read_catalog(catalog, trained.columns).products, trained.split)
    asked = {"calibration": splits.calibration, "test": splits.test}
    if (catalog / HOLDOUT).is_dir():
        asked[HOLDOUT] = read_catalog(catalog / HOLDOUT, trained.columns).products
    engine = start_engine(adapter, settings)
    parts, start = {"train": Part(splits.train)}, time.perf_counter()
    for name, products in asked.items():
        photos = photos_of(products, settings.limits, adapter.preparation)
        requests = (Request(shown.key, shown.prompts[0].pages) for shown in photos)
        found = {one.id: one for one in engine.complete(requests)}
        truth = read_truth(catalog / HOLDOUT if name == HOLDOUT else catalog)
        parts[name] = Part(products, [found.get(product.product_code) for product in products], truth)
        print(f"answered {name}: {len(products)}", file=sys.stderr)
    engine.close()
    return parts, (time.perf_counter() - start) / sum(map(len, asked.values()))


def write_answers(path: Path, parts: dict[str, Part], seconds: float) -> None:
    """One .npz: JSON under "parts", and each part's arrays end to end, `tokens` rows of them a completion."""
    told: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        told[name] = {
            "products": [asdict(product) for product in part.products],
            "truth": asdict(part.truth) if part.truth else None,
            "completions": [
                one and {field: getattr(one, field) for field in FIELDS} | {"tokens": len(one.token_ids)}
                for one in part.completions
            ],
        }
        for field in ARRAYS if part.completions else ():
            arrays[f"{name}.{field}"] = np.concatenate([getattr(one, field) for one in part.completions if one])
    np.savez_compressed(path, parts=np.array(json.dumps({"seconds": seconds, "parts": told})), **arrays)


def read_answers(path: Path) -> tuple[dict[str, Part], float]:
    """What `write_answers` was given."""
    parts = {}
    with np.load(path, allow_pickle=False) as file:
        stored = json.loads(str(file["parts"]))
        for name, part in stored["parts"].items():
            arrays = {field: file[f"{name}.{field}"] for field in ARRAYS if part["completions"]}
            completions, start = list[Completion | None](), 0
            for one in part["completions"]:
                if one is None:
                    completions.append(None)
                    continue
                rows = slice(start, start := start + one["tokens"])
                values = {field: arrays[field][rows] for field in ARRAYS} | {field: one[field] for field in FIELDS}
                completions.append(Completion(**(values | {"token_ids": tuple(values["token_ids"].tolist())})))
            truth = Truth(**part["truth"]) if part["truth"] else None
            parts[name] = Part(tuple(Product(**product) for product in part["products"]), completions, truth)
    return parts, stored["seconds"]


def judge_all(adapter: Path, parts: dict[str, Part], seconds: float) -> None:
    """Fit on the calibration split, measure and record the other parts."""
    tokens = AnswerTokens(load_processor(adapter).tokenizer, Prompt.read(adapter / PROMPT_FILE), END)

    def predictions(name: str, calibration: Calibration) -> list[Prediction]:
        return [
            postprocess(one, tokens, calibration, ReviewSettings()) if one else Prediction()
            for one in parts[name].completions
        ]

    prices = [product.price for product in parts["train"].products if product.price]
    calibration = fit(prices, parts["calibration"].products, predictions("calibration", Calibration.uncalibrated()))
    tested = {name: part for name, part in parts.items() if name not in ("train", "calibration")}
    start = time.perf_counter()
    judged = {name: predictions(name, calibration) for name in tested}
    judging = (time.perf_counter() - start) / sum(len(part.products) for part in tested.values())
    tables: dict[str, Any] = {"Rows": [{name: len(part.products) for name, part in parts.items()}]}
    for name, part in tested.items():
        tables |= promises(name, part, judged[name], calibration)
    tables["Time"] = [{"judging, ms": 1e3 * judging, "answering, ms": 1e3 * seconds, "ratio": judging / seconds}]
    record("decisions", tables)


def promises(
    name: str, part: Part, predictions: list[Prediction], calibration: Calibration
) -> dict[str, list[dict[str, Any]]]:
    """Tables of what is promised, with 95 % bootstrap intervals, and of whether it is kept."""
    table, metrics = measure(part.products, predictions, calibration, part.truth)
    ideal = metrics["ideal"] or {}
    width = ideal.get("price_width_90%")
    wanted = {
        "price_coverage_90%": "0.88 to 0.92", "category_ece": "<= 0.03", "review_share": "<= 0.20",
        "price_width_90%": f"<= {1.4 * width:.3f}" if width else "",
        "review_catches_wrong_categories": ">= 0.80",
    }  # fmt: skip
    estimates = [
        {"metric": metric, **one, "wanted": wanted.get(metric, ""), "best possible": ideal.get(metric, "")}
        for metric, one in metrics["estimates"].items()
    ]
    by_category = metrics["coverage_by_category"]["90%"]
    large = {label: one["coverage"] for label, one in by_category.items() if one["rows"] >= 50}
    least = min(large, key=lambda label: large[label], default="")
    doubted = table.filter(pl.col("review_reasons").list.contains("title_ungrounded"))
    wrong = (pl.col("title") != pl.col("answered_title")).mean()
    other = {
        "review below": calibration.category.review_below,
        f"least coverage of {len(large)} categories with 50 rows or more, wanted 0.84: {least}": large.get(least, ""),
        "titles doubted": doubted.height,
        "share of the titles doubted that are not the catalog's": doubted.select(wrong).item(),
        "share of all titles that are not the catalog's": table.select(wrong).item(),
        **{f"reason {reason}": count for reason, count in metrics["review"]["by_reason"].items()},
    }
    risks = {f"at {share:.0%}": risk for share, risk in metrics["risk_coverage"]}
    return {
        f"{name}: promises": estimates,
        f"{name}: other figures": [{"figure": figure, "value": value} for figure, value in other.items()],
        f"{name}: risk by coverage": [risks],
        f"{name}: verdicts": [{"kept": verdict["ok"], "verdict": verdict["text"]} for verdict in metrics["verdicts"]],
    }


if __name__ == "__main__":
    main()
