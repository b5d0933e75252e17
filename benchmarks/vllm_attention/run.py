"""Attention of a step that reads 20 photos while 190 are answered, by kernel: others', and ours.

    python -m benchmarks.vllm_attention.run                      # on a GPU with compute capability 9
    TRITON_INTERPRET=1 python -m benchmarks.vllm_attention.run --tiny   # to try the script on a CPU: ours only

Shapes are those of Phi-3-vision's 32 layers: 32 heads of 96 numbers, 792 tokens a photo, 1 to 31 more of its answer;
pages of 16 tokens, scattered. Milliseconds a layer, and of answers the rate at which keys and values are read. Then one
of the vision tower's 23 layers over the photos' 100 crops: 16 heads of 64 numbers, 577 tokens.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.results import record
from enrich.models.phi3_vision.vllm_attention import one_token_attention
from enrich.models.phi3_vision.vllm_tower_attention import tower_attention

SIZE, PAGE, SCALE = 96, 16, 96**-0.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small step, on a CPU")
    tiny = parser.parse_args().tiny
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for by_head in (True, False):
            measure_step(dtype, by_head, *((2, 3, 1, 40) if tiny else (32, 190, 20, 792)))
    measure_tower(*((2, 2, 65) if tiny else (100, 16, 577)))
    record("vllm_attention", {"": ROWS})


ROWS: list[dict[str, Any]] = []


def measure_step(dtype: torch.dtype, by_head: bool, heads: int, answers: int, photos: int, tokens: int) -> None:
    torch.manual_seed(0)
    lengths = torch.cat([torch.randint(tokens + 1, tokens + 32, (answers,)), torch.full((photos,), tokens)]).int()
    width = -(-int(lengths.max()) // PAGE)
    pages = torch.randperm(len(lengths) * width).reshape(len(lengths), width).int().to(DEVICE)
    shape = (pages.numel(), heads, PAGE, 2 * SIZE) if by_head else (pages.numel(), PAGE, heads, 2 * SIZE)
    cache = torch.randn(shape, device=DEVICE).to(dtype)
    keys, values = (cache.transpose(1, 2) if by_head else cache).split(SIZE, dim=-1)
    new = torch.tensor([1] * answers + [tokens] * photos)
    starts = torch.cat([torch.zeros(1), new.cumsum(0)]).int().to(DEVICE)
    query = torch.randn(int(new.sum()), heads, SIZE, device=DEVICE).to(dtype)
    out = torch.zeros(query.shape, dtype=torch.bfloat16, device=DEVICE)
    lengths, one = lengths.to(DEVICE), torch.ones((), device=DEVICE)
    read = int(lengths[:answers].sum()) * heads * 2 * SIZE * cache.element_size()
    name = f"{'bf16' if dtype == torch.bfloat16 else 'fp8'}, {'head by head' if by_head else 'token by token'}"
    step = (query, keys, values, out, pages, starts, lengths)
    report(name, "FlashAttention 3, photos", flash_attention(*step, answers, len(new)))
    report(name, "FlashAttention 3, both", flash_attention(*step, 0, len(new)))
    report(name, "vLLM's Triton kernel, answers", triton_attention(*step, answers), read=read)
    report(name, "FlashAttention 3, answers", flash_attention(*step, 0, answers), read=read)
    wanted = out[:answers].float()
    part = (out[:answers], query[:answers], keys, values, pages, lengths)
    report(name, "ours, answers", lambda: one_token_attention(*part, (one, one, one), SCALE), read=read)
    agree(out[:answers], wanted)


def measure_tower(crops: int, heads: int, tokens: int, size: int = 64) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    query, key, value = torch.randn(crops, tokens, 3 * heads * size, device=DEVICE, dtype=dtype).chunk(3, dim=-1)
    by_head = [part.unflatten(-1, (heads, size)).transpose(1, 2) for part in (query, key, value)]

    def pytorch(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)

    def flash() -> torch.Tensor:
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        rows = [part.flatten(0, 1).unflatten(-1, (heads, size)) for part in (query, key, value)]
        starts = torch.arange(0, (crops + 1) * tokens, tokens, dtype=torch.int32, device=DEVICE)
        return flash_attn_varlen_func(
            *rows, max_seqlen_q=tokens, cu_seqlens_q=starts, max_seqlen_k=tokens, cu_seqlens_k=starts, fa_version=3
        )

    work = 4 * crops * heads * tokens**2 * size
    report("tower", "FlashAttention 3", flash, work=work)
    report("tower", "PyTorch's FlashAttention 2", lambda: pytorch(SDPBackend.FLASH_ATTENTION), work=work)
    report("tower", "PyTorch's cuDNN", lambda: pytorch(SDPBackend.CUDNN_ATTENTION), work=work)
    report("tower", "ours", lambda: tower_attention(query, key, value, heads), work=work)
    agree(tower_attention(query, key, value, heads), pytorch(SDPBackend.FLASH_ATTENTION).float())


def report(name: str, what: str, call: Callable[[], Any], *, read: int = 0, work: int = 0) -> None:
    """Add a row: milliseconds a call, and TB/s of `read` bytes or TFLOP/s of `work`."""
    row: dict[str, Any] = {"cache": name, "kernel": what, "ms": "", "TB/s": "", "TFLOP/s": "", "note": ""}
    try:
        seconds = clock(call)
    except (ImportError, AttributeError, RuntimeError) as error:
        row["note"] = f"{type(error).__name__}: {str(error)[:80]}"
    else:
        row["ms"] = 1e3 * seconds
        row["TB/s"] = read / seconds / 1e12 if read else ""
        row["TFLOP/s"] = work / seconds / 1e12 if work else ""
    ROWS.append(row)


def agree(out: torch.Tensor, wanted: torch.Tensor) -> None:
    """Note in the last row if its result differs from another kernel's."""
    difference = float((out.float() - wanted).abs().max())
    if DEVICE == "cuda" and difference > 0.03:
        ROWS[-1]["note"] = f"differs by {difference:.3f}"


def clock(call: Callable[[], Any]) -> float:
    """Seconds a call."""
    wait, repeats = (torch.cuda.synchronize, 20) if DEVICE == "cuda" else (lambda: None, 1)
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
