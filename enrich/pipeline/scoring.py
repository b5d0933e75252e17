"""Scores of an adapter: calibrated on one held-out split, measured on another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from enrich.answers.calibration import LEVEL, Calibration, price_crps, price_interval
from enrich.answers.postprocess import Prediction, least_confidence
from enrich.catalog.read import Catalog, read_catalog
from enrich.catalog.split import HOLDOUT, Splits, split_catalog
from enrich.catalog.taught import spelled_as_taught
from enrich.catalog.taxonomy import Taxonomy, adopt
from enrich.engines.adapter import METRICS_FILE, Adapter
from enrich.engines.base import Engine
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import base_of, load_base_engine, open_adapter
from enrich.errors import UsageError
from enrich.output import parquet
from enrich.output.schema import SCORE_SCHEMA
from enrich.pages.report import render_scores
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.scores.assess import SCORES_FILE, VERDICTS_KEY, assess
from enrich.scores.metrics import Scores, baselines, score
from enrich.scores.worth import tell
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.storage import contains, open_store
from enrich.storage.tree import local_tree, local_tree_or_file
from enrich.vocabulary import RECORD_FILE, Product

SCORES_PAGE = "scores.html"
_USUAL = ReviewSettings()  # by which scored rows are flagged for review


@dataclass(frozen=True)
class Truth:
    """What is known about a sample catalog beyond its table."""

    sigma: float  # of the log price around what is visible
    ideal_width: float | None = None  # log(high / low) of the narrowest honest 90 % interval, price ladder included
    best_prices: Mapping[str, float] = field(default_factory=dict)  # absolute path of the photo -> noiseless price


@dataclass(frozen=True)
class Scored:
    """The scores of one catalog, or of a part of it."""

    what: str  # which rows
    table: pl.DataFrame  # SCORE_SCHEMA
    metrics: dict[str, Any]


def score_adapter(
    adapter: str,
    catalog: str,
    settings: RunSettings,
    out: str | None = None,
    progress: Progress = silent,
    on_message: OnMessage = unheard,
) -> list[Scored]:
    """Scores of an adapter on a catalog: the test split of the one it was made from, every row of any other.

    A sample catalog's hold-out is scored after it. `on_message` gets lines that say which rows of the catalog are
    left out and why. With `out`, metrics.json, scores.parquet and a page of plots are written there, the hold-out's
    below holdout/.
    """
    if out is not None and contains(adapter, out) and contains(out, adapter):
        raise UsageError(f"out {out}: is the adapter itself, whose scores would be overwritten; name another folder")
    with local_tree(adapter) as directory, local_tree_or_file(catalog) as folder:
        loaded = open_adapter(directory, settings.base)
        progress("starting the engine", 0, 0)
        engine = start_engine(loaded, settings)
        parts = [folder, *([folder / HOLDOUT] if (folder / HOLDOUT).is_dir() else [])]
        found = [_score(engine, loaded, part, settings, progress, on_message) for part in parts]
        engine.close()
    if out is not None:
        store = open_store(out, create=True)
        for prefix, scored in zip(("", f"{HOLDOUT}/"), found, strict=False):
            store.put(f"{prefix}{SCORES_FILE}", encode_scores(scored.table, scored.metrics))
            page = render_scores(scored.table, scored.metrics, f"{scored.what} of {catalog}", loaded.id)
            store.put(f"{prefix}{SCORES_PAGE}", page.encode())
            store.put(f"{prefix}{METRICS_FILE}", (json.dumps(scored.metrics, indent=1) + "\n").encode())
    return found


def _score(
    engine: Engine,
    adapter: Adapter,
    folder: Path,
    settings: RunSettings,
    progress: Progress,
    on_message: OnMessage,
) -> Scored:
    catalog, splits = catalog_to_score(adapter, folder, on_message)
    products = splits.test if splits else catalog.products
    predictions = predict(
        engine, adapter, products, settings.limits, "scoring", progress, photos=settings.photos_answered
    )
    table, metrics = measure(products, predictions, adapter.calibration, read_truth(folder), catalog.paths)
    metrics = tell({**metrics, "baselines": baselines(splits.train if splits else products, products)})
    what = f"{len(products)} products of the test split" if splits else f"all {len(products)} products"
    return Scored(what, table, metrics)


def measure(
    products: Sequence[Product],
    predictions: Sequence[Prediction],
    calibration: Calibration,
    truth: Truth | None = None,
    paths: Mapping[str, tuple[str, ...]] = {},
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Calibrated predictions with the truth (SCORE_SCHEMA), and all their metrics, ready for metrics.json.

    Args:
        paths: the levels of each category (`Catalog.paths`).
    """
    best = truth.best_prices if truth else {}
    rows = [
        _row(product, prediction, calibration.after(prediction.looks), best.get(product.image_paths[0]))
        for product, prediction in zip(products, predictions, strict=True)
    ]
    table = parquet.from_records(rows, SCORE_SCHEMA)
    found = assess(
        table,
        sigma=truth.sigma if truth else None,
        ideal_width=truth.ideal_width if truth else None,
        calibrated_on=calibration.price.designs if calibration.price else 0,
        paths=paths,
    )
    values = {name: estimate["value"] for name, estimate in found["estimates"].items()}
    ratio = table.filter(pl.col("price").is_not_null()).select(pl.col("price_high") / pl.col("price_low")).mean().item()
    intervals = {
        "level": LEVEL,
        "coverage": values.get(f"price_coverage_{LEVEL:.0%}"),
        "mean_ratio": ratio,
        "by_category": found["coverage_by_category"][f"{LEVEL:.0%}"],
    }
    return table, {
        "test": score(products, [prediction.answer for prediction in predictions]),
        "intervals": None if ratio is None else intervals,
        "category_ece": values.get("category_ece"),
        **({"second_looks": fmean(one.looks == 2 for one in predictions)} if calibration.first else {}),
        **found,
    }


