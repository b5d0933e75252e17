"""Adapters with two looks (`enrich.answers.looks`): calibrate each look, and measure both."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from enrich.answers.calibration import Calibration, FirstLook
from enrich.answers.looks import after_both, needs_second
from enrich.answers.postprocess import Prediction, calibrated
from enrich.catalog.split import Splits
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine
from enrich.pipeline.calibrating import calibrate
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import Progress
from enrich.scores.looks import choose_least_doubt, sweep
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import Product


def calibrate_looks(
    engine: Engine, adapter: Adapter, splits: Splits, limits: PhotoLimits, progress: Progress, squares: int
) -> tuple[Calibration, list[Prediction]]:
    """As `calibrate`, with a first look of so many squares, and the doubt that a second look is worth."""
    close, answers = calibrate(engine, adapter, splits, limits, progress)
    own, quick = calibrate(engine, adapter, splits, limits, progress, first=squares)
    least = choose_least_doubt(
        splits.calibration, [calibrated(one, own) for one in quick], [calibrated(one, close) for one in answers]
    )
    first = FirstLook(squares=squares, calibration=_reviewed_alike(own, close), least_doubt=least)
    return close.model_copy(update={"first": first}), answers


def compare_looks(
    engine: Engine, adapter: Adapter, products: Sequence[Product], limits: PhotoLimits, progress: Progress
) -> tuple[list[Prediction], list[dict[str, Any]]]:
    """The answers of an adapter with two looks about the products, and the `sweep` over its looks."""
    close, first = adapter.calibration.model_copy(update={"first": None}), adapter.calibration.first
    assert first is not None
    quick = predict(
        engine, replace(adapter, calibration=first.calibration), products, limits, "scoring first looks", progress,
        second_pass=False, first=first.squares,
    )  # fmt: skip
    closely = predict(engine, replace(adapter, calibration=close), products, limits, "scoring", progress)
    served = [
        after_both(one, other) if needs_second(first, one) else one for one, other in zip(quick, closely, strict=True)
    ]
    squares = first.squares, adapter.preparation.num_crops
    return served, sweep(products, squares, quick, closely, served)


def _reviewed_alike(own: Calibration, close: Calibration) -> Calibration:
    """With the thresholds of review of close looks: calibrated confidences mean the same, and a table has one rule."""
    category = own.category.model_copy(update={"review_below": close.category.review_below})
    attributes = {
        name: one.model_copy(update={"review_below": close.attributes[name].review_below})
        for name, one in own.attributes.items()
        if name in close.attributes
    }
    return own.model_copy(update={"category": category, "attributes": attributes})
