"""From a labelled catalog to an adapter that states its own errors, and the scores of an adapter on a catalog."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enrich.catalog.read import read_catalog
from enrich.catalog.split import Splits, split_catalog
from enrich.images import ImageRefused, Preparation, prepare
from enrich.infer.adapter import RECORD_FILE, Adapter, adapter_id, read_adapter
from enrich.infer.answer import Answerer, Image
from enrich.infer.engine import Engine, start_engine
from enrich.infer.evidence import AnswerTokens
from enrich.infer.judge import Outcome
from enrich.infer.transformers_engine import find_base, load_base_engine
from enrich.metrics import baselines, expected_calibration_error, score
from enrich.phi3_vision.checkpoint import load_processor
from enrich.pipeline.catalogs import local_tree, work_directory
from enrich.pipeline.progress import Progress, silent
from enrich.price import (
    CALIBRATION_FILE,
    LEVEL,
    Calibration,
    PriceCalibration,
    category_confidence,
    fit_category,
    fit_price,
    price_interval,
)
from enrich.prompt import Prompt, make_prompt
from enrich.report import render_card
from enrich.schema import Product
from enrich.settings import Columns, PhotoLimits, ReviewSettings, RunSettings, TrainSettings, resolve_model
from enrich.storage import write_tree
from enrich.train.device import leads
from enrich.train.overfit import overfit_one_batch
from enrich.train.preflight import refuse_leaks
from enrich.train.run import train

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Finetuned:
    """An adapter that was written, with its scores (metrics.json)."""

    uri: str
    adapter: str  # its id
    metrics: dict[str, Any]


def finetune(
    catalog: str,
    out: str,
    settings: TrainSettings,
    progress: Progress = silent,
    announce: Callable[[str], object] = lambda line: None,
) -> Finetuned:
    """Teach the base a catalog and write the adapter directory to `out`, whole or not at all.

    A killed call that is made again goes on where it was. `announce` gets lines that say, before the base is loaded,
    what will be trained, on what, and about how much memory and time that takes. Under `accelerate launch` every
    process trains; then all but the first one end (SystemExit), and that one announces, measures and writes.

    Raises:
        UsageError: catalog, model or settings are no good; nothing was written. RunFailed: training broke off.
    """
    with local_tree(catalog) as folder:
        labelled = read_catalog(folder, settings.columns)
        splits = split_catalog(labelled.products, settings.split)
        refuse_leaks(vars(splits))
        settings = resolve_model(settings, gpu=torch.cuda.is_available(), rows=len(splits.train))
        prompt = make_prompt(labelled.categories, labelled.currency)
        base = find_base(settings.model, settings.revision)
        work = work_directory(out, "training")
        train(
            splits.train,
            splits.validation,
            prompt,
            settings,
            base,
            work,
            data_fingerprint=labelled.fingerprint,
            progress=lambda state: progress(state.what, state.step, state.steps),
            announce=lambda plan: [announce(line) for line in plan.lines],
        )
        if not leads():
            raise SystemExit(0)
        directory = work / "adapter"
        metrics = _calibrate_and_score(directory, base, splits, settings, prompt, progress)
    record = json.loads((directory / RECORD_FILE).read_text())
    (directory / "README.md").write_text(render_card(record, metrics, prompt))
    write_tree(directory, out, last=RECORD_FILE)
    identity = adapter_id(directory)
    shutil.rmtree(work)
    return Finetuned(out, identity, metrics)


def overfit(catalog: str, settings: TrainSettings, progress: Progress = silent) -> tuple[float, ...]:
    """Learn one batch of the training split by heart, and keep nothing but the loss of each step.

    Raises:
        UsageError: catalog, model or settings are no good. RunFailed: the batch was not learned.
    """
    with local_tree(catalog) as folder:
        labelled = read_catalog(folder, settings.columns)
        splits = split_catalog(labelled.products, settings.split)
        settings = resolve_model(settings, gpu=torch.cuda.is_available(), rows=len(splits.train))
        return overfit_one_batch(
            splits.train,
            make_prompt(labelled.categories, labelled.currency),
            settings,
            find_base(settings.model, settings.revision),
            progress=lambda state: progress(state.what, state.step, state.steps),
        )


def _calibrate_and_score(
    directory: Path, base: Path, splits: Splits, settings: TrainSettings, prompt: Prompt, progress: Progress
) -> dict[str, Any]:
    """Measure the adapter the way it is served, and write calibration.json and metrics.json."""
    (directory / CALIBRATION_FILE).write_text(Calibration.uncalibrated().model_dump_json(indent=1))
    run_settings = RunSettings(
        engine="transformers", device=settings.device, batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens, limits=settings.limits,
    )  # fmt: skip
    adapter = read_adapter(directory)
    engine = start_engine(adapter, run_settings)
    calibration = fit(splits, _predict(engine, adapter, splits.calibration, settings.limits, "calibrating", progress))
    (directory / CALIBRATION_FILE).write_text(calibration.model_dump_json(indent=1) + "\n")
    outcomes = _predict(engine, adapter, splits.test, settings.limits, "scoring", progress)
    engine.close()
    plain = load_base_engine(base, adapter, run_settings)
    # Without the grammar pass: what the base says by itself to the same prompt.
    without = _predict(plain, adapter, splits.test, settings.limits, "scoring the base", progress, second_pass=False)
    metrics = {
        **measure(splits.test, outcomes, calibration),
        "base": score(splits.test, [outcome.said for outcome in without]),
        "baselines": baselines(splits.train, splits.test),
        "rows": {name: len(getattr(splits, name)) for name in ("train", "validation", "calibration", "test")},
    }
    (directory / METRICS_FILE).write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def fit(splits: Splits, outcomes: Sequence[Outcome]) -> Calibration:
    """Calibration from the calibration split's outcomes; rows without an answer teach nothing."""
    labels = _labels(splits.calibration, outcomes)
    prices = _prices(splits.calibration, outcomes)
    return Calibration(
        price=fit_price(
            [row.true for row in prices],
            [row.predicted for row in prices],
            [row.spread for row in prices],
            [p.price for p in splits.train if p.price],
        ),
        category=fit_category([probability for probability, _ in labels], [right for _, right in labels]),
    )


