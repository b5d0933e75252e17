"""Qwen3-VL: a photo keeps its aspect ratio and takes a limited number of cells of 32 x 32 pixels, each of them a token.

Positions have three parts (M-RoPE: time, row, column), and the first decoder layers get features of the tower's inner
layers too (DeepStack).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from enrich.models.auto import Facts, family, one_each
from enrich.models.base import Published

_LEAST = 64  # cells; smaller photos are scaled up to them
_PATCHES = 2  # along a cell's side
_FRAMES = 2  # of a video that a patch takes; a photo is shown twice


def _least(squares: int) -> int:
    return min(_LEAST, max(1, squares // 2))


def resized(width: int, height: int, squares: int, side: int) -> tuple[int, int]:
    """As transformers' `smart_resize`, which however gives strips of less than a cell's width too many cells."""
    across, down = round(width / side), round(height / side)
    if across * down > squares:
        scale = math.sqrt(width * height / (squares * side**2))
        across, down = (max(1, math.floor(one / scale / side)) for one in (width, height))
    elif across * down < _least(squares):
        scale = math.sqrt(_least(squares) * side**2 / (width * height))
        across, down = (math.ceil(one * scale / side) for one in (width, height))
    down = min(down, squares)
    return min(across, squares // down) * side, down * side


def _spelling(down: int, across: int, each: int) -> str:
    """The chat template itself marks where a photo starts and ends."""
    return FACTS.image_token * (down * across * each)


def _side(images: Mapping[str, Any]) -> int:
    return images["patch_size"] * images["merge_size"]


def _model_side(vision: Any) -> int:
    return vision.patch_size * vision.spatial_merge_size


def _squares(images: Mapping[str, Any]) -> int:
    return images["size"]["longest_edge"] // _side(images) ** 2


def _settings(squares: int, side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": _least(squares) * side**2, "longest_edge": squares * side**2}}


def _squares_for(tokens: int, _: int) -> int:
    return tokens


def _grids(photos: list[tuple[int, ...]]) -> dict[str, Any]:
    return {"image_grid_thw": [(1, down * _PATCHES, across * _PATCHES) for down, across in photos]}


def _arranged(page: np.ndarray, side: int) -> np.ndarray:
    """As transformers' image processor, which does this in float32: the patches of a cell follow one another."""
    patch = side // _PATCHES
    down, across = (one // side for one in page.shape[:2])
    cells = page.reshape(down, _PATCHES, patch, across, _PATCHES, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    frames = np.broadcast_to(cells[:, :, :, :, :, None], (*cells.shape[:5], _FRAMES, patch, patch))
    return frames.reshape(down * across * _PATCHES**2, -1)


FACTS = Facts(
    image_token="<|image_pad|>",
    stop_tokens=("<|im_end|>", "<|endoftext|>", "<|im_start|>"),
    decoder=r"model\.language_model\.layers\.\d+\.(?:self_attn|mlp)",
    vision=(
        r"model\.visual\.blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.linear_fc[12])",
        r"model\.visual\.(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
    ),
    unquantized=("model.visual", "lm_head"),
    resample=Image.Resampling.BICUBIC,
    resized=resized,
    spelling=_spelling,
    side=_side,
    model_side=_model_side,
    squares=_squares,
    settings=_settings,
    squares_for=_squares_for,
    each=one_each,
    tensors={"pixel_values": 0, "image_grid_thw": 0},
    arranged=_arranged,
    grids=_grids,
    flat=("pixel_values",),
    bytes_for_vllm=True,
)
FAMILY = family(
    "Qwen3-VL", "qwen3_vl", FACTS, "Apache-2.0",
    Published("Qwen/Qwen3-VL-2B-Instruct", 2.128, 28, 2048, 6144, 114_688),
    Published("Qwen/Qwen3-VL-4B-Instruct", 4.438, 36, 2560, 9728, 147_456),
    Published("Qwen/Qwen3-VL-8B-Instruct", 8.767, 36, 4096, 12288, 147_456),
)  # fmt: skip
