"""Paths as labels, and how sure each of their levels is."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration, CategoryCalibration
from enrich.answers.fold import fold
from enrich.answers.parse import Answer
from enrich.answers.path import (
    branches_of,
    fit_levels,
    joined,
    level_confidences,
    levels_of,
    sure_levels,
)
from enrich.answers.postprocess import Prediction, postprocess, with_path
from enrich.answers.prompt import Prompt, make_prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.phi3_vision.processing import END
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative
from tests.testing.fake_engine import write_completion

PUMPS, BOOTS, COATS = "WOMAN > SHOES > PUMPS", "WOMAN > SHOES > BOOTS", "WOMAN > COATS"
IDENTITY = CategoryCalibration(slope=1.0, intercept=0.0, rows=50)
CALIBRATION = Calibration(price=None, category=IDENTITY, levels=(IDENTITY, IDENTITY))
REVIEW = ReviewSettings(min_confidence=0.6)


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerBase) -> AnswerTokens:
    return AnswerTokens(tokenizer, make_prompt((PUMPS, BOOTS, COATS), "EUR", category_path=True), END)


def predict(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, unsure: dict[str, float], label: str = PUMPS
) -> Prediction:
    """The prediction of an answer in which the first token of each level of `unsure` has that probability."""
    text = f"Product: Red Pumps\nCategory: {label}\nFull Price: 120"
    ids = tokenizer.encode(text, add_special_tokens=False)
    spans = tokens.spans(ids)
    line = text.index(label)
    places = {spans.tokens(at := line + label.index(level), at + 1).start: p for level, p in unsure.items()}
    completion = write_completion(tokenizer, text, probabilities=places)
    return postprocess(completion, tokens, CALIBRATION, REVIEW)


@pytest.mark.parametrize("written", ["A > B", "A>B", " A >B ", "A  >  B", "> A > > B >"])
def test_blanks_around_the_mark_make_no_difference(written: str) -> None:
    assert levels_of(written) == ("A", "B")
    assert joined(levels_of(written)) == "A > B"


def test_the_branches_of_a_label_are_the_labels_of_its_broader_levels() -> None:
    assert branches_of(PUMPS) == ["WOMAN", "WOMAN > SHOES"]
    assert branches_of("WOMAN") == []


def test_a_level_has_the_probability_of_the_tokens_up_to_its_end(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens
) -> None:
    found = predict(tokenizer, tokens, {"WOMAN": 0.9, "SHOES": 0.8, "PUMPS": 0.5})

    assert found.level_probabilities == pytest.approx((0.9, 0.72))
    assert found.level_confidences == pytest.approx((0.9, 0.72, 0.36))


@pytest.mark.parametrize(
    ("unsure", "path"),
    [
        ({}, ("WOMAN", "SHOES", "PUMPS")),
        ({"PUMPS": 0.5}, ("WOMAN", "SHOES")),
        ({"SHOES": 0.5}, ("WOMAN",)),
        ({"WOMAN": 0.5}, ()),
    ],
)
def test_a_path_ends_where_its_own_confidence_is_too_low(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens, unsure: dict[str, float], path: tuple[str, ...]
) -> None:
    found = predict(tokenizer, tokens, unsure)

    assert found.path == path
    assert found.answer is not None
    assert found.answer.category == PUMPS
    assert bool(found.reasons) == (path != levels_of(PUMPS))  # low_confidence is about the whole label


def test_a_leaf_that_holds_the_mark_has_no_path(tokenizer: PreTrainedTokenizerBase) -> None:
    leaves = AnswerTokens(tokenizer, make_prompt((PUMPS, BOOTS), "EUR"), END)

    assert predict(tokenizer, leaves, {}).path is None


@given(
    st.lists(st.floats(0, 1), max_size=5), st.floats(0, 1), st.lists(st.floats(-3, 3), max_size=3),
)  # fmt: skip
def test_no_level_is_less_sure_than_one_beneath_it(
    probabilities: list[float], confidence: float, intercepts: list[float]
) -> None:
    label = joined([f"L{depth}" for depth in range(len(probabilities) + 1)])
    calibrations = [IDENTITY.model_copy(update={"intercept": odds}) for odds in intercepts]

    found = level_confidences(calibrations, label, probabilities, confidence)

    assert len(found) == len(probabilities) + 1
    assert found[-1] == confidence
    assert list(found) == sorted(found, reverse=True)
    assert sure_levels(label, found, 0.5) == levels_of(label)[: sum(one >= 0.5 for one in found)]


def test_each_depth_is_calibrated_on_the_answers_that_have_it() -> None:
    """Probabilities of 0.5 whose first level is right in 95 % of 400 rows, and the second in 70 %."""
    rng = np.random.default_rng(0)
    answered = [PUMPS if row % 2 else COATS for row in range(400)]
    first, second = rng.random(400) < 0.95, rng.random(400) < 0.7 / 0.95
    true = [
        "MAN > TIES" if not at_all else (said if further else "WOMAN > HATS")
        for said, at_all, further in zip(answered, first, second, strict=True)
    ]
    probabilities = [(0.5, 0.5) if said == PUMPS else (0.5,) for said in answered]

    calibrations = fit_levels(probabilities, answered, true)

    assert [one.rows for one in calibrations] == [400, 200]
    broad, narrow, _ = level_confidences(calibrations, PUMPS, (0.5, 0.5), 0.1)
    assert (broad, narrow) == (pytest.approx(0.95, abs=0.03), pytest.approx(0.7, abs=0.07))


def test_without_paths_there_is_nothing_to_calibrate() -> None:
    assert fit_levels([(), ()], ["HATS", "BAGS"], ["HATS", "HATS"]) == ()


def made(label: str, *confidences: float, **others: float) -> Prediction:
    found = Prediction(
        answer=Answer("Red Pumps", label, None),
        confidence=confidences[-1],
        alternatives=tuple(Alternative(name, share) for name, share in others.items()),
    )
    return with_path(found, confidences[:-1], (), 0.6)


def test_prompts_that_name_siblings_agree_on_their_parent() -> None:
    one, other = made(PUMPS, 0.9, 0.8, 0.5), made(BOOTS, 0.9, 0.7, 0.4)

    found = fold([one, other], {"category": 3}, CALIBRATION, REVIEW)

    def odds(*probabilities: float) -> float:
        return 1 / (1 + math.exp(-sum(math.log(p / (1 - p)) for p in probabilities)))

    assert found.answer is not None
    assert found.answer.category == PUMPS
    assert found.level_confidences is not None
    assert found.level_confidences[:2] == pytest.approx((odds(0.9, 0.9), odds(0.8, 0.7)))
    assert found.path == ("WOMAN", "SHOES")


def test_a_prompt_that_answered_another_branch_supports_a_level_by_its_alternatives() -> None:
    one = made(PUMPS, 0.9, 0.8, 0.7)
    other = replace(made(COATS, 0.9, 0.5), alternatives=(Alternative(BOOTS, 0.3), Alternative(PUMPS, 0.1)))

    found = fold([one, other], {"category": 3}, CALIBRATION, REVIEW)

    assert found.level_confidences is not None
    assert found.level_confidences[1] == pytest.approx(1 / (1 + 1 / (4 * (0.4 / 0.6))), rel=1e-3)


def test_ids_of_categories_that_are_not_taught_are_left_out_of_the_prompt() -> None:
    prompt = make_prompt((COATS,), "EUR", category_path=True, category_ids={COATS: "5598", PUMPS: "187"})

    assert Prompt.model_validate_json(prompt.model_dump_json()) == prompt
    assert (prompt.category_path, prompt.category_ids) == (True, {COATS: "5598"})
