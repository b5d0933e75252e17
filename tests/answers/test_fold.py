"""Folding the answers of a product's prompts into one."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich.answers.calibration import Calibration, CategoryCalibration, PriceCalibration
from enrich.answers.fold import fold, mixed
from enrich.answers.parse import Answer
from enrich.answers.postprocess import Prediction, priced
from enrich.answers.token_evidence import PriceFeatures
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative, ErrorKind, ReviewReason

PRICES = PriceCalibration(
    quantiles={"0.8": 1.0, "0.9": 2.0}, floor=0.1, lowest=10.0, highest=1000.0, rows=50, designs=20
)
CALIBRATION = Calibration(price=PRICES, category=CategoryCalibration(slope=1.0, intercept=0.0, rows=50))
REVIEW = ReviewSettings(min_confidence=0.6, max_price_ratio=6.0)
LABELS = {"category": 4}
FAILED = Prediction(error_kind=ErrorKind.ENGINE_FAILED, error_message="the engine failed", prompt_tokens=90)


def predicted(
    category: str,
    confidence: float,
    others: dict[str, float] | None = None,
    price: float | None = 100,
    spread: float = 0.0,
) -> Prediction:
    features = PriceFeatures(price, spread) if price else PriceFeatures()
    made = Prediction(
        answer=Answer(f"{category} at {confidence}", category, None if price is None else round(price)),
        probability=confidence,
        confidence=confidence,
        alternatives=tuple(Alternative(name, share) for name, share in (others or {}).items()),
        price_features=features,
        prompt_tokens=100,
        output_tokens=20,
    )
    return priced(made, PRICES)


def folded(*predictions: Prediction, calibration: Calibration = CALIBRATION) -> Prediction:
    return fold(predictions, LABELS, calibration, REVIEW)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


@pytest.mark.parametrize("one", [predicted("HATS", 0.7, {"BAGS": 0.2}), FAILED, predicted("HATS", 0.99, price=None)])
def test_one_prompt_folds_to_itself(one: Prediction) -> None:
    assert folded(one) is one


def test_log_odds_of_labels_are_added() -> None:
    both = folded(predicted("HATS", 0.7, {"BAGS": 0.2}), predicted("HATS", 0.6, {"BAGS": 0.3}))
    assert both.answer == Answer("HATS at 0.7", "HATS", 100)
    assert both.confidence == pytest.approx(sigmoid(logit(0.7) + logit(0.6)), abs=1e-6)
    assert [one.category for one in both.alternatives] == ["BAGS"]
    assert both.alternatives[0].confidence == pytest.approx(sigmoid(logit(0.2) + logit(0.3)))
    assert (both.prompts, both.prompt_tokens, both.output_tokens) == (2, 200, 40)
    assert both.reasons == ()


def test_a_label_that_no_prompt_is_most_confident_of_can_win_by_its_sum() -> None:
    both = folded(predicted("HATS", 0.55, {"BAGS": 0.44}), predicted("SHOES", 0.55, {"BAGS": 0.44}))
    assert both.answer is not None
    assert both.answer.category == "BAGS"
    assert both.answer.title in ("HATS at 0.55", "SHOES at 0.55")
    # 0.01 that a prompt leaves is shared by the two labels that it does not name.
    hats = sigmoid(logit(0.55) + logit(0.005))
    assert {one.category: one.confidence for one in both.alternatives} == pytest.approx({"HATS": hats, "SHOES": hats})


def test_the_title_is_that_of_the_most_confident_prompt_with_the_label() -> None:
    three = folded(predicted("BAGS", 0.9), predicted("HATS", 0.8), predicted("HATS", 0.85))
    assert three.answer is not None
    assert (three.answer.category, three.answer.title) == ("HATS", "HATS at 0.85")


def test_prices_are_mixed() -> None:
    both = folded(predicted("HATS", 0.7, price=80, spread=0.1), predicted("HATS", 0.7, price=125, spread=0.3))
    spread = math.sqrt((0.1**2 + 0.3**2) / 2 + (math.log(125 / 80) / 2) ** 2)
    assert both.price_features.expectation == pytest.approx(100)
    assert both.price_features.spread == pytest.approx(spread)
    assert both.answer is not None
    assert both.answer.price == 100
    assert both.price_low is not None
    assert both.price_high is not None
    assert math.log(both.price_high / both.price_low) == pytest.approx(2 * 2 * (spread + 0.1))


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(0, 3)), min_size=1, max_size=6))
def test_a_mixture_is_as_wide_as_its_parts_at_least_on_average(parts: list[tuple[float, float]]) -> None:
    made = mixed([PriceFeatures(*part) for part in parts])
    prices, spreads = zip(*parts, strict=True)
    assert min(prices) <= made.expectation * (1 + 1e-9)
    assert made.expectation <= max(prices) * (1 + 1e-9)
    assert made.spread >= math.sqrt(sum(spread**2 for spread in spreads) / len(parts)) - 1e-9


def test_a_failed_prompt_fails_alone() -> None:
    good = predicted("HATS", 0.7, {"BAGS": 0.2})
    both = folded(FAILED, good)
    assert both.answer == good.answer
    assert both.confidence == pytest.approx(0.7)
    assert (both.error_kind, both.prompt_tokens) == (None, 190)
    assert folded(FAILED, replace(FAILED, error_message="again")) is FAILED


@pytest.mark.parametrize(
    ("second", "disagree"),
    [
        (predicted("BAGS", 0.9), True),
        (predicted("BAGS", 0.5), False),  # not sure of it
        (predicted("HATS", 0.9), False),
        (predicted("HATS", 0.9, price=300), True),  # intervals of 82..122 and 246..366
        (predicted("HATS", 0.9, price=300, spread=0.5), False),
    ],
)
def test_strong_disagreement_is_a_reason_to_look(second: Prediction, disagree: bool) -> None:
    both = folded(predicted("HATS", 0.9), second)
    assert (ReviewReason.PHOTOS_DISAGREE in both.reasons) == disagree


def test_folded_answers_have_a_calibration_of_their_own() -> None:
    again = Calibration(
        price=PRICES.model_copy(update={"quantiles": {"0.8": 2.0, "0.9": 4.0}}),
        category=CategoryCalibration(slope=0.5, intercept=0.0, rows=50),
    )
    one, other = predicted("HATS", 0.7), predicted("HATS", 0.6)
    both = folded(one, other, calibration=CALIBRATION.model_copy(update={"folded": again}))
    assert both.confidence == pytest.approx(sigmoid((logit(0.7) + logit(0.6)) / 2))
    assert both.probability == pytest.approx(sigmoid(logit(0.7) + logit(0.6)))
    assert both.price_high == pytest.approx(100 * math.exp(4 * 0.1))


def test_reasons_of_the_prompt_that_gave_the_title_stay() -> None:
    doubted = replace(predicted("HATS", 0.9), reasons=(ReviewReason.TITLE_UNGROUNDED, ReviewReason.LOW_CONFIDENCE))
    assert folded(doubted, predicted("HATS", 0.8)).reasons == (ReviewReason.TITLE_UNGROUNDED,)
    assert folded(doubted, predicted("HATS", 0.95)).reasons == ()


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.floats(0.01, 0.99)), min_size=2, max_size=5))
def test_probabilities_stay_probabilities(answers: list[tuple[str, float]]) -> None:
    made = folded(*(predicted(label, confidence) for label, confidence in answers))
    assert made.confidence is not None
    assert made.answer is not None
    assert 0 <= made.confidence <= 1
    assert made.confidence + sum(one.confidence for one in made.alternatives) <= 1 + 1e-6
    assert made.answer.category not in [one.category for one in made.alternatives]
