"""Splits: no title in two of them, whatever the order of the rows."""

import random
import re
import unicodedata
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrich.catalog.split import Splits, split_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import SplitSettings
from enrich.vocabulary import Product

NAMES = ("train", "validation", "calibration", "test")


def _product(code: int, title: str, category: str = "A") -> Product:
    return Product(f"{code:05d}", title, category, 10.0, (f"/photos/{code}.jpg",))


def _catalog(titles: int, photos_each: int = 2) -> list[Product]:
    pairs = [(title, photo) for title in range(titles) for photo in range(photos_each)]
    return [_product(number, f"Title {title}", f"C{title % 5}") for number, (title, _) in enumerate(pairs)]


def _titles(splits: Splits, name: str) -> set[str]:
    titles = (unicodedata.normalize("NFKC", product.title).casefold() for product in getattr(splits, name))
    return {re.sub(" +", " ", title).strip() for title in titles}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=4, max_size=120), st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_title_leaks_and_order_does_not_matter(titles: list[int], seed: int, shuffler: random.Random) -> None:
    spelling = ("Scarf {}", "scarf {}", " SCARF {} ", "Scarf  {}", "\uff33carf\u00a0{}")
    products = [_product(i, spelling[i % 5].format(title), f"C{title % 4}") for i, title in enumerate(titles)]
    if len(set(titles)) < 4:
        with pytest.raises(UsageError):
            split_catalog(products, SplitSettings(seed=seed))
        return
    splits = split_catalog(products, SplitSettings(seed=seed))
    for one, other in combinations(NAMES, 2):
        assert not _titles(splits, one) & _titles(splits, other)
    assert sorted(p.product_code for name in NAMES for p in getattr(splits, name)) == [p.product_code for p in products]
    assert all(getattr(splits, name) for name in NAMES)
    shuffler.shuffle(products)
    assert split_catalog(products, SplitSettings(seed=seed)) == splits


def test_shares_are_of_the_rows() -> None:
    splits = split_catalog(_catalog(500), SplitSettings())
    assert [len(getattr(splits, name)) for name in NAMES] == [750, 50, 100, 100]


def test_the_seed_decides() -> None:
    products = _catalog(100)
    first, again, other = (split_catalog(products, SplitSettings(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert _titles(first, "test") != _titles(other, "test")


def test_a_new_product_moves_few_others() -> None:
    products = _catalog(200)
    before = split_catalog(products, SplitSettings())
    after = split_catalog([*products, _product(99999, "Another", "C0")], SplitSettings())
    assert len(_titles(before, "test") ^ _titles(after, "test")) <= 2


def test_titles_that_overfill_a_split_and_lone_categories_stay_in_train() -> None:
    products = _catalog(60, photos_each=1)
    products += [_product(1000 + i, "Everywhere", "C0") for i in range(60)]
    products += [_product(2000 + i, f"Only {i}", f"Lone {i}") for i in range(6)]
    for seed in range(8):
        splits = split_catalog(products, SplitSettings(seed=seed))
        assert "everywhere" in _titles(splits, "train")
        assert {f"only {i}" for i in range(6)} <= _titles(splits, "train")
        categories = {product.category for product in splits.train}
        assert {product.category for product in splits.test} <= categories


def test_too_few_titles() -> None:
    products = [_product(i, f"Title {i % 3}") for i in range(90)]
    with pytest.raises(UsageError) as caught:
        split_catalog(products, SplitSettings())
    assert str(caught.value) == (
        "catalog with 3 different titles: train, validation, calibration and test need at least one each, "
        "so 4 at the least; add products"
    )
    splits = split_catalog([*products, _product(99, "Fourth")], SplitSettings())
    assert all(getattr(splits, name) for name in NAMES)
