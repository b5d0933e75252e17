"""A cache of merged checkpoints: merging a full-size model takes a while, and every night serves the same one."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from enrich.engines.adapter import Adapter
from enrich.engines.transformers_engine import base_of, merge_adapter
from enrich.models.adapted import save_merged
from enrich.models.device import device_and_dtype
from enrich.settings.run import RunSettings
from enrich.storage.cache import cache_directory, disk_errors
from enrich.storage.exclusive import exclusively
from enrich.storage.staged import staged_folder

KEPT_SECONDS = 7 * 24 * 3600.0
_OURS = re.compile(r"[0-9a-f]{16}-(float32|bfloat16)(\.lock)?")  # the names given below; nothing else is ever removed


def merged_checkpoint(adapter: Adapter, dtype: torch.dtype, cache: Path) -> Path:
    """The directory of the adapter's merged checkpoint in `dtype`, written atomically if it does not exist.

    Merging takes CPU memory (16.6 GB for the full-size model in float32), so that the GPU stays free for the engine.

    Raises:
        UsageError: no such base, or the adapter does not fit it.
        RunFailed: the disk of `cache` is full or refuses files.
    """
    place = merged_place(adapter, dtype, cache)
    with merging(place), disk_errors(place.parent):
        if not is_merged(place):
            keep_merged(merge_adapter(adapter, dtype, torch.device("cpu")), adapter, place)
    return place


def merged_folder() -> Path:
    """The cache of this machine."""
    return cache_directory() / "merged"


def merged_place(adapter: Adapter, dtype: torch.dtype, cache: Path) -> Path:
    """Where the adapter's merged checkpoint is, or will be."""
    return cache / f"{adapter.id}-{str(dtype).removeprefix('torch.')}"


def place_here(adapter: Adapter, settings: RunSettings) -> Path:
    """`merged_place` in the cache of this machine, in the dtype that these settings serve."""
    return merged_place(adapter, device_and_dtype(settings.device)[1], merged_folder())


def weights_of(adapter: Adapter, settings: RunSettings) -> Path:
    """The directory of the weights that are read first to serve the adapter: merged ones, or else its base's."""
    place = place_here(adapter, settings)
    return place if settings.served == "merged" and place.is_dir() else base_of(adapter)


@contextmanager
def merging(place: Path) -> Iterator[None]:
    """For looking for the checkpoint, and merging if there is none: one process of a machine at a time."""
    with ExitStack() as stack:
        with disk_errors(place.parent):
            stack.enter_context(exclusively(place.with_name(f"{place.name}.lock"), "merging"))
        yield


def is_merged(place: Path) -> bool:
    """Whether the checkpoint is there. It is used now, and so kept."""
    if not place.is_dir():
        return False
    os.utime(place)
    return True


def keep_merged(model: PreTrainedModel, adapter: Adapter, place: Path) -> None:
    """Write the checkpoint of a merged model, whole or not at all.

    Those of other adapters, 8.3 GB each, are removed once no run has used them for KEPT_SECONDS: a run that serves one
    may have to start its engine again.
    """
    with disk_errors(place.parent), staged_folder(place.parent) as folder:
        try:
            save_merged(model, adapter.path, folder / "whole")
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(None, " ".join(str(error).split())[:200], str(place.parent)) from error
        try:
            (folder / "whole").rename(place)
        except OSError:
            if not place.is_dir():  # otherwise another machine that shares this disk was faster
                raise
        os.utime(place)
        for other in place.parent.iterdir():
            unused = time.time() - other.stat().st_mtime
            if _OURS.fullmatch(other.name) and not other.name.startswith(place.name) and unused > KEPT_SECONDS:
                _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
