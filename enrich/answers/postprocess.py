"""From a completion to a prediction: parsed, calibrated, and flagged for review if a person should look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from enrich.answers.calibration import (
    Calibration,
    CategoryCalibration,
    PriceCalibration,
    category_confidence,
    is_out_of_range,
    is_outlier,
    price_interval,
)
from enrich.answers.completion import Completion
from enrich.answers.parse import Answer, AnswerMalformed, parse_answer
from enrich.answers.path import level_confidences, level_probabilities, sure_levels
from enrich.answers.plain_text import excerpt
from enrich.answers.prompt import in_steps, of_steps
from enrich.answers.title_rules import breaks_rules, ungrounded_words
from enrich.answers.token_evidence import (
    AnswerTokens,
    PriceFeatures,
    Spans,
    alternatives,
    answer_probability,
    line_probability,
    price_features,
    title_words,
)
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative, ErrorKind, ReviewReason

ALTERNATIVES = 3  # kept a row


@dataclass(frozen=True)
class Attributed:
    """The answer to a field beyond title, category and price."""

    value: str | None  # None: the model wrote that it cannot tell
    probability: float  # of title and value, before calibration
    confidence: float  # that this is the catalog's value; of None: that the catalog has none
    otherwise: str | None = None  # where value is None, the most probable value of a choice


@dataclass(frozen=True)
class Prediction:
    """The prediction for one product: an answer with its error bars, or an error kind with a message."""

    answer: Answer | None = None
    parsed: Answer | None = None  # as the model wrote it; category and price may be unusable
    probability: float = 0.0  # of title and label, before calibration
    confidence: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    # Where categories are paths: of the levels above the last, before calibration; of all; and those to rely on.
    level_probabilities: tuple[float, ...] = ()
    level_confidences: tuple[float, ...] | None = None
    path: tuple[str, ...] | None = None
    price_features: PriceFeatures = field(default_factory=PriceFeatures)  # before calibration
    price_low: float | None = None
    price_high: float | None = None
    attributes: Mapping[str, Attributed] = field(default_factory=dict)  # of the other fields, by name
    reasons: tuple[ReviewReason, ...] = ()
    error_kind: ErrorKind | None = None
    error_message: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prompts: int = 1  # whose answers were folded into this one
    looks: int = 1  # 2: the first look left doubts, and this is the answer to the second

    @property
    def wants_grammar(self) -> bool:
        """Whether a second, constrained pass could give an answer."""
        return self.error_kind in (ErrorKind.ANSWER_TRUNCATED, ErrorKind.ANSWER_MALFORMED, ErrorKind.CATEGORY_UNKNOWN)


def postprocess(
    completion: Completion,
    tokens: AnswerTokens,
    calibration: Calibration,
    review: ReviewSettings,
    *,
    constrained: bool = False,
) -> Prediction:
    """The prediction from one completion; `constrained`: the grammar pass wrote it, so its category was forced."""
    prediction = _validate(completion, tokens, calibration.price)
    if (answer := prediction.answer) is None:
        return prediction
    spans = tokens.spans(completion.token_ids)
    prediction = _estimate(prediction, answer, completion, spans, tokens, calibration)
    if tokens.prompt.category_path:
        found = level_probabilities(completion, spans)
        prediction = with_path(prediction, found, calibration.levels, least_confidence(calibration, review))
    words = title_words(completion, spans, tokens.lexicon)
    doubted = ungrounded_words(words, answer.category, tokens.nouns, review.titles, tokens.lexicon)
    reasons = flag(prediction, calibration, review, forced=constrained, doubted=bool(doubted))
    return replace(prediction, reasons=reasons)


def _validate(completion: Completion, tokens: AnswerTokens, prices: PriceCalibration | None) -> Prediction:
    """The answer as written, or why there is none."""
    if completion.error is not None:
        return Prediction(error_kind=ErrorKind.ENGINE_FAILED, error_message=completion.error)
    used = Prediction(prompt_tokens=completion.prompt_tokens, output_tokens=len(completion.token_ids))

    def failed(kind: ErrorKind, message: str, parsed: Answer | None = None) -> Prediction:
        return replace(used, parsed=parsed, error_kind=kind, error_message=message)

    if not completion.finished:
        return failed(ErrorKind.ANSWER_TRUNCATED, f"no end after {len(completion.token_ids)} tokens")
    if not tokens.control.isdisjoint(completion.token_ids):  # its text leaves them out
        return failed(ErrorKind.ANSWER_MALFORMED, f"control token of the model in {excerpt(completion.text)!r}")
    try:
        answer = parse_answer(completion.text, tokens.prompt)
    except AnswerMalformed as error:
        return failed(ErrorKind.ANSWER_MALFORMED, str(error))
    if answer.category not in tokens.choices["category"].known:
        message = f"{excerpt(answer.category)!r} is not in the adapter's taxonomy"
        return failed(ErrorKind.CATEGORY_UNKNOWN, message, answer)
    for name, choice in tokens.choices.items():
        if (value := answer.attributes.get(name)) is not None and value not in choice.known:
            return failed(ErrorKind.ANSWER_MALFORMED, f"{excerpt(value)!r} is not a value of {name}", answer)
    if answer.price is not None and (answer.price == 0 or (prices and is_out_of_range(prices, answer.price))):
        return failed(ErrorKind.PRICE_OUT_OF_RANGE, f"{answer.price:.15g} is far outside the catalog's prices", answer)
    return replace(used, answer=answer, parsed=answer)


def _estimate(
    prediction: Prediction,
    answer: Answer,
    completion: Completion,
    spans: Spans,
    tokens: AnswerTokens,
    calibration: Calibration,
) -> Prediction:
    """`prediction` with its calibrated confidence and alternatives, and the expected price with its interval."""
    probability = answer_probability(completion, spans, "category")
    # In the precision of its column, so that reviews decided from the stored row agree.
    confidence = float(np.float32(category_confidence(calibration.category, probability, answer.category)))
    others = alternatives(completion, spans, tokens, "category")
    others.pop(answer.category, None)  # the label itself, if it was written in other tokens than the usual ones
    features = price_features(completion, spans, tokens)
    estimated = replace(
        prediction,
        probability=probability,
        confidence=confidence,
        alternatives=_calibrated(others, line_probability(completion, spans, "category"), confidence),
        price_features=features,
        attributes={
            name: _attributed(name, value, completion, spans, tokens, calibration)
            for name, value in answer.attributes.items()
        },
    )
    return priced(estimated, calibration.price)


def _attributed(
    name: str,
    value: str | None,
    completion: Completion,
    spans: Spans,
    tokens: AnswerTokens,
    calibration: Calibration,
) -> Attributed:
    probability = answer_probability(completion, spans, name)
    confidence = field_confidence(calibration, name, value, probability)
    otherwise = None
    if value is None and name in tokens.choices:
        found = alternatives(completion, spans, tokens, name)
        otherwise = next((one for one in found if one != tokens.prompt.unknown), None)
    return Attributed(value, probability, confidence, otherwise)


def field_confidence(calibration: Calibration | None, name: str, value: str | None, probability: float) -> float:
    """Calibrated confidence, in the precision of its column, in a `value` of the field `name`, whose tokens had
    `probability`; this itself where the field was never calibrated."""
    fitted = calibration.attributes.get(name) if calibration else None
    return float(np.float32(category_confidence(fitted, probability, value or "") if fitted else probability))


def calibrated(prediction: Prediction, calibration: Calibration) -> Prediction:
    """`prediction`, made without a calibration, with the confidences and interval of `calibration`."""
    if (answer := prediction.answer) is None:
        return prediction
    confidence = category_confidence(calibration.category, prediction.probability, answer.category)
    attributes = {
        name: replace(one, confidence=field_confidence(calibration, name, one.value, one.probability))
        for name, one in prediction.attributes.items()
    }
    return priced(replace(prediction, confidence=confidence, attributes=attributes), calibration.price)


def priced(prediction: Prediction, prices: PriceCalibration | None) -> Prediction:
    """`prediction` with the expected price of its `price_features` and the interval around it, if it has a price."""
    answer, features = prediction.answer, prediction.price_features
    if answer is None or answer.price is None or prices is None:
        return prediction
    low, high = price_interval(prices, features.expectation, features.spread, category=answer.category)
    expected = replace(answer, price=of_steps(in_steps(features.expectation, features.step), features.step))
    return replace(prediction, answer=expected, price_low=low, price_high=high)


def with_path(
    prediction: Prediction, probabilities: Sequence[float], levels: Sequence[CategoryCalibration], least: float
) -> Prediction:
    """`prediction` with the calibrated levels of its category, and its path down to the last that reaches `least`."""
    label = prediction.answer.category if prediction.answer else ""
    confidences = level_confidences(levels, label, probabilities, prediction.confidence or 0.0)
    return replace(
        prediction,
        level_probabilities=tuple(probabilities),
        level_confidences=confidences,
        path=sure_levels(label, confidences, least),
    )


def least_confidence(calibration: Calibration, review: ReviewSettings, field: str = "category") -> float:
    """The confidence in a field below which a person should look."""
    if review.min_confidence is not None:
        return review.min_confidence
    fitted = calibration.category if field == "category" else calibration.attributes.get(field)
    return fitted.review_below if fitted else 0.0


def flag(
    prediction: Prediction, calibration: Calibration, review: ReviewSettings, *, forced: bool, doubted: bool
) -> tuple[ReviewReason, ...]:
    """Why an answer needs review; `forced`: its category was forced, `doubted`: the model doubts its title."""
    answer, confidence = prediction.answer, prediction.confidence
    low, high = prediction.price_low, prediction.price_high
    prices = calibration.price
    least = least_confidence(calibration, review)
    applies = {
        ReviewReason.CATEGORY_UNKNOWN: forced,
        ReviewReason.LOW_CONFIDENCE: confidence is not None and confidence < least,
        ReviewReason.LOW_ATTRIBUTE_CONFIDENCE: any(
            one.confidence < least_confidence(calibration, review, name) for name, one in prediction.attributes.items()
        ),
        ReviewReason.WIDE_PRICE: low is not None and high is not None and high / low > review.max_price_ratio,
        ReviewReason.PRICE_OUTLIER: bool(answer and answer.price and prices and is_outlier(prices, answer.price)),
        ReviewReason.TITLE_RULE: answer is not None and breaks_rules(answer.title, review.titles),
        ReviewReason.TITLE_UNGROUNDED: doubted,
    }
    return tuple(reason for reason, applied in applies.items() if applied)


def _calibrated(found: dict[str, float], probability: float, confidence: float) -> tuple[Alternative, ...]:
    """What calibration leaves to the other labels, divided in proportion to what the model gave them."""
    left = max(1.0 - probability, sum(found.values()), 1e-9)
    return tuple(
        Alternative(label, (1.0 - confidence) * share / left) for label, share in list(found.items())[:ALTERNATIVES]
    )
