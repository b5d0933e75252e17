"""Attention of the vision tower: the tokens of a crop see each other, and no other crop's.

A crop has 577 tokens, of which one, the class token, is not a patch. FlashAttention 3 takes 192 x 192 of them at a time
where heads have 64 dimensions, so it computes 768 x 768. Here the class token's key opens the sum and the 576 patches'
keys fill tiles of 64, so 640 x 577 are computed, in two thirds of the time (benchmarks/vllm_attention/README.md).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor
from vllm.platforms import current_platform

_TILE = 64  # queries, and keys, of a step: the fastest of seven on an H200


class TowerAttention(nn.Module):
    """Replaces vLLM's `MMEncoderAttention` if `fits`."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    @staticmethod
    def fits(size: int, dtype: torch.dtype) -> bool:
        """Whether heads have a `size` that fills tiles, and the GPU loads these by itself (compute capability 9)."""
        fast = dtype in (torch.bfloat16, torch.float16) and current_platform.is_device_capability(90)
        return fast and size in (16, 32, 64, 128)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `tower_attention`."""
        return tower_attention(query, key, value, self.heads)


@torch.library.custom_op("enrich::tower_attention", mutates_args=())
def tower_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax(query key^T / sqrt(size)) value, head by head; sums in float32.

    Args:
        query, key, value: (crops, tokens, heads * size), possibly parts of one tensor; size a power of two from 16 on.

    Returns:
        (crops, tokens, heads * size), contiguous.
    """
    crops, tokens, width = query.shape
    size = width // heads
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    tiles: list[Any] = [
        TensorDescriptor(part, list(part.shape), list(part.stride()), [_TILE, size])
        for part in (query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
    ]
    _tower_kernel[(triton.cdiv(tokens, _TILE), heads, crops)](
        *tiles, key, value, key.stride(0), value.stride(0), out, tokens, size**-0.5, WIDTH=width, SIZE=size,
        TILE=_TILE, WHOLE=(tokens - 1) % _TILE == 0, num_warps=4,
    )  # fmt: skip
    return out


@tower_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@triton.jit
def _tower_kernel(  # type: ignore[no-untyped-def]
    queries, keys, values, key, value, key_crop, value_crop, out, tokens, scale, WIDTH: tl.constexpr,
    SIZE: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head of one crop. Tiles may reach into the next crop: its keys and values are masked,
    unless the tokens but one are `WHOLE` tiles, and its queries computed and not stored."""
    row, column, crop = tl.program_id(0) * TILE, tl.program_id(1) * SIZE, tl.program_id(2)
    first, lane, number = crop * tokens, tl.arange(0, TILE), tl.arange(0, SIZE)
    scale *= 1.4426950408889634  # exp(x) = exp2(x log2(e))
    q = queries.load([first + row, column])
    class_key = tl.load(key + crop.to(tl.int64) * key_crop + column + number).to(tl.float32)
    class_value = tl.load(value + crop.to(tl.int64) * value_crop + column + number).to(tl.float32)
    largest = tl.sum(q.to(tl.float32) * class_key[None, :], 1) * scale
    total, result = tl.full([TILE], 1.0, tl.float32), tl.zeros([TILE, SIZE], tl.float32) + class_value[None, :]
    for start in tl.range(1, tokens, TILE, num_stages=3):  # two tiles are on their way while one is computed
        score = tl.dot(q, keys.load([first + start, column]).T)
        if not WHOLE:
            score = tl.where((start + lane < tokens)[None, :], score, -1e30)
        larger = tl.maximum(largest, tl.max(score, 1) * scale)
        kept, weight = tl.exp2(largest - larger), tl.exp2(score * scale - larger[:, None])
        total = total * kept + tl.sum(weight, 1)
        patches = values.load([first + start, column])
        if not WHOLE:
            patches = tl.where((start + lane < tokens)[:, None], patches, 0.0)
        result = tl.dot(weight.to(patches.dtype), patches, result * kept[:, None])
        largest = larger
    there = (row + lane < tokens)[:, None]
    where = out + (first + row + lane).to(tl.int64)[:, None] * WIDTH + column + number[None, :]
    tl.store(where, (result / total[:, None]).to(out.dtype.element_ty), mask=there)
