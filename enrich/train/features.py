"""Features of the frozen vision tower, computed once and read back in every epoch.

The tower and projector take a tenth to a third of a step's time and never change; an image's features are
757 x 3072 bf16 = 4.65 MB at four crops. They lie in one file that is mapped into memory: the page cache keeps as much
of it as there is room for.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from enrich.errors import UsageError
from enrich.phi3_vision import Phi3VForCausalLM


class Features:
    """Image features by index: (tokens of that image, hidden size), in the model's dtype."""

    def __init__(self, path: Path, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype) -> None:
        size = sum(lengths) * hidden_size
        self._all = torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(-1, hidden_size)
        self._ends = list(accumulate(lengths))
        self._lengths = lengths

    def __getitem__(self, index: int) -> torch.Tensor:
        end = self._ends[index]
        return self._all[end - self._lengths[index] : end]


def cache_features(
    model: Phi3VForCausalLM,
    batches: Iterable[Mapping[str, torch.Tensor]],
    lengths: Sequence[int],
    path: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features of the images in `batches` of pixel_values and image_sizes, whose token counts are `lengths`.

    `path` is written whole or not at all, and not again where a run before this one wrote it.

    Raises:
        UsageError: the disk has no room for it.
    """
    hidden_size = model.config.hidden_size
    needed = sum(lengths) * hidden_size * model.dtype.itemsize
    if not (path.is_file() and path.stat().st_size == needed):
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise UsageError(
                f"{path.parent}: the features of {len(lengths)} photos need {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free; set cache_vision_features: false, or name another work directory"
            )
        part = path.with_suffix(".part")
        _write_features(model, batches, part, progress)
        part.replace(path)
    return Features(path, lengths, hidden_size, model.dtype)


@torch.inference_mode()
def _write_features(
    model: Phi3VForCausalLM,
    batches: Iterable[Mapping[str, torch.Tensor]],
    path: Path,
    progress: Callable[[int], None],
) -> None:
    done = 0
    with path.open("wb") as file:
        for batch in batches:
            pixels = batch["pixel_values"].to(model.device, model.dtype)
            for features in model.get_image_features(pixels, batch["image_sizes"]):
                file.write(features.contiguous().view(torch.uint8).cpu().numpy().data)
            done += len(pixels)
            progress(done)
