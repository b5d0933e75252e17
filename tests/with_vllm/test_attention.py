"""Answers' attention against its definition, in Triton's interpreter, and what is left to FlashAttention."""

from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.testing.vllm.hopper import ptx

pytestmark = pytest.mark.vllm

HEADS, PAGE = 3, 16


@pytest.mark.parametrize("size", [32, 64, 80, 96])
@pytest.mark.parametrize("by_head", [True, False], ids=["head by head", "token by token"])
def test_one_token_sees_all_tokens_of_its_request(interpreter: ProcessPoolExecutor, size: int, by_head: bool) -> None:
    lengths = [1, 15, 16, 17, 100, 0, 40]
    out, wanted = interpreter.submit(attend, lengths, size, by_head, torch.float32, 1.0).result()
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=1e-5)
    assert not out[lengths.index(0)].any()  # vLLM pads its batches with empty requests


def test_scales_and_the_cache_in_fp8(interpreter: ProcessPoolExecutor) -> None:
    out, wanted = interpreter.submit(attend, [70, 33, 5], 96, True, torch.float8_e4m3fn, 2.0).result()
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-4)


def attend(lengths: list[int], size: int, by_head: bool, dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, ...]:
    """The kernel's answer and the definition's."""
    from enrich.models.phi3_vision.vllm_attention import one_token_attention

    cache, pages = paged_cache(lengths, size, by_head)
    query, keys, values = (
        part.to(dtype) for part in (torch.randn(len(lengths), HEADS, size), *cache.transpose(1, 2).split(size, dim=-1))
    )
    out = torch.full(query.shape, torch.nan)
    scales = (torch.tensor(scale), torch.tensor(0.5 * scale), torch.tensor(3 * scale))
    one_token_attention(out, query, keys, values, pages, torch.tensor(lengths, dtype=torch.int32), scales, size**-0.5)
    plain = [part.float() * by for part, by in zip((query, keys, values), scales, strict=True)]
    query, keys, values = plain
    return out, torch.stack([definition(query, keys, values, pages[row], n, row) for row, n in enumerate(lengths)])


def paged_cache(lengths: list[int], size: int, by_head: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's cache of one layer, (pages, heads, tokens of a page, keys and values), and each request's pages in it."""
    torch.manual_seed(0)
    width = max(1, -(-max(lengths) // PAGE))
    pages = torch.randperm(len(lengths) * width).reshape(len(lengths), width).int()
    cache = torch.randn(pages.numel(), HEADS, PAGE, 2 * size)
    return (cache if by_head else cache.transpose(1, 2).contiguous().transpose(1, 2)), pages


def definition(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pages: torch.Tensor, length: int, row: int
) -> torch.Tensor:
    """Attention of token `row` of `query` to the first `length` tokens on `pages`; of no tokens, 0."""
    k, v = (part[pages.long()].flatten(0, 1)[:length] for part in (keys, values))
    scores = torch.einsum("hd,nhd->hn", query[row], k) * query.shape[-1] ** -0.5
    return torch.einsum("hn,nhd->hd", scores.softmax(-1), v)


@pytest.mark.parametrize("dtype", ["bf16", "fp8e4nv"])
def test_the_kernel_compiles_for_hopper(dtype: str, compiler: ProcessPoolExecutor) -> None:
    """The interpreter takes more than the compiler does; this needs no GPU."""
    assert "st.global" in compiler.submit(compile_for_hopper, dtype).result()


def compile_for_hopper(dtype: str) -> str:
    """PTX of the kernel for a cache of `dtype`."""
    from enrich.models.phi3_vision.vllm_attention import _TILE, _one_token_kernel

    sizes = {"PAGE": PAGE, "TILE": _TILE, "LOW": 64, "HIGH": 32}
    pointers = {"out": "*bf16", "pages": "*i32", "lengths": "*i32"}
    pointers |= dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
    pointers |= dict.fromkeys(("query_scale", "key_scale", "value_scale"), "*fp32")
    return ptx(_one_token_kernel, sizes, {**pointers, "scale": "fp32"}, num_warps=1)


@pytest.mark.parametrize("new", [[1, 1, 1], [1, 1, 4, 20], [7, 30]], ids=["answers", "both", "photos"])
def test_every_token_of_a_step_is_computed_once(interpreter: ProcessPoolExecutor, new: list[int]) -> None:
    out, wanted = interpreter.submit(step, new).result()
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=1e-5)


def step(new: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of requests with `new` tokens each, through builder and layer, FlashAttention by its definition."""
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.attention.backends.flash_attn import (
        FlashAttentionImpl,
        FlashAttentionMetadata,
        FlashAttentionMetadataBuilder,
    )

    from enrich.models.phi3_vision.vllm_attention import StreamAttention, StreamMetadataBuilder

    size, lengths = 32, [count + 25 for count in new]
    cache, pages = paged_cache(lengths, size)
    keys, values = cache.transpose(1, 2).split(size, dim=-1)
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0)], dtype=torch.int32)
    query = torch.randn(sum(new), HEADS, size)

    def flash_build(self: Any, prefix: int, common: Any, fast_build: bool = False) -> FlashAttentionMetadata:
        return FlashAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens, max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc, max_seq_len=common.max_seq_len, seq_lens=common.seq_lens,
            block_table=common.block_table_tensor, slot_mapping=common.slot_mapping,
        )  # fmt: skip

    def flash_forward(
        self: Any, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, metadata: Any, out: Any
    ) -> None:
        bounds = metadata.query_start_loc.tolist()
        for request, (first, last) in enumerate(pairwise(bounds)):
            for row in range(first, last):
                length = int(metadata.seq_lens[request]) - (last - 1 - row)
                out[row] = definition(query, keys, values, metadata.block_table[request], length, row)

    common = CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=len(new), num_actual_tokens=sum(new), max_query_len=max(new), max_seq_len=max(lengths),
        block_table_tensor=pages, slot_mapping=torch.arange(sum(new)),
        seq_lens_cpu_upper_bound=torch.tensor(lengths, dtype=torch.int32),
    )  # fmt: skip
    one = torch.tensor(1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlashAttentionMetadataBuilder, "build", flash_build)
        patch.setattr(FlashAttentionImpl, "forward", flash_forward)
        metadata = object.__new__(StreamMetadataBuilder).build(0, common)
        attention = object.__new__(StreamAttention)
        attention.head_size, attention.scale, attention.kv_cache_dtype = size, size**-0.5, "auto"
        layer, out = SimpleNamespace(_q_scale=one, _k_scale=one, _v_scale=one), torch.full(query.shape, torch.nan)
        attention.forward(layer, query, query, query, cache, metadata, out)
    whole, wanted = flash_build(None, 0, common), torch.empty_like(query)
    flash_forward(None, layer, query, None, None, cache, whole, wanted)
    assert metadata.one_token == new.count(1)
    return out, wanted


def test_the_plugin_registers_the_backend() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from enrich.models.phi3_vision.vllm_plugin import register

    register()
    backend = AttentionBackendEnum.CUSTOM.get_class()
    assert backend.__module__ == "enrich.models.phi3_vision.vllm_attention"
    assert backend.get_name() == AttentionBackendEnum.CUSTOM.name
    assert backend.supports_head_size(96)
    assert not backend.supports_head_size(112)  # 64 + 32 + 16
