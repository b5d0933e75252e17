"""The device that models run on."""

import gc

import torch

from enrich.errors import UsageError


def device_and_dtype(device: str) -> tuple[torch.device, torch.dtype]:
    """The device and precision to use: bf16 on a GPU, float32 on a CPU. `auto` is the GPU if there is one.

    Raises:
        UsageError: `cuda` without a visible GPU.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError("device cuda: no CUDA GPU is visible here; use device auto or cpu")
    if device == "cpu" or not available:
        return torch.device("cpu"), torch.float32
    return torch.device("cuda"), torch.bfloat16


def free_memory() -> None:
    """Free the GPU memory of dropped models."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
