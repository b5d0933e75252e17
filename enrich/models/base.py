"""What a family of vision-language models must define. Each family is a module of this package with a `FAMILY`.

A family has two halves. `Family` is light: which models belong to it, and how a decoded photo becomes a page. Processes
that decode photos import it, so it loads neither torch, transformers nor pydantic. `VisionModel` is the rest, loaded
when a model is: see `models.protocols`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # the light half must not load it
    from enrich.models.protocols import VisionModel

# Increased whenever the same photo would give another page. Adapters record it, and it is part of the fingerprint.
PREPARATION_VERSION = 2  # 2: colours are converted from the photo's profile to sRGB


def crop_tokens(crops: int) -> int:
    """About how many image positions a photo of that many crops of 336 pixels takes: 313, 757, 1,489 for 1, 4, 9."""
    across = 12 * crops**0.5
    return round(across * (across + 1)) + 157


@dataclass(frozen=True)
class Preparation:
    """How photos are prepared. An adapter must be served with the values that it was trained with.

    A page is never larger than `num_crops` squares of `image_size` pixels. What such a square is depends on the layout:
    a crop that goes through the vision tower by itself, or the part of a photo that becomes one token of the prompt.
    """

    num_crops: int  # squares that the page of a product's main photo has at most
    image_size: int  # pixels of a square's side
    fast_decode: bool = False  # decode large JPEGs at a reduced scale
    version: int = PREPARATION_VERSION  # of the adapter's training; serving uses PREPARATION_VERSION
    photos_per_product: int = 1  # that one prompt shows at most
    more_crops: int = 1  # as num_crops, of a product's further photos
    layout: str = "crops"  # `Layout.name`

    def most(self, position: int) -> int:
        """Maximum squares of the page of a photo at this position in its prompt, counted from 0."""
        return self.more_crops if position else self.num_crops

    def is_further(self, good: int) -> bool:
        """Whether a photo after `good` others of its product is prepared as a further one. If a prompt shows one photo,
        each is the main photo of a prompt."""
        return good > 0 and self.photos_per_product > 1

    @property
    def most_pixels(self) -> int:
        """Maximum number of pixels of a page."""
        crops = self.num_crops if self.photos_per_product == 1 else max(self.num_crops, self.more_crops)
        return crops * self.image_size**2


class Page(Protocol):
    """From a photo to its page, with numpy and Pillow only."""

    def __call__(
        self, image: Image.Image | np.ndarray, squares: int, side: int, /, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """The page, uint8 RGB (height, width, 3), of at most `squares` squares of `side` pixels.

        Args:
            image: PIL image, or uint8 array (height, width, 3).
            size: (width, height) of the photo, where `image` is the same photo decoded at a reduced scale: rounding in
                its sides must not choose another page than the photo's.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """How photos become pages, in decoding processes.

    name: by which `Preparation` names it.
    page: see `Page`.
    resized: from a photo's (width, height), squares and side to the (width, height) to which `page` scales its pixels,
        without any padding: what a JPEG may be decoded for at a reduced scale.
    """

    name: str
    page: Page
    resized: Callable[[int, int, int, int], tuple[int, int]]


class PhotoTokens(NamedTuple):
    """The tokens of a photo in a prompt, computed from its size before it is decoded."""

    total: int  # image positions, each of which gets one vector of features
    grid: tuple[int, ...] = ()  # what else its family needs: rows and columns of tiles; t, h, w for M-RoPE


def _nothing() -> None:
    pass


class Published(NamedTuple):
    """A model of a family, with the sizes that determine its memory."""

    name: str  # at the Hugging Face hub
    parameters: float  # billions, with those of the vision tower
    layers: int  # of the decoder
    hidden: int
    intermediate: int
    kv_bytes: int  # of a token's keys and values in 16 bits


@dataclass(frozen=True)
class Family:
    """The light half of a family: see the module's docstring.

    title: for people, such as "Phi-3-vision".
    model_types: of config.json, by which the family is chosen.
    layout: how its photos become pages.
    photo_file: the file of an adapter that `read_preparation` reads.
    read_preparation: what `photo_file` in this directory says. It checks types and limits, for the file comes from
        outside, and raises ValueError with what is wrong ("names no num_crops").
    load: imports the other half.
    register_with_vllm: teaches vLLM a model class of the family's own; runs in each of vLLM's processes, any number of
        times. Only the fastest families need one.
    licence: of its weights.
    published: its models.
    """

    title: str
    model_types: tuple[str, ...]
    layout: Layout
    photo_file: str
    read_preparation: Callable[[Path], Preparation]
    load: Callable[[], VisionModel]
    register_with_vllm: Callable[[], None] = _nothing
    licence: str = ""
    published: tuple[Published, ...] = ()
