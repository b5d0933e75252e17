"""Examples and what the model needs of their photos, put together to batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from enrich.phi3_vision import Phi3VProcessor
from enrich.settings import PhotoLimits
from enrich.train.examples import IGNORED, Example, loading_workers, read_photo
from enrich.train.features import Features


class Item(NamedTuple):
    """One example with its photo, as pixels or as features."""

    example: Example
    image: dict[str, torch.Tensor]


class Photos(Dataset[Item]):
    """Examples with their photos: cached features where there are some, else pixels decoded on the spot."""

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Phi3VProcessor,
        limits: PhotoLimits,
        features: Features | None = None,
    ) -> None:
        self.examples = examples
        self.processor = processor
        self._limits = limits
        self._features = features

    def with_features(self, features: Features) -> "Photos":
        """The same photos, no longer decoded."""
        return Photos(self.examples, self.processor, self._limits, features)

    def first(self, rows: int) -> "Photos":
        """The first few of them."""
        return Photos(self.examples[:rows], self.processor, self._limits, self._features)

    @property
    def workers(self) -> int:
        """Processes worth starting to load them: features are only read."""
        return loading_workers(len(self)) if self._features is None else 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        if self._features is not None:
            return Item(example, {"image_features": self._features[index]})
        pixels = self.processor.image_processor(read_photo(example.product.image_path, self._limits))
        return Item(example, {name: pixels[name] for name in ("pixel_values", "image_sizes")})


class Collator:
    """Batches for the model, padded on the LEFT: all answers then end at the last position.

    So logits are needed at the last `longest answer + 1` positions only: at 8 photos of 817 tokens and 32,064 words
    of vocabulary 50 MB of float32 instead of 840 MB.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """For training: input_ids, attention_mask, labels (rows, length), logits_to_keep, and the images.

        Also product_codes, which the model does not take: by them a step that goes wrong is named.
        """
        examples = [item.example for item in items]
        return {
            **self._padded([example.input_ids for example in examples]),
            "labels": _left_padded([example.labels for example in examples], IGNORED),
            "logits_to_keep": max(len(example.answer_ids) for example in examples) + 1,
            "product_codes": tuple(example.product.product_code for example in examples),
            **images(items),
        }

    def prompts(self, items: Sequence[Item]) -> dict[str, Any]:
        """For generation: the prompts without their answers."""
        return {**self._padded([item.example.prompt_ids for item in items]), **images(items)}

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        return {
            "input_ids": _left_padded(rows, self._pad),
            "attention_mask": _left_padded([[1] * len(row) for row in rows], 0),
        }


def _left_padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows])


def images(items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """The images of a batch alone: pixel_values and image_sizes, or image_features, in the order of the items."""
    return {name: torch.cat([item.image[name] for item in items]) for name in items[0].image}
