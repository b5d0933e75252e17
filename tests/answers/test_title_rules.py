"""Rules that titles break, and words that the model does not stand by."""

import json
from pathlib import Path
from typing import Any, get_args
from unicodedata import normalize

import pytest

from enrich.answers import lexicon
from enrich.answers.lexicon import lexicon_of
from enrich.answers.title_rules import breaks_rules, noun_of, singular, ungrounded_words
from enrich.settings.review import TitleRules
from enrich.vocabulary import Language


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
        ("ＳＡＬＥ Coat", {}, True),
        ("Women’s Coat, Men’s Belt, Kids’s Hat", {}, False),
        ("-- - _ …", {}, True),
        # Without blanks between words.
        ("半袖シャツ 婦人用 綿百パーセント 1", {}, False),
        ("紺色ウールコート", {}, False),
        ("レディース・コート・ネイビー", {}, False),
        ("シャツ シャツ 白", {}, True),
        ("ドキドキプリントＴシャツ", {}, False),
        ("コートコートコート", {}, True),
        ("纯棉白色短袖衬衫", {}, False),
        ("！？・。", {}, True),
        ("送料無料ウールコート", {"forbidden_words": ("送料無料",)}, True),
        ("ウールコート", {"forbidden_words": ("送料無料",)}, False),
        ("ウールコート々", {"scripts": ("KATAKANA", "CJK")}, False),
        ("Ｔシャツ", {"scripts": ("KATAKANA", "LATIN")}, False),
        ("Tシャツ", {"scripts": ("KATAKANA",)}, True),
        # Vowel and tone marks are parts of words.
        ("เสื้อเชิ้ตผ้าฝ้ายสีขาว", {}, False),
        ("कमीज़ नीली सूती की", {}, False),
        ("کتاب\u200cها، مداد\u200cها و دفتر\u200cها", {}, False),
        ("קמיץ כחול", {}, False),
    ],
)
def test_rules(title: str, changes: dict[str, Any], broken: bool) -> None:
    assert breaks_rules(title, TitleRules(**changes)) is broken


FILES = sorted((Path(lexicon.__file__).parents[1] / "assets" / "lexicons").glob("*.json"))
ENGLISH = lexicon_of("en")
LABELS = ("COATS", "TOTE BAGS", "Bags / SHOULDER BAGS", "Dresses", "SCARVES", "ACCESSORIES")
NOUNS = frozenset(noun_of(label, ENGLISH) for label in LABELS)


def test_what_labels_call_their_products() -> None:
    assert {"coat", "bag", "dress", "scarf", "accessory"} == NOUNS
    assert [singular(word, ENGLISH) for word in ("watches", "boxes", "glass", "trousers", "shoes", "hat")] == [
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
    assert ungrounded_words(words, category, NOUNS, TitleRules(), ENGLISH) == doubted


@pytest.mark.parametrize(
    ("language", "title", "visible"),
    [
        ("en", "Off Shoulder (Camel) Coat, WOOL blend", ["Camel", "WOOL"]),
        ("en", "Tandem Redwood Coat", []),
        ("de", "Dunkelblaue Baumwoll-Bluse, weißer Kragen", ["Dunkelblaue", "Baumwoll-Bluse", "weißer"]),
        ("de", "Lederjacke in Schwarzweiß aus Wildleder", ["Lederjacke", "Schwarzweiß", "Wildleder"]),
        ("de", "Mantel mit Rotation und goldfarbenen Knöpfen", ["goldfarbenen"]),
        ("de", "BRAUNE STRICKJACKE SAMT GÜRTEL", ["BRAUNE", "STRICKJACKE"]),
        ("fr", "Robe noire plissée en soie, ceinture grise", ["noire", "soie", "grise"]),
        ("fr", "Veste Orangerie, col montant", []),
        ("es", "Camisas azules y rojas de algodón", ["azules", "rojas", "algodón"]),
        ("es", "Bolso Rosario pequeño", []),
        ("zh", "黑色真皮单肩包", ["黑色", "真皮"]),
        ("zh", "短袖圆领T恤", []),
        ("ja", "ワインレッドのウールコート 本革ベルト", ["ワインレッド", "ウール", "本革"]),
        ("ja", "赤ちゃん用ボタンダウンシャツ ローファー", []),
    ],
)
def test_colours_and_materials_of_a_language(language: Language, title: str, visible: list[str]) -> None:
    own = lexicon_of(language)
    words = [(match[0], 0.1) for match in own.words.finditer(title)]
    assert ungrounded_words(words, "帽子", frozenset({"帽子", "mantel"}), TitleRules(), own) == visible
    assert ungrounded_words([(word, 0.9) for word, _ in words], "帽子", frozenset(), TitleRules(), own) == []


def test_a_language_without_a_lexicon_knows_no_colour(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lexicon, "_LEXICONS", tmp_path)
    own = lexicon_of.__wrapped__("fr")
    assert own.words.findall("Manteau noir") == ["Manteau", "noir"]
    assert not own.visible.fullmatch("noir")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_word_of_a_lexicon_is_found_in_capitals_too(file: Path) -> None:
    own = lexicon_of(next(language for language in get_args(Language) if language == file.stem))
    words = [word for name in ("colours", "materials") for word in json.loads(file.read_text("utf-8"))[name]]
    assert len(set(words)) == len(words) > 40
    for word in words:
        assert normalize("NFC", word) == word
        assert all(own.visible.fullmatch(one) for one in (word, word.capitalize(), word.upper()))
