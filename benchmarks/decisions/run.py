"""Which price estimate is best, and whether intervals, confidences and the review queue keep their promises.

    python -m benchmarks.decisions.run --adapter demo/adapter --catalog demo/catalog [--samples 16]

Answers the calibration and the test split of the adapter's own catalog once (and the catalog's hold-out, where it has
one), fits everything on the first and measures on the second. First answers only: what a second pass would mend counts
as wrong. Prints Markdown.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import DynamicCache

from enrich.answers.calibration import Calibration, fit_price, price_crps, price_interval
from enrich.answers.completion import Completion
from enrich.answers.postprocess import Outcome, judge
from enrich.answers.prompt import render_prompt
from enrich.answers.token_evidence import AnswerTokens, price_evidence
from enrich.catalog.read import read_catalog
from enrich.catalog.split import HOLDOUT, Splits, split_catalog
from enrich.engines.adapter import RECORD_FILE, Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.transformers_engine import TransformersEngine, load_engine
from enrich.models.phi3_vision.checkpoint import load_processor, stop_ids
from enrich.pipeline.scoring import Truth, fit, measure, photos_of, read_truth
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.vocabulary import Product, same_design

Answered = list[tuple[Product, Completion | None, float | None]]  # with the median of the samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16, help="prices drawn a photo; 0: none")
    arguments = parser.parse_args()
    adapter = read_adapter(arguments.adapter)
    settings = TrainSettings.model_validate(json.loads((arguments.adapter / RECORD_FILE).read_text())["settings"])
    splits = split_catalog(read_catalog(arguments.catalog, settings.columns).products, settings.split)
    parts: dict[str, tuple[Product, ...]] = {"calibration": splits.calibration, "test": splits.test}
    if (arguments.catalog / HOLDOUT).is_dir():
        parts[HOLDOUT] = read_catalog(arguments.catalog / HOLDOUT, settings.columns).products
    answered, seconds = answer_all(adapter, parts, arguments.samples)
    tokens = AnswerTokens(load_processor(adapter.path).tokenizer, adapter.prompt.categories)
    print("rows: " + ", ".join(f"{name} {len(rows)}" for name, rows in answered.items()))
    compare_points(answered, tokens, splits)
    calibration = fit(
        splits, [outcome_of(row[1], tokens, Calibration.uncalibrated()) for row in answered["calibration"]]
    )
    start = time.perf_counter()
    judged = {name: [outcome_of(row[1], tokens, calibration) for row in rows] for name, rows in answered.items()}
    judging = (time.perf_counter() - start) / sum(map(len, answered.values()))
    for name, folder in (("test", arguments.catalog), (HOLDOUT, arguments.catalog / HOLDOUT)):
        if name in judged:
            must_show(name, [row[0] for row in answered[name]], judged[name], calibration, read_truth(folder))
    print(f"\njudging an answer: {1e3 * judging:.2f} ms; answering it: {1e3 * seconds:.1f} ms: {judging / seconds:.1%}")


def answer_all(
    adapter: Adapter, parts: dict[str, tuple[Product, ...]], samples: int
) -> tuple[dict[str, Answered], float]:
    """Every part's answers, and seconds a photo without the samples."""
    engine = load_engine(adapter, RunSettings(engine="transformers"))
    tokens = engine.tokens
    spent, found = 0.0, dict[str, Answered]()
    for name, products in parts.items():
        by_code = {}
        photos = photos_of(products, RunSettings().limits, adapter.preparation)
        while batch := [Request(photo.key, photo.page) for photo in islice(photos, 16)]:
            start = time.perf_counter()
            answers = {completion.id: completion for completion in engine.complete(batch)}
            spent += time.perf_counter() - start
            for request in batch:
                answer = answers[request.id]
                by_code[request.id] = (
                    answer,
                    sample_price(engine, request, answer, tokens, samples) if samples else None,
                )
        found[name] = [(product, *by_code.get(product.product_code, (None, None))) for product in products]
        print(f"answered {name}: {len(products)}", file=sys.stderr)
    return found, spent / sum(map(len, parts.values()))


