"""Every way an answer can fail, and every reason for a person to look at one."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration, CategoryCalibration, PriceCalibration
from enrich.answers.completion import Completion
from enrich.answers.parse import Answer, parse_answer
from enrich.answers.postprocess import Prediction, postprocess
from enrich.answers.prompt import make_prompt
from enrich.answers.token_evidence import AnswerTokens
from enrich.models.phi3_vision.processing import END
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import Alternative, ErrorKind, ReviewReason
from tests.testing.fake_engine import write_completion
from tests.testing.tiny_tokenizer import PROMPT

CALIBRATION = Calibration(
    price=PriceCalibration(
        quantiles={"0.8": 1.0, "0.9": 2.0}, floor=0.1, lowest=10.0, highest=1000.0, rows=50, designs=20
    ),
    category=CategoryCalibration(slope=1.0, intercept=0.0, rows=50),
)
REVIEW = ReviewSettings(min_confidence=0.6, max_price_ratio=6.0)
GOOD = "Product: Felt Hat\nCategory: HATS\nFull Price: 120"


Predict = Callable[..., Prediction]


@pytest.fixture
def predict(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> Predict:
    """A function from a text, whose label's first own token leaves `unsure` to BAGS, to its prediction."""

    def predict(text: str, *, calibration: Calibration = CALIBRATION, constrained: bool = False, finished: bool = True,
                unsure: float = 0.0) -> Prediction:  # fmt: skip
        ids = tokenizer.encode(text, add_special_tokens=False)
        label = (ids.index(tokens.newline) if tokens.newline in ids else 0) + 3
        bags = next(line[2] for line, category in tokens.choices["category"].lines.items() if category == "BAGS")
        rivals = {label: {bags: unsure}} if unsure else {}
        completion = write_completion(
            tokenizer, text, probabilities={label: 1 - unsure}, rivals=rivals, finished=finished
        )
        return postprocess(completion, tokens, calibration, REVIEW, constrained=constrained)

    return predict


def test_a_good_answer_needs_no_person(predict: Predict, tokenizer: PreTrainedTokenizerBase) -> None:
    prediction = predict(GOOD, unsure=0.2)

    assert prediction.answer == Answer("Felt Hat", "HATS", 120)
    assert prediction.error_kind is None
    assert prediction.reasons == ()
    assert (prediction.probability, prediction.confidence) == (pytest.approx(0.8), pytest.approx(0.8))
    assert prediction.alternatives == (Alternative("BAGS", pytest.approx(0.2)),)
    # quantile 2 of spread 0 + floor 0.1
    assert (prediction.price_low, prediction.price_high) == pytest.approx((120 * math.exp(-0.2), 120 * math.exp(0.2)))
    assert prediction.prompt_tokens == 100
    assert prediction.output_tokens == len(tokenizer.encode(GOOD, add_special_tokens=False))
    assert not prediction.wants_grammar


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (GOOD, ErrorKind.ANSWER_TRUNCATED, "no end after {n} tokens"),
        ("A hat", ErrorKind.ANSWER_MALFORMED, "expected the lines Product, Category, Full Price, got 'A hat'"),
        (GOOD.replace("HATS", "hats"), ErrorKind.CATEGORY_UNKNOWN, "'hats' is not in the adapter's taxonomy"),
        (GOOD.replace("120", "0"), ErrorKind.PRICE_OUT_OF_RANGE, "0 is far outside the catalog's prices"),
        (GOOD.replace("120", "10001"), ErrorKind.PRICE_OUT_OF_RANGE, "10001 is far outside the catalog's prices"),
    ],
)
def test_an_unusable_answer_says_why(
    predict: Predict, tokenizer: PreTrainedTokenizerBase, text: str, kind: ErrorKind, message: str
) -> None:
    prediction = predict(text, finished=kind != ErrorKind.ANSWER_TRUNCATED)

    n = len(tokenizer.encode(text, add_special_tokens=False))
    understood = kind in (ErrorKind.CATEGORY_UNKNOWN, ErrorKind.PRICE_OUT_OF_RANGE)
    assert prediction == Prediction(
        parsed=parse_answer(text, PROMPT) if understood else None,
        error_kind=kind,
        error_message=message.format(n=n),
        prompt_tokens=100,
        output_tokens=n,
    )
    assert prediction.wants_grammar == (kind != ErrorKind.PRICE_OUT_OF_RANGE)


