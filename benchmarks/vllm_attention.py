"""Attention of a step that reads 20 photos while 190 are answered, by kernel: FlashAttention 3, vLLM's Triton, ours.

    python benchmarks/vllm_attention.py                      # on a GPU with compute capability 9
    TRITON_INTERPRET=1 python benchmarks/vllm_attention.py --tiny   # to try the script on a CPU: ours only

Shapes are those of Phi-3-vision's 32 layers: 32 heads of 96 numbers, 792 tokens a photo, 1 to 31 more of its answer;
pages of 16 tokens, scattered. Milliseconds a layer, and of answers the rate at which keys and values are read.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from enrich.phi3_vision import vllm_attention
from enrich.phi3_vision.vllm_attention import one_token_attention

SIZE, PAGE, SCALE = 96, 16, 96**-0.5
TILES = ((8, 1), (8, 2), (16, 2), (16, 4), (32, 2), (32, 4), (64, 4))  # tokens, warps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small step, on a CPU")
    tiny = parser.parse_args().tiny
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for by_head in (True, False):
            measure(dtype, by_head, *((2, 3, 1, 40) if tiny else (32, 190, 20, 792)))


def measure(dtype: torch.dtype, by_head: bool, heads: int, answers: int, photos: int, tokens: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    lengths = torch.cat([torch.randint(tokens + 1, tokens + 32, (answers,)), torch.full((photos,), tokens)]).int()
    width = -(-int(lengths.max()) // PAGE)
    pages = torch.randperm(len(lengths) * width).reshape(len(lengths), width).int().to(device)
    shape = (pages.numel(), heads, PAGE, 2 * SIZE) if by_head else (pages.numel(), PAGE, heads, 2 * SIZE)
    cache = torch.randn(shape, device=device).to(dtype)
    keys, values = (cache.transpose(1, 2) if by_head else cache).split(SIZE, dim=-1)
    new = torch.tensor([1] * answers + [tokens] * photos)
    starts = torch.cat([torch.zeros(1), new.cumsum(0)]).int().to(device)
    query = torch.randn(int(new.sum()), heads, SIZE, device=device).to(dtype)
    out = torch.zeros(query.shape, dtype=torch.bfloat16, device=device)
    lengths, one = lengths.to(device), torch.ones((), device=device)
    read = int(lengths[:answers].sum()) * heads * 2 * SIZE * cache.element_size()
    name = f"{'bf16' if dtype == torch.bfloat16 else 'fp8'}, {'head by head' if by_head else 'token by token'}"

    def report(what: str, call: Callable[[], Any], read: int = 0) -> None:
        try:
            seconds = clock(call, device)
        except (ImportError, AttributeError, RuntimeError) as error:
            print(f"| {name} | {what} | {type(error).__name__}: {str(error)[:80]} | |", flush=True)
        else:
            rate = f"{read / seconds / 1e12:.2f}" if read else ""
            print(f"| {name} | {what} | {1e3 * seconds:.3f} | {rate} |", flush=True)

    step = (query, keys, values, out, pages, starts, lengths)
    report("FlashAttention 3, photos", flash_attention(*step, answers, len(new)))
    report("FlashAttention 3, both", flash_attention(*step, 0, len(new)))
    report("vLLM's Triton kernel, answers", triton_attention(*step, answers), read)
    report("FlashAttention 3, answers", flash_attention(*step, 0, answers), read)
    wanted = out[:answers].float()
    part = (out[:answers], query[:answers], keys, values, pages, lengths)
    for tile, warps in TILES:
        vllm_attention._TILES[cache.element_size()] = (tile, warps)
        report(f"ours, tile {tile}, {warps} warps", lambda: one_token_attention(*part, (one, one, one), SCALE), read)
        difference = float((out[:answers].float() - wanted).abs().max())
        if device == "cuda" and difference > 0.03:
            print(f"| | differs from FlashAttention 3 by {difference:.3f} | | |")


def clock(call: Callable[[], Any], device: str) -> float:
    """Seconds a call."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats = 10 if device == "cuda" else 1
    call()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def flash_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor, pages: torch.Tensor,
    starts: torch.Tensor, lengths: torch.Tensor, first: int, last: int,
) -> Callable[[], Any]:  # fmt: skip
    """The call that vLLM makes for requests `first` to `last`, ready to be made."""
    begin, end = int(starts[first]), int(starts[last])
    one = torch.ones(1, 1, device=query.device).expand(last - first, query.shape[1])
    descale = {} if query.element_size() == 2 else {"q_descale": one, "k_descale": one, "v_descale": one}
    arguments = {
        "q": query[begin:end], "k": keys, "v": values, "out": out[begin:end], "seqused_k": lengths[first:last],
        "cu_seqlens_q": starts[first : last + 1] - begin, "max_seqlen_q": int(starts[last] - starts[last - 1]),
        "max_seqlen_k": int(lengths.max()), "block_table": pages[first:last], **descale,
    }  # fmt: skip

    def call() -> None:
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        flash_attn_varlen_func(**arguments, softmax_scale=SCALE, causal=True, fa_version=3)

    return call


def triton_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor, pages: torch.Tensor,
    starts: torch.Tensor, lengths: torch.Tensor, n: int,
) -> Callable[[], Any]:  # fmt: skip
    """The call that vLLM's Triton backend makes for the first `n` requests."""
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    from vllm.v1.kv_cache_interface import KVQuantMode

    one, longest = torch.ones(1, 1, device=query.device).expand(n, query.shape[1]), int(lengths.max())
    mode = KVQuantMode.NONE if query.element_size() == 2 else KVQuantMode.FP8_PER_TENSOR
    return lambda: unified_attention(
        q=query[:n], k=keys, v=values, out=out[:n], cu_seqlens_q=starts[: n + 1], max_seqlen_q=1,
        seqused_k=lengths[:n], max_seqlen_k=longest, softmax_scale=SCALE, causal=True, window_size=(-1, -1),
        block_table=pages[:n], softcap=0, q_descale=one, k_descale=one, v_descale=one, kv_quant_mode=mode,
    )  # fmt: skip


if __name__ == "__main__":
    main()
