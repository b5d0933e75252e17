"""The entry point that makes vLLM serve Phi-3-vision natively: vLLM runs it in each of its processes."""


def register() -> None:
    """Teach transformers and vLLM the architecture; may run any number of times.

    The model's class is named, not imported: that would start CUDA in processes that only plan.
    """
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from . import register as register_with_transformers

    register_with_transformers()
    # Takes the place of vLLM's own class, which has no LoRA, one size of vision tower, and pixels in float32.
    ModelRegistry.register_model("Phi3VForCausalLM", "enrich.models.phi3_vision.vllm_model:Phi3VForCausalLM")
    register_backend(AttentionBackendEnum.CUSTOM, "enrich.models.phi3_vision.vllm_attention.StreamAttentionBackend")
