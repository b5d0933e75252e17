"""Which language a page's titles are in, as far as letters need it: Han characters are drawn differently in each."""

import re
from collections.abc import Iterable

_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")
_ENOUGH = 0.1  # of the letters: Chinese shops write の in a title now and then


def han_language(texts: Iterable[str | None]) -> str:
    """The value of a `lang` attribute for elements with these texts: ja, ko, zh, or "" without Han, kana and Hangul."""
    joined = "\n".join(text for text in texts if text)
    kana, hangul, han = (len(letters.findall(joined)) for letters in (_KANA, _HANGUL, _HAN))
    if max(kana, hangul) > _ENOUGH * (kana + hangul + han):
        return "ja" if kana >= hangul else "ko"
    return "zh" if han else ""
