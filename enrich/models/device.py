"""The memory of the device that models run on."""

import gc

import torch


def free_memory() -> None:
    """Give memory of dropped models back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
