"""Training at two looks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from enrich.errors import UsageError
from enrich.models.checkpoint import load_processor
from enrich.models.phi3_vision.processing import Phi3VProcessor
from enrich.models.registry import layouts
from enrich.photos.decode import Photo
from enrich.photos.first_look import first_look
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.examples import build_examples
from enrich.train.features import FeatureCache
from enrich.train.opening import open_first, open_processor
from enrich.train.showing import Showing
from tests.testing.tiny_families import MAKERS, write_member
from tests.testing.tiny_job import TinyJob


def _photos(job: TinyJob, cache: Path | None = None) -> Photos:
    settings = job.settings(looks=(1, 4))
    close = open_processor(job.tiny.path, settings)
    first = open_first(job.tiny.path, settings, close)
    examples, dropped = build_examples(job.products, close, job.prompt, settings, first=first)
    assert not dropped
    lengths = [view.tokens.total for example in examples for view in example.views]
    kept = FeatureCache(cache, lengths, 32, torch.float32) if cache else None
    return Photos(examples, close, settings.limits, kept, Showing(close, job.prompt, 1, settings.seed))


def test_epochs_show_one_look_or_the_other(job: TinyJob) -> None:
    photos = _photos(job)
    shown = []
    for epoch in range(40):
        photos.set_epoch(epoch)
        shown.append([item.example.shown for item in photos.__getitems__(range(len(photos)))])
    assert {one for epoch in shown for one in epoch} == {(0,), (1,)}
    firsts = sum(one == (1,) for epoch in shown for one in epoch)
    assert 60 <= firsts <= 140  # of 200
    assert photos.longest(1).examples[0].shown == (0,)


def test_what_is_shown_is_what_serving_shows(job: TinyJob) -> None:
    photos, seen = _photos(job), set()
    processor = photos.processor
    assert isinstance(processor, Phi3VProcessor)
    for epoch in range(6):
        photos.set_epoch(epoch)
        for item in photos.__getitems__(range(len(photos))):
            with Image.open(item.example.product.image_paths[0]) as image:
                page, size = processor.image_processor._transform(image, 4), image.size
            if item.example.shown == (1,):
                page = first_look(Photo(np.asarray(page), *size), processor.preparation, 1)
            served = processor.inputs(job.prompt.instruction, [[page]])
            assert served["input_ids"][0].tolist() == list(item.example.prompt_ids)
            ready = embed_images(job.tiny.model, Collator(processor)([item]), photos, TrainSettings(adapt_vision=True))
            crops = served["pixel_values"].shape[1]
            torch.testing.assert_close(ready["pixel_values"][:, :crops], served["pixel_values"])
            seen.add(item.example.shown)
    assert seen == {(0,), (1,)}


def test_features_of_both_looks_are_kept_apart(job: TinyJob, tmp_path: Path) -> None:
    cached, plain = _photos(job, tmp_path / "features"), _photos(job)
    collator = Collator(job.tiny.processor)
    for epoch in range(8):
        for photos in (cached, plain):
            photos.set_epoch(epoch)
        found = []
        for photos in (cached, plain):
            ready = embed_images(job.tiny.model, collator(photos.__getitems__(range(5))), photos, TrainSettings())
            photos.keep()
            features = ready["image_features"]
            found.append(features if isinstance(features, torch.Tensor) else torch.cat(list(features)))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert cached.cache is not None
    assert cached.cache.has(range(10))


def test_looks_that_a_model_makes_equal_are_refused(job: TinyJob, tmp_path: Path) -> None:
    base = write_member("smolvlm", tmp_path / "base")
    settings = job.settings(model=str(base), looks=(1, 4))
    close = open_processor(base, settings)
    with pytest.raises(UsageError, match=r"^looks \[1, 4\]: this model takes 36 squares of a photo in both; choose"):
        open_first(base, settings, close)
    assert open_first(base, job.settings(model=str(base)), close) is None


# The tiny SmolVLM2 has so few tokens in a tile that one crop's take all tiles it can have, as those of four do.
@pytest.mark.parametrize("family", sorted(MAKERS.keys() - {"smolvlm"}))
def test_a_model_of_any_family_is_trained_and_shown_both_looks(family: str, job: TinyJob, tmp_path: Path) -> None:
    base = write_member(family, tmp_path / "base", vocabulary=0.2)
    changes: dict[str, Any] = {"model": str(base), "looks": (1, 4), "epochs": 4, "evaluations": 1}
    report, told = job.train(tmp_path / "work", base=base, **changes)
    assert report.merge_check.ok
    assert [progress.loss for progress in told if progress.loss][-1] < 10
    close = load_processor(tmp_path / "work" / "adapter")
    first = open_first(base, job.settings(**changes), close)
    assert first is not None
    few, how = first.preparation.num_crops, close.preparation
    for product in job.products:
        with Image.open(product.image_paths[0]) as image:
            page = layouts()[how.layout].page(image.convert("RGB"), how.num_crops, how.image_size)
            quick = first_look(Photo(page, *image.size), how, few)
            taught = close.prompt_ids(job.prompt.instruction, [first.photo_tokens(*image.size)])
        # The processor of close looks, which serves both, takes the page for what it was taught as.
        served = close.inputs(job.prompt.instruction, [[quick]])["input_ids"][0].tolist()
        assert served == taught
