"""Text and photos of a checkpoint to its inputs: see `enrich.models.protocols.Processor`."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    __version__,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from enrich.models.auto import KEPT, PHOTO_FILE, Facts
from enrich.models.base import PhotoTokens, Preparation
from enrich.models.checkpoint import need
from enrich.models.registry import CheckpointError, read_object

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput

_PROCESSOR_FILE = "processor_config.json"  # newer checkpoints keep the image processor's settings here
_MISSING = re.compile(r"(?:dependencies: |requires the )(\w+)")  # in the errors of transformers
_PIECE = 1 << 16  # pixels
_PARTS = ("image_processor", "video_processor", "feature_extractor", "tokenizer")


@dataclass(frozen=True)
class PhotoProcessor:
    """A `Processor`. `each`: image positions of a square; `others`: the rest of _PROCESSOR_FILE."""

    facts: Facts
    tokenizer: PreTrainedTokenizerBase
    images: Any
    preparation: Preparation
    each: int
    others: Mapping[str, Any]

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The turn's end, and of the others those that the vocabulary has."""
        end, *others = self.facts.stop_tokens
        known = self.tokenizer.get_vocab()
        return (end, *(token for token in others if token in known))

    @property
    def image_token_id(self) -> int:
        """See `Processor`."""
        return self.tokenizer.convert_tokens_to_ids(self.facts.image_token)

    def photo_tokens(self, width: int, height: int, position: int = 0) -> PhotoTokens:
        """See `Processor`. Takes a photo's size, not its page's: in Gemma 4 a page could become a larger page."""
        side = self.preparation.image_size
        across, down = (one // side for one in self.facts.resized(width, height, self.preparation.most(position), side))
        return self._tokens(down, across)

    def page_tokens(self, page: np.ndarray) -> PhotoTokens:
        """Of a page."""
        height, width = (one // self.preparation.image_size for one in page.shape[:2])
        return self._tokens(height, width)

    def most_photo_tokens(self, position: int = 0) -> int:
        """See `Processor`."""
        return self._tokens(1, self.preparation.most(position)).total

    def prompt_ids(self, question: str, photos: Sequence[PhotoTokens]) -> list[int]:
        """See `Processor`."""
        return self._ids(self._text(question, photos), photos)

    def whole_ids(self, question: str, photos: Sequence[PhotoTokens], answer: str) -> list[int]:
        """See `Processor`."""
        return self._ids(self._text(question, photos) + answer + self.facts.stop_tokens[0], photos)

    def preprocess(
        self, page: np.ndarray, position: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> dict[str, torch.Tensor]:
        """See `Processor`. Pixels have that type; as uint8 they stay from 0 to 255."""
        side, most = self.preparation.image_size, self.preparation.most(position)
        height, width = page.shape[:2]
        if height % side or width % side or not 0 < height * width <= most * side**2:
            raise ValueError(f"a page of {width} x {height} pixels is not 1 to {most} squares of {side}")
        levels = None if dtype == torch.uint8 else self._levels
        tensors = self._arranged(page, most, as_bytes=levels is not None or dtype == torch.uint8)
        pixels = tensors["pixel_values"]
        if levels is not None:
            pixels = torch.from_numpy(_looked_up(levels, pixels.numpy()))
        return {**tensors, "pixel_values": pixels.to(dtype)}

    def _arranged(self, page: np.ndarray, most: int, *, as_bytes: bool) -> dict[str, torch.Tensor]:
        """A page as the image processor makes it, or the same with its pixels still bytes."""
        if as_bytes and self.facts.arranged:
            side = self.preparation.image_size
            grids = self.facts.grids([tuple(one // side for one in page.shape[:2])])
            pixels = torch.from_numpy(self.facts.arranged(page, side))
            return {"pixel_values": pixels, **{name: torch.tensor(one) for name, one in grids.items()}}
        return self._by_images(page, most, as_bytes=as_bytes)

    def _by_images(self, page: np.ndarray, most: int, *, as_bytes: bool) -> dict[str, torch.Tensor]:
        made = self.images(
            page,
            do_resize=False,  # it has its final size
            **({"do_rescale": False, "do_normalize": False} if as_bytes else {}),
            input_data_format="channels_last",
            return_tensors="pt",
            **self.facts.settings(most, self.preparation.image_size),
        )
        tensors = {name: made[name] for name in self.facts.tensors}
        return {**tensors, "pixel_values": tensors["pixel_values"].byte()} if as_bytes else tensors

    def arranges_as_images(self) -> bool:
        """Whether the image processor makes the same of a page as `Facts.arranged`, if that takes its place."""
        side, most = self.preparation.image_size, self.preparation.num_crops
        shape = (side, side * min(2, most), 3)
        page = (np.arange(math.prod(shape)) % 251).astype(np.uint8).reshape(shape)
        try:
            theirs = self._by_images(page, most, as_bytes=True)
        except KeyError:  # a tensor that it does not make
            return False
        ours = self._arranged(page, most, as_bytes=True)
        return all(torch.equal(theirs[name], ours[name]) for name in theirs)

    @cached_property
    def _levels(self) -> np.ndarray | None:
        """What the image processor makes of a byte's 256 values, float32; None if that differs between the colours.

        Its own arithmetic goes through arrays of float64 (benchmarks/families/photos.py). Padding, which models mask,
        gets the value of 0.
        """
        levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, axis=0)
        if self.images.do_rescale:
            levels = self.images.rescale(levels, self.images.rescale_factor)
        if self.images.do_normalize:
            levels = self.images.normalize(levels, self.images.image_mean, self.images.image_std)
        red, *others = levels.reshape(3, 256).astype(np.float32)
        return red if all(np.array_equal(red, other) for other in others) else None

    def join(self, photos: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, Any]:
        """See `Processor`."""
        return {name: _joined([one[name] for one in photos], fill) for name, fill in self.facts.tensors.items()}

    def pixels(self, joined: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """See `Processor`."""
        return {
            name: one.to(device, dtype if one.is_floating_point() else None, non_blocking=True)
            for name, one in joined.items()
        }

    def inputs(self, question: str, pages: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """See `Processor`."""
        photos = [[self.page_tokens(page) for page in row] for row in pages]
        made = [self.preprocess(page, position) for row in pages for position, page in enumerate(row)]
        rows = [self.prompt_ids(question, shown) for shown in photos]
        length = max(map(len, rows))
        gaps = [length - len(row) for row in rows]
        padding = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[padding] * gap + row for gap, row in zip(gaps, rows, strict=True)]),
            "attention_mask": torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps]),
            **self.join(made),
        }

    def vllm_input(
        self, question: str, dtype: torch.dtype
    ) -> Callable[[Sequence[np.ndarray], Sequence[str]], "MultiModalInput"]:
        """See `Processor`."""
        from enrich.models.auto.vllm_input import renderer

        return renderer(self, question, torch.uint8 if self.facts.bytes_for_vllm else dtype)

    def save(self, directory: Path) -> None:
        """See `Processor`. The image processor's own settings say the same, for vLLM and others that read them."""
        self.images.save_pretrained(directory)
        saved = read_object(directory / PHOTO_FILE)
        kept = {name: value for name, value in asdict(self.preparation).items() if name != "layout"}
        (directory / PHOTO_FILE).write_text(json.dumps({**saved, KEPT: kept}, indent=2))
        (directory / _PROCESSOR_FILE).write_text(json.dumps(self.others, indent=2))

    def _tokens(self, down: int, across: int) -> PhotoTokens:
        spelling = self.facts.spelling(down, across, self.each)
        return PhotoTokens(spelling.count(self.facts.image_token), (down, across))

    def _text(self, question: str, photos: Sequence[PhotoTokens]) -> str:
        """The prompt, with as many image tokens as there are image positions."""
        content = [*[{"type": "image"}] * len(photos), {"type": "text", "text": question}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            **self.facts.template,
        )
        parts = rendered.split(self.facts.image_token)
        if len(parts) != len(photos) + 1:
            raise ValueError(f"the chat template shows {len(parts) - 1} of {len(photos)} photos; use another tokenizer")
        spelled = [self._spelled(photo) for photo in photos]
        return "".join(part + photo for part, photo in zip(parts, [*spelled, ""], strict=True))

    def _spelled(self, photo: PhotoTokens) -> str:
        if not photo.total:
            return ""
        down, across = photo.grid
        return self.facts.spelling(down, across, self.each)

    def _ids(self, text: str, photos: Sequence[PhotoTokens]) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        image, wanted = self.image_token_id, sum(photo.total for photo in photos)
        if ids.count(image) != wanted:
            raise ValueError(f"{ids.count(image)} image positions instead of {wanted}; use the family's own tokenizer")
        numbers = iter([-number for number, photo in enumerate(photos, start=1) for _ in range(photo.total)])
        return [next(numbers) if token == image else token for token in ids]


def load_processor(facts: Facts, directory: Path, **changes: Any) -> PhotoProcessor:
    """See `VisionModel.load_processor`.

    Args:
        changes: see `VisionModel`.

    Raises:
        CheckpointError: files are missing, or a package.
        ValueError: `changes` that the family does not have.
    """
    need(directory, PHOTO_FILE, directory / PHOTO_FILE, directory / _PROCESSOR_FILE)
    model_type = _layout(directory)
    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            directory,
            f"transformers {__version__} has no class for {model_type}; pip install -c constraints.txt enrich",
        )
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        images = AutoImageProcessor.from_pretrained(
            directory, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (ImportError, ValueError) as error:  # transformers raises either
        if missing := _MISSING.search(str(error)):
            reason = f"its photos or text need the package {missing[1]}; install it, or choose another model"
        elif own := _unknown_image_processor(directory):
            reason = (
                f"its photos need {own}, which transformers {__version__} does not have, and code from a model's "
                f"repository is never run; give it the {PHOTO_FILE} of the model that it was tuned from"
            )
        else:
            raise
        raise CheckpointError(directory, reason) from error
    if not getattr(tokenizer, "chat_template", None):
        raise CheckpointError(directory, "no chat template; use an instruction-tuned model")
    if tokenizer.convert_tokens_to_ids(facts.image_token) != config.image_token_id:
        reason = f"its tokenizer and config.json disagree on {facts.image_token}; give it its own tokenizer.json"
        raise CheckpointError(directory, reason)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = facts.stop_tokens[0]
    each = facts.each(config)
    preparation = _preparation(facts, directory, images.to_dict(), each, changes)
    for name, value in facts.settings(preparation.num_crops, preparation.image_size).items():
        setattr(images, name, value)
    file = directory / _PROCESSOR_FILE
    others = {name: one for name, one in (read_object(file) if file.is_file() else {}).items() if name not in _PARTS}
    processor = PhotoProcessor(facts, tokenizer, images, preparation, each, others)
    if not processor.arranges_as_images():
        reason = f"its image processor does not arrange photos as those of {model_type}"
        raise CheckpointError(directory, f"{reason}; give it the {PHOTO_FILE} that came with it")
    return processor


def _unknown_image_processor(directory: Path) -> str | None:
    """The class that its settings of photos name, if transformers has none of that name."""
    files = (directory / PHOTO_FILE, directory / _PROCESSOR_FILE)
    photos, whole = (read_object(file) if file.is_file() else {} for file in files)
    named = (photos or whole.get("image_processor") or {}).get("image_processor_type")
    return named if isinstance(named, str) and get_image_processor_class_from_name(named) is None else None


def _preparation(
    facts: Facts, directory: Path, images: Mapping[str, Any], each: int, changes: Mapping[str, Any]
) -> Preparation:
    """What an adapter kept or a base says, and `changes`. Further photos are as large as the main one unless told."""
    kept = images.get(KEPT) or {"num_crops": facts.squares(images), "image_size": facts.side(images)}
    changes = dict(changes)
    for tokens, most in (("photo_tokens", "num_crops"), ("more_photo_tokens", "more_crops")):
        if tokens in changes:
            changes[most] = facts.squares_for(changes.pop(tokens), each)
    if "preparation_version" in changes:
        changes["version"] = changes.pop("preparation_version")
    own = {"more_crops": changes.get("num_crops", kept["num_crops"]), "layout": _layout(directory), **kept}
    found = replace(Preparation(**own), **changes)
    for squares in (found.num_crops, found.more_crops):
        facts.settings(squares, found.image_size)  # refuses what the family does not have
    return found


def _layout(directory: Path) -> str:
    return read_object(directory / "config.json")["model_type"]


def _looked_up(levels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels' values, in pieces: NumPy makes 8 bytes of each index, and half a megabyte of them stays in the cache."""
    found = np.empty(pixels.size, levels.dtype)
    for first in range(0, pixels.size, _PIECE):
        piece = slice(first, first + _PIECE)
        np.take(levels, pixels.reshape(-1)[piece], out=found[piece], mode="clip")  # "raise" would buffer the output
    return found.reshape(pixels.shape)


def _joined(tensors: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """Photos' tensors, one after another; those with a row for each photo get equal lengths."""
    if tensors[0].ndim < 3:
        return torch.cat(list(tensors))
    most = max(one.shape[1] for one in tensors)
    joined = tensors[0].new_full((sum(map(len, tensors)), most, *tensors[0].shape[2:]), fill)
    for place, one in zip(joined.split([len(one) for one in tensors]), tensors, strict=True):
        place[:, : one.shape[1]] = one
    return joined
