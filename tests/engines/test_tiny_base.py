"""The shipped tiny base sees: it names its own retailer's products on photos of no training, from their pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from enrich.answers.parse import Answer, AnswerMalformed, parse_answer
from enrich.answers.prompt import Prompt, make_prompt
from enrich.engines.base import Request
from enrich.engines.transformers_engine import TransformersEngine
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.scores.metrics import Scores, score
from enrich.settings.models import TINY_MODEL_PATH
from enrich.vocabulary import Product
from sample.dialects import BASE
from sample.draw import render
from sample.products import SampleProduct, sample_product
from sample.spec import KINDS, colours_of

_SEED = 4_242  # of no training
_PHOTOS = 64
_SIDE = 320  # pixels of the photos' longer side

Change = Callable[[SampleProduct], SampleProduct]  # of what is drawn


@dataclass(frozen=True)
class Seen:
    """Products and how their photos are answered."""

    products: list[Product]
    answer: Callable[[Change], list[Answer | None]]

    def scores(self, answers: list[Answer | None], shift: int = 0) -> Scores:
        """With a shift, each answer is held against the product so many places on."""
        return score(self.products[shift:] + self.products[:shift], answers)

    def price_error(self, answers: list[Answer | None]) -> float:
        """MdAPE."""
        price = self.scores(answers)["price"]
        assert price
        return price["mdape"]


@pytest.fixture(scope="module")
def seen() -> Seen:
    torch.set_num_threads(1)
    processor = load_processor(TINY_MODEL_PATH)
    prompt = make_prompt(tuple({levels[2] for levels in BASE.categories.values()}), BASE.currency)
    engine = TransformersEngine(
        load_model(TINY_MODEL_PATH, dtype=torch.float32, device="cpu"), processor, prompt, max_new_tokens=80
    )
    products = list(_one_photo_a_design())
    how = processor.preparation

    def answer(change: Change) -> list[Answer | None]:
        pages = [hd_transform(render(change(p), _SEED, _SIDE), how.num_crops, how.image_size) for p in products]
        told = {
            made.id: made.text for made in engine.complete(Request(str(i), (page,)) for i, page in enumerate(pages))
        }
        return [_parsed(told[str(i)], prompt) for i in range(len(products))]

    rows = [Product(p.product_code, p.title, p.category, p.price, ()) for p in products]
    return Seen(rows, answer)


def _one_photo_a_design() -> Iterator[SampleProduct]:
    return (sample_product(_SEED, index, BASE) for index in range(0, 3 * _PHOTOS, 3))  # index 0, 3, 6: other designs


def _parsed(text: str, prompt: Prompt) -> Answer | None:
    try:
        return parse_answer(text, prompt)
    except AnswerMalformed:
        return None


@pytest.fixture(scope="module")
def plain(seen: Seen) -> list[Answer | None]:
    return seen.answer(lambda product: product)


def test_it_names_what_it_was_taught(seen: Seen, plain: list[Answer | None]) -> None:
    scores = seen.scores(plain)
    assert scores["parse_rate"] == 1.0
    assert scores["category_accuracy"] >= 0.9
    assert scores["title_token_f1"] >= 0.85
    assert scores["price"]
    assert scores["price"]["mdape"] < 0.25


def test_with_photos_and_labels_scrambled_it_scores_as_chance_does(seen: Seen, plain: list[Answer | None]) -> None:
    shuffled = [seen.scores(plain, shift) for shift in range(5, 55, 5)]
    assert np.mean([scores["category_accuracy"] for scores in shuffled]) < 0.10  # the most frequent one has 5 %
    assert np.mean([scores["title_exact"] for scores in shuffled]) < 0.05
    assert np.mean([scores["price"]["mdape"] for scores in shuffled if scores["price"]]) > 0.5


def test_the_price_error_rises_when_what_moves_a_price_is_painted_over(seen: Seen, plain: list[Answer | None]) -> None:
    details_hidden, dyed = seen.answer(without_priced_details), seen.answer(in_another_colour)

    seen_well, hidden, other_colour = (seen.price_error(answers) for answers in (plain, details_hidden, dyed))
    assert hidden > 2 * seen_well
    assert hidden > 2 * other_colour  # no price depends on it


def without_priced_details(product: SampleProduct) -> SampleProduct:
    """Every detail that moves the price, fabric to buckle, replaced by the one of its kind that moves it least."""
    kind = KINDS[product.kind]
    attributes = dict(product.attributes)
    for name, values in {**kind.attributes, **kind.finish}.items():
        attributes[name] = min(values, key=lambda value: abs(BASE.prices.effects.get(f"{name}={value}", 0.0)))
    return replace(product, attributes=attributes)


def in_another_colour(product: SampleProduct) -> SampleProduct:
    palette = colours_of(product.attributes.get("fabric", "plain"))
    other = palette[(palette.index(product.attributes["colour"]) + 1) % len(palette)]
    return replace(product, attributes={**product.attributes, "colour": other})
