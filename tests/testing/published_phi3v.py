"""The files of microsoft/Phi-3-vision-128k-instruct as published."""

from typing import Any

# LongRoPE's factors; the long ones are made up.
SHORT = [1.05] * 3 + [1.1] * 3 + [1.25] * 2 + [1.4, 1.45, 1.55, 1.85, 1.9] + [2.0] * 19 + [2.1] * 2 + [2.2] + [2.35] * 4
SHORT += [2.4] * 2 + [2.65, 2.7, 2.9, 2.95] + [3.05] * 3
LONG = [round(1.03 + 63.78 * index / 47, 4) for index in range(48)]

# preprocessor_config.json
ORIGINAL_PREPROCESSOR: dict[str, Any] = {
    "auto_map": {
        "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
        "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
    },
    "num_crops": 16,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Phi3VImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "Phi3VProcessor",
    "num_img_tokens": 144,
}

# Those of microsoft/Phi-3.5-vision-instruct: fewer crops, all code in one file, and a processor_config.json.
PREPROCESSOR_3_5 = {
    **ORIGINAL_PREPROCESSOR,
    "auto_map": {
        "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
        "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor",
    },
    "num_crops": 4,
}
PROCESSOR_3_5 = {
    "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
    "processor_class": "Phi3VProcessor",
}

# config.json
ORIGINAL_FILE: dict[str, Any] = {
    "_name_or_path": "Phi-3-vision-128k-instruct",
    "architectures": ["Phi3VForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    },
    "bos_token_id": 1,
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3_v",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 32064,
    "_attn_implementation": "flash_attention_2",
}


def expected_tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the published checkpoint of Phi-3-vision-128k-instruct."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32064, 3072), "model.norm.weight": (3072,)}
    tensors["lm_head.weight"] = (32064, 3072)
    for number in range(32):
        layer = f"model.layers.{number}"
        tensors[f"{layer}.self_attn.qkv_proj.weight"] = (9216, 3072)
        tensors[f"{layer}.self_attn.o_proj.weight"] = (3072, 3072)
        tensors[f"{layer}.mlp.gate_up_proj.weight"] = (16384, 3072)
        tensors[f"{layer}.mlp.down_proj.weight"] = (3072, 8192)
        tensors[f"{layer}.input_layernorm.weight"] = (3072,)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (3072,)
    embedding = "model.vision_embed_tokens"
    tensors |= {f"{embedding}.glb_GN": (1, 1, 4096), f"{embedding}.sub_GN": (1, 1, 1, 4096)}
    tensors |= {f"{embedding}.img_projection.0.weight": (3072, 4096), f"{embedding}.img_projection.0.bias": (3072,)}
    tensors |= {f"{embedding}.img_projection.2.weight": (3072, 3072), f"{embedding}.img_projection.2.bias": (3072,)}
    tower = f"{embedding}.img_processor.vision_model"
    tensors[f"{tower}.embeddings.class_embedding"] = (1024,)
    tensors[f"{tower}.embeddings.patch_embedding.weight"] = (1024, 3, 14, 14)
    tensors[f"{tower}.embeddings.position_embedding.weight"] = (577, 1024)
    norms = [f"{tower}.pre_layrnorm", f"{tower}.post_layernorm"]
    for number in range(24):
        layer = f"{tower}.encoder.layers.{number}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= {f"{layer}.self_attn.{name}.weight": (1024, 1024), f"{layer}.self_attn.{name}.bias": (1024,)}
        tensors |= {f"{layer}.mlp.fc1.weight": (4096, 1024), f"{layer}.mlp.fc1.bias": (4096,)}
        tensors |= {f"{layer}.mlp.fc2.weight": (1024, 4096), f"{layer}.mlp.fc2.bias": (1024,)}
    for norm in norms:
        tensors |= {f"{norm}.weight": (1024,), f"{norm}.bias": (1024,)}
    return tensors