def test_an_engines_failure_is_no_answer(tokens: AnswerTokens) -> None:
    prediction = postprocess(Completion("x", error="the engine failed: out of memory"), tokens, CALIBRATION, REVIEW)

    assert prediction == Prediction(
        error_kind=ErrorKind.ENGINE_FAILED, error_message="the engine failed: out of memory"
    )
    assert not prediction.wants_grammar


@pytest.mark.parametrize(
    ("price", "changes", "reasons"),
    [
        ("120", {}, ()),
        ("120", {"unsure": 0.5}, (ReviewReason.LOW_CONFIDENCE,)),
        ("120", {"constrained": True}, (ReviewReason.CATEGORY_UNKNOWN,)),
        ("1001", {}, (ReviewReason.PRICE_OUTLIER,)),
        ("9", {}, (ReviewReason.PRICE_OUTLIER,)),
        ("unknown", {}, ()),
        (
            "2000",
            {"constrained": True, "unsure": 0.9},
            (ReviewReason.CATEGORY_UNKNOWN, ReviewReason.LOW_CONFIDENCE, ReviewReason.PRICE_OUTLIER),
        ),
    ],
)
def test_reasons_to_look(predict: Predict, price: str, changes: dict, reasons: tuple) -> None:
    prediction = predict(f"Product: Hat\nCategory: HATS\nFull Price: {price}", **changes)

    assert prediction.answer is not None
    assert prediction.reasons == reasons


@pytest.mark.parametrize(("floor", "wide"), [(0.44, False), (0.46, True)])
def test_a_wide_price_is_looked_at(predict: Predict, floor: float, wide: bool) -> None:
    assert CALIBRATION.price is not None
    wider = CALIBRATION.model_copy(update={"price": CALIBRATION.price.model_copy(update={"floor": floor})})

    prediction = predict(GOOD, calibration=wider)

    # high / low = exp(2 * 2 * floor), against 6 = exp(1.79)
    assert prediction.reasons == ((ReviewReason.WIDE_PRICE,) if wide else ())


def test_an_unknown_price_has_no_interval(predict: Predict) -> None:
    prediction = predict("Product: Hat\nCategory: HATS\nFull Price: unknown")

    assert prediction.answer == Answer("Hat", "HATS", None)
    assert (prediction.price_low, prediction.price_high, prediction.price_features.spread) == (None, None, 0.0)


def test_without_calibrated_prices_there_is_no_interval(predict: Predict) -> None:
    prediction = predict(GOOD.replace("120", "9999999"), calibration=Calibration.uncalibrated())

    assert prediction.answer is not None
    assert (prediction.price_low, prediction.price_high, prediction.reasons) == (None, None, ())


def test_calibration_leaves_the_rest_to_the_other_labels(predict: Predict) -> None:
    doubting = Calibration(price=None, category=CategoryCalibration(slope=0.0, intercept=0.0, rows=10))

    prediction = predict(GOOD, calibration=doubting, unsure=0.1)

    assert prediction.confidence == 0.5
    assert prediction.alternatives == (Alternative("BAGS", pytest.approx(0.5)),)  # all that was left to others


