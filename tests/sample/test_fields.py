"""Further fields: each value a word of its own, empty where it does not apply or nothing shows it."""

from dataclasses import replace

import pytest

from sample.dialects import BASE, DEMO
from sample.fields import field_columns, field_values
from sample.japanese import JAPANESE
from sample.products import SampleProduct, sample_product
from sample.spec import COLOURS, KINDS, Dialect

SHOWN = ("colour", "fabric", "sleeve", "closure", "heel")
both = pytest.mark.parametrize("dialect", [DEMO, JAPANESE], ids=lambda dialect: dialect.name)


def _products(dialect: Dialect, photos: int) -> list[SampleProduct]:
    return [sample_product(5, index, dialect, photos) for index in range(2000)]


def test_what_only_further_photos_tell_needs_several() -> None:
    assert field_columns(DEMO, 1) == field_columns(JAPANESE, 1) == SHOWN
    assert field_columns(DEMO, 2) == (*SHOWN, "back", "label")
    assert field_columns(BASE, 4) == ()


@both
def test_every_colour_and_fabric_has_a_word_of_its_own(dialect: Dialect) -> None:
    for column, known in (
        ("colour", set(COLOURS)),
        ("fabric", {fabric for kind in KINDS.values() for fabric in kind.attributes.get("fabric", ())}),
    ):
        words = dialect.fields[column]
        assert set(words) == {f"{column}={value}" for value in known}
        assert len(set(words.values())) == len(words)


@both
def test_a_value_follows_from_what_is_visible_and_differs_where_that_does(dialect: Dialect) -> None:
    for kind, spec in KINDS.items():
        looks = {"colour": "red"} | {name: values[0] for name, values in {**spec.attributes, **spec.finish}.items()}
        before = field_values(kind, looks, dialect, 1)
        for name in {"colour", "fabric", "sleeve", "closure", "heel"} & set(looks):
            values = {"colour": tuple(COLOURS), **spec.attributes, **spec.finish}[name]
            told = [field_values(kind, looks | {name: value}, dialect, 1) for value in dict.fromkeys(values)]
            assert len({one[name] for one in told}) == len(told)
            assert all(one[name] for one in told)
            assert all(one | {name: ""} == before | {name: ""} for one in told)


@both
def test_many_kinds_lack_what_does_not_apply(dialect: Dialect) -> None:
    products = _products(dialect, 1)
    empty = {name: sum(not product.fields[name] for product in products) / len(products) for name in SHOWN}
    assert empty["colour"] == 0.0
    assert 0.05 < empty["fabric"] < 0.3  # shoes
    assert all(0.3 < empty[name] < 0.9 for name in ("sleeve", "closure", "heel"))
    of = {product.kind: product.fields for product in products}
    assert of["wallet"]["sleeve"] == of["t_shirt"]["heel"] == of["pump"]["fabric"] == of["belt"]["closure"] == ""


@both
def test_what_a_further_photo_shows_is_empty_without_that_photo(dialect: Dialect) -> None:
    for product in _products(dialect, 4):
        assert bool(product.fields["back"]) == ("back" in product.views)
        assert bool(product.fields["label"]) == ("detail" in product.views)


def test_values_are_written_as_a_retailer_does() -> None:
    look = {"colour": "navy", "fabric": "checked", "closure": "double", "belt": "no"}
    assert field_values("coat", look, DEMO, 1) == {
        "colour": "Navy", "fabric": "Checked", "sleeve": "Long Sleeve", "closure": "Double-Breasted", "heel": "",
    }  # fmt: skip
    assert field_values("coat", look, JAPANESE, 1) == {
        "colour": "ネイビー", "fabric": "チェック", "sleeve": "長袖", "closure": "ダブル", "heel": "",
    }  # fmt: skip


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"fields\.heel: unknown key 'heel=stileto'; did you mean 'heel=stiletto'\?"):
        replace(DEMO, fields={"heel": {"heel=stileto": "Stiletto"}})
