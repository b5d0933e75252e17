"""Merged checkpoints, kept on disk: merging a full-size model takes minutes, and every night serves the same one."""

import re
import shutil
from pathlib import Path
from tempfile import mkdtemp

import torch

from enrich.infer.adapter import Adapter
from enrich.infer.transformers_engine import merged_model
from enrich.phi3_vision.checkpoint import save_merged

_OURS = re.compile(r"[0-9a-f]{16}-(float32|bfloat16)")  # the names given below; nothing else is ever removed
CACHE = Path.home() / ".cache" / "enrich" / "merged"


def merged_checkpoint(adapter: Adapter, dtype: torch.dtype, cache: Path) -> Path:
    """The directory of the adapter's merged checkpoint in `dtype`, written if it is not there: whole or not at all.

    Merging happens in the CPU's memory (16.6 GB for the full-size model in float32), so that this process takes nothing
    of the GPU from the engine. Other adapters' merged checkpoints are removed from there: 8.3 GB each.

    Raises:
        UsageError: no such base, or the adapter does not fit it.
    """
    target = cache / f"{adapter.id}-{str(dtype).removeprefix('torch.')}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(prefix=".merging-", dir=cache))
    try:
        save_merged(merged_model(adapter, dtype, torch.device("cpu")), adapter.path, scratch / "whole")
        others = [entry for entry in cache.iterdir() if entry.is_dir() and _OURS.fullmatch(entry.name)]
        try:
            (scratch / "whole").rename(target)
        except OSError:
            if not target.is_dir():  # else another process was as fast
                raise
        for other in others:
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
