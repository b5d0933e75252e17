"""Pages say which language their Han characters are in, so that a browser draws the right shapes."""

import pytest

from enrich.pages.han import han_language


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["紺色ウールコート", "婦人用", None], "ja"),
        (["半袖シャツ 1", "Coat"], "ja"),
        (["ﾃｽﾄ連衣裙"], "zh"),  # half-width kana are rare, and other letters decide
        (["纯棉白色短袖衬衫女", "优の良品连衣裙夏季新款", "牛仔裤"], "zh"),  # a の is fashionable
        (["장갑 가죽 黒"], "ko"),
        (["Belted Coat", "Пальто", "حقائب", ""], ""),
        ([], ""),
    ],
)
def test_the_language_is_told_by_the_letters(texts: list[str | None], language: str) -> None:
    assert han_language(texts) == language
