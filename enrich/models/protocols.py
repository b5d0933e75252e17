"""The heavy half of a model family: how its models are loaded, adapted, trained and served.

`VisionModel` is a protocol that a module of functions, or a frozen dataclass with methods, can implement. `Processor`
is a checkpoint's tokenizer and image processor, as training and serving use them.

The path of a photo: bytes -> page (`Layout.page`; uint8, at its final size, so that nothing resizes it again) ->
`Processor.preprocess` (tensors, as few bytes as possible) -> `Processor.join` (a batch) -> `Processor.pixels` (on the
device) -> `VisionModel.image_features`, or straight into the model.

In every family, the ids of a prompt are -k at the positions of its k-th photo, counted from 1. This shows where images
are independently of the family's own token, and gives M-RoPE's `mm_token_type_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from enrich.models.base import PhotoTokens, Preparation

if TYPE_CHECKING:  # commands that load no model name these types too
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from vllm.inputs import MultiModalInput


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

    def vllm_input(
        self, question: str, dtype: torch.dtype
    ) -> Callable[[Sequence[np.ndarray], Sequence[str]], MultiModalInput]:
        """A function from a prompt's pages, and names by which vLLM recognises photos, to what vLLM's `add_request`
        takes. Its ids are those of `prompt_ids`, with `image_token_id` at image positions.

        The function raises ValueError as `preprocess`.

        Args:
            dtype: the model's. Pixels that vLLM does not get as bytes have it, as from vLLM's own renderer.
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
