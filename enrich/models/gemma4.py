"""Gemma 4: a photo keeps its aspect ratio and takes one of five numbers of tokens, or as many as whole cells of 48
pixels allow.

In the larger models (not E2B and E4B) the tokens of a photo attend to each other, also to later ones. The model makes
that mask from `mm_token_type_ids`. vLLM 0.32 has kernels for it on GPUs only and ignores it silently on a CPU, which
the comparison before an adapter's first run detects.
"""

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from enrich.models.auto import Facts, family, nearest, one_each
from enrich.models.base import Published

_OFFERED = (70, 140, 280, 560, 1120)  # the numbers that it was trained with


def resized(width: int, height: int, squares: int, side: int) -> tuple[int, int]:
    """As transformers' `get_aspect_ratio_preserving_size`."""
    scale = math.sqrt(squares * side**2 / (width * height))
    across, down = (math.floor(scale * one / side) for one in (width, height))
    if not down:  # a strip thinner than a cell
        across, down = min(width // height, squares), 1
    elif not across:
        across, down = 1, min(height // width, squares)
    return across * side, down * side


def _spelling(down: int, across: int, each: int) -> str:
    return f"<|image>{FACTS.image_token * (down * across * each)}<image|>"


def _side(images: Mapping[str, Any]) -> int:
    return images["patch_size"] * images["pooling_kernel_size"]


def _model_side(vision: Any) -> int:
    return vision.patch_size * vision.pooling_kernel_size


def _squares(images: Mapping[str, Any]) -> int:
    return images["max_soft_tokens"]


def _settings(squares: int, _: int) -> dict[str, Any]:
    if squares not in _OFFERED:
        raise ValueError(f"Gemma 4 gives a photo {', '.join(map(str, _OFFERED))} tokens, not {squares}")
    return {"max_soft_tokens": squares}


def _squares_for(tokens: int, _: int) -> int:
    return nearest(tokens, zip(_OFFERED, _OFFERED, strict=True))


def _for_vllm(images: dict[str, Any]) -> dict[str, Any]:
    """Without the rows that pad a photo to the largest size, for which vLLM's tower would make a mask."""
    places = images["image_position_ids"]
    real = int((places[0, :, 0] >= 0).sum())  # they come first
    return {"pixel_values": images["pixel_values"][:, :real], "pixel_position_ids": places[:, :real]}


FACTS = Facts(
    image_token="<|image|>",
    stop_tokens=("<turn|>", "<eos>", "<|turn>"),
    decoder=r"model\.language_model\.layers\.\d+\.(?:self_attn|mlp)",
    vision=(
        r"model\.vision_tower\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.linear",
        r"model\.embed_vision\.embedding_projection",
    ),
    unquantized=(
        "model.vision_tower",
        "model.embed_vision",
        "model.audio_tower",
        "model.embed_audio",
        "lm_head",
        # Of each layer's own embeddings, 1 % of E2B's weights.
        "per_layer_model_projection",
        "per_layer_input_gate",
        "per_layer_projection",
    ),
    resample=Image.Resampling.BICUBIC,
    resized=resized,
    spelling=_spelling,
    side=_side,
    model_side=_model_side,
    squares=_squares,
    settings=_settings,
    squares_for=_squares_for,
    each=one_each,
    tensors={"pixel_values": 0, "image_position_ids": -1},
    template={"enable_thinking": False},
    for_vllm=_for_vllm,
    # For heads of 512 vLLM 0.32 chooses FlashAttention 4 on Hopper; with its pins those kernels do not compile.
    attention="TRITON_ATTN",
)
FAMILY = family(
    "Gemma 4", "gemma4", FACTS, "Apache-2.0",
    Published("google/gemma-4-E2B-it", 5.104, 35, 1536, 6144, 18_432),  # its last 20 layers use others' keys and values
    Published("google/gemma-4-E4B-it", 7.941, 42, 2560, 10240, 57_344),
)  # fmt: skip