@torch.inference_mode()
def sample_price(
    engine: TransformersEngine, request: Request, answer: Completion, tokens: AnswerTokens, count: int
) -> float | None:
    """Median of `count` prices drawn after the title and category that were written; the prompt is read once."""
    lines = tokens.split(answer.token_ids)
    if len(lines) != 3 or lines[2] == tokens.unknown_price:
        return None
    written = len(answer.token_ids) - len(lines[2]) + len(tokens.price_prefix)
    prompt = render_prompt(engine.prompt)
    inputs = engine.processor(text=[prompt], images=[[request.page]], do_hd_transform=False)
    prefix = torch.tensor([answer.token_ids[:written]])
    ids = torch.cat([inputs["input_ids"], prefix], dim=1)
    cache = DynamicCache(config=engine.model.config)
    images = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    mask = torch.ones(1, ids.shape[1], dtype=torch.long)
    logits = engine.model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **images
    ).logits
    cache.batch_repeat_interleave(count)
    logits = logits[:, -1].float().repeat(count, 1)
    stops, digits = set(stop_ids(engine.processor)), [""] * count
    running = [True] * count
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        for i, token in enumerate(drawn[:, 0].tolist()):
            running[i] = running[i] and token not in stops and token in tokens.digits
            digits[i] += tokens.digits[token] if running[i] else ""
        if not any(running):
            break
        mask = torch.ones(count, ids.shape[1] + step + 1, dtype=torch.long)
        logits = (
            engine.model(input_ids=drawn, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[:, -1]
            .float()
        )
    values = [int(text) for text in digits if text and int(text)]
    return float(np.median(values)) if values else None


def outcome_of(completion: Completion | None, tokens: AnswerTokens, calibration: Calibration) -> Outcome:
    return judge(completion, tokens, calibration, ReviewSettings()) if completion else Outcome()


def compare_points(answered: dict[str, Answered], tokens: AnswerTokens, splits: Splits) -> None:
    """CRPS, coverage and width of each estimate, fitted on the calibration split and measured on the test split."""
    train = [product.price for product in splits.train if product.price]
    print("\n| estimate | CRPS, log | MdAPE | coverage 80 % | 90 % | width 80 % | 90 %, log | floor | rows |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    parts = {name: list(priced(rows, tokens)) for name, rows in answered.items()}
    for name in ("greedy", "expectation", "median", "median of samples"):
        rows = {part: [row for row in found if name in row] for part, found in parts.items()}
        if not rows["calibration"]:
            continue
        fitted = fit_price(*columns(rows["calibration"], "true", name, "spread"), train,
                           *columns(rows["calibration"], "category", "design"))  # fmt: skip
        assert fitted is not None
        tested = list(zip(*columns(rows["test"], "true", name, "spread", "category"), strict=True))
        crps = np.mean([price_crps(fitted, true, point, spread) for true, point, spread, _ in tested])
        error = np.median([abs(point / true - 1) for true, point, _, _ in tested])
        cells = []
        for level in (0.8, 0.9):
            ends = [price_interval(fitted, point, spread, level, label) for _, point, spread, label in tested]
            inside = [low <= row[0] <= high for row, (low, high) in zip(tested, ends, strict=True)]
            cells.append((np.mean(inside), np.mean([np.log(high / low) for low, high in ends])))
        print(f"| {name} | {crps:.4f} | {error:.1%} | {cells[0][0]:.1%} | {cells[1][0]:.1%} | {cells[0][1]:.3f} | "
              f"{cells[1][1]:.3f} | {fitted.floor:.3f} | {len(tested)} |")  # fmt: skip


def priced(rows: Answered, tokens: AnswerTokens) -> Iterator[dict[str, Any]]:
    for product, completion, sampled in rows:
        outcome = outcome_of(completion, tokens, Calibration.uncalibrated())
        if completion and outcome.answer and outcome.answer.price and product.price:
            evidence = price_evidence(completion, tokens)
            extra = {"median of samples": sampled} if sampled else {}
            told = {"category": outcome.answer.category, "design": same_design(product.title)}
            yield {"true": product.price, **told, **asdict(evidence), **extra}


def columns(rows: list[dict[str, Any]], *names: str) -> list[list[Any]]:
    return [[row[name] for row in rows] for name in names]


def must_show(
    name: str, products: list[Product], outcomes: list[Outcome], calibration: Calibration, truth: Truth | None
) -> None:
    """The promises, with 95 % bootstrap intervals, and whether they are kept."""
    table, metrics = measure(products, outcomes, calibration, truth)
    estimates, ideal = metrics["estimates"], metrics["ideal"] or {}
    point = calibration.price.point if calibration.price else "none"
    print(f"\n{name}: {len(products)} rows; price: {point}; review below {calibration.category.review_below:.3f}; "
          f"isotonic: {bool(calibration.category.steps)}\n")  # fmt: skip
    print("| metric | value | 95 % between | wanted | best possible |\n| --- | ---: | --- | --- | ---: |")
    width = ideal.get("price_width_90%")
    wanted = {
        "price_coverage_90%": "0.88 to 0.92", "category_ece": "<= 0.03", "review_share": "<= 0.20",
        "price_width_90%": f"<= {1.4 * width:.3f}" if width else "",
        "review_catches_wrong_categories": ">= 0.80",
    }  # fmt: skip
    for metric, one in estimates.items():
        best = f"{ideal[metric]:.3f}" if metric in ideal else ""
        between = f"{one['low']:.3f} to {one['high']:.3f}"
        print(f"| {metric} | {one['value']:.3f} | {between} | {wanted.get(metric, '')} | {best} |")
    by_category = metrics["coverage_by_category"]["90%"]
    large = {label: one for label, one in by_category.items() if one["rows"] >= 50}
    least = min(large.items(), key=lambda item: item[1]["coverage"], default=("none", {"coverage": float("nan")}))
    print(f"\nleast coverage of a category with 50 rows or more ({len(large)} of {len(by_category)}): {least[0]} "
          f"{least[1]['coverage']:.1%} (wanted 84 %)")  # fmt: skip
    risks = [round(risk, 4) for _, risk in metrics["risk_coverage"]]
    print(f"risk at 5 %, 10 % .. 100 % of the rows: {risks}")
    print(f"reasons: {metrics['review']['by_reason']}")
    doubted = table.filter(pl.col("review_reasons").list.contains("title_ungrounded"))
    wrong = (pl.col("title") != pl.col("answered_title")).mean()
    print(f"titles doubted: {doubted.height}, of them not the catalog's: {doubted.select(wrong).item()}; of all: "
          f"{table.select(wrong).item():.3f}")  # fmt: skip
    for verdict in metrics["verdicts"]:
        print(f"{'ok ' if verdict['ok'] else 'NOT'} {verdict['text']}")


if __name__ == "__main__":
    main()
