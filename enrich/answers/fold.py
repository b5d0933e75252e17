"""Combine the answers to several prompts about one product into one prediction.

Labels: each prompt gives every label calibrated odds, and their logarithms are added, as if prompts were independent
evidence. They are not, since all show one product, so the sum is calibrated again on products (`Calibration.folded`).
Further fields likewise, but a prompt that answers unknown, because its photos do not show the value, counts only if all
do. Price: the mean of the mixture of the prompts' log-price distributions, with the variance of the mixture. Title:
from the most confident prompt among those that answered the label.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from enrich.answers.calibration import Calibration, category_confidence, logit, sigmoid
from enrich.answers.parse import Answer
from enrich.answers.path import branches_of
from enrich.answers.postprocess import (
    ALTERNATIVES,
    Attributed,
    Prediction,
    field_confidence,
    flag,
    least_confidence,
    priced,
    with_path,
)
from enrich.answers.token_evidence import PriceFeatures
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative, ReviewReason

# Reasons that need a prompt's tokens: the product gets those of the prompt that its title comes from.
_OF_THE_ANSWER = (ReviewReason.CATEGORY_UNKNOWN, ReviewReason.TITLE_UNGROUNDED)


def fold(
    predictions: Sequence[Prediction], labels: Mapping[str, int], calibration: Calibration, review: ReviewSettings
) -> Prediction:
    """The prediction for a product from those of its prompts; a single one is returned unchanged.

    Prompts without an answer do not count, unless no prompt has one: then the first failure is the product's.

    Args:
        labels: how many values each choice has, the category among them.
    """
    good = [(one, one.answer) for one in predictions if one.answer is not None]
    if len(predictions) == 1 or not good:
        return predictions[0]
    odds = _added(
        [{one.category: one.confidence for one in found.alternatives} | {answer.category: found.confidence or 0.0}
         for found, answer in good],
        labels["category"],
    )  # fmt: skip
    category = max(odds, key=lambda label: odds[label])
    probability = sigmoid(odds[category])
    again = calibration.folded
    confidence = category_confidence(again.category, probability, category) if again else probability
    surest, answer = max(good, key=lambda pair: (pair[1].category == category, pair[0].confidence or 0.0))
    attributes = {name: _attribute(good, name, labels.get(name, 0), again) for name in answer.attributes}
    told = {name: one.value for name, one in attributes.items()}
    folded = replace(
        surest,
        answer=replace(answer, category=category, attributes=told),
        probability=probability,
        confidence=float(np.float32(confidence)),
        alternatives=_others(odds, category, confidence),
        attributes=attributes,
        price_features=mixed([one.price_features for one, found in good if found.price is not None]),
        prompts=len(predictions),
        prompt_tokens=sum(one.prompt_tokens or 0 for one in predictions),
        output_tokens=sum(one.output_tokens or 0 for one in predictions),
    )
    folded = priced(folded, (again or calibration).price)
    if surest.path is not None:
        above = [_branch(good, branch) for branch in branches_of(category)]
        folded = with_path(folded, above, again.levels if again else (), least_confidence(calibration, review))
    forced, doubted = (reason in surest.reasons for reason in _OF_THE_ANSWER)
    reasons = flag(folded, calibration, review, forced=forced, doubted=doubted)
    if _disagree(good, calibration, review):
        reasons = (*reasons, ReviewReason.PHOTOS_DISAGREE)
    return replace(folded, reasons=reasons)


def mixed(distributions: Sequence[PriceFeatures]) -> PriceFeatures:
    """The mean and the standard deviation of an even mixture, on the logarithm of the price."""
    if not distributions:
        return PriceFeatures()
    means = [math.log(one.expectation) for one in distributions]
    mean = fmean(means)
    variance = fmean(one.spread**2 + (at - mean) ** 2 for one, at in zip(distributions, means, strict=True))
    return PriceFeatures(math.exp(mean), math.sqrt(variance), distributions[0].step)


def _attribute(
    good: Sequence[tuple[Prediction, Answer]], name: str, values: int, again: Calibration | None
) -> Attributed:
    """A further field's answer, from the prompts that give a value, or from all if none does; of `values` values."""
    told = [one.attributes[name] for one, _ in good]
    able = [one for one in told if one.value is not None] or told
    odds = _added([{one.value or "": one.confidence} for one in able], values)
    value = max(odds, key=lambda one: odds[one])
    probability = sigmoid(odds[value])
    surest = max((one for one in able if (one.value or "") == value), key=lambda one: one.confidence)
    return replace(surest, probability=probability, confidence=field_confidence(again, name, value, probability))


def _added(named: Sequence[Mapping[str, float]], labels: int) -> dict[str, float]:
    """Summed log-odds of each label that a prompt named. A prompt's remaining probability is shared by the labels that
    it did not name, of `labels` in total."""
    rest = [max(0.0, 1.0 - sum(found.values())) / max(1, labels - len(found)) for found in named]
    everyone = dict.fromkeys(label for found in named for label in found)
    return {
        label: sum(logit(found.get(label, left)) for found, left in zip(named, rest, strict=True)) for label in everyone
    }


def _branch(good: Sequence[tuple[Prediction, Answer]], branch: str) -> float:
    """Probability, 0..1, of all labels beneath `branch`: log odds are added as those of labels are."""
    odds = 0.0
    for one, answer in good:
        levels = (*branches_of(answer.category), answer.category)
        own = dict(zip(levels, one.level_confidences or (), strict=False)).get(branch)
        others = (other for other in one.alternatives if branch in (other.category, *branches_of(other.category)))
        odds += logit(sum(other.confidence for other in others) if own is None else own)
    return sigmoid(odds)


def _others(odds: dict[str, float], category: str, confidence: float) -> tuple[Alternative, ...]:
    """The next labels; together with `confidence` they do not exceed 1."""
    others = {label: sigmoid(odds[label]) for label in sorted(odds, key=lambda one: -odds[one]) if label != category}
    scale = min(1.0, (1.0 - confidence) / max(sum(others.values()), 1e-6))
    return tuple(Alternative(label, share * scale) for label, share in list(others.items())[:ALTERNATIVES])


def _disagree(good: Sequence[tuple[Prediction, Answer]], calibration: Calibration, review: ReviewSettings) -> bool:
    """Whether prompts contradict each other: confident of different labels, or with disjoint price intervals."""
    least = least_confidence(calibration, review)
    sure = {answer.category for one, answer in good if (one.confidence or 0.0) >= least}
    lows = [one.price_low for one, _ in good if one.price_low is not None]
    highs = [one.price_high for one, _ in good if one.price_high is not None]
    return len(sure) > 1 or bool(lows and max(lows) > min(highs))