def test_a_label_is_not_its_own_alternative(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    """HATS in other tokens than the tokenizer's: the usual ones are among the rivals."""
    usual = write_completion(tokenizer, GOOD)
    ids = list(usual.token_ids)
    start = ids.index(tokens.newline) + 1
    letters = [tokenizer.convert_tokens_to_ids(piece) for piece in ("\u2581", "H", "A", "T", "S")]
    end = ids.index(tokens.newline, start)
    spelled = [*ids[: start + 2], *letters, *ids[end:]]
    assert tokenizer.decode(spelled) == GOOD
    width = usual.top_ids.shape[1]
    tops = [[token] + [0] * (width - 1) for token in spelled]
    tops[start + 2][1] = ids[start + 2]
    logprobs = [[0.0] + [-math.inf] * (width - 1) for _ in spelled]
    logprobs[start + 2][:2] = [math.log(0.6), math.log(0.4)]
    completion = replace(
        usual,
        token_ids=tuple(spelled),
        logprobs=np.array([row[0] for row in logprobs], np.float32),
        top_ids=np.array(tops, np.int32),
        top_logprobs=np.array(logprobs, np.float32),
    )

    prediction = postprocess(completion, tokens, CALIBRATION, REVIEW)

    assert prediction.answer == Answer("Felt Hat", "HATS", 120)
    assert "HATS" not in [alternative.category for alternative in prediction.alternatives]


def test_at_most_three_alternatives_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    names = ("HATS", "BAGS", "COATS", "SHOES", "KNIVES")
    tokens = AnswerTokens(tokenizer, make_prompt(names, "EUR"), END)
    ids = tokenizer.encode(GOOD, add_special_tokens=False)
    place = ids.index(tokens.newline) + 3
    firsts = {name: line[2] for line, name in tokens.choices["category"].lines.items() if name != "HATS"}
    assert len(set(firsts.values())) == 4
    shares = {"COATS": 0.2, "BAGS": 0.15, "KNIVES": 0.1, "SHOES": 0.05}
    rivals = {place: {firsts[name]: share for name, share in shares.items()}}
    completion = write_completion(tokenizer, GOOD, probabilities={place: 0.5}, rivals=rivals)

    prediction = postprocess(completion, tokens, CALIBRATION, REVIEW)

    assert prediction.alternatives == tuple(
        Alternative(name, pytest.approx(shares[name])) for name in ("COATS", "BAGS", "KNIVES")
    )


@pytest.mark.parametrize(
    ("title", "reasons"),
    [
        ("Felt Hat", ()),
        ("Felt Hat Sale", (ReviewReason.TITLE_RULE,)),
        ("Leather Bag", (ReviewReason.TITLE_UNGROUNDED,)),
    ],
)
def test_titles_are_checked(predict: Predict, title: str, reasons: tuple) -> None:
    assert predict(GOOD.replace("Felt Hat", title)).reasons == reasons


def test_the_price_is_the_expectation(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> None:
    first = len(tokenizer.encode(GOOD, add_special_tokens=False)) - 3
    two = next(token for token, digit in tokens.digits.items() if digit == "2")
    completion = write_completion(tokenizer, GOOD, probabilities={first: 0.5}, rivals={first: {two: 0.5}})

    prediction = postprocess(completion, tokens, CALIBRATION, REVIEW)

    point = math.sqrt(120 * 100 * math.sqrt(6))  # halfway, in logs, to the middle of 200 to 300
    assert (prediction.answer, prediction.parsed) == (
        Answer("Felt Hat", "HATS", round(point)),
        Answer("Felt Hat", "HATS", 120),
    )
    assert prediction.price_low is not None
    assert prediction.price_high is not None
    assert math.sqrt(prediction.price_low * prediction.price_high) == pytest.approx(point)


def test_the_threshold_is_the_calibrations_where_none_is_set(
    tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens
) -> None:
    strict = CALIBRATION.model_copy(update={"category": CALIBRATION.category.model_copy(update={"review_below": 0.9})})
    completion = write_completion(tokenizer, GOOD, probabilities={2: 0.85})

    assert postprocess(completion, tokens, strict, ReviewSettings()).reasons == (ReviewReason.LOW_CONFIDENCE,)
    assert postprocess(completion, tokens, strict, REVIEW).reasons == ()
