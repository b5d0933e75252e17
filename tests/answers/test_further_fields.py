"""Fields beyond title, category and price: answered, sure or not, folded over prompts and calibrated."""

from dataclasses import astuple

import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration, CategoryCalibration
from enrich.answers.fields import Field
from enrich.answers.fold import fold
from enrich.answers.parse import Answer
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.prompt import make_prompt, render_answer
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.phi3_vision.processing import END
from enrich.pipeline.calibrating import fit
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import ErrorKind, Product, ReviewReason
from tests.testing.fake_engine import write_completion

COLOUR = Field(name="colour", kind="choice", label="Colour", column="colour", values=("blue", "red"))
NOTE = Field(name="note", kind="text", label="Note", column="note")
PROMPT = make_prompt(("BAGS", "HATS"), "EUR", others=[COLOUR, NOTE])
REVIEW = ReviewSettings()
SURE = CategoryCalibration(slope=1.0, intercept=0.0, rows=50, review_below=0.6)
CALIBRATION = Calibration(price=None, category=SURE, attributes={"colour": SURE, "note": SURE})


def _predict(
    tokenizer: PreTrainedTokenizerBase, colour: str | None, sure: float = 1.0, rival: str | None = None
) -> Prediction:
    """The prediction from an answer whose first token of the colour has the probability `sure`, a rival the rest."""
    tokens = AnswerTokens(tokenizer, PROMPT, END)
    text = render_answer(PROMPT, "Hat", "HATS", 12, {"colour": colour, "note": "new"})
    ids = tokenizer.encode(text, add_special_tokens=False)
    at = tokens.spans(ids).line("colour").start + len(tokens.prefixes["colour"])
    other = next((line for line, value in tokens.choices["colour"].lines.items() if value == rival), None)
    rivals = {at: {other[len(tokens.prefixes["colour"])]: 1 - sure}} if other else {}
    completion = write_completion(tokenizer, text, probabilities={at: sure}, rivals=rivals)
    return postprocess(completion, tokens, CALIBRATION, REVIEW)


def test_each_field_has_its_value_and_its_own_confidence(tokenizer: PreTrainedTokenizerBase) -> None:
    prediction = _predict(tokenizer, "red", 0.75, rival="blue")
    assert prediction.answer == Answer("Hat", "HATS", 12, {"colour": "red", "note": "new"})
    assert prediction.confidence == pytest.approx(1.0, abs=1e-5)
    assert astuple(prediction.attributes["colour"]) == ("red", pytest.approx(0.75), pytest.approx(0.75), None)
    assert prediction.attributes["note"].confidence == pytest.approx(1.0, abs=1e-5)
    assert prediction.reasons == ()


def test_a_doubtful_field_is_a_reason_to_look(tokenizer: PreTrainedTokenizerBase) -> None:
    prediction = _predict(tokenizer, "red", 0.55, rival="blue")
    assert prediction.reasons == (ReviewReason.LOW_ATTRIBUTE_CONFIDENCE,)


def test_unknown_is_no_value_and_says_what_it_would_be(tokenizer: PreTrainedTokenizerBase) -> None:
    prediction = _predict(tokenizer, None, 0.7, rival="blue")
    assert prediction.answer is not None
    assert prediction.answer.attributes["colour"] is None
    assert astuple(prediction.attributes["colour"]) == (None, pytest.approx(0.7), pytest.approx(0.7), "blue")


def test_a_value_that_the_field_does_not_have_is_asked_for_again(tokenizer: PreTrainedTokenizerBase) -> None:
    text = render_answer(PROMPT, "Hat", "HATS", 12, {"colour": "pink", "note": None})
    prediction = postprocess(
        write_completion(tokenizer, text), AnswerTokens(tokenizer, PROMPT, END), CALIBRATION, REVIEW
    )
    assert (prediction.error_kind, prediction.error_message) == (
        ErrorKind.ANSWER_MALFORMED, "'pink' is not a value of colour",
    )  # fmt: skip
    assert prediction.wants_grammar


def test_a_prompt_that_cannot_tell_does_not_outvote_one_that_can(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = AnswerTokens(tokenizer, PROMPT, END).sizes
    told, untold = _predict(tokenizer, "red", 0.8), _predict(tokenizer, None, 0.99)
    for several in ([told, untold], [untold, told]):
        folded = fold(several, sizes, CALIBRATION, REVIEW)
        assert folded.attributes["colour"].value == "red"
        assert folded.attributes["colour"].confidence == pytest.approx(0.8)
        assert folded.answer is not None
        assert folded.answer.attributes["colour"] == "red"
    assert fold([untold, untold], sizes, CALIBRATION, REVIEW).attributes["colour"].value is None


def test_prompts_that_agree_are_surer_together(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = AnswerTokens(tokenizer, PROMPT, END).sizes
    both = fold([_predict(tokenizer, "red", 0.8), _predict(tokenizer, "red", 0.7)], sizes, CALIBRATION, REVIEW)
    assert both.attributes["colour"].confidence > 0.85
    mixed = fold([_predict(tokenizer, "red", 0.8), _predict(tokenizer, "blue", 0.7)], sizes, CALIBRATION, REVIEW)
    assert mixed.attributes["colour"].value == "red"
    assert mixed.attributes["colour"].confidence < 0.8


def test_calibration_learns_how_often_a_field_is_right(tokenizer: PreTrainedTokenizerBase) -> None:
    predictions = [_predict(tokenizer, "red", 0.9)] * 60 + [_predict(tokenizer, None, 0.9)] * 60
    true: list[str | None] = ["red"] * 30 + ["blue"] * 30 + [None] * 57 + ["red"] * 3
    products = [
        Product(str(n), f"Hat {n}", "HATS", None, ("a.jpg",), {"colour": value, "note": "new"})
        for n, value in enumerate(true)
    ]
    fitted = fit([], products, predictions)
    assert set(fitted.attributes) == {"colour", "note"}
    again = fitted.attributes["colour"]
    assert again.by_category["red"] < again.by_category[""]  # "": the answer that it cannot be told
