"""The text that is allowed: one visible line that contains no control token of a model."""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

MAX_TITLE = 200  # characters, also in catalogs; the longest title of the tutorial's data set has 71
# Control, format, surrogate and private characters, line and paragraph separators: a field is one visible line.
CONTROL = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Joiners between letters beyond ASCII are part of the word (Persian, Hindi, emoji); elsewhere they only hide text.
JOINERS = "\u200c\u200d"
# For Python and JavaScript, where the review page permits the same.
JOINER_IN_WORD = f"(?<=[^\\x00-\\x7f\\s{JOINERS}])[{JOINERS}](?=[^\\x00-\\x7f\\s{JOINERS}])"
UNDECODED = "\ufffd"  # what stands in decoded text for bytes that are not UTF-8
# How chat models write their control tokens: <|end|>, <|image_1|>, <s>, </s>, <unk>.
_CONTROL_TOKEN = re.compile(r"<\s*\|[^<>\n]{0,60}\|\s*>|<\s*/?\s*(?:s|unk|pad|bos|eos|mask|cls|sep)\s*>", re.IGNORECASE)


def spells_control_token(text: str) -> bool:
    """Whether `text` contains a control token of a chat model, also in full-width characters."""
    visible = "".join(one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf")
    return _CONTROL_TOKEN.search(visible) is not None


def fault_of(text: str) -> str:
    """Why `text` cannot be part of an answer, to follow its name in a message: it spells a control token, is not one
    visible line, or has outer spaces. "" if it can be."""
    faults = {
        "is empty": not text.strip(),
        "is not one line of text": "\n" in text,
        "begins or ends with a blank": text != text.strip(),
        "spells a control token of the model": spells_control_token(text),
        "contains control characters": holds_control_characters(text),
        "contains bytes that are not UTF-8": UNDECODED in text,
    }
    return next((fault for fault, there in faults.items() if there), "")


def composed_line(text: str) -> str:
    """`text` in NFC, as catalogs and answers are. Raises ValueError for what `fault_of` finds."""
    if fault := fault_of(text):
        raise ValueError(f"{text[:40]!r} {fault}")
    return unicodedata.normalize("NFC", text)


PlainLine = Annotated[str, AfterValidator(composed_line)]


def holds_control_characters(text: str) -> bool:
    """Whether `text` contains control or format characters, apart from joiners inside words."""
    return any(unicodedata.category(character) in CONTROL for character in re.sub(JOINER_IN_WORD, "", text))


def excerpt(text: str, length: int = 80) -> str:
    """The first `length` characters, for messages."""
    return text if len(text) <= length else text[: length - 1] + "…"
