"""From a completion to an outcome: parsed, calibrated, and marked for a person where it should be."""

from dataclasses import dataclass, replace

import numpy as np

from enrich.answers.calibration import Calibration, category_confidence, is_out_of_range, is_outlier, price_interval
from enrich.answers.completion import Completion
from enrich.answers.parse import Answer, AnswerMalformed, excerpt, parse_answer
from enrich.answers.title_rules import broken_rules, ungrounded_words
from enrich.answers.token_evidence import (
    NO_PRICE,
    AnswerTokens,
    PriceEvidence,
    alternatives,
    answer_probability,
    label_probability,
    price_evidence,
    title_words,
)
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative, ErrorKind, ReviewReason

ALTERNATIVES = 3  # kept a row


@dataclass(frozen=True)
class Outcome:
    """What one photo's answer came to: an answer with its error bars, or an error kind with a message."""

    answer: Answer | None = None
    said: Answer | None = None  # what could be parsed, its category and price in the catalog's range or not
    probability: float = 0.0  # of title and label, before calibration
    confidence: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    evidence: PriceEvidence = NO_PRICE  # before calibration
    price_low: float | None = None
    price_high: float | None = None
    reasons: tuple[ReviewReason, ...] = ()
    error_kind: ErrorKind | None = None
    error_message: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def wants_grammar(self) -> bool:
        """Whether a second, constrained pass could mend it."""
        return self.error_kind in (ErrorKind.ANSWER_TRUNCATED, ErrorKind.ANSWER_MALFORMED, ErrorKind.CATEGORY_UNKNOWN)


def judge(
    completion: Completion,
    tokens: AnswerTokens,
    calibration: Calibration,
    review: ReviewSettings,
    *,
    constrained: bool = False,
) -> Outcome:
    """Judge one completion; `constrained` says that it came from the grammar pass, so its category was forced."""

    def failed(kind: ErrorKind, message: str, said: Answer | None = None) -> Outcome:
        used = None if kind is ErrorKind.ENGINE_FAILED else (completion.prompt_tokens, len(completion.token_ids))
        prompt_tokens, output_tokens = used or (None, None)
        return Outcome(
            said=said,
            error_kind=kind,
            error_message=message,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )

    if completion.error is not None:
        return failed(ErrorKind.ENGINE_FAILED, completion.error)
    if not completion.finished:
        return failed(ErrorKind.ANSWER_TRUNCATED, f"no end after {len(completion.token_ids)} tokens")
    try:
        answer = parse_answer(completion.text)
    except AnswerMalformed as error:
        return failed(ErrorKind.ANSWER_MALFORMED, str(error))
    if answer.category not in tokens.categories:
        return failed(
            ErrorKind.CATEGORY_UNKNOWN, f"{excerpt(answer.category)!r} is not in the adapter's taxonomy", answer
        )
    prices = calibration.price
    if answer.price is not None and (answer.price == 0 or (prices and is_out_of_range(prices, answer.price))):
        return failed(ErrorKind.PRICE_OUT_OF_RANGE, f"{answer.price} is far outside the catalog's prices", answer)

    probability, of_label = answer_probability(completion, tokens), label_probability(completion, tokens)
    # As precise as its column, so that the row can be judged again.
    confidence = float(np.float32(category_confidence(calibration.category, probability, answer.category)))
    others = alternatives(completion, tokens)
    others.pop(answer.category, None)  # the label itself, where it was written in other tokens than the usual ones
    evidence = price_evidence(completion, tokens)
    said, (low, high) = answer, (None, None)
    if answer.price is not None and prices is not None:
        point = getattr(evidence, prices.point)
        answer = replace(answer, price=max(1, round(point)))
        low, high = price_interval(prices, point, evidence.spread, category=answer.category)
    doubted = ungrounded_words(title_words(completion, tokens), answer.category, tokens.nouns, review.titles)
    least = calibration.category.review_below if review.min_confidence is None else review.min_confidence
    reasons = [
        reason
        for reason, applies in {
            ReviewReason.CATEGORY_UNKNOWN: constrained,
            ReviewReason.LOW_CONFIDENCE: confidence < least,
            ReviewReason.WIDE_PRICE: low is not None and high is not None and high / low > review.max_price_ratio,
            ReviewReason.PRICE_OUTLIER: answer.price is not None
            and prices is not None
            and is_outlier(prices, answer.price),
            ReviewReason.TITLE_RULE: bool(broken_rules(answer.title, review.titles)),
            ReviewReason.TITLE_UNGROUNDED: bool(doubted),
        }.items()
        if applies
    ]
    return Outcome(
        answer=answer,
        said=said,
        probability=probability,
        confidence=confidence,
        alternatives=_calibrated(others, of_label, confidence),
        evidence=evidence,
        price_low=low,
        price_high=high,
        reasons=tuple(reasons),
        prompt_tokens=completion.prompt_tokens,
        output_tokens=len(completion.token_ids),
    )


def _calibrated(found: dict[str, float], probability: float, confidence: float) -> tuple[Alternative, ...]:
    """What calibration leaves to the other labels, shared in proportion to what the model gave them."""
    left = max(1.0 - probability, sum(found.values()), 1e-9)
    return tuple(
        Alternative(label, (1.0 - confidence) * share / left) for label, share in list(found.items())[:ALTERNATIVES]
    )
