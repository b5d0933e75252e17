"""Rules that flag a title regardless of its photo, and words in it that the model itself doubts."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

from enrich.answers.lexicon import WITHOUT_BLANKS, Lexicon
from enrich.settings.review import TitleRules

MAX_REPEATS = 2  # of one word in a title; twice in a row is always too often
_INSIDE = frozenset("_'-\u2019\u200c\u200d")  # in words, as letters, marks and digits; the last join Persian letters
_UNSPACED = re.compile(f"[{WITHOUT_BLANKS}]")
# In scripts without spaces between words, a model that repeats itself writes the same characters three times.
_LOOP = re.compile(rf"([{WITHOUT_BLANKS}]{{2,40}}?)\1\1")


def breaks_rules(title: str, rules: TitleRules) -> bool:
    """Whether `title` is too long, has no words, repeats one, or contains a forbidden phrase or another script."""
    words = _words(title)
    return (
        not words
        or max(Counter(words).values()) > MAX_REPEATS
        or any(a == b for a, b in pairwise(words))
        or _LOOP.search(title) is not None
        or len(title) > rules.max_characters
        or _mentions(words, rules.forbidden_words)
        or (bool(rules.scripts) and not _scripts(title) <= set(rules.scripts))
    )


def ungrounded_words(
    probabilities: Sequence[tuple[str, float]],
    category: str,
    nouns: Collection[str],
    rules: TitleRules,
    lexicon: Lexicon,
) -> list[str]:
    """Words of a title that the model itself does not support; none in a language without a lexicon.

    Those are colours and materials whose tokens are less probable than `rules.min_word_probability`, and, where the
    lexicon has plurals, the nouns of other categories if the noun of its own category is missing.

    Args:
        probabilities: each word of the title with the probability of its tokens, 0..1.
        category: the predicted label.
        nouns: those of the taxonomy's labels (`noun_of`).
    """
    doubted = [
        word
        for word, probability in probabilities
        if lexicon.visible.fullmatch(word) and probability < rules.min_word_probability
    ]
    said = {singular(word.casefold(), lexicon): word for word, _ in probabilities}
    if lexicon.plurals and noun_of(category, lexicon) not in said:
        doubted += [word for name, word in said.items() if name in nouns]
    return doubted


def noun_of(category: str, lexicon: Lexicon) -> str:
    """The noun in a label: the last word of its last part, in the singular. "Bags / TOTE BAGS": bag."""
    words = _words(category.rpartition("/")[2])
    return singular(words[-1], lexicon) if words else ""


def singular(word: str, lexicon: Lexicon) -> str:
    """The singular of a plural in small letters; other words unchanged."""
    for ending, instead in lexicon.plurals:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word


def _words(text: str) -> list[str]:
    """Runs of letters and digits, case-folded. In scripts without spaces a whole phrase is one run."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():  # twice as fast
        runs = re.findall(r"[\w'-]+", folded)
    else:
        inside = (one if one in _INSIDE or unicodedata.category(one)[0] in "LMN" else " " for one in folded)
        runs = "".join(inside).split()
    return [run for run in runs if any(map(str.isalnum, run))]


def _mentions(words: Sequence[str], phrases: Collection[str]) -> bool:
    """Whether a phrase occurs, as whole words if the script separates words by spaces."""
    text = f" {' '.join(words)} "
    wanted = [" ".join(_words(phrase)) for phrase in phrases]
    return any((one if _UNSPACED.search(one) else f" {one} ") in text for one in wanted if one)


def _scripts(title: str) -> set[str]:
    """The first words of the letters' Unicode names: LATIN, CYRILLIC, CJK. Letters that scripts share do not count."""
    folded = unicodedata.normalize("NFKC", title)
    letters = (one for one in folded if one.isalpha() and unicodedata.category(one) != "Lm")
    return {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters}
