"""When a second look is taken, and what is left of the first."""

import math
from dataclasses import replace

import pytest

from enrich.answers.calibration import Calibration, FirstLook
from enrich.answers.looks import after_both, doubt, needs_second
from enrich.answers.parse import Answer
from enrich.answers.postprocess import Attributed, Prediction
from enrich.vocabulary import ErrorKind

SURE = Prediction(answer=Answer("Coat", "COATS", 100.0), confidence=0.9, prompt_tokens=340, output_tokens=20)


def first(least: float) -> FirstLook:
    return FirstLook(squares=1, calibration=Calibration.uncalibrated(), least_doubt=least)


def test_doubt_adds_the_mistakes_to_expect() -> None:
    assert doubt(SURE) == pytest.approx(0.1)
    colour = {"colour": Attributed("red", 0.7, 0.8)}
    assert doubt(replace(SURE, attributes=colour)) == pytest.approx(0.3)
    wide = replace(SURE, price_low=50.0, price_high=200.0)
    assert doubt(wide) == pytest.approx(0.1 + 0.25 * math.log(4))
    assert doubt(replace(SURE, answer=None)) == math.inf


@pytest.mark.parametrize(
    ("prediction", "least", "expected"),
    [
        (SURE, 0.0, True),
        (SURE, 0.05, True),
        (SURE, 0.2, False),
        (Prediction(error_kind=ErrorKind.ANSWER_MALFORMED), 9.0, True),
        (Prediction(error_kind=ErrorKind.PRICE_OUT_OF_RANGE), 9.0, True),
        (Prediction(error_kind=ErrorKind.ENGINE_FAILED), 0.0, False),
    ],
)
def test_a_second_look_is_taken_where_the_first_leaves_doubts(
    prediction: Prediction, least: float, expected: bool
) -> None:
    assert needs_second(first(least), prediction) == expected


def test_the_second_answer_counts_and_both_are_paid_for() -> None:
    second = replace(SURE, confidence=0.99, prompt_tokens=780, output_tokens=22)
    both = after_both(SURE, second)
    assert (both.confidence, both.looks, both.prompt_tokens, both.output_tokens) == (0.99, 2, 1120, 42)


def test_a_row_is_measured_with_the_calibration_of_its_last_look() -> None:
    plain = Calibration.uncalibrated()
    assert plain.after(1) is plain.after(2) is plain
    own = plain.model_copy(update={"category": plain.category.model_copy(update={"slope": 0.5})})
    twice = plain.model_copy(update={"first": first(0.3).model_copy(update={"calibration": own})})
    assert twice.after(1) is own
    assert twice.after(2) is twice
    assert Calibration.model_validate_json(twice.model_dump_json()) == twice