def measure(products: Sequence[Product], outcomes: Sequence[Outcome], calibration: Calibration) -> dict[str, Any]:
    """Scores, interval coverage and calibration error of outcomes, ready for metrics.json."""
    labels = _labels(products, outcomes)
    confidence = [category_confidence(calibration.category, probability) for probability, _ in labels]
    return {
        "test": score(products, [outcome.answer for outcome in outcomes]),
        "intervals": _intervals(_prices(products, outcomes), calibration.price),
        "category_ece": expected_calibration_error(confidence, [right for _, right in labels]) if labels else None,
    }


@dataclass(frozen=True)
class _Price:
    """A row whose true price is known and whose answer has one."""

    category: str
    true: float
    predicted: float
    spread: float


def _prices(products: Sequence[Product], outcomes: Sequence[Outcome]) -> list[_Price]:
    return [
        _Price(product.category, product.price, outcome.answer.price, outcome.spread)
        for product, outcome in zip(products, outcomes, strict=True)
        if product.price and outcome.answer and outcome.answer.price
    ]


def _labels(products: Sequence[Product], outcomes: Sequence[Outcome]) -> list[tuple[float, bool]]:
    """Probability of the label's tokens, and whether the label is right, of every row with an answer."""
    return [
        (outcome.probability, outcome.answer.category == product.category)
        for product, outcome in zip(products, outcomes, strict=True)
        if outcome.answer
    ]


def _intervals(rows: Sequence[_Price], calibration: PriceCalibration | None) -> dict[str, Any] | None:
    """Coverage of the price intervals, overall and by category, and their mean width as a factor high / low."""
    if not rows or calibration is None:
        return None
    bounds = [price_interval(calibration, row.predicted, row.spread) for row in rows]
    inside = [low <= row.true <= high for row, (low, high) in zip(rows, bounds, strict=True)]
    by_category: dict[str, list[bool]] = {}
    for row, hit in zip(rows, inside, strict=True):
        by_category.setdefault(row.category, []).append(hit)
    return {
        "level": LEVEL,
        "coverage": float(np.mean(inside)),
        "mean_ratio": float(np.mean([high / low for low, high in bounds])),
        "by_category": {
            name: {"coverage": float(np.mean(hits)), "rows": len(hits)} for name, hits in sorted(by_category.items())
        },
    }


def score_adapter(
    adapter: str, catalog: str, settings: RunSettings, columns: Columns | None = None, progress: Progress = silent
) -> tuple[str, dict[str, Any]]:
    """Scores of an adapter on a catalog, and which rows they are of.

    On the catalog it was made from, that is the test split; on any other, every row.
    """
    with local_tree(adapter) as directory, local_tree(catalog) as folder:
        loaded = read_adapter(directory)
        products, splits = products_to_score(loaded, folder, columns)
        engine = start_engine(loaded, settings)
        outcomes = _predict(engine, loaded, products, settings.limits, "scoring", progress)
        engine.close()
        metrics = measure(products, outcomes, loaded.calibration)
        metrics["baselines"] = baselines(splits.train if splits else products, products)
        what = f"{len(products)} products of the test split" if splits else f"all {len(products)} products"
        return what, metrics


def products_to_score(
    adapter: Adapter, catalog: Path, columns: Columns | None = None
) -> tuple[Sequence[Product], Splits | None]:
    """What of a catalog the adapter has not seen: the test split of its own one, with its splits; all of any other."""
    record = json.loads((adapter.path / RECORD_FILE).read_text())
    trained_with = TrainSettings.model_validate(record["settings"])
    labelled = read_catalog(catalog, columns or trained_with.columns)
    if labelled.fingerprint != record["data_fingerprint"]:
        return labelled.products, None
    splits = split_catalog(labelled.products, trained_with.split)
    return splits.test, splits


def _predict(
    engine: Engine,
    adapter: Adapter,
    products: Sequence[Product],
    limits: PhotoLimits,
    what: str,
    progress: Progress,
    *,
    second_pass: bool = True,
) -> list[Outcome]:
    """Uncalibrated outcomes in the order of the products; without an answer where the photo cannot be read."""
    tokens = AnswerTokens(load_processor(adapter.path).tokenizer, adapter.prompt.categories)
    answerer = Answerer(engine, tokens, Calibration.uncalibrated(), ReviewSettings(), second_pass=second_pass)
    outcomes = dict.fromkeys((product.product_code for product in products), Outcome())
    for done, (code, outcome) in enumerate(answerer.answer(photos_of(products, limits, adapter.preparation)), start=1):
        outcomes[code] = outcome
        progress(what, done, len(products))
    return [outcomes[product.product_code] for product in products]


def photos_of(products: Sequence[Product], limits: PhotoLimits, how: Preparation) -> Iterator[Image]:
    """The products' photos; those that cannot be read are left out."""
    for product in products:
        data = Path(product.image_path).read_bytes()
        try:
            photo = prepare(data, limits, how)
        except ImageRefused:
            continue
        yield Image(product.product_code, hashlib.sha256(data).hexdigest(), photo.page)
