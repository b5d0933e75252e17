"""Second looks: products are first shown at few crops, and closely only if that answer is doubtful.

A photo at one crop takes two fifths of the tokens of four crops, and most products can be recognised as well in it. The
adapter was trained at both looks. Each has its own calibration, because a confidence means something else at less
detail.
"""

import math
from dataclasses import replace

from enrich.answers.calibration import FirstLook
from enrich.answers.postprocess import Prediction
from enrich.vocabulary import ErrorKind

# The expected error of a normally distributed log price, 0.8 standard deviations, as a share of the width of its 90 %
# interval, 3.3.
_MISS = 0.25


def doubt(prediction: Prediction) -> float:
    """The expected number of mistakes in a calibrated answer: the probability that the category is wrong, plus that of
    each further field, plus the price's error in log units (0.1 for 10 %). Infinite without an answer."""
    if prediction.answer is None:
        return math.inf
    confidences = [prediction.confidence or 0.0, *(one.confidence for one in prediction.attributes.values())]
    low, high = prediction.price_low, prediction.price_high
    miss = _MISS * math.log(high / low) if low and high else 0.0
    return sum(1.0 - confidence for confidence in confidences) + miss


def needs_second(first: FirstLook, prediction: Prediction) -> bool:
    """Whether the first look's answer is too doubtful. Engine failures are left to the next run: photos that crash the
    engine should not do so twice."""
    return prediction.error_kind is not ErrorKind.ENGINE_FAILED and doubt(prediction) >= first.least_doubt


def after_both(first: Prediction, second: Prediction) -> Prediction:
    """The answer to the second look, with the tokens of both."""
    return replace(
        second,
        looks=2,
        prompt_tokens=(first.prompt_tokens or 0) + (second.prompt_tokens or 0),
        output_tokens=(first.output_tokens or 0) + (second.output_tokens or 0),
    )
