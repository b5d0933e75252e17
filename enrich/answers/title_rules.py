"""Rules that flag a title whatever its photo shows, and the words in it that the model itself doubts."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from enrich.settings.review import TitleRules

# Words that say what can be seen and that a reader would return a product for.
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


def broken_rules(title: str, rules: TitleRules) -> list[str]:
    """Names of the rules that `title` breaks, in the order of TitleRules."""
    words = _words(title)
    counts = Counter(words)
    repeats = bool(words) and (max(counts.values()) > rules.max_repeats or any(a == b for a, b in pairwise(words)))
    brands = {brand.casefold() for brand in rules.brands} - {brand.casefold() for brand in rules.allowed_brands}
    checks = {
        "min_words": len(words) < rules.min_words,
        "max_characters": len(title) > rules.max_characters,
        "forbidden_words": _mentions(title, rules.forbidden_words),
        "scripts": bool(rules.scripts) and not _scripts(title) <= set(rules.scripts),
        "max_repeats": repeats,
        "brands": _mentions(title, brands),
    }
    return [name for name, broken in checks.items() if broken]


def ungrounded_words(
    probabilities: Sequence[tuple[str, float]], category: str, nouns: Collection[str], rules: TitleRules
) -> list[str]:
    """Words of a title that the model itself does not stand by.

    A colour or material whose tokens are less probable than `rules.min_word_probability`; and what another category is
    called, where the title does not say what its own is called.

    Args:
        probabilities: each word of the title with the probability of its tokens, 0..1.
        category: the label that was written under the title.
        nouns: what the taxonomy's labels are called (`noun_of`).
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
    """What a label calls its products: the last word of its last part, in the singular. "Bags / TOTE BAGS": bag."""
    words = _words(category.rpartition("/")[2])
    return singular(words[-1]) if words else ""


def singular(word: str) -> str:
    """English plurals of product names; words that are no plural stay as they are."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("ves", "f")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word.removesuffix("s") if word.endswith("s") and not word.endswith("ss") else word


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.casefold())


def _mentions(title: str, phrases: Collection[str]) -> bool:
    text = f" {' '.join(_words(title))} "
    return any(f" {' '.join(_words(phrase))} " in text for phrase in phrases if _words(phrase))


def _scripts(title: str) -> set[str]:
    """The first word of the Unicode names of its letters: LATIN, CYRILLIC, CJK."""
    return {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in title if letter.isalpha()}


def word_probabilities(pieces: Sequence[str], probabilities: Sequence[float]) -> list[tuple[str, float]]:
    """Words out of SentencePiece tokens, "▁" before each word, with the product of their tokens' probabilities."""
    words: list[list[str]] = []
    found: list[float] = []
    for piece, probability in zip(pieces, probabilities, strict=True):
        if piece.startswith("▁") or not words:
            words.append([])
            found.append(1.0)
        words[-1].append(piece.removeprefix("▁"))
        found[-1] *= probability
    joined: Mapping[int, str] = {i: "".join(parts).strip(".,;:!?()") for i, parts in enumerate(words)}
    return [(word, found[i]) for i, word in joined.items() if word]
