"""Calibration of an adapter on products that it was not trained on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from enrich.answers.calibration import REVIEWED, Calibration, CategoryCalibration, fit_category, fit_price
from enrich.answers.parse import Answer
from enrich.answers.path import fit_levels
from enrich.answers.postprocess import Prediction
from enrich.catalog.split import Splits
from enrich.engines.adapter import Adapter
from enrich.engines.base import Engine
from enrich.pipeline.predicting import predict
from enrich.pipeline.progress import Progress
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import MOST_PHOTOS, Product, same_design

FOLDED_AT_LEAST = 20  # products with more photos than a prompt shows; fewer say nothing about folded answers
FOLDED_AT_MOST = 300  # a slope, an intercept and a quantile need no more; each takes several prompts


def calibrate(
    engine: Engine,
    adapter: Adapter,
    splits: Splits,
    limits: PhotoLimits,
    progress: Progress,
    first: int | None = None,
) -> tuple[Calibration, list[Prediction]]:
    """Calibration from what `adapter`, uncalibrated, answers about the calibration split, and these answers.

    Products with more photos than a prompt shows, the first FOLDED_AT_MOST of them, are then answered in as many
    prompts as they need, for the calibration of folded answers.

    Args:
        first: squares of a first look that is calibrated by itself. A product that it has no answer for will be looked
            at again, so there is no second pass.
    """
    ask = partial(predict, engine, limits=limits, progress=progress, first=first, second_pass=first is None)
    at_first = ", first look" if first else ""
    prices = [product.price for product in splits.train if product.price]
    answers = ask(adapter, splits.calibration, what=f"calibrating{at_first}")
    calibration = fit(prices, splits.calibration, answers)
    most = adapter.preparation.photos_per_product
    larger = [product for product in splits.calibration if len(product.image_paths) > most][:FOLDED_AT_MOST]
    if len(larger) >= FOLDED_AT_LEAST:
        calibrated = replace(adapter, calibration=calibration)
        folded = ask(calibrated, larger, what=f"calibrating further photos{at_first}", photos=MOST_PHOTOS)
        several = [(product, one) for product, one in zip(larger, folded, strict=True) if one.prompts > 1]
        again = fit(prices, [product for product, _ in several], [one for _, one in several])
        calibration = calibration.model_copy(update={"folded": again})
    return calibration, answers


def fit(catalog_prices: Sequence[float], products: Sequence[Product], predictions: Sequence[Prediction]) -> Calibration:
    """Calibration from uncalibrated predictions for the products; those without an answer are left out."""
    rows = [(product, one, one.answer) for product, one in zip(products, predictions, strict=True)]
    answered = [(product, one, answer) for product, one, answer in rows if answer]
    priced = [(product, product.price, one.price_features, answer) for product, one, answer in answered
              if product.price and answer.price]  # fmt: skip
    return Calibration(
        price=fit_price(
            [price for _, price, _, _ in priced],
            [features.expectation for _, _, features, _ in priced],
            [features.spread for _, _, features, _ in priced],
            catalog_prices,
            [answer.category for *_, answer in priced],
            [same_design(product.title) for product, *_ in priced],
        ),
        category=fit_category(
            [one.probability for _, one, _ in answered],
            [answer.category == product.category for product, _, answer in answered],
            [answer.category for *_, answer in answered],
        ),
        attributes=_fit_attributes(answered),
        levels=fit_levels(
            [one.level_probabilities for _, one, _ in answered],
            [answer.category for *_, answer in answered],
            [product.category for product, *_ in answered],
        ),
    )


def _fit_attributes(
    answered: Sequence[tuple[Product, Prediction, Answer]],
) -> dict[str, CategoryCalibration]:
    """Calibration of each further field. All of them together ask a person about no more rows than the category."""
    names = answered[0][1].attributes if answered else ()
    return {
        name: fit_category(
            [one.attributes[name].probability for _, one, _ in answered],
            [one.attributes[name].value == product.attributes.get(name) for product, one, _ in answered],
            [one.attributes[name].value or "" for _, one, _ in answered],
            REVIEWED / len(names),
        )
        for name in names
    }
