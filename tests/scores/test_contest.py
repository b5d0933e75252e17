"""Two adapters on the same products: worse only where it is more than luck."""

import numpy as np
import pytest

from enrich.answers.parse import Answer
from enrich.scores.contest import Contest, contest, share_changed
from enrich.vocabulary import Product

PRODUCTS = [Product(str(n), f"Shirt {n}", ("HATS", "BAGS")[n % 2], 10.0 + n, ()) for n in range(200)]


def answers(seed: int, right: float, off: float = 0.1) -> list[Answer | None]:
    """Each category right with probability `right`, prices off by the factor exp(N(0, off))."""
    rng = np.random.default_rng(seed)
    return [
        Answer(
            one.title, one.category if rng.random() < right else "COATS", (one.price or 0) * np.exp(rng.normal(0, off))
        )
        for one in PRODUCTS
    ]


def lost(found: Contest) -> list[str]:
    return [one.measure for one in found.lost]


@pytest.mark.parametrize("seed", range(5))
def test_an_adapter_of_the_same_quality_does_not_lose(seed: int) -> None:
    found = contest("labels", PRODUCTS, answers(2 * seed, 0.8), answers(2 * seed + 1, 0.8))
    assert [one.measure for one in found.differences] == ["category", "title", "price"]
    assert lost(found) == []


def test_one_that_is_clearly_worse_loses_at_what_it_is_worse_at() -> None:
    standing = answers(0, 0.9)
    assert lost(contest("labels", PRODUCTS, answers(1, 0.7), standing)) == ["category"]
    assert lost(contest("labels", PRODUCTS, answers(1, 0.9, off=0.8), standing)) == ["price"]
    silent = [Answer("Coat", one.category, one.price) if one else None for one in standing]
    assert lost(contest("labels", PRODUCTS, silent, standing)) == ["title"]
    assert lost(contest("labels", PRODUCTS, [None] * 200, standing)) == ["category", "title", "price"]
    assert lost(contest("labels", PRODUCTS, [None] * 200, standing, but="title")) == ["category", "price"]
    assert lost(contest("labels", PRODUCTS, answers(1, 0.99), standing)) == []


def test_another_spelling_of_a_category_is_no_mistake() -> None:
    """Most rows of a catalog decide how a category is spelled, and may do so otherwise tomorrow."""
    spelled: list[Answer | None] = [
        Answer(one.title, one.category.capitalize(), one.price) for one in answers(0, 1.0) if one
    ]
    category = contest("labels", PRODUCTS, spelled, answers(0, 1.0)).differences[0]
    assert (category.measure, category.new, category.standing) == ("category", 1.0, 1.0)
    assert share_changed(spelled, answers(0, 1.0)) == 0


def test_photos_of_one_design_are_one_piece_of_evidence() -> None:
    """Twenty photos of one design that the new adapter takes for another are one mistake, not twenty."""
    products = [Product(str(n), "One shirt" if n < 20 else f"Shirt {n}", "HATS", None, ()) for n in range(60)]
    right: list[Answer | None] = [Answer(one.title, "HATS", None) for one in products]
    wrong: list[Answer | None] = [
        Answer(one.title, "BAGS" if n < 20 else "HATS", None) for n, one in enumerate(products)
    ]
    found = contest("labels", products, wrong, right)
    assert lost(found) == []
    assert found.differences[0].low < -0.3
    assert [one.measure for one in found.differences] == ["category", "title"]  # no prices are known


def test_the_share_of_products_that_would_change() -> None:
    one = Answer("Hat", "HATS", 10.0)
    others = [one, Answer("HAT", "HATS", 11.0), Answer("Cap", "HATS", 10.0), Answer("Hat", "BAGS", 10.0),
              Answer("Hat", "HATS", 20.0), Answer("Hat", "HATS", None), None]  # fmt: skip
    assert share_changed([one] * 7, others) == pytest.approx(5 / 7)
    assert share_changed([None], [None]) == 0


@pytest.mark.parametrize("designs", [1, 2, 3, 5, 10])
def test_equals_seldom_lose_by_few_products(designs: int) -> None:
    """By the bootstrap alone a price a little off would lose every second time by one product, 4 % by five."""
    products = PRODUCTS[:designs]
    times = 150
    losses = sum(
        "price" in lost(contest("labels", products, answers(2 * n, 1.0, off=0.3)[:designs],
                                answers(2 * n + 1, 1.0, off=0.3)[:designs]))
        for n in range(times)
    )  # fmt: skip
    assert losses <= 0.03 * times


def test_what_is_wrong_about_each_of_few_products_loses() -> None:
    products = PRODUCTS[:3]
    right: list[Answer | None] = [Answer(one.title, one.category, one.price) for one in products]
    wrong: list[Answer | None] = [Answer(one.title, "COATS", one.price) for one in products]
    found = contest("labels", products, wrong, right)
    assert lost(found) == ["category"]
    [one] = contest("labels", products[:1], wrong[:1], right[:1], but="title").differences[:1]
    assert (one.low, one.high) == (-1, 1)
