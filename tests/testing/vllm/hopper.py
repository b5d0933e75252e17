"""Triton's kernels compiled for a GPU that is not there."""

from typing import Any


def ptx(kernel: Any, sizes: dict[str, Any], kinds: dict[str, str], *, num_warps: int) -> str:
    """A kernel's code for compute capability 9, in Triton's words for its arguments: `sizes` are its constants, and
    those without one of the `kinds` are integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {**kinds, **dict.fromkeys(sizes, "constexpr")}
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, sizes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps}).asm["ptx"]
