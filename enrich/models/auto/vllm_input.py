"""Pages to a vLLM input that needs no preprocessing, so that no other filter, budget or template is applied."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from transformers import BatchFeature
from vllm.inputs import MultiModalInput, mm_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange

from enrich.models.auto.processor import PhotoProcessor
from enrich.models.base import PhotoTokens


def renderer(
    processor: PhotoProcessor, question: str, dtype: torch.dtype
) -> Callable[[Sequence[np.ndarray], Sequence[str]], MultiModalInput]:
    """See `Processor.vllm_input`. `dtype`: of the pixels that are sent to the engine's process."""

    @lru_cache(4096)  # there are as many as pages have shapes
    def prompt(photos: tuple[PhotoTokens, ...]) -> tuple[list[int], list[PlaceholderRange]]:
        ids = processor.prompt_ids(question, photos)
        places = [_place(ids, -number) for number in range(1, len(photos) + 1)]
        return [processor.image_token_id if token < 0 else token for token in ids], places

    def render(pages: Sequence[np.ndarray], names: Sequence[str]) -> MultiModalInput:
        with _one_thread():
            items = [_item(processor, page, position, dtype) for position, page in enumerate(pages)]
        ids, places = prompt(tuple(processor.page_tokens(page) for page in pages))
        return mm_input(ids, MultiModalKwargsItems({"image": items}), {"image": list(names)}, {"image": places})

    return render


@contextmanager
def _one_thread() -> Iterator[None]:
    """A photo is too small to be shared: threads that wait for their part keep cores from the processes that decode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _place(ids: Sequence[int], number: int) -> PlaceholderRange:
    """From the first image position of a photo to its last, and which of them are; between tiles there are marks."""
    found = [place for place, token in enumerate(ids) if token == number]
    length = found[-1] - found[0] + 1
    if length == len(found):
        return PlaceholderRange(found[0], length)
    return PlaceholderRange(found[0], length, torch.tensor([token == number for token in ids[found[0] :][:length]]))


def _item(processor: PhotoProcessor, page: np.ndarray, position: int, dtype: torch.dtype) -> MultiModalKwargsItem:
    tensors = processor.facts.for_vllm(processor.preprocess(page, position, dtype=dtype))
    fields = {
        name: MultiModalFieldConfig.flat_from_sizes("image", torch.tensor([len(tensor)]))
        if name in processor.facts.flat
        else MultiModalFieldConfig.batched("image", keep_on_cpu=tensor.ndim < 3)
        for name, tensor in tensors.items()
    }
    return MultiModalKwargsItems.from_hf_inputs(BatchFeature(tensors), fields)["image"][0]
