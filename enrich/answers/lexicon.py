"""A language's words for what can be seen and matters to customers: colours and materials.

A language has a lexicon if it has a file in assets/lexicons. `form` there is a regular expression of such a word, with
places for the lists `colours` and `materials`, and with inflections and compounds around them. `blanks`: whether words
have blanks between them. `plurals` (English only): the endings of nouns. Without a file nothing is looked for.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from enrich.vocabulary import Language

# Letters of scripts that are written without blanks between words, for a character class: Thai, Lao, Myanmar, Khmer,
# kana and Han.
WITHOUT_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_LEXICONS = Path(__file__).parents[1] / "assets" / "lexicons"
_WORD = re.compile(r"[^\s.,;:!?()](?:\S*[^\s.,;:!?()])?")  # without the marks around it


@dataclass(frozen=True)
class Lexicon:
    """One language. The default one, of languages without a lexicon, knows no word."""

    visible: re.Pattern[str] = re.compile("(?!)")  # a colour or a material
    words: re.Pattern[str] = _WORD  # what a title is divided into; without blanks only the visible ones are told apart
    plurals: tuple[tuple[str, str], ...] = ()  # an ending, and what it is in the singular; the first that fits counts


@cache
def lexicon_of(language: Language) -> Lexicon:
    """The lexicon of a language."""
    path = _LEXICONS / f"{language}.json"
    if not path.is_file():
        return Lexicon()
    found = json.loads(path.read_text("utf-8"))
    # Longest first, so that ワインレッド does not match as レッド.
    lists = {name: "|".join(sorted(found[name], key=len, reverse=True)) for name in ("colours", "materials")}
    visible = re.compile(found["form"].format(**lists), re.IGNORECASE)
    plurals = tuple((ending, instead) for ending, instead in found.get("plurals", ()))
    return Lexicon(visible, _WORD if found["blanks"] else visible, plurals)
