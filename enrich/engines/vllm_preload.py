"""What the process imports that engines are forked from. Neither this nor what it imports may start CUDA.

PEFT is not among it: where bitsandbytes is installed, its import asks the GPU what it can do.
"""

from contextlib import suppress

with suppress(Exception):  # the engine's own process then says what is wrong
    import vllm.v1.engine.core  # noqa: F401

    import enrich.engines.vllm_compat  # noqa: F401
