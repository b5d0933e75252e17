"""Photos of the sample: every attribute shows, and the same view is the same photo."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sample.dialects import DEMO
from sample.draw import OUTLINES, render
from sample.products import SampleProduct, sample_product
from sample.spec import COLOURS, KINDS


def _first_of(kind: str) -> SampleProduct:
    return next(p for p in (sample_product(0, index, DEMO) for index in range(10_000)) if p.kind == kind)


def _pixels(product: SampleProduct, view_seed: int = 0) -> np.ndarray:
    return np.asarray(render(product, view_seed, 512).resize((224, 224), Image.Resampling.BILINEAR), np.float32)


def test_photos_are_rgb_of_400_to_2000_pixels_in_three_formats() -> None:
    sizes = [render(sample_product(0, index, DEMO), 0).size for index in range(120)]
    longer = [max(size) for size in sizes]
    assert min(longer) >= 400
    assert max(longer) <= 2000
    assert max(longer) > 1000  # some for zooming in
    assert np.median(longer) < 640
    assert {np.sign(width - height) for width, height in sizes} == {-1, 0, 1}


def test_the_side_can_be_chosen_and_changes_nothing_else() -> None:
    product = sample_product(0, 3, DEMO)
    small, large = render(product, 7, 256), render(product, 7, 512)
    assert (max(small.size), max(large.size)) == (256, 512)
    shrunk = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.float32)
    assert np.abs(shrunk - np.asarray(small, np.float32)).mean() < 6


def test_a_view_is_a_function_of_its_arguments() -> None:
    product = sample_product(0, 3, DEMO)
    first = render(product, 7)
    assert first.mode == "RGB"
    assert first.tobytes() == render(product, 7).tobytes()
    assert first.tobytes() != render(product, 8).tobytes()
    variant = sample_product(0, 4, DEMO)  # the same design, photographed again
    assert variant.title == product.title
    assert first.tobytes() != render(variant, 7).tobytes()


def _changes() -> Iterator[tuple[str, str, str, str]]:
    """Each attribute of each kind, from its first value to each other one."""
    for kind, spec in KINDS.items():
        for name, values in {**spec.attributes, **spec.finish}.items():
            for value in dict.fromkeys(values[1:]):
                if value != values[0]:
                    yield kind, name, values[0], value


@pytest.mark.parametrize(("kind", "name", "before", "after"), list(_changes()), ids=lambda value: str(value))
def test_every_attribute_shows_at_224_pixels(kind: str, name: str, before: str, after: str) -> None:
    product = _first_of(kind)
    first = replace(product, attributes={**product.attributes, "colour": "teal", name: before})
    second = replace(product, attributes={**product.attributes, "colour": "teal", name: after})
    difference = np.abs(_pixels(first) - _pixels(second)).max(axis=2)
    assert (difference > 24).mean() > 0.002  # of the pixels: about 100


def test_colours_are_far_apart_in_photos() -> None:
    product = _first_of("t_shirt")
    shown = {}
    for colour in COLOURS:
        plain = replace(product, attributes={"colour": colour, "fabric": "plain", "neck": "crew", "pocket": "no"})
        shown[colour] = np.median(_pixels(plain)[100:140, 90:134].reshape(-1, 3), axis=0)
    for colour, rgb in shown.items():
        others = [np.linalg.norm(rgb - other) for name, other in shown.items() if name != colour]
        assert min(others) > 20, colour


@pytest.mark.parametrize("kind", KINDS)
def test_products_stand_free_of_the_frame(kind: str) -> None:
    product = _first_of(kind)
    photo = _pixels(replace(product, attributes={**product.attributes, "colour": "red"}))
    redness = photo[..., 0] - photo[..., 1]
    border = np.concatenate(
        [redness[:3].ravel(), redness[-3:].ravel(), redness[:, :3].ravel(), redness[:, -3:].ravel()]
    )
    assert border.max() < 40
    assert (redness > 60).mean() > 0.02


@pytest.mark.parametrize("colour", COLOURS)
def test_leather_shines_in_every_colour(colour: str) -> None:
    for kind in ("tote_bag", "coat", "jacket", "backpack", "skirt"):
        product = _first_of(kind)
        cloth, leather = (
            _pixels(replace(product, attributes={**product.attributes, "colour": colour, "fabric": fabric}))
            for fabric in ("plain", "leather")
        )
        assert (np.abs(cloth - leather).mean(axis=2) > 20).mean() > 0.02, kind


def test_every_kind_has_an_outline() -> None:
    assert set(OUTLINES) == set(KINDS)
