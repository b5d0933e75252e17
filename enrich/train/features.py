"""Features of the frozen vision tower: computed when a photo is first seen, read back in every later epoch.

The tower and projector take a tenth to a third of a step's time and never change; an image's features are
757 x 3072 bf16 = 4.65 MB at four crops. They are stored in one memory-mapped file: the page cache keeps as much
of it as fits.
"""

import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from enrich.errors import UsageError


class FeatureCache:
    """Image features by number of the photo: (tokens of that photo, width), in the model's dtype.

    Two files: the features, and a byte for each image that says whether they are there. They outlive a killed process,
    and the processes of one host share them.

    Raises:
        UsageError: the disk has no room for all of them.
    """

    def __init__(self, path: Path, lengths: Sequence[int], width: int, dtype: torch.dtype) -> None:
        size = sum(lengths) * width
        marks = path.with_suffix(".done")
        _make_room(path, size * dtype.itemsize, marks, len(lengths))
        self._all = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(-1, width)
        self._done = torch.from_file(str(marks), shared=True, size=len(lengths), dtype=torch.uint8)
        self._ends = list(accumulate(lengths))
        self._lengths = lengths
        self._pending: list[tuple[int, torch.Tensor]] = []
        self._copied = torch.cuda.Event() if torch.cuda.is_available() else None

    def has(self, indices: Sequence[int]) -> bool:
        """Whether the features of all these images are there."""
        return bool(self._done[list(indices)].all())

    def __getitem__(self, index: int) -> torch.Tensor:
        end = self._ends[index]
        return self._all[end - self._lengths[index] : end]

    def put(self, indices: Sequence[int], features: Sequence[torch.Tensor]) -> None:
        """Start to copy features from the GPU; `flush` writes them."""
        self._pending += [
            (index, own.to("cpu", non_blocking=True)) for index, own in zip(indices, features, strict=True)
        ]
        if self._copied is not None:
            self._copied.record()

    def flush(self) -> None:
        """Write what was put. Called during the backward pass, it costs the GPU no time."""
        if self._copied is not None:
            self._copied.synchronize()
        for index, own in self._pending:
            self[index].copy_(own)
            self._done[index] = 1
        self._pending.clear()


def _make_room(path: Path, size: int, marks: Path, images: int) -> None:
    """Keep both files if an earlier run left them at these sizes; else make new ones, sparse at first."""
    if path.is_file() and path.stat().st_size == size and marks.is_file() and marks.stat().st_size == images:
        return
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UsageError(
            f"{path.parent}: the features of {images} photos need {size / 1e9:.1f} GB, but {free / 1e9:.1f} are free; "
            "set cache_vision_features: false, or name another work directory"
        )
    for file, length in ((path, size), (marks, images)):
        with file.open("wb") as empty:
            empty.truncate(length)
