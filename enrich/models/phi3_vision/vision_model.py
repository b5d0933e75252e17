"""Phi-3-vision as `enrich.models.protocols.VisionModel` asks for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..base import PhotoTokens, Preparation, crop_tokens
from ..checkpoint import load_whole, need, nf4
from .auto import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor

target_modules = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
tower_lora = False
vllm_imports = ()

_IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the original's, ours
_MOST_CROPS = 16  # as published
_VISION = r"model\.vision_embed_tokens"


def load_processor(directory: Path, **changes: Any) -> Phi3VProcessor:
    """The processor of an original or re-saved checkpoint, or of an adapter."""
    need(directory, "preprocessor_config.json", *(directory / name for name in _IMAGE_PROCESSOR_FILES))
    for tokens, crops in (("photo_tokens", "num_crops"), ("more_photo_tokens", "more_crops")):
        if tokens in changes:
            wanted = changes.pop(tokens)
            changes[crops] = min(range(1, _MOST_CROPS + 1), key=lambda one: abs(crop_tokens(one) - wanted))
    return Phi3VProcessor.from_pretrained(directory, local_files_only=True, **changes)


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attention: str = "sdpa",
    load_in_4bit: bool = False,
) -> Phi3VForCausalLM:
    """The model; with `load_in_4bit` vision tower, projector, embeddings and head stay in `dtype`."""
    return load_whole(
        Phi3VForCausalLM,
        directory,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=attention,
        quantization_config=nf4(dtype, ["model.vision_embed_tokens", "lm_head"]) if load_in_4bit else None,
    )


def empty_model(directory: Path) -> Phi3VForCausalLM:
    """The model without weights."""
    return Phi3VForCausalLM(Phi3VConfig.from_pretrained(directory))


def decoder_linears(model: PreTrainedModel) -> str:
    """Where the linears of the decoder layers are."""
    return r"model\.layers\.\d+\.(?:self_attn|mlp)"


def vision_linears(model: PreTrainedModel) -> list[str]:
    """Of the tower, but its last layer, which nothing reads, and of the projector."""
    used = "|".join(str(number) for number in range(len(model.model.vision_embed_tokens.tower_layers)))
    linear = r"self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]"
    return [
        rf"{_VISION}\.img_processor\.vision_model\.encoder\.layers\.(?:{used})\.(?:{linear})",
        rf"{_VISION}\.img_projection\.[02]",
    ]


def compile_layers(model: PreTrainedModel) -> None:
    """Lengths of rows are compiled in, numbers of crops are not."""
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    for layer in model.model.vision_embed_tokens.tower_layers:
        layer.compile()


def square_side(config: PretrainedConfig) -> int:
    """That of a crop."""
    return config.vision_config.image_size


def feature_width(config: PretrainedConfig) -> int:
    """The language model's hidden size."""
    return config.hidden_size


def image_features(model: PreTrainedModel, pixels: Mapping[str, Any]) -> list[torch.Tensor]:
    """See `Phi3VForCausalLM.get_image_features`."""
    return model.get_image_features(pixels["pixel_values"], pixels["image_sizes"])


def with_features(features: torch.Tensor | Sequence[torch.Tensor], photos: Sequence[PhotoTokens]) -> dict[str, Any]:
    """Positions are counted from one token to the next, so the model needs nothing but the features."""
    return {"image_features": features}


def vllm_arguments(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The attention kernel of vllm_attention.py, on Hopper and in 16 bits."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return {"attention_backend": "CUSTOM"} if hopper and dtype != torch.float32 else {}


def vllm_photo_arguments(how: Preparation) -> dict[str, Any]:
    """Numbers of crops."""
    return {"num_crops": how.num_crops} | ({"more_crops": how.more_crops} if how.photos_per_product > 1 else {})
