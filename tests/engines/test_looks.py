"""Products looked at twice: first at few crops, closely only where that answer leaves doubts."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration, CategoryCalibration, FirstLook
from enrich.answers.completion import Completion
from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines.base import Request
from enrich.engines.predictor import Predictor, Shown, show
from enrich.photos.decode import Photo
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import ErrorKind
from tests.testing.fake_engine import FakeEngine, write_completion

MakePredictor = Callable[..., tuple[Predictor, FakeEngine]]
SMALL, LARGE = np.zeros((2, 2, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
# Confidences of the first look are near 0.73, of the second near 0.5: by them a row tells which calibration it got.
AT_FIRST, CLOSELY = (CategoryCalibration(slope=0.0, intercept=odds, rows=0) for odds in (1.0, 0.0))


def product(key: str, *contents: str, most: int = 1) -> Shown:
    """Photos whose first looks are `SMALL`; further ones of a prompt have none."""
    photos = [
        (Photo(LARGE, 9, 9, first=SMALL if most == 1 or not at else None), content)
        for at, content in enumerate(contents or [f"content of {key}"])
    ]
    return show(key, photos, most)


@pytest.fixture
def make_predictor(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> MakePredictor:
    def make(*, in_flight: int = 1, looks: bool = True) -> tuple[Predictor, FakeEngine]:
        """At the first look contents with `unclear` get an answer that does not parse, and `dead` ends the engine. At
        the second `odd` needs the grammar."""

        def write(request: Request, grammar: bool) -> Completion:
            close = request.pages[0] is LARGE
            text = f"Product: {'Close' if close else 'Quick'}\nCategory: HATS\nFull Price: 12"
            if "dead" in request.id and not close:
                return Completion(request.id, error="the engine failed: it was made to")
            if ("unclear" in request.id and not close) or ("odd" in request.id and close and not grammar):
                text = "I cannot tell."
            return write_completion(tokenizer, text, id=request.id)

        calibration = Calibration(price=None, category=CLOSELY)
        first = FirstLook(squares=1, calibration=calibration.model_copy(update={"category": AT_FIRST}), least_doubt=0.5)
        calibration = calibration.model_copy(update={"first": first if looks else None})
        engine = FakeEngine(write, in_flight)
        return Predictor(engine, tokens, calibration, ReviewSettings()), engine

    return make


def summary(prediction: Prediction) -> tuple[str | None, int, float | None]:
    title = prediction.answer.title if prediction.answer else None
    return title, prediction.looks, None if prediction.confidence is None else round(prediction.confidence, 2)


@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_only_doubtful_products_are_looked_at_again(make_predictor: MakePredictor, in_flight: int) -> None:
    predictor, engine = make_predictor(in_flight=in_flight)
    keys = [f"{number}{' unclear' * (number % 3 == 0)}" for number in range(40)]
    outcomes = list(predictor.answer(product(key) for key in keys))
    assert sorted(key for key, _ in outcomes) == sorted(keys)
    for key, prediction in outcomes:
        assert summary(prediction) == (("Close", 2, 0.5) if "unclear" in key else ("Quick", 1, 0.73))
        assert prediction.prompt_tokens == 100 * prediction.looks
    sizes = Counter(page.shape[0] for page in engine.pages)
    assert sizes == {2: 40, 4: sum("unclear" in key for key in keys)}


def test_the_threshold_decides(make_predictor: MakePredictor) -> None:
    for least, looks in ((0.2, 2), (0.27, 1)):  # a confidence of 0.73 leaves a doubt of 0.27
        predictor, _ = make_predictor()
        assert predictor.calibration.first
        first = predictor.calibration.first.model_copy(update={"least_doubt": least})
        predictor.calibration = predictor.calibration.model_copy(update={"first": first})
        [(_, prediction)] = predictor.answer([product("a")])
        assert prediction.looks == looks


def test_without_looks_products_are_shown_closely(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor(looks=False)
    [(_, prediction)] = predictor.answer([product("a")])
    assert summary(prediction) == ("Close", 1, 0.5)
    assert [page.shape[0] for page in engine.pages] == [4]


def test_second_looks_come_before_further_products(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor(in_flight=2)
    taken: list[str] = []

    def products() -> Iterator[Shown]:
        for number in range(50):
            taken.append(f"{number}")
            yield product(f"{number} unclear")

    answers = predictor.answer(products())
    next(answers)
    assert len(taken) <= 4
    assert engine.pages[-1].shape[0] == 4
    assert len(list(answers)) == 49


def test_failures_and_the_grammar(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor(in_flight=4)
    found = dict(predictor.answer([product("dead"), product("odd unclear"), product("a"), product("odd b")]))
    assert (found["dead"].error_kind, found["dead"].looks) == (ErrorKind.ENGINE_FAILED, 1)
    assert summary(found["odd unclear"])[:2] == ("Close", 2)
    assert summary(found["odd b"])[:2] == ("Quick", 1)
    assert [id for id, grammar in engine.asked if grammar] == ["content of odd unclear"]


@pytest.mark.parametrize("in_flight", [1, 2, 100])
@pytest.mark.parametrize("content", ["same", "same unclear", "same odd unclear"])
def test_identical_bytes_are_looked_at_once(make_predictor: MakePredictor, in_flight: int, content: str) -> None:
    predictor, engine = make_predictor(in_flight=in_flight)
    found = [*predictor.answer([product("a", content), product("b", content), product("c")])]
    found += predictor.answer([product("d", content)])
    assert sorted(key for key, _ in found) == ["a", "b", "c", "d"]
    assert len({summary(prediction) for key, prediction in found if key != "c"}) == 1
    assert max(Counter(engine.asked).values()) == 1


def test_photos_of_a_product_are_looked_at_again_together(make_predictor: MakePredictor) -> None:
    """Each is the main photo of a prompt; what both prompts say after the first look decides."""
    predictor, engine = make_predictor(in_flight=8)
    [(_, prediction)] = predictor.answer([product("a", "dead one", "two")])
    assert (prediction.looks, prediction.prompts) == (1, 2)  # a prompt without an answer does not count
    engine.pages.clear()
    [(_, prediction)] = predictor.answer([product("b", "one unclear", "two unclear")])
    assert (prediction.looks, prediction.prompts) == (2, 2)
    assert [page.shape[0] for page in engine.pages] == [2, 2, 4, 4]


def test_only_the_main_photo_of_a_prompt_has_a_first_look() -> None:
    shown = product("a", "one", "two", "three", most=2)
    assert [[page.shape[0] for page in prompt.pages] for prompt in shown.first] == [[2, 4], [2, 4]]
    assert [[page.shape[0] for page in prompt.pages] for prompt in shown.prompts] == [[4, 4], [4, 4]]
    assert not {prompt.id for prompt in shown.first} & {prompt.id for prompt in shown.prompts}
