"""Examples with their photos, and how they become batches."""

import multiprocessing
import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from enrich.errors import RunFailed
from enrich.models.phi3_vision import Phi3VProcessor
from enrich.photos.decoders import Decoders, Room
from enrich.settings.photos import PhotoLimits
from enrich.train.examples import IGNORED, Example, Unusable, loading_workers, page_decoders, read_photo
from enrich.train.features import FeatureCache

Unreadable = Unusable | RunFailed  # what `read_photo` raises


class Item(NamedTuple):
    """One example with its photo: crops as bytes (pixel_values and image_sizes), image_features, or the error."""

    row: int
    example: Example
    image: dict[str, torch.Tensor] | Unreadable


class Photos(Dataset[Item]):
    """Examples with their photos: features where the cache has them for a whole batch, else decoded on the spot.

    Each process that loads photos has a decoding process of its own, ended with this object; large photos share the
    memory of `limits.decode_total_bytes` among all of them.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Phi3VProcessor,
        limits: PhotoLimits,
        cache: FeatureCache | None = None,
    ) -> None:
        self.examples = examples
        self.processor = processor
        self.cache = cache
        self._limits = limits
        self._room = Room(limits, multiprocessing)
        self._decoders: tuple[int, Decoders] | None = None  # of the process with this id

    def first(self, rows: int) -> "Photos":
        """The first few of them."""
        return Photos(self.examples[:rows], self.processor, self._limits, self.cache)

    def longest(self, rows: int) -> "Photos":
        """Those with the longest token sequences, without the cache."""
        by_length = sorted(self.examples, key=lambda example: len(example.input_ids), reverse=True)
        return Photos(by_length[:rows], self.processor, self._limits)

    @property
    def workers(self) -> int:
        """Processes worth starting to load them."""
        return loading_workers(len(self))

    def keep(self) -> None:
        """Write features that were computed since the last time into the cache, if there is one."""
        if self.cache is not None:
            self.cache.flush()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoders": None}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A batch, as torch's DataLoader asks for it: all of it as features, or all of it as pixels."""
        cached = self.cache is not None and self.cache.has(indices)
        return [Item(index, self.examples[index], self._image(index, cached)) for index in indices]

    def _image(self, index: int, cached: bool) -> dict[str, torch.Tensor] | Unreadable:
        if cached and self.cache is not None:
            return {"image_features": self.cache[index]}
        try:
            photo = read_photo(self.examples[index].product.image_path, self._limits, self._own_decoders())
        except (Unusable, RunFailed) as error:
            return error  # a DataLoader's worker would raise a traceback as text instead; `embed_images` raises it
        prepared = self.processor.image_processor(photo.page, do_hd_transform=False, do_normalize=False)
        return {name: prepared[name] for name in ("pixel_values", "image_sizes")}

    def _own_decoders(self) -> Decoders:
        """The decoders of this process: a forked worker must not read from its parent's socket."""
        if self._decoders is None or self._decoders[0] != os.getpid():
            decoders = page_decoders(self.processor, self._limits, 1, self._room)
            weakref.finalize(self, decoders.close)
            self._decoders = os.getpid(), decoders
        return self._decoders[1]


class Collator:
    """Batches for the model.

    Training rows are padded on the right: no real token can see what follows it, so attention needs no mask, and
    kernels without one are the fastest. `predict_at` holds the positions of the answers. Prompts are padded on the
    left, since generation continues at their ends.
    """

    def __init__(self, pad_token_id: int, length: int = 0, price_weight: int = 1) -> None:
        """
        Args:
            length: least length of training rows. Compiled code is specialised to each length.
            price_weight: how many times the positions of a price's digits occur in predict_at, and count in the loss.
        """
        self._pad = pad_token_id
        self._length = length
        self._price_weight = price_weight

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """For training: input_ids and labels (rows, length), predict_at, rows (indices), and the images."""
        length = max(self._length, *(len(item.example.input_ids) for item in items))
        labels = _right_padded([item.example.labels for item in items], length, IGNORED)
        return {
            "input_ids": _right_padded([item.example.input_ids for item in items], length, self._pad),
            "labels": labels,
            "predict_at": self._predict_at(items, labels),
            **images(items),
        }

    def _predict_at(self, items: Sequence[Item], labels: torch.Tensor) -> torch.Tensor:
        answers = (labels.flatten() != IGNORED).nonzero()[:, 0] - 1
        places = [row * labels.shape[1] + at for row, item in enumerate(items) for at in item.example.price_places]
        digits = torch.tensor(places, dtype=answers.dtype) - 1
        return torch.cat([answers, digits.repeat(self._price_weight - 1)])

    def prompts(self, items: Sequence[Item]) -> dict[str, Any]:
        """For generation: the prompts without their answers, with an attention_mask."""
        rows = [item.example.prompt_ids for item in items]
        length = max(map(len, rows))
        gaps = [length - len(row) for row in rows]
        return {
            "input_ids": torch.tensor([[self._pad] * gap + list(row) for gap, row in zip(gaps, rows, strict=True)]),
            "attention_mask": torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps]),
            **images(items),
        }


def _right_padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def images(items: Sequence[Item]) -> dict[str, Any]:
    """The images of a batch in the order of the items: crops as bytes with their sizes, or features; and their rows.

    Where a photo could not be read, `unreadable` holds the error instead. Sizes are lists, since they are read on the
    CPU: reading a tensor from a GPU waits for all work that is queued there.
    """
    rows = [item.row for item in items]
    read: list[dict[str, torch.Tensor]] = []
    for item in items:
        if isinstance(item.image, Exception):
            return {"rows": rows, "unreadable": item.image}
        read.append(item.image)
    joined: dict[str, Any] = {name: torch.cat([image[name] for image in read]) for name in read[0]}
    if "image_sizes" in joined:
        joined["image_sizes"] = joined["image_sizes"].tolist()
    return {"rows": rows, **joined}
