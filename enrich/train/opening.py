"""Open what a training needs: the base's processor, the base itself, and the photos of its examples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from enrich.errors import UsageError, first_line
from enrich.models.base import PREPARATION_VERSION, crop_tokens
from enrich.models.checkpoint import load_model, load_processor
from enrich.models.protocols import Processor
from enrich.models.registry import CheckpointError, vision_model
from enrich.settings.training import TrainSettings
from enrich.train.collate import Photos
from enrich.train.examples import Example
from enrich.train.features import FeatureCache
from enrich.train.kernels import attention_kernel
from enrich.train.showing import Showing
from enrich.train.trial import refuse_large_base


@contextmanager
def model_errors(settings: TrainSettings) -> Iterator[None]:
    """Errors about the base's files as UsageErrors."""
    try:
        yield
    except CheckpointError as error:
        raise UsageError(f"model {settings.model}: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"model {settings.model}: {first_line(error)}") from error


def open_processor(base: Path, settings: TrainSettings) -> Processor:
    """The base's processor with the settings' preparation of photos. Raises UsageError where files are missing."""
    with model_errors(settings):
        return load_processor(
            base,
            photo_tokens=settings.photo_tokens or crop_tokens(settings.close_crops),
            more_photo_tokens=settings.more_photo_tokens or crop_tokens(settings.more_crops),
            fast_decode=settings.fast_decode,
            preparation_version=PREPARATION_VERSION,
            photos_per_product=settings.photos_per_product,
        )


def open_first(base: Path, settings: TrainSettings, close: Processor) -> Processor | None:
    """The processor of a first look, where the settings ask for two; `close` is that of the second.

    Raises:
        UsageError: files are missing, or this model makes photos of both looks equally large.
    """
    if settings.looks is None:
        return None
    quick = open_processor(base, settings.model_copy(update={"looks": None, "num_crops": settings.looks[0]}))
    crops = quick.preparation.num_crops
    if crops >= close.preparation.num_crops:
        raise UsageError(
            f"looks {list(settings.looks)}: this model takes {crops} squares of a photo in both; choose numbers that "
            "are further apart"
        )
    return quick


def open_model(base: Path, settings: TrainSettings, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The base with the settings' kernels and quantisation. Raises UsageError, also if it does not fit the GPU."""
    kernel = attention_kernel(settings.attention, device)
    with model_errors(settings), refuse_large_base(settings):
        return load_model(base, dtype=dtype, device=device, attention=kernel, load_in_4bit=settings.load_in_4bit)


def open_photos(
    model: PreTrainedModel,
    examples: Sequence[Example],
    processor: Processor,
    settings: TrainSettings,
    path: Path,
    showing: Showing | None = None,
) -> Photos:
    """The examples' photos; with a cache of their features in `path` where settings ask for one and they stay the same.

    Raises:
        UsageError: the disk has no room for the cache.
    """
    cache = None
    if settings.cache_vision_features and not settings.adapt_vision:
        width = vision_model(model.config.model_type).feature_width(model.config)
        lengths = [view.tokens.total for example in examples for view in example.views]
        with PartialState().main_process_first():
            cache = FeatureCache(path, lengths, width, model.dtype)
    return Photos(examples, processor, settings.limits, cache, showing)
