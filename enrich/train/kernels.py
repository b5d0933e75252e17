"""Which kernels a run trains with: attention, and compiled layers."""

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from enrich.errors import UsageError
from enrich.phi3_vision import Phi3VForCausalLM

# Compiling takes a minute or two and makes a photo's step a third shorter: it pays from some 4,000 photos shown on.
COMPILE_FROM = 4000


def attention_kernel(wanted: str, device: torch.device) -> str:
    """What `attn_implementation` to load the model with: `wanted`, or for `auto` the best that is installed.

    Raises:
        UsageError: a flash-attention that is asked for is not installed, or there is no GPU for it.
    """
    installed = {"flash_attention_3": is_flash_attn_3_available, "flash_attention_2": is_flash_attn_2_available}
    if wanted == "auto":
        return next((name for name, found in installed.items() if device.type == "cuda" and found()), "sdpa")
    if wanted in installed and not (device.type == "cuda" and installed[wanted]()):
        raise UsageError(f"attention {wanted}: needs a CUDA GPU and the package flash-attn; use attention: auto")
    return wanted


def worth_compiling(wanted: bool | None, device: torch.device, shown: int) -> bool:
    """`wanted`, or where that is left open, whether compiling saves more time than it takes; `shown` counts photos."""
    return device.type == "cuda" and shown >= COMPILE_FROM if wanted is None else wanted


def compile_layers(model: Phi3VForCausalLM) -> None:
    """Compile the decoder layers and the tower's, each kind once: all layers of a kind run the same code.

    Names of modules and parameters stay as they are. Lengths of rows are compiled in, numbers of crops are not.
    """
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    for layer in model.model.vision_embed_tokens.tower_layers:
        layer.compile()
