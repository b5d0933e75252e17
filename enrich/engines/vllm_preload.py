"""The imports of the process that engines are forked from. Neither this module nor its imports may start CUDA.

PEFT is not imported here: if bitsandbytes is installed, PEFT's import queries the GPU.
"""

from contextlib import suppress

with suppress(Exception):  # the engine's own process then says what is wrong
    import vllm.v1.engine.core  # noqa: F401

    import enrich.engines.vllm_compat  # noqa: F401
