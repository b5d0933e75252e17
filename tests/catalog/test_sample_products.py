"""Products of the sample: told by what is visible, and nothing else; the same for the same seed."""

import math
import re
import statistics

import pytest

from enrich.catalog.sample.pricing import best_mdape, noiseless_price, on_ladder
from enrich.catalog.sample.products import SampleProduct, sample_product
from enrich.catalog.sample.spec import BASE, COLOURS, DEMO, KINDS, Dialect
from enrich.catalog.sample.titles import title


@pytest.fixture(scope="module")
def products() -> list[SampleProduct]:
    return [sample_product(5, index, DEMO) for index in range(3000)]


def test_a_product_is_a_function_of_seed_and_index() -> None:
    assert sample_product(0, 0, DEMO) == sample_product(0, 0, DEMO)
    # Pinned: another process, another day and another machine must say the same.
    assert sample_product(0, 0, DEMO) == SampleProduct(
        product_code="12345678",
        title="Pencil Skirt in Teal Dots",
        category="SKIRTS",
        category1="WOMAN",
        category2="BOTTOMS",
        category3="SKIRTS",
        price=600.0,
        noiseless_price=560.0,
        kind="skirt",
        attributes={"colour": "teal", "pattern": "dotted", "cut": "pencil"},
    )
    assert sample_product(1, 0, DEMO).title != sample_product(0, 0, DEMO).title


def test_title_category_and_median_price_follow_from_what_is_visible(products: list[SampleProduct]) -> None:
    looks: dict[tuple[object, ...], tuple[object, ...]] = {}
    for product in products:
        told = (product.title, product.category, product.noiseless_price)
        assert looks.setdefault((product.kind, *product.attributes.items()), told) == told
        assert product.title == title(product.kind, product.attributes, DEMO)
        assert product.category == DEMO.category(product.kind)
        assert product.noiseless_price == pytest.approx(
            noiseless_price(product.kind, product.attributes, DEMO.prices), abs=1e-4
        )


def test_price_noise_has_the_stated_size(products: list[SampleProduct]) -> None:
    residuals = [math.log(product.price / product.noiseless_price) for product in products]
    assert statistics.fmean(residuals) == pytest.approx(0.0, abs=0.01)
    assert statistics.stdev(residuals) == pytest.approx(DEMO.prices.sigma, rel=0.05)
    apes = [abs(product.noiseless_price / product.price - 1) for product in products]
    assert statistics.median(apes) == pytest.approx(best_mdape(DEMO.prices.sigma), rel=0.08)


def test_prices_are_heavy_tailed(products: list[SampleProduct]) -> None:
    prices = sorted(product.price for product in products)
    assert statistics.fmean(prices) > 1.3 * statistics.median(prices)
    assert prices[0] >= 100
    assert prices[-1] >= 3000


@pytest.mark.parametrize(
    ("price", "expected"), [(3.0, 10.0), (204.9, 200.0), (499.0, 500.0), (512.0, 500.0), (2049.0, 2000.0)]
)
def test_prices_stand_on_the_ladder(price: float, expected: float) -> None:
    assert on_ladder(price, DEMO.prices.ladder) == expected


def test_codes_are_eight_digits_and_unique(products: list[SampleProduct]) -> None:
    codes = {product.product_code for product in products}
    assert len(codes) == len(products)
    assert all(re.fullmatch(r"\d{8}", code) for code in codes)
    assert any(code.startswith("0") for code in codes)


def test_one_design_is_photographed_one_to_three_times() -> None:
    looks = [sample_product(0, index, DEMO) for index in range(6)]
    designs = [(product.kind, product.attributes) for product in looks]
    assert designs[1] == designs[2]
    assert designs[3] == designs[4] == designs[5]
    assert len({product.title for product in looks}) == 3


def test_category3_is_left_out_only_where_category2_says_the_same(products: list[SampleProduct]) -> None:
    seen = set()
    for product in products:
        seen.add(product.category3 in ("N.A.", ""))
        assert product.category == (product.category3 if product.category3 not in ("N.A.", "") else product.category2)
    assert seen == {True, False}


def test_denim_comes_in_denim_colours(products: list[SampleProduct]) -> None:
    denim = {p.attributes["colour"] for p in products if p.attributes.get("pattern") == "denim"}
    assert denim == {"black", "grey", "navy", "sky"}


@pytest.mark.parametrize("dialect", [DEMO, BASE], ids=lambda dialect: dialect.name)
def test_a_dialect_names_everything(dialect: Dialect) -> None:
    assert set(dialect.categories) == set(dialect.prices.base) == set(KINDS)
    assert len({dialect.category(kind) for kind in KINDS}) == len(KINDS)
    values = {f"{name}={value}" for kind in KINDS.values() for name, all_ in kind.attributes.items() for value in all_}
    known = values | {f"colour={colour}" for colour in COLOURS} | set(KINDS)
    for name in [*dialect.words, *dialect.prices.effects]:  # a misspelt name would silently say nothing
        kind, _, rest = name.rpartition(".")
        assert rest in known
        assert not kind or kind in KINDS
    for index in range(1500):
        words = sample_product(3, index, dialect).title.split()
        assert 2 <= len(words) <= 7
        assert any(word in dialect.words.values() for word in words)


def test_demo_titles_are_short(products: list[SampleProduct]) -> None:
    assert max(len(product.title.split()) for product in products) == 6


def test_dialects_tell_of_the_same_drawings_in_other_words() -> None:
    for index in range(200):
        ours, theirs = sample_product(0, index, DEMO), sample_product(0, index, BASE)
        assert (ours.kind, ours.attributes, ours.product_code) == (theirs.kind, theirs.attributes, theirs.product_code)
        assert ours.category != theirs.category
        assert ours.title != theirs.title
        assert ours.price > theirs.price
