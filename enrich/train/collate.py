"""Examples with their photos, and how they become batches."""

import multiprocessing
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from enrich.errors import RunFailed
from enrich.models.protocols import Processor
from enrich.models.registry import vision_model
from enrich.photos.decode import prepare
from enrich.photos.decoders import Decoders, Room
from enrich.photos.first_look import first_look
from enrich.settings.photos import PhotoLimits
from enrich.settings.training import TrainSettings
from enrich.train.examples import IGNORED, Example, Readable, read_again
from enrich.train.features import FeatureCache
from enrich.train.showing import Showing

Image = dict[str, torch.Tensor]  # of one photo: what `Processor.preprocess` makes of it, or its features
FEATURES = "image_features"
# Photos that are worth a process to load them: it starts in 0.1 to 0.4 s of each epoch, and saves the loop 10 to 15 ms
# of decoding a photo of 1000x1333 (two CPU cores, with a device that takes 45 ms a photo).
A_WORKER = 32


class Item(NamedTuple):
    """One example with the photos that it shows: their numbers in the cache, and what they are, or why not."""

    row: int
    example: Example
    photos: tuple[int, ...]
    images: tuple[Image | RunFailed, ...]


class Photos(Dataset[Item]):
    """Examples with their photos: features if the cache has them, else decoded when asked for.

    Each process that loads photos has a decoding process of its own, ended with this object; large photos share the
    memory of `limits.decode_total_bytes` among all of them.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Processor,
        limits: PhotoLimits,
        cache: FeatureCache | None = None,
        showing: Showing | None = None,
    ) -> None:
        """
        Args:
            cache: of all views of all examples, in order.
            showing: changes from epoch to epoch which views are shown; None: they stay those of the examples.
        """
        self.examples = examples
        self.processor = processor
        self.cache = cache
        self._limits = limits
        self._showing = showing
        self._epoch = 0
        self._starts = list(accumulate((len(example.views) for example in examples), initial=0))
        self._room = Room(limits, multiprocessing)
        self._decoders: tuple[int, Decoders] | None = None  # of the process with this id

    def set_epoch(self, epoch: int) -> None:
        """The epoch, counted from 0, whose examples come next."""
        self._epoch = epoch

    def first(self, rows: int) -> "Photos":
        """The first `rows` examples."""
        return Photos(self.examples[:rows], self.processor, self._limits, self.cache, self._showing)

    def longest(self, rows: int) -> "Photos":
        """The examples that can have the most tokens, with these, and without the cache."""
        examples = [self._showing.longest(example) for example in self.examples] if self._showing else self.examples
        by_length = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)
        return Photos(by_length[:rows], self.processor, self._limits)

    @property
    def workers(self) -> int:
        """Processes to load them for a GPU; a CPU that trains has no core to spare."""
        return min(8, (os.cpu_count() or 1) - 1, len(self) // A_WORKER) if torch.cuda.is_available() else 0

    def keep(self) -> None:
        """Write newly computed features to the cache, if there is one."""
        if self.cache is not None:
            self.cache.flush()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoders": None}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A batch, as torch's DataLoader asks for it."""
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        if self._showing:
            example = self._showing.vary(example, self._epoch)
        numbers = tuple(self._starts[index] + at for at in example.shown)
        views = (example.views[at] for at in example.shown)
        images = (self._image(*view) for view in zip(numbers, views, range(len(numbers)), strict=True))
        return Item(index, example, numbers, tuple(images))

    def _image(self, number: int, view: Readable, position: int) -> Image | RunFailed:
        if self.cache is not None and self.cache.has([number]):
            return {FEATURES: self.cache[number]}
        try:
            photo = read_again(view.path, self._limits, self._own_decoders(), further=position > 0)
        except RunFailed as error:
            return error  # a DataLoader's worker would raise a traceback as text instead; `embed_images` raises it
        page = first_look(photo, self.processor.preparation, view.first) if view.first else photo.page
        return self.processor.preprocess(page, position)

    def _own_decoders(self) -> Decoders:
        """The decoders of this process: a forked worker must not read from its parent's socket."""
        if self._decoders is None or self._decoders[0] != os.getpid():
            how = self.processor.preparation
            work, pixels = partial(prepare, how=how), how.most_pixels
            decoders = Decoders(work, self._limits, 1, most_pixels=pixels, room=self._room)
            weakref.finalize(self, decoders.close)
            self._decoders = os.getpid(), decoders
        return self._decoders[1]


