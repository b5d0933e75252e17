"""Phi3VProcessor: prompts with `<|image_k|>` tags and their images to model inputs, ids as the original processor."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from ..base import PhotoTokens, Preparation
from .image_processing import Phi3VImageProcessor, normalize_crops

if TYPE_CHECKING:
    from vllm.inputs import MultiModalInput

ImageLike = Image.Image | np.ndarray

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{- '<|assistant|>\\n' -}}{% endif %}"
)

# The turn's real end, and two tokens that can only follow it. The published config.json names 2, which no chat holds.
END = "<|end|>"
STOP_TOKENS = (END, "<|endoftext|>", "<|assistant|>")

_IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")


class Phi3VProcessor(ProcessorMixin):
    """Wraps the image processor and the tokenizer (a `tokenizer.json` one: LlamaTokenizer gives other ids)."""

    # The tags as vLLM asks for them; more images than this fit in no context.
    img_tokens = [f"<|image_{k}|>" for k in range(1, 1001)]  # noqa: RUF012
    stop_tokens = STOP_TOKENS

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        template = chat_template or getattr(tokenizer, "chat_template", None) or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=template)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> list[str]:
        """Stock, which puts the image processor into processor_config.json, and where the original's code looks for it,
        preprocessor_config.json, too."""
        written = super().save_pretrained(save_directory, *args, **kwargs)
        return [*written, *self.image_processor.save_pretrained(save_directory)]

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> PreTrainedTokenizerBase:
        # The original's tokenizer_config.json names LlamaTokenizer, which splits text after special tokens otherwise
        # than its tokenizer.json; and image settings such as num_crops must not end up in the tokenizer's.
        for name in Phi3VImageProcessor.valid_kwargs.__annotations__:
            kwargs.pop(name, None)
        return PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    def __call__(
        self,
        text: str | Sequence[str],
        images: ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]] | None = None,
        *,
        padding: bool = True,
        padding_side: str = "left",
        max_length: int | None = None,
        return_tensors: str | None = "pt",
        do_hd_transform: bool = True,
        do_normalize: bool = True,
        add_special_tokens: bool = True,
        truncation: bool | None = None,
    ) -> BatchFeature:
        """Tokenise prompts and prepare their images.

        Args:
            text: one prompt or several; the k-th image of a prompt stands at its tag `<|image_k|>`.
            images: one image, a flat sequence in the order of the tags, or one sequence per prompt. None (not an empty
                sequence) makes tags plain text, as the original does: vLLM tokenises prompts so before it adds images.
            padding: bring the rows of a batch to one length with the tokenizer's pad id.
            max_length: most tokens a row may have, image tokens included.
            do_hd_transform: False where the images are `hd_transform`'s results already.
            do_normalize: False leaves pixels as uint8 crops, for `normalize_crops`.
            add_special_tokens: put `<s>` before each stretch of text, as the original does.
            truncation: accepted for callers that always pass it; cutting image tokens is never right, so True raises.

        Returns:
            input_ids int64 (rows, length), the k-th image's positions holding -k; attention_mask int64 of that shape;
            with images pixel_values and image_sizes as `Phi3VImageProcessor` gives them, in the order of the tags.

        Raises:
            ValueError: tags and images do not match, a row exceeds max_length, or rows differ in length unpadded.
        """
        if truncation:
            raise ValueError("truncation would cut image tokens: shorten the text, or lower num_crops")
        texts = [text] if isinstance(text, str) else list(text)
        pixels: dict[str, Any] = {}
        if images is None:
            rows = [self.tokenizer(prompt, add_special_tokens=add_special_tokens).input_ids for prompt in texts]
        else:
            per_text = _images_by_text(texts, images)
            flat = list(chain.from_iterable(per_text))
            features = self.image_processor(
                flat,
                return_tensors=return_tensors,
                do_hd_transform=do_hd_transform,
                do_normalize=do_normalize,
                positions=[position for own in per_text for position in range(len(own))],
            )
            counts = iter(features.pop("num_img_tokens"))
            pixels = dict(features) if flat else {}
            rows = [
                self.token_ids(prompt, [next(counts) for _ in own], add_special_tokens=add_special_tokens)
                for prompt, own in zip(texts, per_text, strict=True)
            ]
        for number, row in enumerate(rows):
            if max_length is not None and len(row) > max_length:
                raise ValueError(f"prompt {number} has {len(row)} tokens, more than max_length={max_length}")
        return BatchFeature({**self._pad(rows, padding, padding_side), **pixels}, tensor_type=return_tensors)

    def token_ids(
        self, text: str, num_image_tokens: Sequence[int] = (), *, add_special_tokens: bool = True
    ) -> list[int]:
        """Ids of one prompt whose k-th image takes `num_image_tokens[k - 1]` tokens, each of them -k.

        The original tokenises every stretch of text between images on its own, so `<s>` returns after each image.

        Raises:
            ValueError: the tags are not `<|image_1|>`, `<|image_2|>`, ... in order, one for each image.
        """
        _check_tags(text, len(num_image_tokens))
        chunks = [
            self.tokenizer(chunk, add_special_tokens=add_special_tokens).input_ids
            for chunk in _IMAGE_TAG.split(text)[::2]
        ]
        ids = list(chunks[0])
        for number, (count, chunk) in enumerate(zip(num_image_tokens, chunks[1:], strict=True), start=1):
            ids += [-number] * count
            ids += chunk
        return ids

    def _pad(self, rows: list[list[int]], padding: bool, padding_side: str) -> dict[str, list[list[int]]]:
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be left or right, got {padding_side!r}")
        longest = max((len(row) for row in rows), default=0)
        gaps = [longest - len(row) for row in rows]
        masks = [[1] * len(row) for row in rows]
        if not padding or not any(gaps):
            return {"input_ids": rows, "attention_mask": masks}
        pad = self.tokenizer.pad_token_id
        if pad is None:
            raise ValueError("prompts of different lengths need padding, but the tokenizer has no pad token")

        def fill(values: list[int], gap: int, filler: int) -> list[int]:
            return [filler] * gap + values if padding_side == "left" else values + [filler] * gap

        return {
            "input_ids": [fill(row, gap, pad) for row, gap in zip(rows, gaps, strict=True)],
            "attention_mask": [fill(mask, gap, 0) for mask, gap in zip(masks, gaps, strict=True)],
        }

    @property
    def image_token_id(self) -> int:
        """An id of the vocabulary that can stand at image positions where -k cannot: `<|image|>`, 32044 as published.

        What it would embed is never used.
        """
        unknown = self.tokenizer.unk_token_id or 0
        return self.tokenizer.get_vocab().get("<|image|>", unknown)

    def calc_num_image_tokens_from_image_size(self, width: int, height: int) -> int:
        """As the image processor's, at the position that gives most; vLLM calls it here, to reserve memory."""
        processor = self.image_processor
        return max(processor.num_image_tokens(width, height, position) for position in (0, 1))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes"]

    # What follows is `enrich.models.protocols.Processor`.

    @property
    def preparation(self) -> Preparation:
        """How its photos become pages."""
        images = self.image_processor
        return Preparation(
            images.num_crops,
            images.image_size,
            images.fast_decode,
            images.preparation_version,
            images.photos_per_product,
            images.crops_at(1) if images.photos_per_product > 1 else 1,
        )

    def photo_tokens(self, width: int, height: int, position: int = 0) -> PhotoTokens:
        """Crops, global view and separators of a photo of this size."""
        return PhotoTokens(self.image_processor.num_image_tokens(width, height, position))

    def most_photo_tokens(self, position: int = 0) -> int:
        """Those of a photo that becomes a column of crops."""
        return self.image_processor.most_image_tokens(position)

    def prompt_ids(self, question: str, photos: Sequence[PhotoTokens]) -> list[int]:
        """Ids of the turns that `render_turn` writes."""
        return self.token_ids(render_turn(question, len(photos)), [photo.total for photo in photos])

    def whole_ids(self, question: str, photos: Sequence[PhotoTokens], answer: str) -> list[int]:
        """As prompt_ids, with an answer and its end. ValueError: no `<s>` follows an image."""
        text = render_turn(question, len(photos)) + answer + END
        ids = self.token_ids(text, [photo.total for photo in photos])
        if any(one < 0 <= after != self.tokenizer.bos_token_id for one, after in pairwise(ids)):
            raise ValueError(
                "no <s> after the image, where the original processor puts one; use the base model's tokenizer.json"
            )
        return ids

    def preprocess(self, page: np.ndarray, position: int = 0) -> dict[str, torch.Tensor]:
        """Crops as bytes (1, crops, S, S, 3), a fifth of the pixel values they become (1.35 MB for 6.8 MB an image at
        four crops), and their image's padded size (1, 2)."""
        made = self.image_processor(page, do_hd_transform=False, do_normalize=False, positions=[position])
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    def join(self, photos: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, Any]:
        """Crops as one tensor; those of fewer end with zeros. Sizes are a list, since they are read on the CPU."""
        crops = [photo["pixel_values"] for photo in photos]
        return {
            "pixel_values": _same_length(crops),
            "image_sizes": [size for photo in photos for size in photo["image_sizes"].tolist()],
        }

    def pixels(self, joined: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Crops normalised on the device, and their images' sizes on the CPU."""
        images = self.image_processor
        crops, sizes = joined["pixel_values"].to(device), torch.tensor(joined["image_sizes"])
        pixel_values = normalize_crops(crops, sizes, dtype, images.image_mean, images.image_std)
        return {"pixel_values": pixel_values, "image_sizes": sizes}

    def inputs(self, question: str, pages: Sequence[Sequence[np.ndarray]]) -> dict[str, Any]:
        """Pixel values are normalised in float32."""
        texts = [render_turn(question, len(own)) for own in pages]
        return dict(self(text=texts, images=[list(own) for own in pages], do_hd_transform=False))

    def vllm_input(
        self, question: str, dtype: torch.dtype
    ) -> Callable[[Sequence[np.ndarray], Sequence[str]], "MultiModalInput"]:
        """Crops as bytes, whatever `dtype`, rendered here: see vllm_input.py."""
        from .vllm_input import renderer

        return renderer(self, question)

    def save(self, directory: Path) -> None:
        """preprocessor_config.json, where the original's code looks for it too."""
        self.image_processor.save_pretrained(directory)


def render_turn(question: str, photos: int = 1) -> str:
    """The user's turn, which shows `photos` photos, and the start of the assistant's, as Phi-3-vision's model card."""
    images = "".join(f"<|image_{number}|>\n" for number in range(1, photos + 1))
    return f"<|user|>\n{images}{question}<|end|>\n<|assistant|>\n"


def _same_length(crops: Sequence[torch.Tensor]) -> torch.Tensor:
    """Photos' crops, (1, crops, ...) each, as one tensor; those with fewer end with zeros, as the processor's do."""
    most = max(own.shape[1] for own in crops)
    if all(own.shape[1] == most for own in crops):
        return torch.cat(list(crops))
    joined = crops[0].new_zeros((len(crops), most, *crops[0].shape[2:]))
    for place, own in zip(joined, crops, strict=True):
        place[: own.shape[1]] = own[0]
    return joined


def _images_by_text(
    texts: list[str], images: ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]]
) -> list[list[ImageLike]]:
    """The images of each prompt; a flat sequence is dealt out in the order of the tags."""
    given: list[Any] = [images] if isinstance(images, (Image.Image, np.ndarray)) else list(images)
    if given and all(isinstance(entry, (list, tuple)) for entry in given):
        if len(given) != len(texts):
            raise ValueError(f"{len(given)} lists of images for {len(texts)} prompts")
        return [list(entry) for entry in given]
    wanted = [len(_IMAGE_TAG.findall(text)) for text in texts]
    if sum(wanted) != len(given):
        raise ValueError(f"{sum(wanted)} image tags in the text, but {len(given)} images")
    remaining = iter(given)
    return [[next(remaining) for _ in range(count)] for count in wanted]


def _check_tags(text: str, num_images: int) -> None:
    numbers = [int(number) for number in _IMAGE_TAG.findall(text)]
    if numbers != list(range(1, num_images + 1)):
        found = ", ".join(f"<|image_{number}|>" for number in numbers) or "none"
        wanted = f"<|image_1|> to <|image_{num_images}|> in order, once each" if num_images else "none"
        raise ValueError(f"image tags needed for {num_images} images: {wanted}; found: {found}")
