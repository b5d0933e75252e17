"""The cache of image features, and photos made ready for the model."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from PIL import Image

from enrich.errors import UsageError
from enrich.models.phi3_vision import Phi3VForCausalLM
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.features import FeatureCache
from enrich.vocabulary import Product
from tests.testing.tiny_job import TinyJob


def _cached(photos: Photos, path: Path, dtype: torch.dtype = torch.float32) -> Photos:
    cache = FeatureCache(path, [example.num_image_tokens for example in photos.examples], 32, dtype)
    return Photos(photos.examples, photos.processor, photos._limits, cache)


def _embed(photos: Photos, model: Phi3VForCausalLM, rows: list[int], **changes: object) -> dict:
    ready = embed_images(model, _batch(photos, rows), photos, TrainSettings(**changes))
    photos.keep()
    return {name: ready[name] for name in ready if name not in ("input_ids", "attention_mask")}


def _batch(photos: Photos, rows: list[int]) -> dict:
    return Collator(photos.processor).prompts(photos.__getitems__(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_read_back_are_those_of_the_tower(
    dtype: torch.dtype, photos: Photos, job: TinyJob, tmp_path: Path
) -> None:
    model = type(job.tiny.model)(job.tiny.model.config).to(dtype).eval()
    cached = _cached(photos, tmp_path / "features", dtype)
    first = _embed(cached, model, [0, 2, 4])
    assert first.keys() == {"image_features"}
    again = cached.__getitems__([4, 0])
    assert torch.equal(again[0].images[0]["image_features"], first["image_features"][2])
    assert torch.equal(again[1].images[0]["image_features"], first["image_features"][0])
    for index, example in enumerate(photos.examples):
        pixels = job.tiny.processor.image_processor(_open(example.product))
        (fresh,) = model.get_image_features(pixels["pixel_values"].to(dtype), pixels["image_sizes"])
        (own,) = _embed(photos, model, [index])["image_features"]
        assert own.dtype == dtype
        assert not own.requires_grad
        torch.testing.assert_close(own, fresh)


def _open(product: Product) -> Image.Image:
    return Image.open(product.image_paths[0])


def test_what_the_cache_has_is_not_computed_again(photos: Photos, job: TinyJob, tmp_path: Path) -> None:
    cached = _cached(photos, tmp_path / "features")
    assert {tuple(item.images[0]) for item in cached.__getitems__([0, 1])} == {("pixel_values", "image_sizes")}
    _embed(cached, job.tiny.model, [0, 1])
    assert {tuple(item.images[0]) for item in cached.__getitems__([0, 1])} == {("image_features",)}
    assert [tuple(item.images[0]) for item in cached.__getitems__([2, 0])] == [
        ("pixel_values", "image_sizes"), ("image_features",),
    ]  # fmt: skip
    mixed = _embed(cached, job.tiny.model, [2, 0, 1])["image_features"]
    torch.testing.assert_close(torch.cat(mixed), torch.cat(_embed(photos, job.tiny.model, [2, 0, 1])["image_features"]))
    batch = _batch(cached, [1, 0])
    assert (batch["rows"], batch["image_features"].shape) == ([1, 0], (27 + 27, 32))
    assert _embed(cached, job.tiny.model, [1, 0]).keys() == {"image_features"}


def test_pixels_travel_as_bytes_and_arrive_as_the_processor_makes_them(photos: Photos, job: TinyJob) -> None:
    batch = _batch(photos, [2, 3])
    assert batch["fresh"]["pixel_values"].dtype == torch.uint8
    assert batch["fresh"]["image_sizes"] == [[28, 84], [56, 56]]
    ready = _embed(photos, job.tiny.model, [2, 3], adapt_vision=True)
    whole = job.tiny.processor.image_processor([_open(photos.examples[row].product) for row in (2, 3)])
    assert torch.equal(ready["pixel_values"], whole["pixel_values"])
    assert torch.equal(ready["image_sizes"], whole["image_sizes"])


def test_what_was_computed_before_a_kill_is_kept(photos: Photos, job: TinyJob, tmp_path: Path) -> None:
    first = _cached(photos, tmp_path / "features")
    _embed(first, job.tiny.model, [0, 1, 2])
    again = _cached(photos, tmp_path / "features")
    assert again.cache is not None
    assert again.cache.has([0, 1, 2])
    assert not again.cache.has([2, 3])
    assert first.cache is not None
    assert torch.equal(again.cache[1], first.cache[1])


def test_a_cache_of_other_photos_is_made_anew(photos: Photos, job: TinyJob, tmp_path: Path) -> None:
    _embed(_cached(photos, tmp_path / "features"), job.tiny.model, [0, 1])
    fewer = Photos(photos.examples[:4], photos.processor, photos._limits)
    cache = _cached(fewer, tmp_path / "features").cache
    assert cache is not None
    assert not cache.has([0])


def test_a_disk_without_room_is_named(photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(UsageError) as raised:
        _cached(photos, tmp_path / "features")
    assert str(raised.value) == (
        f"{tmp_path}: the features of 5 photos need 0.0 GB, but 0.0 are free; "
        "set cache_vision_features: false, or name another work directory"
    )
