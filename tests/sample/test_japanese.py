"""The Japanese sample: the same drawings in Japanese words, in yen, with valid URLs."""

import csv
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import SampleSettings
from sample import photos
from sample.dialects import DEMO
from sample.generate import write_sample
from sample.japanese import JAPANESE
from sample.make import make_sample
from sample.products import SampleProduct, sample_product
from sample.spec import KINDS
from sample.titles import title


@pytest.fixture(scope="module")
def products() -> list[SampleProduct]:
    return [sample_product(5, index, JAPANESE) for index in range(3000)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of 24 pixels, in this process."""
    monkeypatch.setattr(photos, "render", lambda product, view_seed, view="front": Image.new("RGB", (24, 24), "red"))
    monkeypatch.setattr(photos.os, "cpu_count", lambda: 1)


@pytest.mark.parametrize(
    ("kind", "look", "expected"),
    [
        ("shirt", {"colour": "navy", "fabric": "checked", "sleeve": "short", "pocket": "no"},
         "半袖シャツ ネイビー チェック"),
        ("dress", {"colour": "black", "fabric": "plain", "sleeve": "none", "length": "midi"},
         "ノースリーブミモレ丈ワンピース ブラック"),
        ("coat", {"colour": "camel", "fabric": "plain", "closure": "double", "belt": "yes", "back": "panel"},
         "バイカラーベルト付きダブルブレストコート キャメル"),
        ("wallet", {"colour": "brown", "fabric": "leather", "style": "zip"}, "ラウンドファスナー財布 ブラウン レザー"),
        ("tie", {"colour": "red", "fabric": "dotted", "shape": "bow"}, "蝶ネクタイ レッド ドット"),
    ],
)  # fmt: skip
def test_titles_read_as_a_japanese_shop_writes_them(kind: str, look: dict[str, str], expected: str) -> None:
    assert title(kind, look, JAPANESE) == expected


def test_titles_and_categories_are_japanese(products: list[SampleProduct]) -> None:
    allowed = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff VT]+")
    for product in products:
        for text in (product.title, product.category1, product.category2, product.category):
            assert allowed.fullmatch(text)
        assert product.title == " ".join(product.title.split())
        assert 2 <= len(product.title.split(" ")) <= 3  # kind, colour and fabric
        assert len(product.title) <= 34
    paths = {(product.category1, product.category2, product.category) for product in products}
    assert len({leaf for _, _, leaf in paths}) == len(paths) == len(KINDS)
    assert ("レディース", "ウェア", "ワンピース") in paths


def test_titles_tell_what_the_english_ones_do(products: list[SampleProduct]) -> None:
    """Two products with different English titles have different Japanese ones, or nothing could be compared."""
    english: dict[str, set[str]] = {}
    for index, product in enumerate(products):
        ours = sample_product(5, index, DEMO)
        assert (ours.kind, ours.attributes, ours.product_code) == (
            product.kind,
            product.attributes,
            product.product_code,
        )
        english.setdefault(product.title, set()).add(ours.title)
    assert all(len(titles) == 1 for titles in english.values())


def test_prices_are_yen_on_a_ladder(products: list[SampleProduct]) -> None:
    prices = sorted(product.price for product in products)
    assert 300 < prices[0] < 1_000
    assert 300_000 < prices[-1] < 2_000_000
    assert all(price % (10 if price < 1_000 else 100) == 0 for price in prices)


def test_the_table_is_a_catalog_in_yen_whose_urls_are_valid(tmp_path: Path, quick: None) -> None:
    make_sample(str(tmp_path), SampleSettings(products=40, holdout=6, seed=3, language="ja"))
    catalog = read_catalog(tmp_path)
    assert not catalog.dropped
    assert catalog.currency == "JPY"
    with (tmp_path / "catalog.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert re.fullmatch(r"https://shop\.example\.com/[A-Za-z0-9%._~-]+", row["itemurl"])
        assert unquote(row["itemurl"]).endswith(f"/{row['title'].lower().replace(' ', '-')}-p{row['product_code']}")
        assert re.fullmatch(r"\d+", row["price"])
        assert (row["country_code"], row["website_name"]) == ("JPN", "サンプルストア")
    truth = json.loads((tmp_path / "truth.json").read_text("utf-8"))
    assert truth["dialect"] == "japanese"
    assert {told["title"] for told in truth["images"].values()} == {row["title"] for row in rows}


def test_the_photos_are_those_of_the_english_sample(tmp_path: Path) -> None:
    for language, dialect in (("en", DEMO), ("ja", JAPANESE)):
        write_sample(tmp_path / language, products=4, holdout=1, dialect=dialect)
    photographed = [
        {path.name: path.read_bytes() for path in (tmp_path / language).rglob("images/*")} for language in ("en", "ja")
    ]
    assert photographed[0] == photographed[1]
    assert len(photographed[0]) == 5


def test_one_language_does_not_continue_the_other(tmp_path: Path, quick: None) -> None:
    make_sample(str(tmp_path), SampleSettings(products=3, holdout=0))
    with pytest.raises(UsageError, match="contains a sample with dialect demo, not japanese"):
        make_sample(str(tmp_path), SampleSettings(products=3, holdout=0, language="ja"))
