"""Training at two looks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enrich.errors import UsageError
from enrich.models.phi3_vision.processing import Phi3VProcessor
from enrich.photos.decode import Photo
from enrich.photos.first_look import first_look
from enrich.settings.training import TrainSettings
from enrich.train.collate import Collator, Photos, embed_images
from enrich.train.examples import build_examples
from enrich.train.features import FeatureCache
from enrich.train.run import open_first, open_processor
from enrich.train.showing import Showing
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


def test_looks_that_a_model_makes_equal_are_refused(job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = job.settings(looks=(3, 4))
    quick = open_processor(job.tiny.path, job.settings(num_crops=3))
    with pytest.raises(UsageError, match=r"^looks \[3, 4\]: this model takes 3 squares of a photo in both; choose"):
        open_first(job.tiny.path, settings, quick)
    assert open_first(job.tiny.path, job.settings(), quick) is None
