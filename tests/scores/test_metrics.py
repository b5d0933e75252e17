"""Scores against values worked out by hand."""

import math

import pytest

from enrich.answers.parse import Answer
from enrich.scores.metrics import (
    PriceScores,
    Scores,
    baselines,
    edit_similarity,
    expected_calibration_error,
    score,
    token_f1,
)
from enrich.vocabulary import Product


def product(title: str, category: str, price: float | None) -> Product:
    return Product("P", title, category, price, ("/photo.jpg",))


PRODUCTS = [
    product("Felt Hat", "HATS", 100.0),
    product("Wool Hat", "HATS", 50.0),
    product("Tote Bag", "BAGS", 200.0),
    product("Silk Scarf", "SCARVES", None),
]


def test_scores_by_hand() -> None:
    answers = [
        Answer("felt hat", "HATS", 110),
        Answer("Wool Cap", "BAGS", None),
        None,
        Answer("Scarf", "SCARVES", 30),
    ]

    found = score(PRODUCTS, answers)

    assert found["rows"] == 4
    assert found["parse_rate"] == 0.75
    assert found["category_accuracy"] == 0.5
    # HATS 2*1/(2+1), BAGS 0, SCARVES 1
    assert found["category_macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["title_exact"] == 0.25
    # 1, 2*1/4, nothing, 2*1/3
    assert found["title_token_f1"] == pytest.approx((1 + 0.5 + 0 + 2 / 3) / 4)
    # 1, "felt cap" 3 of 8, nothing, "scarf" 5 of 10
    assert found["title_edit_similarity"] == pytest.approx((1 + 6 / 8 + 0 + 1 / 2) / 4)
    price = found["price"]
    assert price is not None
    assert price["rows"] == 3  # the scarf's price is not known
    assert price["answered"] == pytest.approx(1 / 3)
    assert price["mae"] == pytest.approx((10 + 50 + 200) / 3)  # no answer is 100 % off
    assert price["mdae"] == 50
    assert price["mdape"] == 1.0
    assert price["within_20_percent"] == pytest.approx(1 / 3)
    assert price["rmsle"] == pytest.approx(math.log(1.1))
    assert price["log_bias"] == pytest.approx(math.log(1.1))


def priced(true: list[float | None], predicted: list[int | None]) -> PriceScores | None:
    answers = [Answer("Hat", "HATS", price) for price in predicted]
    return score([product("Hat", "HATS", price) for price in true], answers)["price"]


def test_price_scores_by_hand() -> None:
    found = priced([100.0, 100.0, 100.0, 10.0], [120, 50, 200, 10])

    assert found is not None
    assert found["mae"] == pytest.approx((20 + 50 + 100 + 0) / 4)
    assert found["mdae"] == pytest.approx(35)
    assert found["mdape"] == pytest.approx(0.35)
    assert found["within_20_percent"] == 0.5  # 20 % off is within
    assert found["rmsle"] == pytest.approx(math.sqrt((math.log(1.2) ** 2 + 2 * math.log(2) ** 2) / 4))
    assert found["log_bias"] == pytest.approx(math.log(1.2) / 4)  # halved and doubled cancel


def test_prices_that_were_never_answered() -> None:
    found = priced([10.0, 20.0], [None, 0])

    assert found is not None
    assert set(found) == set(PriceScores.__annotations__)
    assert (found["answered"], found["mdape"], found["rmsle"]) == (0.0, 1.0, math.inf)
    assert math.isnan(found["log_bias"])


def test_no_known_price_gives_no_price_scores() -> None:
    found = score(PRODUCTS[3:], [None])
    assert set(found) == set(Scores.__annotations__)
    assert found["price"] is None


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^there is nothing to score: no rows$"):
        score([], [])


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ("Felt Hat", "FELT  hat", 1.0),
        ("Felt Hat", "Wool Bag", 0.0),
        ("Blue Blue Hat", "Blue Hat Hat", 2 / 3),
        ("Hat", "A very fine Hat", 0.4),
        ("Hat", "", 0.0),
        ("", "", 0.0),
        # Without blanks characters count: 9 of 10 and 9 of 9.
        ("婦人用ウールコート白", "婦人用ウールコート", 18 / 19),
        ("婦人用 ウールコート", "婦人用ウールコート", 1.0),
        ("Nike白スニーカー", "NIKE 黒スニーカー", 6 / 7),
        ("เสื้อ", "เสื้", 8 / 9),
        ("파란 셔츠", "파란 바지", 0.5),  # Korean has blanks
    ],
)
def test_token_f1(true: str, predicted: str, expected: float) -> None:
    assert token_f1(true, predicted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("Felt Hat", "FELT  hat", 1.0),
        ("Felt Hat", "Felt Hats", 1 - 1 / 9),
        ("", "", 1.0),
        ("Hat", "", 0.0),
        ("", "Hat", 0.0),
        ("abc", "xyz", 0.0),
        ("婦人用ウールコート白", "婦人用ウールコート黒", 0.9),
        ("ab", "ba", 0.0),  # a swap is two edits
    ],
)
def test_edit_similarity(true: str, predicted: str, expected: float) -> None:
    assert edit_similarity(true, predicted) == pytest.approx(expected)
    assert edit_similarity(predicted, true) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answered", "expected"),
    [("AABB", (2 * 2 / 5 + 2 * 1 / 3) / 2), ("C-C-", 0.0), ("AAAB", 1.0)],
)
def test_macro_f1_counts_each_true_label_once(answered: str, expected: float) -> None:
    products = [product("Hat", label, None) for label in "AAAB"]
    answers = [None if label == "-" else Answer("Hat", label, None) for label in answered]

    assert score(products, answers)["category_macro_f1"] == pytest.approx(expected)


def test_baselines_know_the_training_split_only() -> None:
    train = [*PRODUCTS, product("Felt Hat", "HATS", 70.0), product("Silk Scarf", "SCARVES", None)]
    test = [product("Felt Hat", "HATS", 70.0), product("Big Bag", "BAGS", 100.0), product("Cap", "CAPS", 85.0)]

    found = baselines(train, test)

    # The majority is HATS; medians: all 85, HATS 70, BAGS 200; CAPS has none and takes that of all.
    majority, by_category = found["majority_class"], found["category_median"]
    assert majority["category_accuracy"] == by_category["category_accuracy"] == pytest.approx(1 / 3)
    assert majority["title_exact"] == pytest.approx(1 / 3)
    assert majority["price"] is not None
    assert majority["price"]["mae"] == pytest.approx((15 + 15 + 0) / 3)
    assert by_category["price"] is not None
    assert by_category["price"]["mae"] == pytest.approx((0 + 100 + 0) / 3)


def test_baselines_without_any_price() -> None:
    found = baselines(PRODUCTS[3:], PRODUCTS[:1])

    assert found["majority_class"]["price"] is not None
    assert found["majority_class"]["price"]["answered"] == 0.0


@pytest.mark.parametrize(
    ("confidences", "right", "expected"),
    [
        ([0.95, 0.95], [True, True], 0.05),
        ([0.95, 0.91, 0.15, 0.11], [True, False, False, False], 0.43 / 2 + 0.13 / 2),
        ([1.0, 0.0], [True, False], 0.0),
        ([1.0], [False], 1.0),
        ([0.5, 0.5], [True, False], 0.0),  # one bin, right on average
    ],
)
def test_calibration_error(confidences: list[float], right: list[bool], expected: float) -> None:
    assert expected_calibration_error(confidences, right) == pytest.approx(expected)
