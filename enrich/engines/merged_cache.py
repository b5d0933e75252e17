"""A cache of merged checkpoints: merging a full-size model takes minutes, and every night serves the same one."""

import os
import re
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError

from enrich.engines.adapter import Adapter
from enrich.engines.transformers_engine import merge_adapter
from enrich.models.adapted import save_merged
from enrich.storage.cache import disk_errors
from enrich.storage.staged import staged_folder

KEPT_SECONDS = 7 * 24 * 3600.0
_OURS = re.compile(r"[0-9a-f]{16}-(float32|bfloat16)")  # the names given below; nothing else is ever removed


def merged_checkpoint(adapter: Adapter, dtype: torch.dtype, cache: Path) -> Path:
    """The directory of the adapter's merged checkpoint in `dtype`, written atomically if it does not exist.

    Merging takes CPU memory (16.6 GB for the full-size model in float32), so that the GPU stays free for the engine.
    Merged checkpoints of other adapters, 8.3 GB each, are removed once no run has used them for KEPT_SECONDS: a run
    that serves one may have to start its engine again.

    Raises:
        UsageError: no such base, or the adapter does not fit it.
        RunFailed: the disk of `cache` is full or refuses files.
    """
    target = cache / f"{adapter.id}-{str(dtype).removeprefix('torch.')}"
    if target.is_dir():
        os.utime(target)  # used now
        return target
    with disk_errors(cache), staged_folder(cache) as folder:
        model = merge_adapter(adapter, dtype, torch.device("cpu"))
        try:
            save_merged(model, adapter.path, folder / "whole")
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(None, " ".join(str(error).split())[:200], str(cache)) from error
        try:
            (folder / "whole").rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
        os.utime(target)
        for other in cache.iterdir():
            unused = time.time() - other.stat().st_mtime
            if _OURS.fullmatch(other.name) and other.is_dir() and other != target and unused > KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return target
