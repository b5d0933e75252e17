"""Scores of an adapter: calibrated on one held-out split, measured on another."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from enrich.answers.calibration import LEVEL, Calibration, fit_category, fit_price, price_crps, price_interval
from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.catalog.read import read_catalog
from enrich.catalog.split import HOLDOUT, Splits, split_catalog
from enrich.catalog.table import read_table
from enrich.engines.adapter import METRICS_FILE, Adapter
from enrich.engines.base import Engine
from enrich.engines.predictor import Image, Predictor
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import base_of, load_base_engine, open_adapter
from enrich.errors import RunFailed, UsageError
from enrich.models.phi3_vision.checkpoint import load_processor
from enrich.output import parquet
from enrich.output.schema import SCORE_SCHEMA
from enrich.pages.report import render_scores
from enrich.photos.decode import ImageRefused, Preparation, prepare
from enrich.photos.decoders import Decoders, DecodingFailed, cores
from enrich.pipeline.progress import OnMessage, Progress, silent, unheard
from enrich.scores.assess import SCORES_FILE, VERDICTS_KEY, assess
from enrich.scores.metrics import Scores, baselines, score
from enrich.scores.worth import tell
from enrich.settings.catalog import Columns
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.storage import contains, open_store
from enrich.storage.tree import local_tree
from enrich.vocabulary import RECORD_FILE, Product, same_design

SCORES_PAGE = "scores.html"
_AHEAD = 16  # photos decoded before the engine asks for them, 1.4 MB each


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
    columns: Columns | None = None,
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
        raise UsageError(f"out {out}: is the adapter itself, whose own scores would be lost; name another folder")
    with local_tree(adapter) as directory, local_tree(catalog) as folder:
        loaded = open_adapter(directory, settings.base)
        progress("starting the engine", 0, 0)
        engine = start_engine(loaded, settings)
        found = [_score(engine, loaded, folder, settings, columns, progress, on_message)]
        if (folder / HOLDOUT).is_dir():
            found.append(_score(engine, loaded, folder / HOLDOUT, settings, columns, progress, on_message))
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
    columns: Columns | None,
    progress: Progress,
    on_message: OnMessage,
) -> Scored:
    columns = columns or trained_with(adapter).columns
    products, splits = products_to_score(adapter, folder, columns, on_message)
    predictions = predict(engine, adapter, products, settings.limits, "scoring", progress)
    table, metrics = measure(products, predictions, adapter.calibration, read_truth(folder))
    metrics = tell({**metrics, "baselines": baselines(splits.train if splits else products, products)})
    metrics["category_accuracy_by_level"] = _accuracy_by_level(table, folder, columns)
    what = f"{len(products)} products of the test split" if splits else f"all {len(products)} products"
    return Scored(what, table, metrics)


def fit(splits: Splits, predictions: Sequence[Prediction]) -> Calibration:
    """Calibration from the calibration split's uncalibrated predictions; those without an answer are left out."""
    rows = [(product, one, one.answer) for product, one in zip(splits.calibration, predictions, strict=True)]
    answered = [(product, one, answer) for product, one, answer in rows if answer]
    priced = [(product, product.price, one.price_features, answer) for product, one, answer in answered
              if product.price and answer.price]  # fmt: skip
    return Calibration(
        price=fit_price(
            [price for _, price, _, _ in priced],
            [features.expectation for _, _, features, _ in priced],
            [features.spread for _, _, features, _ in priced],
            [product.price for product in splits.train if product.price],
            [answer.category for *_, answer in priced],
            [same_design(product.title) for product, *_ in priced],
        ),
        category=fit_category(
            [one.probability for _, one, _ in answered],
            [answer.category == product.category for product, _, answer in answered],
            [answer.category for *_, answer in answered],
        ),
    )


