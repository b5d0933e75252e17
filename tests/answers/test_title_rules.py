"""Rules that titles break, and words that the model does not stand by."""

from typing import Any

import pytest

from enrich.answers.title_rules import breaks_rules, noun_of, singular, ungrounded_words
from enrich.settings.review import TitleRules


@pytest.mark.parametrize(
    ("title", "changes", "broken"),
    [
        ("Belted Coat in Camel Check", {}, False),
        ("Coat", {}, False),
        ("!?", {}, True),
        ("x" * 150, {}, False),
        ("x" * 151, {}, True),
        ("Coat", {"max_characters": 3}, True),
        ("Coat SALE", {}, True),
        ("Wholesale Coat", {}, False),
        ("Coat, Free  Shipping!", {}, True),
        ("Пальто", {}, False),
        ("Пальто", {"scripts": ("LATIN",)}, True),
        ("Écharpe 42", {"scripts": ("LATIN",)}, False),
        ("Coat Coat in Camel", {}, True),
        ("Red and Red and Red", {}, True),
        ("Red Coat with Red Belt", {}, False),
        ("ACME Coat", {"forbidden_words": ("Acme", "Other")}, True),
        ("Acme's Coat", {"forbidden_words": ("Acme",)}, False),
    ],
)
def test_rules(title: str, changes: dict[str, Any], broken: bool) -> None:
    assert breaks_rules(title, TitleRules(**changes)) is broken


NOUNS = frozenset(map(noun_of, ("COATS", "TOTE BAGS", "Bags / SHOULDER BAGS", "Dresses", "SCARVES", "ACCESSORIES")))


def test_what_labels_call_their_products() -> None:
    assert {"coat", "bag", "dress", "scarf", "accessory"} == NOUNS
    assert [singular(word) for word in ("watches", "boxes", "glass", "trousers", "shoes", "hat")] == [
        "watch", "box", "glass", "trouser", "shoe", "hat",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "category", "doubted"),
    [
        ([("Coat", 0.9), ("in", 1.0), ("Camel", 0.9)], "COATS", []),
        ([("Coat", 0.9), ("in", 1.0), ("Camel", 0.2)], "COATS", ["Camel"]),
        ([("Cashmere", 0.1), ("Coat", 0.9)], "COATS", ["Cashmere"]),
        ([("Odd", 0.01), ("Coat", 0.9)], "COATS", []),  # neither a colour nor a material
        ([("Coat", 0.9), ("in", 1.0), ("Red", 0.9)], "TOTE BAGS", ["Coat"]),
        ([("Coat", 0.9), ("Bag", 0.9)], "TOTE BAGS", []),  # it says what it is, too
        ([("Beanie", 0.9)], "HATS", []),
        ([], "HATS", []),
    ],
)
def test_words_that_the_model_does_not_support(
    words: list[tuple[str, float]], category: str, doubted: list[str]
) -> None:
    assert ungrounded_words(words, category, NOUNS, TitleRules()) == doubted
