"""Products with several photos on their way to an answer."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from enrich.engines.adapter import Adapter, read_adapter
from enrich.engines.base import Request
from enrich.engines.predictor import Predictor, Shown, digest_of, prompts_of
from enrich.engines.start import start_engine
from enrich.engines.transformers_engine import TransformersEngine, load_engine
from enrich.errors import UsageError
from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.photos.decode import Preparation
from enrich.pipeline.predicting import photos_of
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.photos import PhotoLimits
from enrich.settings.review import ReviewSettings
from enrich.settings.run import RunSettings
from enrich.vocabulary import Product
from tests.testing.random_adapter import write_random_adapter
from tests.testing.tiny_phi3v import noise_image

SIZES = ((300, 400), (640, 360), (100, 100), (40, 800))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    path = tmp_path_factory.mktemp("several") / "adapter"
    return read_adapter(write_random_adapter(path, TINY_MODEL_PATH, num_crops=4, photos_per_product=4, more_crops=2))


@pytest.fixture(scope="module")
def engine(adapter: Adapter) -> TransformersEngine:
    return load_engine(adapter, RunSettings(device="cpu", batch_size=4, max_new_tokens=24))


def request(number: int, photos: int) -> Request:
    pages = (
        hd_transform(noise_image(*SIZES[(number + at) % 4], 10 * number + at), 2 if at else 4, 112)
        for at in range(photos)
    )
    return Request(f"{number}", tuple(pages))


def test_an_adapter_says_how_many_photos_a_prompt_shows(adapter: Adapter) -> None:
    assert asdict(adapter.preparation) == {
        "num_crops": 4, "image_size": 112, "fast_decode": False, "version": 1, "photos_per_product": 4, "more_crops": 2,
        "layout": "crops",
    }  # fmt: skip


@pytest.mark.parametrize("grammar", [False, True])
def test_a_batch_of_one_to_four_photos_is_answered_as_each_alone(engine: TransformersEngine, grammar: bool) -> None:
    requests = [request(number, 1 + number % 4) for number in range(8)]
    together = {one.id: one for one in engine.complete(requests, grammar=grammar)}
    for own in requests:
        (alone,) = engine.complete([own], grammar=grammar)
        assert (alone.error, together[own.id].error) == (None, None)
        assert together[own.id].token_ids == alone.token_ids
        assert np.array_equal(together[own.id].prompt_ids, alone.prompt_ids)
        np.testing.assert_allclose(together[own.id].logprobs, alone.logprobs, atol=2e-3)


def test_every_photo_and_its_place_count(engine: TransformersEngine) -> None:
    whole = request(2, 4)
    (told,) = engine.complete([whole])
    first, *others = whole.pages
    for pages in [(first,), (first, *others[:2]), (first, *others[::-1]), (first, *others[:2], request(5, 2).pages[1])]:
        (other,) = engine.complete([replace(whole, pages=pages)])
        assert other.error is None
        assert other.token_ids != told.token_ids or abs(other.logprobs - told.logprobs).max() > 1e-3


def test_a_page_in_a_place_that_is_too_small_or_one_too_many_costs_its_product(engine: TransformersEngine) -> None:
    page = hd_transform(noise_image(300, 300), 4, 112)
    many = Request("many", (*request(0, 4).pages, request(0, 2).pages[1]))
    answers = {one.id: one for one in engine.complete([request(0, 2), Request("large", (page, page)), many])}
    assert answers["many"].error == "the engine failed: 5 photos, and the adapter's prompts show 4 at most"
    assert answers["0"].error is None
    assert answers["large"].error == (
        "the engine failed: an image of 224x224 is not the result of hd_transform with num_crops=2 and image_size=112"
    )


def test_products_are_told_apart_by_all_their_photos(engine: TransformersEngine, adapter: Adapter) -> None:
    pages = request(1, 3).pages
    shown = [("a", (0, 1, 2)), ("b", (0, 2, 1)), ("c", (0, 1, 2)), ("d", (0,))]
    images = [Shown(key, prompts_of([(pages[at], f"photo {at}") for at in order], 3)) for key, order in shown]
    asked: list[str] = []
    complete = engine.complete

    class Watched:
        name, clock = engine.name, engine.clock

        def complete(self, requests, *, grammar=False):  # type: ignore[no-untyped-def]
            for completion in complete(requests, grammar=grammar):
                if not grammar:
                    asked.append(completion.id)
                yield completion

        def close(self) -> None: ...

    predictor = Predictor(Watched(), engine.tokens, adapter.calibration, ReviewSettings())
    found = dict(predictor.answer(images))
    assert found.keys() == {"a", "b", "c", "d"}
    assert len(asked) == 3
    assert found["a"] == found["c"]


def test_scoring_shows_the_first_photos_that_can_be_read(tmp_path: Path) -> None:
    for number in range(5):
        noise_image(300, 300, number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no photo")
    paths = [str(tmp_path / f"{name}.png") for name in ("broken", "0", "broken", "1", "2", "3", "4")]
    products = [
        Product("several", "Hat", "HATS", 1.0, tuple(paths)),
        Product("broken", "Hat", "HATS", 1.0, (paths[0],)),
        Product("one", "Hat", "HATS", 1.0, (paths[1],)),
    ]
    (_, (several,)), (key, (one,)) = (
        (shown.key, shown.prompts)
        for shown in photos_of(products, PhotoLimits(), Preparation(4, 112, photos_per_product=3, more_crops=1))
    )
    assert [page.shape for page in several.pages] == [(224, 224, 3), (112, 112, 3), (112, 112, 3)]
    for page, number, crops in zip(several.pages, range(3), (4, 1, 1), strict=True):
        assert np.array_equal(page, hd_transform(noise_image(300, 300, number), crops, 112))
    assert (key, one.id, len(one.pages)) == ("one", one.sha256s[0], 1)
    assert several.sha256s[0] == one.id
    assert several.id == digest_of(several.sha256s) != one.id
    (_, (alone,)), *_ = (
        (shown.key, shown.prompts) for shown in photos_of(products, PhotoLimits(), Preparation(4, 112))
    )
    assert (alone.id, len(alone.pages)) == (one.id, 1)


def test_an_answer_that_leaves_no_room_for_the_photos_is_refused(adapter: Adapter) -> None:
    with pytest.raises(UsageError, match=r"photos_per_product 4: .* \+ 4000 for the answer \(max_new_tokens\)"):
        start_engine(adapter, RunSettings(engine="transformers", device="cpu", max_new_tokens=4000))
