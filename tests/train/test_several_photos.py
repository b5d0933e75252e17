"""Training on products with several photos."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from enrich.answers.prompt import SHORTEST_BUDGET, make_prompt
from enrich.errors import UsageError
from enrich.models.phi3_vision.processing import Phi3VProcessor, render_turn
from enrich.models.phi3_vision.vision_model import load_processor
from enrich.photos.prompt_size import refuse_long_prompts
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.examples import Example
from enrich.train.features import FeatureCache
from enrich.train.opening import open_processor
from enrich.train.showing import Showing
from enrich.vocabulary import Product
from tests.testing.tiny_job import TinyJob, weights
from tests.testing.tiny_phi3v import noise_image

THREE: dict[str, Any] = {"photos_per_product": 3, "more_crops": 1}


@pytest.fixture(scope="module")
def products(job: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    """Products of 4, 3, 2, 2 and 1 photos, no two of them alike."""
    folder, made = tmp_path_factory.mktemp("several"), []
    for number, (product, count) in enumerate(zip(job.products, (4, 3, 2, 2, 1), strict=True)):
        paths = []
        for at in range(count):
            path = folder / f"{number}-{at}.png"
            noise_image(56 + 40 * (at % 2), 56, 10 * number + at).save(path)
            paths.append(str(path))
        made.append(replace(product, image_paths=tuple(paths)))
    return made


def _photos(
    job: TinyJob, products: Sequence[Product], cache: Path | None = None, all_photos: bool = True, **changes: Any
) -> Photos:
    """The photos of training, or with all_photos=False of validation."""
    from enrich.train.examples import build_examples

    settings = job.settings(**{**THREE, **changes})
    processor = open_processor(job.tiny.path, settings)
    examples, dropped = build_examples(products, processor, job.prompt, settings, all_photos=all_photos)
    assert not dropped
    lengths = [photo.tokens.total for example in examples for photo in example.photos]
    kept = FeatureCache(cache, lengths, 32, torch.float32) if cache else None
    showing = Showing(processor, job.prompt, settings.photos_per_product, settings.seed) if all_photos else None
    return Photos(examples, processor, settings.limits, kept, showing)


def _processor(photos: Photos) -> Phi3VProcessor:
    assert isinstance(photos.processor, Phi3VProcessor)
    return photos.processor


def _shown(photos: Photos, epoch: int) -> list[tuple[int, ...]]:
    photos.set_epoch(epoch)
    return [item.example.shown for item in photos.__getitems__(range(len(photos)))]


def test_an_example_shows_the_first_photos_in_order(job: TinyJob, products: list[Product]) -> None:
    photos = _photos(job, products, all_photos=False)
    assert [example.shown for example in photos.examples] == [(0, 1, 2), (0, 1, 2), (0, 1), (0, 1), (0,)]
    for example in photos.examples:
        count = len(example.shown)
        served = _processor(photos)(
            render_turn(job.prompt.instruction, count),
            [Image.open(path) for path in example.product.image_paths[:count]],
        )
        assert served["input_ids"][0].tolist() == list(example.prompt_ids)
    assert _shown(photos, 0) == _shown(photos, 7) == [example.shown for example in photos.examples]


def test_epochs_differ_in_number_and_order_of_the_further_photos(job: TinyJob, products: list[Product]) -> None:
    photos = _photos(job, products)
    epochs = [_shown(photos, epoch) for epoch in range(60)]
    seen = [{shown[row] for shown in epochs} for row in range(5)]
    assert seen[0] == {(0,), *((0, a) for a in (1, 2, 3)), *((0, a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b)}
    assert seen[1] == {(0,), (0, 1), (0, 2), (0, 1, 2), (0, 2, 1)}
    assert seen[2] == seen[3] == {(0,), (0, 1)}
    assert seen[4] == {(0,)}
    assert [_shown(_photos(job, products), epoch) for epoch in range(60)] == epochs  # by seed and epoch alone
    assert [_shown(_photos(job, products, seed=4), epoch) for epoch in range(60)] != epochs


def test_what_is_shown_is_in_the_prompt(job: TinyJob, products: list[Product]) -> None:
    photos = _photos(job, products)
    for epoch in range(8):
        photos.set_epoch(epoch)
        for item in photos.__getitems__(range(5)):
            paths = [item.example.product.image_paths[at] for at in item.example.shown]
            served = _processor(photos)(
                render_turn(job.prompt.instruction, len(paths)), [Image.open(path) for path in paths]
            )
            assert served["input_ids"][0].tolist() == list(item.example.prompt_ids)
            batch = Collator(photos.processor)([item])
            ready = embed_images(job.tiny.model, batch, photos, TrainSettings(adapt_vision=True))
            torch.testing.assert_close(ready["pixel_values"], served["pixel_values"])


def test_features_are_computed_once_for_each_photo(
    job: TinyJob, products: list[Product], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, plain = _photos(job, products, tmp_path / "features"), _photos(job, products)
    computed = 0
    model = job.model()
    original = model.get_image_features

    def counted(pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        nonlocal computed
        computed += len(pixel_values)
        return original(pixel_values, image_sizes)

    collator, rows = Collator(job.tiny.processor), [[0, 1, 2], [4, 3], [3, 2, 0], [1, 4]]
    for epoch in range(12):
        for photos in (cached, plain):
            photos.set_epoch(epoch)
        for batch in rows:
            monkeypatch.setattr(model, "get_image_features", counted)
            mine = embed_images(model, collator(cached.__getitems__(batch)), cached, TrainSettings())
            cached.keep()
            monkeypatch.setattr(model, "get_image_features", original)
            theirs = embed_images(model, collator(plain.__getitems__(batch)), plain, TrainSettings())
            assert torch.equal(mine["input_ids"], theirs["input_ids"])
            torch.testing.assert_close(_joined(mine), _joined(theirs), rtol=1e-4, atol=1e-5)
    assert computed == 4 + 3 + 2 + 2 + 1
    assert cached.cache is not None
    assert cached.cache.has(range(12))


def _joined(batch: dict[str, Any]) -> torch.Tensor:
    features = batch["image_features"]
    return features if isinstance(features, torch.Tensor) else torch.cat(list(features))


def test_the_trial_step_sees_the_longest_row_there_can_be(job: TinyJob, products: list[Product]) -> None:
    photos = _photos(job, products)
    longest = photos.longest(1)[0].example
    lengths = []
    for epoch in range(60):
        photos.set_epoch(epoch)
        lengths += [len(item.example.input_ids) for item in photos.__getitems__(range(5))]
    assert len(longest.input_ids) == max(lengths)
    assert len(longest.shown) == 3


def test_broken_photos_cost_themselves(job: TinyJob, products: list[Product], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no photo")
    first, second = products[0], products[1]
    lacking = replace(first, image_paths=(str(broken), *first.image_paths[:2], "/nowhere.png"))
    gone = replace(second, image_paths=(str(broken), "/nowhere.png"))
    examples, dropped = job.build([lacking, gone, *products[2:]], **THREE)
    assert [photo.path for photo in examples[0].photos] == list(first.image_paths[:2])
    assert examples[0].shown == (0, 1)
    assert [one.reason.partition(": ")[0] for one in examples[0].lost] == [f"photo {broken}", "photo /nowhere.png"]
    assert [(one.product_code, one.kind) for one in dropped] == [(gone.product_code, "photo cannot be read")]
    (one_only, *_), _ = job.build([lacking, *products[2:]])  # the next photo takes the main one's place
    assert (one_only.photos[0].path, len(one_only.photos), len(one_only.lost)) == (first.image_paths[0], 1, 1)
    served = job.tiny.processor(render_turn(job.prompt.instruction), Image.open(first.image_paths[0]))
    assert served["input_ids"][0].tolist() == list(one_only.prompt_ids)


@pytest.fixture(scope="module")
def back_only(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    """Products whose main photos are all alike: only the second one shows what is taught."""
    folder = tmp_path_factory.mktemp("back")
    Image.new("RGB", (56, 56), (128, 128, 128)).save(folder / "front.png")
    made = []
    for number, (title, colour) in enumerate(
        {"Red": (220, 20, 20), "Blue": (30, 60, 220), "Green": (20, 200, 20)}.items()
    ):
        Image.new("RGB", (56, 56), colour).save(folder / f"{title}.png")
        paths = str(folder / "front.png"), str(folder / f"{title}.png")
        made.append(Product(f"P{number}", title, "WARM" if title == "Red" else "COLD", 10.0 * (number + 1), paths))
    return made


@pytest.mark.parametrize("photos", [2, 1])
def test_what_only_the_second_photo_shows_is_learned_from_two(
    photos: int, job: TinyJob, back_only: list[Product], tmp_path: Path
) -> None:
    told: list[str] = []
    report, _ = job.train(
        tmp_path, back_only, photos_per_product=photos, batch_size=3, effective_batch_size=3, epochs=100,
        on_message=told.append,
    )  # fmt: skip
    assert (report.best.title_token_f1 == 1.0) == (photos == 2)
    written = json.loads((tmp_path / "adapter" / "preprocessor_config.json").read_text())
    if photos == 2:
        assert (written["photos_per_product"], written["more_crops"]) == (2, 1)
        assert report.merge_check.ok
        assert any("photos: 6 of 3 products, up to 2 in a prompt, for 100 epochs" in line for line in told)
    else:
        assert not {"photos_per_product", "more_crops"} & written.keys()
        assert any("photos: 3 for 100 epochs" in line for line in told)


def test_a_training_that_was_interrupted_continues_with_the_same_photos(
    job: TinyJob, products: list[Product], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        **THREE, "epochs": 6, "evaluations": 4, "batch_size": 2, "effective_batch_size": 2,
        "cache_vision_features": False,
    }  # fmt: skip

    class Broken(Exception):
        pass

    def break_off(state: Any) -> None:
        if state.stage == "training" and state.step == 8:
            raise Broken

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    job.train(whole, products, **changes)
    with pytest.raises(Broken):
        job.train(broken, products, on_progress=break_off, **changes)
    _, told = job.train(broken, products, **changes)
    assert next(state.step for state in told if state.stage == "training") == 6  # within an epoch
    assert all(torch.equal(mine, weights(whole)[name]) for name, mine in weights(broken).items())


def test_the_cache_changes_nothing(job: TinyJob, products: list[Product], tmp_path: Path) -> None:
    changes: dict[str, Any] = {**THREE, "epochs": 4, "evaluations": 1}
    job.train(tmp_path / "cached", products, **changes)
    job.train(tmp_path / "fresh", products, cache_vision_features=False, **changes)
    torch.testing.assert_close(weights(tmp_path / "fresh"), weights(tmp_path / "cached"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"num_crops": 16}, True),
        ({"num_crops": 16, "photos_per_product": 5}, True),
        ({"photos_per_product": 5, "more_crops": 4}, True),
        ({"num_crops": 16, "photos_per_product": 2, "more_crops": 9}, False),
        ({"photos_per_product": 5, "more_crops": 5}, False),
        ({"photos_per_product": 5, "more_crops": 4, "max_new_tokens": 200}, False),
    ],
)
def test_sizes_that_cannot_fit_are_refused_with_the_sum(changes: dict[str, Any], fits: bool) -> None:
    settings = TrainSettings(**changes)
    crops = {"num_crops": settings.num_crops, "more_crops": settings.more_crops}
    # The published model's crops, 336 pixels and 144 tokens each, and the tiny base's vocabulary.
    processor = load_processor(
        TINY_MODEL_PATH, photos_per_product=settings.photos_per_product, image_size=336, patch_size=14, **crops
    )
    prompt, budget = make_prompt((), "EUR"), settings.max_new_tokens or SHORTEST_BUDGET
    if fits:
        refuse_long_prompts(processor, prompt, budget)
        return
    with pytest.raises(UsageError) as refused:
        refuse_long_prompts(processor, prompt, budget)
    numbers = [int(text.replace(",", "")) for text in _numbers(str(refused.value))]
    photos, total, most, main, further, each, text, answer = numbers
    assert (photos, most, further, answer) == (settings.photos_per_product, 4096, photos - 1, budget)
    assert total == main + further * each + text + answer > most
    assert "\n" not in str(refused.value)


def _numbers(text: str) -> list[str]:
    return [word.strip("():;+") for word in text.split() if word.strip("():;+").replace(",", "").isdigit()]


def test_a_row_that_could_get_too_long_is_refused(job: TinyJob, products: list[Product]) -> None:
    examples: list[Example] = job.build(products, **THREE)[0]
    longest = max(len(example.input_ids) for example in examples)
    with pytest.raises(UsageError) as refused:
        job.build(products, **THREE, max_length=longest - 1)
    assert str(refused.value).endswith(
        f"more than max_length {longest - 1}; raise max_length or lower photo_tokens, more_photo_tokens or "
        "photos_per_product"
    )
