"""Photos streamed through an engine: each content and each key once, and a second pass where it helps."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from enrich.answers.calibration import Calibration
from enrich.answers.completion import Completion
from enrich.answers.postprocess import Prediction
from enrich.answers.token_evidence import AnswerTokens
from enrich.engines import predictor as answer_module
from enrich.engines.base import Request
from enrich.engines.predictor import SECOND_PASS, Predictor, Shown, prompts_of
from enrich.settings.review import ReviewSettings
from enrich.vocabulary import ErrorKind, ReviewReason
from tests.testing.fake_engine import FakeEngine, write_completion

Write = Callable[[Request, bool], Completion]
MakePredictor = Callable[..., tuple[Predictor, FakeEngine]]


def shown(key: str, page: np.ndarray, content: str) -> Shown:
    return Shown(key, prompts_of([(page, content)], 1))


def photo(key: str, content: str | None = None) -> Shown:
    return shown(key, np.zeros((2, 2, 3), np.uint8), content or f"content of {key}")


def titles(outcomes: list[tuple[str, Prediction]]) -> dict[str, str | None]:
    """Map each key to its title, or to None if it failed."""
    return {key: outcome.answer.title if outcome.answer else None for key, outcome in outcomes}


@pytest.fixture
def make_predictor(tokenizer: PreTrainedTokenizerBase, tokens: AnswerTokens) -> MakePredictor:
    def make(*, in_flight: int = 1, second_pass: bool = True) -> tuple[Predictor, FakeEngine]:
        """Contents with `odd` get an answer only under the grammar, `dead` makes the engine fail,
        `dies` makes it fail under the grammar, and `hopeless` gets no valid answer even then."""

        def write(request: Request, grammar: bool) -> Completion:
            text = f"Product: Title of {request.id}\nCategory: HATS\nFull Price: 12"
            if "dead" in request.id or ("dies" in request.id and grammar):
                return Completion(request.id, error="the engine failed: it was made to")
            if "hopeless" in request.id or ("odd" in request.id and not grammar):
                text = "I cannot tell."
            if "dies" in request.id:
                text = text.replace("HATS", "SPOONS")
            return write_completion(tokenizer, text, id=request.id, finished="endless" not in request.id or grammar)

        engine = FakeEngine(write, in_flight)
        return Predictor(engine, tokens, Calibration.uncalibrated(), ReviewSettings(), second_pass), engine

    return make


@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_every_key_gets_its_own_answer_whatever_the_order(make_predictor: MakePredictor, in_flight: int) -> None:
    predictor, engine = make_predictor(in_flight=in_flight)
    photos = [photo(f"{i}.jpg", f"{'odd ' * (i % 3 == 0)}content {i}") for i in range(40)]

    outcomes = list(predictor.answer(photos))

    assert len(outcomes) == 40
    assert titles(outcomes) == {image.key: f"Title of {image.prompts[0].id}" for image in photos}
    assert sorted(engine.asked) == sorted(
        [(image.prompts[0].id, False) for image in photos]
        + [(image.prompts[0].id, True) for image in photos if "odd" in image.prompts[0].id]
    )


@pytest.mark.parametrize("in_flight", [1, 2, 100])
@pytest.mark.parametrize("content", ["same", "odd same", "dead same", "hopeless same"])
def test_identical_bytes_are_inferred_once(make_predictor: MakePredictor, in_flight: int, content: str) -> None:
    predictor, engine = make_predictor(in_flight=in_flight)
    photos = [photo("a.jpg", content), photo("b.jpg", content), photo("other.jpg"), photo("c.jpg", content)]

    outcomes = list(predictor.answer(photos))

    assert sorted(key for key, _ in outcomes) == ["a.jpg", "b.jpg", "c.jpg", "other.jpg"]
    assert len({id(outcome) for key, outcome in outcomes if key != "other.jpg"}) == 1
    assert engine.asked.count((content, False)) == 1
    assert engine.asked.count((content, True)) == ("odd" in content or "hopeless" in content)


def test_bytes_of_an_earlier_shard_are_not_inferred_again(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor()
    first = dict(predictor.answer([photo("a.jpg", "same"), photo("b.jpg", "dead")]))
    second = dict(predictor.answer([photo("c.jpg", "same"), photo("d.jpg", "dead")]))

    assert second == {"c.jpg": first["a.jpg"], "d.jpg": first["b.jpg"]}
    assert engine.asked == [("same", False), ("dead", False)]


def test_a_key_given_twice_is_answered_twice(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor(in_flight=2)

    outcomes = list(predictor.answer([photo("a.jpg"), photo("a.jpg")]))

    assert [key for key, _ in outcomes] == ["a.jpg", "a.jpg"]
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("content", "kind", "passes"),
    [
        ("fine", None, 1),
        ("odd", None, 2),
        ("endless", None, 2),
        ("dead", ErrorKind.ENGINE_FAILED, 1),
        ("hopeless", ErrorKind.ANSWER_MALFORMED, 2),
        ("dies", ErrorKind.ENGINE_FAILED, 2),
    ],
)
def test_the_second_pass_is_for_what_it_can_fix_and_runs_once(
    make_predictor: MakePredictor, content: str, kind: ErrorKind | None, passes: int
) -> None:
    predictor, engine = make_predictor()

    [(key, outcome)] = predictor.answer([photo("a.jpg", content)])

    assert key == "a.jpg"
    assert outcome.error_kind == kind
    assert engine.asked == [(content, False), (content, True)][:passes]
    assert (ReviewReason.CATEGORY_UNKNOWN in outcome.reasons) == (kind is None and passes == 2)


def test_without_second_pass_first_answers_stand(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor(second_pass=False)

    [(_, outcome)] = predictor.answer([photo("a.jpg", "odd")])

    assert outcome.error_kind == ErrorKind.ANSWER_MALFORMED
    assert engine.asked == [("odd", False)]


def test_the_second_pass_does_not_wait_for_the_end(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor()
    given = []

    def photos() -> Iterator[Shown]:
        for i in range(SECOND_PASS + 5):
            given.append(i)
            yield photo(f"{i}.jpg", f"odd {i}")

    next(predictor.answer(photos()))

    assert len(given) == SECOND_PASS
    assert [grammar for _, grammar in engine.asked].count(True) >= 1


def test_pages_are_dropped_once_they_are_answered(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor()
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def photos() -> Iterator[Shown]:
        for i in range(200):
            page = np.zeros((2, 2, 3), np.uint8)
            alive.append(weakref.ref(page))
            yield shown(f"{i}.jpg", page, f"{'odd ' * (i % 2)}content {i % 150}")

    for _ in predictor.answer(photos()):
        engine.pages.clear()
        most = max(most, sum(reference() is not None for reference in alive))
    gc.collect()

    assert most <= 2 * SECOND_PASS + 2  # waiting for the second pass, in it, and the current one
    assert not [reference for reference in alive if reference() is not None]


def test_what_is_remembered_is_bounded(make_predictor: MakePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "SEEN", 3)
    predictor, engine = make_predictor()

    list(predictor.answer([photo(f"{i}.jpg", str(i)) for i in (1, 2, 3, 4)]))
    outcomes = list(predictor.answer([photo("new.jpg", "4"), photo("old.jpg", "1")]))

    assert titles(outcomes) == {"new.jpg": "Title of 4", "old.jpg": "Title of 1"}
    assert [digest for digest, _ in engine.asked] == ["1", "2", "3", "4", "1"]


def test_no_photos_give_no_outcomes(make_predictor: MakePredictor) -> None:
    predictor, engine = make_predictor()

    assert list(predictor.answer([])) == []
    assert engine.asked == []


@pytest.mark.parametrize("in_flight", [1, 2, 100])
def test_a_product_of_several_prompts_is_answered_once_all_of_them_are(
    make_predictor: MakePredictor, in_flight: int
) -> None:
    predictor, engine = make_predictor(in_flight=in_flight)
    page = np.zeros((2, 2, 3), np.uint8)
    two = Shown("two", prompts_of([(page, "a"), (page, "odd b")], 1))
    again = Shown("again", prompts_of([(page, "odd b"), (page, "dead")], 1))
    outcomes = dict(predictor.answer([two, shown("one", page, "a"), again]))
    assert {key: one.prompts for key, one in outcomes.items()} == {"two": 2, "one": 1, "again": 2}
    assert titles(list(outcomes.items())) == {"two": "Title of a", "one": "Title of a", "again": "Title of odd b"}
    assert sorted(engine.asked) == [("a", False), ("dead", False), ("odd b", False), ("odd b", True)]
    assert dict(predictor.answer([replace(two, key="later")]))["later"] == outcomes["two"]


@pytest.mark.parametrize(
    ("photos", "most", "prompts"),
    [
        ("", 1, []),
        ("", 3, []),
        ("a", 3, ["a"]),
        ("abc", 1, ["a", "b", "c"]),
        ("abc", 3, ["abc"]),
        ("abcd", 2, ["ab", "ac", "ad"]),
        ("abcdef", 3, ["abc", "ade", "af"]),
    ],
)
def test_every_prompt_begins_with_the_main_photo(photos: str, most: int, prompts: list[str]) -> None:
    page = np.zeros((2, 2, 3), np.uint8)
    made = prompts_of([(page, name) for name in photos], most)
    assert ["".join(prompt.sha256s) for prompt in made] == prompts
    assert all(len(prompt.pages) == len(prompt.sha256s) for prompt in made)
    assert len({prompt.id for prompt in made}) == len(made)