class Collator:
    """Batches for the model.

    Training rows are padded on the right: no real token can see what follows it, so attention needs no mask, and
    kernels without one are the fastest. `predict_at` holds the positions of the answers. Prompts are padded on the
    left, since generation continues at their ends.
    """

    def __init__(self, processor: Processor, length: int = 0, price_weight: int = 1) -> None:
        """
        Args:
            length: least length of training rows. Compiled code is specialised to each length.
            price_weight: how many times the positions of a price's digits occur in predict_at, and count in the loss.
        """
        self._processor = processor
        self._pad = processor.tokenizer.pad_token_id
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
            **_images(items, self._processor),
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
            **_images(items, self._processor),
        }


def _right_padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])


def _images(items: Sequence[Item], processor: Processor) -> dict[str, Any]:
    """The images of a batch in the order of the items, as `embed_images` takes them, with their rows.

    Those to be computed are numbered (`photos`) and joined (`fresh`).
    """
    rows = [item.row for item in items]
    read: list[Image] = []
    for image in chain.from_iterable(item.images for item in items):
        if isinstance(image, RunFailed):
            return {"rows": rows, "unreadable": image}
        read.append(image)
    numbers = list(chain.from_iterable(item.photos for item in items))
    tokens = [item.example.views[at].tokens for item in items for at in item.example.shown]
    fresh = [image for image in read if FEATURES not in image]
    joined: dict[str, Any] = {"rows": rows, "tokens": tokens}
    if fresh:
        joined["fresh"] = processor.join(fresh)
        joined["photos"] = [number for number, image in zip(numbers, read, strict=True) if FEATURES not in image]
    if len(fresh) < len(read):
        joined[FEATURES] = torch.cat([image[FEATURES] for image in read if FEATURES in image])
    if 0 < len(fresh) < len(read):
        joined["cached_tokens"] = [len(image.get(FEATURES, ())) for image in read]  # 0: to be computed
    return joined


def embed_images(
    model: PreTrainedModel | PeftModel, batch: Mapping[str, Any], photos: Photos, settings: TrainSettings
) -> dict[str, Any]:
    """A batch of the collator with its images as the model takes them, on the model's device.

    A frozen vision tower's features are computed here, without a graph, and kept in the cache of `photos`.

    Raises:
        RunFailed: a photo of the batch could not be read, although it was readable when the run started.
    """
    ready = dict(batch)
    del ready["rows"]
    if "unreadable" in ready:
        raise ready["unreadable"]
    numbers, cached_tokens = ready.pop("photos", []), ready.pop("cached_tokens", None)
    tokens, fresh, features = ready.pop("tokens"), ready.pop("fresh", None), ready.pop(FEATURES, None)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    family = vision_model(base.config.model_type)
    if fresh is not None:
        pixels = photos.processor.pixels(fresh, base.device, base.dtype)
        if settings.adapt_vision:
            return {**ready, **pixels}
        with torch.no_grad():
            computed = family.image_features(base, pixels)
        if photos.cache is not None:
            photos.cache.put(numbers, computed)
        features = _interleaved(cached_tokens, features.to(base.device), computed) if cached_tokens else computed
    return {**ready, **family.with_features(features, tokens)}


def _interleaved(
    cached_tokens: Sequence[int], cached: torch.Tensor, computed: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Features of all images of a batch in order: those from the cache have so many tokens, the others 0 there."""
    known, new = iter(cached.split([tokens for tokens in cached_tokens if tokens])), iter(computed)
    return [next(known if tokens else new) for tokens in cached_tokens]
