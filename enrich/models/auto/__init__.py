"""Any vision-language model for which transformers and vLLM have classes: only `Facts` differ between them.

A checkpoint's own processor is not used: all of them need torchvision (for videos), one also num2words, and if
torchvision is installed they would resize photos with its filters, which give different pixels. Only their parts are
used: the tokenizer, the chat template, and the image processor with Pillow's backend, which gets photos at final size.

This half is light, because decoding processes import it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from enrich.models.base import Family, Layout, Preparation, Published
from enrich.models.protocols import VisionModel

PHOTO_FILE = "preprocessor_config.json"
KEPT = "preparation"  # what an adapter's PHOTO_FILE adds to the image processor's own settings
MOST_SQUARES = 1 << 14  # of a page: Qwen3-VL's own limit


def _as_it_is(images: dict[str, Any]) -> dict[str, Any]:
    return images


def _nothing(_: list[tuple[int, ...]]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Facts:
    """What `auto` needs to know about a family. Squares and their side: see `Preparation`. Functions must be named
    ones, because this is pickled.

    Attributes:
        image_token: the token for a photo in the chat template, and at each of its image positions.
        stop_tokens: see `Processor.stop_tokens`.
        decoder: see `VisionModel.decoder_linears`.
        vision: see `VisionModel.vision_linears`.
        unquantized: modules whose linears are not quantized when the decoder layers' are in 4 bits.
        resample: the filter that photos are resized with.
        resized: a photo's (width, height), squares and side to its page's (width, height).
        spelling: of a page of so many squares down and across, with so many image positions each: its text.
        side: of a square, from the image processor's settings.
        model_side: of a square, from the configuration of the model's vision tower.
        squares: that a page has at most, from the image processor's settings.
        settings: of the image processor, for so many squares of a side.
        squares_for: the number of squares for a wanted number of image positions, given the positions per square.
        each: image positions of a square, from the model's configuration.
        template: arguments of the chat template.
        tensors: which of the image processor's results the model's forward takes, and what pads them.
        arranged: a page's bytes and a square's side to the bytes of its "pixel_values"; None: the image processor does
            this.
        grids: the model's other image arguments, from squares down and across of photos. `arranged` and features that
            are known need them.
        for_vllm: a photo's tensors under vLLM's names.
        flat: those of them that have any number of rows for a photo, not one.
        bytes_for_vllm: vLLM normalises pixels itself, on the GPU, and gets them as bytes.
        attention: vLLM's attention on CUDA; None: what vLLM chooses.
        vllm_imports: see `VisionModel`.
    """

    image_token: str
    stop_tokens: tuple[str, ...]
    decoder: str
    vision: tuple[str, ...]
    unquantized: tuple[str, ...]
    resample: Image.Resampling
    resized: Callable[[int, int, int, int], tuple[int, int]]
    spelling: Callable[[int, int, int], str]
    side: Callable[[Mapping[str, Any]], int]
    model_side: Callable[[Any], int]
    squares: Callable[[Mapping[str, Any]], int]
    settings: Callable[[int, int], dict[str, Any]]
    squares_for: Callable[[int, int], int]
    each: Callable[[Any], int]
    tensors: Mapping[str, int]
    arranged: Callable[[np.ndarray, int], np.ndarray] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    grids: Callable[[list[tuple[int, ...]]], dict[str, Any]] = _nothing
    for_vllm: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is
    flat: tuple[str, ...] = ()
    bytes_for_vllm: bool = False
    attention: str | None = None
    vllm_imports: tuple[str, ...] = ("torchvision",)


def family(title: str, model_type: str, facts: Facts, licence: str, *published: Published) -> Family:
    """The family with these facts."""
    return Family(
        title=title,
        model_types=(model_type,),
        layout=Layout(model_type, partial(_page, facts), facts.resized),
        photo_file=PHOTO_FILE,
        read_preparation=partial(_read_preparation, model_type),
        load=partial(_load, facts),
        licence=licence,
        published=published,
    )


def nearest(wanted: int, offered: Iterable[tuple[int, int]]) -> int:
    """Of (setting, image positions), the setting whose positions are nearest to `wanted` in ratio."""
    return min(offered, key=lambda one: abs(math.log(one[1] / wanted)))[0]


def one_each(_: Any) -> int:
    """A square is a token."""
    return 1


def _load(facts: Facts) -> VisionModel:
    from enrich.models.auto.model import AutoModel  # loads torch

    return AutoModel(facts)


def _page(
    facts: Facts, image: Image.Image | np.ndarray, squares: int, side: int, /, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """See `Page`. No padding: each side is scaled by itself, by up to half a square."""
    picture = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    wanted = facts.resized(*(size or picture.size), squares, side)
    return np.asarray(picture if picture.size == wanted else picture.resize(wanted, facts.resample))


def _read_preparation(layout: str, directory: Path) -> Preparation:
    """See `Family.read_preparation`."""
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    class Kept(BaseModel):
        model_config = ConfigDict(strict=True)

        num_crops: int = Field(ge=1, le=MOST_SQUARES)
        image_size: int = Field(ge=8, le=4096)
        fast_decode: bool
        version: int
        photos_per_product: int = Field(ge=1, le=5)
        more_crops: int = Field(ge=1, le=MOST_SQUARES)

    try:
        kept = Kept.model_validate(json.loads((directory / PHOTO_FILE).read_bytes())[KEPT])
    except (OSError, ValueError, RecursionError, TypeError, KeyError, ValidationError) as error:
        raise ValueError("does not say how photos were prepared") from error
    return Preparation(**kept.model_dump(), layout=layout)
