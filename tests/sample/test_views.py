"""Further photos: the same product, and each hidden fact in its own photo only."""

from dataclasses import replace
from itertools import product as product_of

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sample.dialects import BASE, DEMO
from sample.draw import OUTLINES, render
from sample.products import SampleProduct, sample_product
from sample.silhouette import Part
from sample.spec import HIDDEN, KINDS, VIEWS, Dialect
from sample.studio import framed
from sample.views import BACKS, from_behind

FACTS = [
    (view, name, values[0], value)
    for view, attributes in HIDDEN.items()
    for name, values in attributes.items()
    for value in dict.fromkeys(values)
    if value != values[0]
]


def _first_of(kind: str) -> SampleProduct:
    return next(p for p in (sample_product(0, index, DEMO) for index in range(10_000)) if p.kind == kind)


def _pixels(product: SampleProduct, view: str, side: int = 112) -> np.ndarray:
    return np.asarray(render(product, 0, 336, view).resize((side, side), Image.Resampling.BOX), np.float32)


def _with(product: SampleProduct, **attributes: str) -> SampleProduct:
    return replace(product, attributes={**product.attributes, **attributes})


def test_every_kind_has_a_back() -> None:
    assert set(BACKS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_fact_shows_in_its_photo_and_in_no_other(kind: str) -> None:
    for colour in ("ivory", "black", "camel"):
        product = _with(_first_of(kind), colour=colour)
        for view, name, before, after in FACTS:
            first, second = _with(product, **{name: before}), _with(product, **{name: after})
            difference = np.abs(_pixels(first, view) - _pixels(second, view)).max(axis=2)
            assert (difference > 40).sum() > 40, (view, name, after)  # of 112 x 112 pixels
    for other in VIEWS:
        shown = {name: values[-1] for view, of in HIDDEN.items() if view != other for name, values in of.items()}
        assert render(_with(product, **shown), 0, 128, other).tobytes() == render(product, 0, 128, other).tobytes()


def _covered(parts: list[Part]) -> np.ndarray:
    """Where parts are, at 100 pixels a unit, within 2 units of the origin."""
    canvas = Image.new("L", (400, 400))
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        spots = [tuple(point) for point in (part.outline + 2) * 100]
        if part.width:
            pen.line(spots, fill=1, width=round(part.width * 100))
        else:
            pen.polygon(spots, fill=1)
    return np.asarray(canvas) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_the_back_is_on_the_product(kind: str) -> None:
    named = {**KINDS[kind].attributes, **KINDS[kind].finish}
    for values in product_of(*(sorted(set(values)) for values in named.values())):
        attributes = dict(zip(named, values, strict=True))
        back = from_behind(kind, attributes)
        for mark in ("emblem", "panel"):
            marked = _covered(from_behind(kind, {**attributes, "back": mark})[len(back) :])
            assert (marked & ~_covered(back)).sum() < 0.05 * marked.sum(), (attributes, mark)


@pytest.mark.parametrize("kind", KINDS)
def test_an_emblem_is_no_panel(kind: str) -> None:
    product = _first_of(kind)
    emblem, panel = (_pixels(_with(product, back=value), "back") for value in ("emblem", "panel"))
    assert (np.abs(emblem - panel).max(axis=2) > 40).sum() > 25


@pytest.mark.parametrize("kind", KINDS)
def test_every_attribute_can_be_drawn_in_every_view(kind: str) -> None:
    product = _first_of(kind)
    for name, values in {**KINDS[kind].attributes, **KINDS[kind].finish}.items():
        for value in set(values):
            for view in VIEWS[1:]:
                assert np.asarray(render(_with(product, **{name: value}), 3, 64, view)).std() > 3


@pytest.mark.parametrize("kind", ["t_shirt", "coat", "hoodie", "trousers", "dress", "jacket"])
def test_all_photos_show_one_colour(kind: str) -> None:
    for seed in range(4):
        product = _with(_first_of(kind), colour="teal", fabric="plain", pocket="no", label="basic")
        seen = []
        for view in VIEWS:
            photo = np.asarray(render(product, seed, 256, view), np.float32).reshape(-1, 3)
            teal = photo[photo[:, 1] > 1.6 * photo[:, 0]]  # the product, not wall, button or label
            assert len(teal) > 0.05 * len(photo)
            seen.append(np.median(teal / teal.sum(axis=1, keepdims=True), axis=0))  # its hue, whatever the light
        assert np.ptp(seen, axis=0).max() < 0.03


def test_a_close_up_is_two_to_three_times_as_large() -> None:
    parts = OUTLINES["shirt"](_first_of("shirt").attributes)
    ratios = []
    for seed in range(60):
        whole, close = (
            framed(np.random.default_rng(seed), parts, False, 400, middle) for middle in (None, (0.0, -0.45))
        )
        ratios.append(close.scale / whole.scale)
        spot = close.pixels(np.array([[0.0, -0.45]]))[0] / (close.width, close.height)
        assert (np.abs(spot - 0.5) < 0.1).all()
    assert 2.0 <= min(ratios) < 2.2
    assert 2.8 < max(ratios) <= 3.0


@pytest.mark.parametrize("dialect", [DEMO, BASE], ids=lambda dialect: dialect.name)
def test_the_back_moves_title_and_price_and_the_label_the_price(dialect: Dialect) -> None:
    for _, name, _, value in FACTS:
        assert dialect.prices.effects[f"{name}={value}"] > 0.19
        assert (f"{name}={value}" in dialect.words) == (name == "back" or dialect is BASE)


def test_each_view_is_another_photo() -> None:
    product = sample_product(0, 3, DEMO)
    assert len({render(product, 7, 128, view).tobytes() for view in VIEWS}) == len(VIEWS)
    assert render(product, 7, 128, "angle").tobytes() == render(product, 7, 128, "angle").tobytes()
