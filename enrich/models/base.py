"""What a family of vision-language models must define. Each family is a module of this package with a `FAMILY`.

A family has two halves. `Family` is light: which models belong to it, and how a decoded photo becomes a page. Processes
that decode photos import it, so it loads neither torch, transformers nor pydantic. `VisionModel` is the rest, loaded
with a model. It is a protocol that a module of functions, or a frozen dataclass with methods, can implement.
`Processor` is a checkpoint's tokenizer and image processor, as training and serving use them.

The path of a photo: bytes -> page (`Layout.page`; uint8, at its final size, so that nothing resizes it again) ->
`Processor.preprocess` (tensors, as few bytes as possible) -> `Processor.join` (a batch) -> `Processor.pixels` (on the
device) -> `VisionModel.image_features`, or straight into the model.

In every family, the ids of a prompt are -k at the positions of its k-th photo, counted from 1. This shows where images
are independently of the family's own token, and gives M-RoPE's `mm_token_type_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # the light half must not load them
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from vllm.inputs import MultiModalInput

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


class Processor(Protocol):
    """Text and photos to the inputs of one checkpoint. It is pickled for training's loading processes."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A fast one."""
        ...

    @property
    def preparation(self) -> Preparation:
        """How its photos become pages."""
        ...

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Tokens of the vocabulary that end an answer.

        The first one ends a turn and is learned at the end of each answer: `<|end|>`, `<|im_end|>`, `<turn|>`. The
        others, such as the start of another turn, end an answer that lacks it.
        """
        ...

    @property
    def image_token_id(self) -> int:
        """The id at image positions where -k cannot be used: in vLLM, and in a completion's prompt_ids."""
        ...

    def photo_tokens(self, width: int, height: int, position: int = 0) -> PhotoTokens:
        """The tokens of an upright photo of this size at this position of its prompt, counted from 0."""
        ...

    def most_photo_tokens(self, position: int = 0) -> int:
        """Maximum image positions of a photo of any size at this position."""
        ...

    def prompt_ids(self, question: str, photos: Sequence[PhotoTokens]) -> list[int]:
        """The user's turn, which shows the photos and then asks the question, and the start of the assistant's.

        Rendered by the checkpoint's chat template with thinking disabled, so that an answer's ids follow directly. The
        question is plain text without control tokens (`answers/text_tokens` refuses others).

        Returns:
            Ids with -k at the image positions of the k-th photo. Other tokens of a photo, such as those that begin and
            end it or number its rows, are written as usual.
        """
        ...

    def whole_ids(self, question: str, photos: Sequence[PhotoTokens], answer: str) -> list[int]:
        """As `prompt_ids`, with an answer and the turn's end, tokenised as one text.

        Training refuses a tokenizer for which these are not prompt_ids + the answer's ids + the first of `stop_tokens`.

        Raises:
            ValueError: the tokenizer is not the family's; the message says what is wrong and what to do.
        """
        ...

    def preprocess(self, page: np.ndarray, position: int = 0) -> dict[str, torch.Tensor]:
        """A page as tensors on the CPU, in as few bytes as possible (uint8 crops where `pixels` can normalise them).

        Raises:
            ValueError: the page is not one that the layout makes for this position.
        """
        ...

    def join(self, photos: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, Any]:
        """Preprocessed photos of a batch, in order, as one: a DataLoader's worker does this. At least one.

        Tensors go to the device; what is read on the CPU should be a list, since reading a tensor from a GPU waits for
        all work queued there.
        """
        ...

    def pixels(self, joined: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """The result of `join` as image arguments of the model's forward: on its device and in its type."""
        ...

    def inputs(self, question: str, pages: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """The model's inputs for a row per product, with its pages, padded on the left: what `generate` takes.

        Raises:
            ValueError: as `preprocess`.
        """
        ...

    def vllm_input(self, question: str) -> Callable[[Sequence[np.ndarray], Sequence[str]], MultiModalInput]:
        """A function from a prompt's pages, and names by which vLLM recognises photos, to what vLLM's `add_request`
        takes. Its ids are those of `prompt_ids`, with `image_token_id` at image positions.

        The function raises ValueError as `preprocess`.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write the settings of photos, `preparation` among them, where `VisionModel.load_processor` and
        `Family.read_preparation` find them. The tokenizer's files are copied from the base, byte for byte."""
        ...


class VisionModel(Protocol):
    """Loading, adapting and serving models of a family.

    Attributes:
        target_modules: names of the decoder layers' linears that get LoRA where settings name none.
        tower_lora: whether vLLM serves LoRA on the vision tower unmerged.
        vllm_imports: packages that vLLM imports for this family and cannot do without.
    """

    @property
    def target_modules(self) -> tuple[str, ...]: ...

    @property
    def tower_lora(self) -> bool: ...

    @property
    def vllm_imports(self) -> tuple[str, ...]: ...

    def load_processor(self, directory: Path, **changes: Any) -> Processor:
        """The processor of a checkpoint or an adapter.

        Args:
            changes: fields of `Preparation` but `image_size` and `layout`, with `preparation_version` for `version`:
                they stand for what the directory's files say. In place of `num_crops` and `more_crops`, `photo_tokens`
                and `more_photo_tokens`: about how many image positions a photo takes in a full-size model.

        Raises:
            CheckpointError: files are missing.
        """
        ...

    def load_model(
        self,
        directory: Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device,
        attention: str = "sdpa",
        load_in_4bit: bool = False,
    ) -> PreTrainedModel:
        """The model in eval mode, by `checkpoint.load_whole`: no tensor of the file unused, none of the model missing.

        Its forward takes
        - `input_ids` with -k, or the family's own token, at image positions; they are not modified;
        - `attention_mask`, or none where rows are padded on the right and every token sees only those before it. A
          family whose image tokens see each other makes its own mask from the -k;
        - images: what `Processor.pixels` returns, or what `with_features` does;
        - `labels` (-100 where nothing is learned), `num_items_in_batch`, and `predict_at`: int (n,), positions (row *
          length + column) whose next token is predicted. Logits are then (n, vocabulary) and the loss covers these
          only: a vocabulary of 262 k costs a megabyte of float32 a position;
        - `logits_to_keep` and `use_cache`, as in transformers.

        It works with transformers' `generate` on what `Processor.inputs` returns, and on the same with features.

        Args:
            attention: transformers' name of the attention kernels.
            load_in_4bit: the decoder layers' weights in NF4 (`checkpoint.nf4`), all others in `dtype`.

        Raises:
            CheckpointError: missing files, or another kind of model.
            ValueError: a damaged file, or tensors that do not match the model.
        """
        ...

    def empty_model(self, directory: Path) -> PreTrainedModel:
        """The model that the directory's config.json describes, without its weights; called where `torch.device` is
        meta. ValueError: there is no such configuration."""
        ...

    def decoder_linears(self, model: PreTrainedModel) -> str:
        """A regular expression of the paths of the modules whose linears `target_modules` names, such as
        `model\\.layers\\.\\d+\\.(?:self_attn|mlp)`. It matches nothing of the vision tower."""
        ...

    def vision_linears(self, model: PreTrainedModel) -> list[str]:
        """Regular expressions of the whole paths of the tower's and the projector's linears. Never its patch embedding,
        and no layer whose output nothing reads."""
        ...

    def compile_layers(self, model: PreTrainedModel) -> None:
        """Compile the decoder layers and the tower's, each kind once, in place. Names of modules stay as they are."""
        ...

    def square_side(self, config: PretrainedConfig) -> int:
        """Pixels along a side of the squares that this model takes: `Preparation.image_size` has to be the same."""
        ...

    def feature_width(self, config: PretrainedConfig) -> int:
        """Numbers that `image_features` yields for an image position: the hidden size, times the number of its feature
        sets where deeper layers get some of their own (DeepStack)."""
        ...

    def image_features(self, model: PreTrainedModel, pixels: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """What the vision tower and the projector make of each photo: (`PhotoTokens.total`, `feature_width`).

        With a frozen tower they never change, and training keeps them in a cache on disk.

        Args:
            model: without PEFT's wrapper.
            pixels: what `Processor.pixels` returned.
        """
        ...

    def with_features(
        self, features: torch.Tensor | Sequence[torch.Tensor], photos: Sequence[PhotoTokens]
    ) -> dict[str, Any]:
        """The image arguments of the model's forward where features are known: those of all photos of a batch in order,
        as a list or concatenated, and what these photos are."""
        ...

    def vllm_arguments(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What vLLM's EngineArgs need for this family alone; empty where its defaults are right."""
        ...

    def vllm_photo_arguments(self, how: Preparation) -> dict[str, Any]:
        """`mm_processor_kwargs` with which vLLM reads photos as `how` says, overriding the base."""
        ...


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
