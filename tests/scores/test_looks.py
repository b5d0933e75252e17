"""When a second look pays, on made-up answers whose mistakes are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from enrich.answers.looks import doubt
from enrich.answers.parse import Answer
from enrich.answers.postprocess import Attributed, Prediction
from enrich.scores.looks import choose_least_doubt, sweep
from enrich.vocabulary import Product

PRODUCTS = [Product(str(n), f"Shirt {n}", ("HATS", "BAGS")[n % 2], 10.0 + n, (), {"colour": "red"}) for n in range(400)]
RIGHT = [Answer(one.title, one.category, one.price, {"colour": "red"}) for one in PRODUCTS]


def predictions(wrong: set[int], confidence: float = 0.95, doubtful: float = 0.3) -> list[Prediction]:
    """Right answers, confident, except those of `wrong`: another category, and less sure of it."""
    made = []
    for number, answer in enumerate(RIGHT):
        bad = number in wrong
        made.append(
            Prediction(
                answer=replace(answer, category="COATS") if bad else answer,
                # No two alike, so that any share can be cut off.
                confidence=(doubtful if bad else confidence) + number * 1e-5,
                attributes={"colour": Attributed("red", 0.9, 0.9)},
                prompt_tokens=340,
            )
        )
    return made


CLOSE = [replace(one, prompt_tokens=780) for one in predictions(set(range(0, 400, 40)))]


def share(first: list[Prediction], least: float) -> float:
    return float(np.mean([doubt(one) >= least for one in first]))


def test_doubtful_answers_are_looked_at_again_and_no_others() -> None:
    first = predictions(set(range(0, 400, 10)))  # 40 wrong ones, each of them doubtful; a close look leaves 10
    least = choose_least_doubt(PRODUCTS, first, CLOSE)
    assert 0.05 <= share(first, least) <= 0.1


def test_no_second_looks_where_the_first_is_as_good() -> None:
    least = choose_least_doubt(PRODUCTS, CLOSE, CLOSE)
    assert share(CLOSE, least) == 0
    assert math.isfinite(least)


def test_every_product_is_looked_at_again_where_confidence_says_nothing() -> None:
    first = predictions(set(range(0, 400, 2)), doubtful=0.95)
    least = choose_least_doubt(PRODUCTS, first, CLOSE)
    assert share(first, least) > 0.9


@pytest.mark.parametrize("spoilt", ["title", "price", "colour", "silent"])
def test_every_score_counts(spoilt: str) -> None:
    """A first look that is worse in one score only, and does not know where, is never enough."""
    changed = {
        "title": lambda one: replace(one, answer=replace(one.answer, title="Shirt")),
        "price": lambda one: replace(one, answer=replace(one.answer, price=(one.answer.price or 0) * 3)),
        "colour": lambda one: replace(one, answer=replace(one.answer, attributes={"colour": "blue"})),
        "silent": lambda one: Prediction(prompt_tokens=340),
    }[spoilt]
    first = [changed(one) for one in CLOSE]
    least = choose_least_doubt(PRODUCTS, first, CLOSE)
    assert share(first, least) >= 0.5


def test_answers_that_are_missing_are_looked_for_again() -> None:
    first = [Prediction() if number % 10 == 0 else one for number, one in enumerate(CLOSE)]
    least = choose_least_doubt(PRODUCTS, first, CLOSE)
    assert math.isfinite(least)
    assert share(first, least) == pytest.approx(0.1, abs=0.05)
    assert doubt(first[0]) >= least


def test_the_sweep_compares_ways_on_the_same_products() -> None:
    first = predictions(set(range(0, 400, 10)))
    served = [replace(two, looks=2) if doubt(one) > 0.5 else one for one, two in zip(first, CLOSE, strict=True)]
    quick, close, both = sweep(PRODUCTS, (1, 4), first, CLOSE, served)
    assert [way["looks"] for way in (quick, close, both)] == [[1], [4], [1, 4]]
    assert (quick["second_looks"], close["second_looks"], both["second_looks"]) == (0, 0, 0.1)
    assert (quick["prompt_tokens"], close["prompt_tokens"]) == (340, 780)
    found = quick["scores"]["category_accuracy"]
    assert (found["value"], found["difference"]) == pytest.approx((0.9, -0.075))
    assert found["low"] < -0.075 < found["high"] < 0
    assert close["scores"]["price_mdape"] == {"value": 0, "difference": 0, "low": 0, "high": 0}
    assert both["scores"]["category_accuracy"]["difference"] == 0
    assert set(both["scores"]) == {"category_accuracy", "title_exact", "price_mdape", "fields_accuracy"}
