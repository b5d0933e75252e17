"""Rules that flag a title whatever its photo shows, and words in it that the model itself doubts."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

from enrich.settings.review import TitleRules

MAX_REPEATS = 2  # of one word in a title; twice in a row is always too often
# Words about what can be seen, for which a customer would return a product.
COLOURS = frozenset(
    {
        "black", "white", "ivory", "cream", "grey", "gray", "silver", "gold", "navy", "blue", "sky", "teal",
        "turquoise", "green", "olive", "khaki", "red", "burgundy", "pink", "purple", "violet", "lilac", "yellow",
        "orange", "brown", "camel", "beige", "tan", "copper", "bronze", "multicolour",
    }
)  # fmt: skip
MATERIALS = frozenset(
    {
        "cotton", "wool", "cashmere", "silk", "linen", "leather", "suede", "denim", "velvet", "satin", "nylon",
        "polyester", "canvas", "knit", "lace", "fur", "shearling", "corduroy", "tweed", "mohair", "viscose",
        "rubber", "gabardine", "jersey", "fleece", "down", "quilted",
    }
)  # fmt: skip


def breaks_rules(title: str, rules: TitleRules) -> bool:
    """Whether `title` is too long, has no words, repeats one, or contains a forbidden phrase or another script."""
    words = _words(title)
    return (
        not words
        or max(Counter(words).values()) > MAX_REPEATS
        or any(a == b for a, b in pairwise(words))
        or len(title) > rules.max_characters
        or _mentions(words, rules.forbidden_words)
        or (bool(rules.scripts) and not _scripts(title) <= set(rules.scripts))
    )


def ungrounded_words(
    probabilities: Sequence[tuple[str, float]], category: str, nouns: Collection[str], rules: TitleRules
) -> list[str]:
    """Words of a title that the model itself does not support.

    Those are colours and materials whose tokens are less probable than `rules.min_word_probability`, and the nouns of
    other categories if the noun of its own category is missing.

    Args:
        probabilities: each word of the title with the probability of its tokens, 0..1.
        category: the predicted label.
        nouns: those of the taxonomy's labels (`noun_of`).
    """
    doubted = [
        word
        for word, probability in probabilities
        if word.casefold() in COLOURS | MATERIALS and probability < rules.min_word_probability
    ]
    said = {singular(word.casefold()): word for word, _ in probabilities}
    own = noun_of(category)
    if own not in said:
        doubted += [word for name, word in said.items() if name in nouns]
    return doubted


def noun_of(category: str) -> str:
    """The noun in a label: the last word of its last part, in the singular. "Bags / TOTE BAGS": bag."""
    words = _words(category.rpartition("/")[2])
    return singular(words[-1]) if words else ""


def singular(word: str) -> str:
    """The singular of an English plural; other words unchanged."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("ves", "f")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word.removesuffix("s") if word.endswith("s") and not word.endswith("ss") else word


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.casefold())


def _mentions(words: Sequence[str], phrases: Collection[str]) -> bool:
    text = f" {' '.join(words)} "
    return any(f" {' '.join(_words(phrase))} " in text for phrase in phrases if _words(phrase))


def _scripts(title: str) -> set[str]:
    """The first words of the letters' Unicode names: LATIN, CYRILLIC, CJK."""
    return {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in title if letter.isalpha()}
