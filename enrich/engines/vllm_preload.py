"""What the process imports that engines are forked from. Neither this nor what it imports may start CUDA."""

from contextlib import suppress

with suppress(Exception):  # the engine's own process then says what is wrong
    import vllm.v1.engine.core  # noqa: F401

    import enrich.engines.vllm_compat  # noqa: F401
