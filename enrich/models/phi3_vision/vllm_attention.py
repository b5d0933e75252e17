"""vLLM's attention for a stream of photos: photos through FlashAttention 3, answers through a kernel of their own.

Where heads have 96 dimensions FlashAttention 3 computes tiles of 192 queries. Phi-3 has as many key heads as query
heads, so the one new token of an answer fills one row of such a tile, and the tile's products take longer than reading
the answer's keys and values, which is all that there is to do. The kernel here does no more than that, 1.7 (bf16) and
2.3 times (fp8) as fast on an H200 (benchmarks/vllm_attention/README.md).
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import triton
import triton.language as tl
from vllm.platforms import current_platform
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.ubatch_utils import UBatchSlice, split_attn_metadata

_TILE = 16  # tokens of a step of the kernel: no more than a page has, so that a step has one page to look up


class StreamAttentionBackend(FlashAttentionBackend):
    """FlashAttention's backend, except for requests with one token, and with a head's keys and values adjacent."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"  # vLLM's name for what a plugin registers

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return super().supports_head_size(head_size) and head_size.bit_count() <= 2

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)

    @staticmethod
    def get_impl_cls() -> type["StreamAttention"]:
        return StreamAttention

    @staticmethod
    def get_builder_cls() -> type["StreamMetadataBuilder"]:
        return StreamMetadataBuilder


@dataclass
class StreamMetadata(FlashAttentionMetadata):
    """A step's requests: first those with one token, then the rest, which FlashAttention takes."""

    one_token: int = 0
    rest: FlashAttentionMetadata | None = None


class StreamMetadataBuilder(FlashAttentionMetadataBuilder):
    """Separates the two kinds of requests. vLLM puts requests with one token first in every step."""

    supports_update_block_table = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_reorder_batch_threshold(1)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Attention is captured where every request has one token; elsewhere it is two calls of changing sizes."""
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> StreamMetadata:
        common = common_attn_metadata
        ones, others, tokens, _ = split_decodes_and_prefills(common)
        whole, rest = super().build(common_prefix_len, common, fast_build=True), None
        if others:
            part = UBatchSlice(slice(ones, common.num_reqs), slice(tokens, common.num_actual_tokens))
            rest = super().build(common_prefix_len, split_attn_metadata([part], common)[0], fast_build)
        shared = {field.name: getattr(whole, field.name) for field in fields(whole)}
        return StreamMetadata(**shared, one_token=ones, rest=rest)


class StreamAttention(FlashAttentionImpl):
    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `FlashAttentionImpl.forward`."""
        if attn_metadata is None:  # vLLM finds out how much memory it needs
            return output.fill_(0)
        ones, rest = attn_metadata.one_token, attn_metadata.rest
        if ones:
            keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
            if is_quantized_kv_cache(self.kv_cache_dtype):
                keys, values = (part.view(current_platform.fp8_dtype()) for part in (keys, values))
            one_token_attention(
                output[:ones], query[:ones], keys, values, attn_metadata.block_table, attn_metadata.seq_lens,
                (layer._q_scale, layer._k_scale, layer._v_scale), self.scale,
            )  # fmt: skip
        if rest is not None:
            super().forward(layer, query[ones:], key[ones:], value[ones:], kv_cache, rest, output[ones:])
        return output


def one_token_attention(
    out: torch.Tensor,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pages: torch.Tensor,
    lengths: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
) -> None:
    """Attention of each request's newest token to all of its tokens, computed in float32, into `out`.

    Args:
        out, query: (requests, heads, size), size a sum of two powers of two, 16 or more each.
        keys, values: (pages, tokens of a page, heads, size), tokens of a page a multiple of 16, numbers of a head and
            token side by side.
        pages: (requests or more, any), int32: the pages of each request, in order.
        lengths: (requests or more,), int32: tokens of each, the newest among them; where it is 0, `out` is 0.
        scales: what query, keys and values are to be multiplied with, one float32 on the device each.
        scale: of the scores.
    """
    requests, heads, size = query.shape
    low = 1 << (size - 1).bit_length() - 1  # the largest power of two below it
    _one_token_kernel[(heads, requests)](
        out, query, keys, values, pages, lengths, *scales, scale, *out.stride()[:2], *query.stride()[:2],
        *keys.stride()[:3], *values.stride()[:3], pages.stride(0), PAGE=keys.shape[1], TILE=_TILE, LOW=low,
        HIGH=size - low, num_warps=1,
    )  # fmt: skip


@triton.jit
def _one_token_kernel(  # type: ignore[no-untyped-def]
    out, query, keys, values, pages, lengths, query_scale, key_scale, value_scale, scale, out_token, out_head,
    query_token, query_head, key_page, key_slot, key_head, value_page, value_slot, value_head, pages_row,
    PAGE: tl.constexpr, TILE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
):  # fmt: skip
    """One head of one request. A head's dimensions go in two parts, for Triton's are powers of two and 96 is not; each
    row of a tile has its own running maximum (Milakov and Gimelshein 2018), so that rows meet only at the end."""
    head, request = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + request)
    low, high = tl.arange(0, LOW), LOW + tl.arange(0, HIGH)
    query += request * query_token + head * query_head
    keys += head * key_head
    values += head * value_head
    factor = scale * tl.load(query_scale) * tl.load(key_scale) * 1.4426950408889634  # exp(x) = exp2(x log2(e))
    q_low, q_high = tl.load(query + low).to(tl.float32) * factor, tl.load(query + high).to(tl.float32) * factor
    largest, total = tl.full([TILE], -1e30, tl.float32), tl.zeros([TILE], tl.float32)
    sum_low, sum_high = tl.zeros([TILE, LOW], tl.float32), tl.zeros([TILE, HIGH], tl.float32)
    for start in tl.range(0, length, TILE, num_stages=3):  # two tiles are on their way while one is computed
        page = tl.load(pages + request * pages_row + start // PAGE).to(tl.int64)
        slot = start % PAGE + tl.arange(0, TILE)
        there = start + tl.arange(0, TILE) < length
        key, value = keys + page * key_page + slot * key_slot, values + page * value_page + slot * value_slot
        k_low, k_high = _rows(key, low, there), _rows(key, high, there)
        v_low, v_high = _rows(value, low, there), _rows(value, high, there)
        score = tl.where(there, tl.sum(k_low * q_low[None, :], 1) + tl.sum(k_high * q_high[None, :], 1), -1e30)
        larger = tl.maximum(largest, score)
        kept, weight = tl.exp2(largest - larger), tl.where(there, tl.exp2(score - larger), 0.0)
        total = total * kept + weight
        sum_low = sum_low * kept[:, None] + weight[:, None] * v_low
        sum_high = sum_high * kept[:, None] + weight[:, None] * v_high
        largest = larger
    weight = tl.exp2(largest - tl.max(largest, 0))
    weight *= tl.load(value_scale) / tl.maximum(tl.sum(total * weight, 0), 1e-30)
    out += request * out_token + head * out_head
    tl.store(out + low, tl.sum(sum_low * weight[:, None], 0).to(out.dtype.element_ty))
    tl.store(out + high, tl.sum(sum_high * weight[:, None], 0).to(out.dtype.element_ty))


@triton.jit
def _rows(first, lane, there):  # type: ignore[no-untyped-def]
    return tl.load(first[:, None] + lane[None, :], mask=there[:, None], other=0.0).to(tl.float32)