def measure(
    products: Sequence[Product], predictions: Sequence[Prediction], calibration: Calibration, truth: Truth | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Calibrated predictions beside the truth (SCORE_SCHEMA), and all their metrics, ready for metrics.json."""
    best = truth.best_prices if truth else {}
    rows = [
        _row(product, prediction, calibration, best.get(product.image_path))
        for product, prediction in zip(products, predictions, strict=True)
    ]
    table = parquet.from_records(rows, SCORE_SCHEMA)
    found = assess(
        table,
        sigma=truth.sigma if truth else None,
        ideal_width=truth.ideal_width if truth else None,
        calibrated_on=calibration.price.designs if calibration.price else 0,
    )
    estimates = found["estimates"]
    coverage = found["coverage_by_category"][f"{LEVEL:.0%}"]
    return table, {
        "test": score(products, [prediction.answer for prediction in predictions]),
        "intervals": _intervals(table, coverage),
        "category_ece": estimates["category_ece"]["value"] if "category_ece" in estimates else None,
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
        "best_price": best,
        "answered_title": answer.title if answer else None,
        "answered_category": answer.category if answer else None,
        "answered_price": answer.price if answer else None,
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


def _intervals(table: pl.DataFrame, by_category: Mapping[str, Any]) -> dict[str, Any] | None:
    known = table.filter(pl.col("price").is_not_null(), pl.col("price_low").is_not_null())
    if not known.height:
        return None
    low, high, price = (known[name].to_numpy() for name in ("price_low", "price_high", "price"))
    return {
        "level": LEVEL,
        "coverage": float(np.mean((low <= price) & (price <= high))),
        "mean_ratio": float(np.mean(high / low)),
        "by_category": by_category,
    }


def _accuracy_by_level(table: pl.DataFrame, folder: Path, columns: Columns) -> dict[str, float]:
    """Share of rows whose predicted label is in the true label's branch, for each category column of the catalog.

    A label's branch is that of most of its products; a label that is not in the catalog has none.
    """
    name = next(name for name in ("catalog.csv", "catalog.parquet") if (folder / name).is_file())
    rows = read_table(folder / name)
    labels = {product.product_code: product.category for product in read_catalog(folder, columns).products}
    rows = rows.with_columns(_label=pl.col(columns.product_code).str.strip_chars().replace_strict(labels, default=None))
    found = {}
    for level in (level for level in columns.category if level in rows.columns):
        branches = dict(
            rows.drop_nulls("_label").group_by("_label").agg(pl.col(level).mode().sort().first()).iter_rows()
        )
        pairs = zip(table["category"], table["answered_category"], strict=True)
        found[level] = float(np.mean([a == b or (b in branches and branches[b] == branches.get(a)) for a, b in pairs]))
    return found


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
    adapter: Adapter,
    catalog: Path,
    columns: Columns | None = None,
    on_message: OnMessage = unheard,
) -> tuple[Sequence[Product], Splits | None]:
    """Products that the adapter has not seen: of its own catalog the test split, with all splits; of any other, all.

    `on_message` gets lines that say which rows of the catalog are left out and why.
    """
    settings = trained_with(adapter)
    labelled = read_catalog(catalog, columns or settings.columns)
    for line in labelled.lines:
        on_message(line)
    if labelled.fingerprint != json.loads((adapter.path / RECORD_FILE).read_text())["data_fingerprint"]:
        return labelled.products, None
    splits = split_catalog(labelled.products, settings.split)
    return splits.test, splits


def trained_with(adapter: Adapter) -> TrainSettings:
    """The settings that the adapter was trained with."""
    return TrainSettings.model_validate(json.loads((adapter.path / RECORD_FILE).read_text())["settings"])


def predict(
    engine: Engine,
    adapter: Adapter,
    products: Sequence[Product],
    limits: PhotoLimits,
    what: str,
    progress: Progress,
    *,
    second_pass: bool = True,
) -> list[Prediction]:
    """Predictions in the order of the products, made as in a run; empty ones for photos that cannot be read."""
    tokens = AnswerTokens(load_processor(adapter.path).tokenizer, adapter.prompt.categories)
    predictor = Predictor(engine, tokens, adapter.calibration, RunSettings().review, second_pass=second_pass)
    predictions = dict.fromkeys((product.product_code for product in products), Prediction())
    for done, (code, prediction) in enumerate(
        predictor.answer(photos_of(products, limits, adapter.preparation)), start=1
    ):
        predictions[code] = prediction
        progress(what, done, len(products))
    return [predictions[product.product_code] for product in products]


def score_base(
    adapter: Adapter, products: Sequence[Product], settings: RunSettings, what: str, progress: Progress
) -> Scores:
    """Scores of the adapter's base with the same prompt, without the grammar pass."""
    progress("loading the base model", 0, 0)
    engine = load_base_engine(base_of(adapter), adapter, settings)
    predictions = predict(engine, adapter, products, settings.limits, what, progress, second_pass=False)
    engine.close()
    return score(products, [prediction.parsed for prediction in predictions])


def photos_of(products: Sequence[Product], limits: PhotoLimits, how: Preparation) -> Iterator[Image]:
    """The products' photos, without those that cannot be decoded.

    Raises:
        RunFailed: decoding failed for a reason that is not in the photo's bytes.
    """
    most_pixels = how.num_crops * how.image_size**2
    with (
        Decoders(partial(prepare, how=how), limits, min(2, cores()), most_pixels=most_pixels) as decoders,
        ThreadPoolExecutor(min(2, cores())) as pool,
    ):

        def decoded(product: Product) -> Image | None:
            with open(product.image_path, "rb") as file:
                data = file.read(limits.max_bytes + 1)  # one byte too many is enough to be refused
            try:
                page = decoders.decode(data).page
            except ImageRefused:
                return None
            except DecodingFailed as error:
                raise RunFailed(f"photo {product.image_path}: {error}; start again") from error
            return Image(product.product_code, hashlib.sha256(data).hexdigest(), page)

        for start in range(0, len(products), _AHEAD):
            yield from filter(None, pool.map(decoded, products[start : start + _AHEAD]))
