"""The kernels of a run: attention, compiled layers, 4-bit weights."""

import torch
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available, is_flash_attn_3_available

from enrich.errors import UsageError
from enrich.settings.training import TrainSettings

# On an H200 compiling took 12 seconds and brought a photo from 46 to 30 ms (benchmarks/finetuning/README.md): it pays
# from 800 photos shown on, and on a slower host somewhat later.
COMPILE_FROM = 2000


def attention_kernel(wanted: str, device: torch.device) -> str:
    """What `attn_implementation` to load the model with: `wanted`, or for `auto` the best that is installed.

    Raises:
        UsageError: the requested flash-attention is not installed, or there is no GPU.
    """
    installed = {"flash_attention_3": is_flash_attn_3_available, "flash_attention_2": is_flash_attn_2_available}
    if wanted == "auto":
        return next((name for name, found in installed.items() if device.type == "cuda" and found()), "sdpa")
    if wanted in installed and not (device.type == "cuda" and installed[wanted]()):
        raise UsageError(f"attention {wanted}: needs a CUDA GPU and the package flash-attn; use attention: auto")
    return wanted


def check_4bit(settings: TrainSettings) -> None:
    """Refuse `load_in_4bit` without bitsandbytes. Raises UsageError."""
    if settings.load_in_4bit and not is_bitsandbytes_available():
        raise UsageError("load_in_4bit: needs bitsandbytes; pip install 'enrich[qlora]', or set load_in_4bit: false")


def worth_compiling(settings: TrainSettings, device: torch.device, photos: int) -> bool:
    """`settings.compile`, or if that is not set, whether compiling saves more time than it takes."""
    if settings.compile is not None:
        return settings.compile
    return device.type == "cuda" and photos * settings.epochs >= COMPILE_FROM
