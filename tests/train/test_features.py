"""The cache of image features."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from enrich.errors import UsageError
from enrich.prompt import Prompt
from enrich.schema import Product
from enrich.settings import TrainSettings
from enrich.train.collate import Photos, images
from enrich.train.examples import build_examples
from enrich.train.features import Features, cache_features
from tests.phi3_vision.tiny import Tiny

Batches = Callable[[], Iterator[dict[str, torch.Tensor]]]


@pytest.fixture
def photos(products: list[Product], tiny: Tiny, prompt: Prompt, make_settings: Callable[..., TrainSettings]) -> Photos:
    settings = make_settings()
    return Photos(build_examples(products, tiny.processor, prompt, settings)[0], tiny.processor, settings.limits)


def _cache(photos: Photos, model: torch.nn.Module, path: Path, batches: Iterator | None = None) -> Features:
    lengths = [example.num_image_tokens for example in photos.examples]
    given = batches if batches is not None else (images([photos[i] for i in pair]) for pair in ([0, 1], [2, 3], [4]))
    return cache_features(model, given, lengths, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_read_back_are_those_of_the_tower(
    dtype: torch.dtype, photos: Photos, tiny: Tiny, tmp_path: Path
) -> None:
    model = type(tiny.model)(tiny.model.config).to(dtype).eval()
    features = _cache(photos, model, tmp_path / "features")
    for index, (_, image) in enumerate(photos):
        (fresh,) = model.get_image_features(image["pixel_values"].to(dtype), image["image_sizes"])
        assert features[index].dtype == dtype
        torch.testing.assert_close(features[index], fresh, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_a_finished_cache_is_not_computed_again(photos: Photos, tiny: Tiny, tmp_path: Path) -> None:
    first = _cache(photos, tiny.model, tmp_path / "features")
    again = _cache(photos, tiny.model, tmp_path / "features", iter(()))
    assert torch.equal(first[4], again[4])


def test_a_killed_computation_leaves_no_cache(photos: Photos, tiny: Tiny, tmp_path: Path) -> None:
    def dies() -> Iterator[dict[str, torch.Tensor]]:
        yield images([photos[0]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _cache(photos, tiny.model, tmp_path / "features", dies())
    assert not (tmp_path / "features").exists()
    assert torch.isfinite(_cache(photos, tiny.model, tmp_path / "features")[4]).all()


def test_a_disk_without_room_is_named(
    photos: Photos, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(UsageError) as raised:
        _cache(photos, tiny.model, tmp_path / "features")
    assert str(raised.value) == (
        f"{tmp_path}: the features of 5 photos need 0.0 GB, 0.0 GB are free; "
        "set cache_vision_features: false, or name another work directory"
    )