def encode_scores(table: pl.DataFrame, metrics: Mapping[str, Any]) -> bytes:
    """scores.parquet, with the verdicts of the metrics in its metadata."""
    return parquet.encode(table, SCORE_SCHEMA, {VERDICTS_KEY: json.dumps(metrics["verdicts"])})


def _row(product: Product, prediction: Prediction, calibration: Calibration, best: float | None) -> dict[str, Any]:
    answer, prices, features = prediction.answer, calibration.price, prediction.price_features
    row: dict[str, Any] = {
        "product_code": product.product_code,
        "title": product.title,
        "category": product.category,
        "price": product.price,
        "attributes": dict(product.attributes),
        "best_price": best,
        **({f"answered_{name}": value for name, value in vars(answer).items()} if answer else {}),
        "answered_attributes": {
            name: {
                "value": one.value,
                "confidence": one.confidence,
                "otherwise": one.otherwise,
                "review": one.confidence < least_confidence(calibration, _USUAL, name),
            }
            for name, one in prediction.attributes.items()
        },
        "answered_path": prediction.path,
        "level_confidences": prediction.level_confidences,
        "category_confidence": prediction.confidence,
        "price_low": prediction.price_low,
        "price_high": prediction.price_high,
        "needs_review": bool(prediction.reasons),
        "review_reasons": list(prediction.reasons),
        "error_kind": prediction.error_kind,
    }
    if answer and answer.price and prices:
        price, spread = features.expectation, features.spread
        low, high = price_interval(prices, price, spread, 0.8, answer.category)
        row |= {"price_low_80": low, "price_high_80": high}
        if product.price:
            row["price_crps"] = price_crps(prices, product.price, price, spread)
    return row


def read_truth(folder: Path) -> Truth | None:
    """truth.json of the sample catalog in `folder`, or of the sample whose hold-out `folder` is; else None."""
    for root, part in ((folder, "images"), (folder.parent, HOLDOUT)):
        if (root / "truth.json").is_file():
            truth = json.loads((root / "truth.json").read_bytes())
            if "sigma" in truth and part in truth:
                prices = {str((root / key).absolute()): shown["noiseless_price"] for key, shown in truth[part].items()}
                ideal = truth.get("ideal_intervals", {}).get(str(LEVEL), {}).get("log_width")
                return Truth(truth["sigma"], ideal, prices)
    return None


def products_to_score(
    adapter: Adapter, catalog: Path, on_message: OnMessage = unheard
) -> tuple[Sequence[Product], Splits | None]:
    """Products that the adapter has not seen: of its own catalog the test split, with all splits; of any other, all.

    `on_message` gets lines that say which rows of the catalog are left out and why.
    """
    labelled, splits = catalog_to_score(adapter, catalog, on_message)
    return splits.test if splits else labelled.products, splits


def catalog_to_score(adapter: Adapter, catalog: Path, on_message: OnMessage) -> tuple[Catalog, Splits | None]:
    """A catalog with its categories and choices as the adapter was taught them; its splits, if it is its own."""
    settings = trained_with(adapter)
    paths, ids = adapter.prompt.category_path, adapter.prompt.category_ids
    labelled = read_catalog(
        catalog, settings.columns, settings.group_by,
        category_path=paths, fields=settings.fields, unknown=adapter.prompt.unknown,
    )  # fmt: skip
    if ids:
        labelled = adopt(labelled, Taxonomy(settings.taxonomy or "", ids), strict=False)
    labelled = spelled_as_taught(labelled, adapter.prompt)
    for line in labelled.lines:
        on_message(line)
    if labelled.fingerprint != json.loads((adapter.path / RECORD_FILE).read_text())["data_fingerprint"]:
        return labelled, None
    return labelled, split_catalog(labelled.products, settings.split)


def trained_with(adapter: Adapter) -> TrainSettings:
    """The settings that the adapter was trained with."""
    return TrainSettings.model_validate(json.loads((adapter.path / RECORD_FILE).read_text())["settings"])


def score_base(
    adapter: Adapter, products: Sequence[Product], settings: RunSettings, what: str, progress: Progress
) -> Scores:
    """Scores of the adapter's base with the same prompt, without the grammar pass."""
    progress("loading the base model", 0, 0)
    engine = load_base_engine(base_of(adapter), adapter, settings)
    predictions = predict(engine, adapter, products, settings.limits, what, progress, second_pass=False)
    engine.close()
    return score(products, [prediction.parsed for prediction in predictions])
