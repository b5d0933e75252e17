"""Phi3VConfig: the configuration of microsoft/Phi-3-vision-128k-instruct and Phi-3.5-vision, read without remote code.

The text model's keys are stock Phi3Config's. The vision tower's sizes live in `img_processor` under CLIPVisionConfig's
key names; the original files name none of them, so they default to CLIP ViT-L/14 at 336 pixels.
"""

from typing import Any

from transformers import CLIPVisionConfig, Phi3Config

# openai/clip-vit-large-patch14-336, the tower of both published models.
_CLIP_VIT_L_14_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}
# What both published models set or leave at these values, and all that this port implements.
_IMG_PROCESSOR: dict[str, Any] = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
_EMBD_LAYER: dict[str, Any] = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
_ROPE_FACTORS = ("short_factor", "long_factor")  # with its type all that the original's rope_scaling may hold


class Phi3VConfig(Phi3Config):
    """Configuration of a Phi-3-vision model.

    Args:
        img_processor: the vision tower. CLIPVisionConfig's keys set its sizes; the original's own keys are kept, and
            `name`, `image_dim_out` and `num_img_tokens`, which vLLM reads, filled in.
        embd_layer: how image features become token embeddings. Only what both published models use is implemented:
            HD transform, order `sub_glb`, learnable separators, an MLP projector.

    Raises:
        ValueError: a vision setting that this port does not implement.
    """

    model_type = "phi3_v"

    max_position_embeddings: int = 131072
    sliding_window: int | None = None
    img_processor: dict | None = None
    embd_layer: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The original file carries `auto_map` (remote code, not needed here) and `_attn_implementation:
        # flash_attention_2` (would fail wherever flash-attn is missing); the caller's attn_implementation decides.
        kwargs.pop("auto_map", None)
        kwargs.pop("_attn_implementation", None)
        self._complete_img_processor()
        self.embd_layer = {**_EMBD_LAYER, **(self.embd_layer or {})}
        _only_supported("embd_layer", self.embd_layer, _EMBD_LAYER)
        # 131072 (262144 in 3.5) never cuts anything off, but would select sliding-window masks and caches.
        if self.sliding_window is not None and self.sliding_window >= self.max_position_embeddings:
            self.sliding_window = None
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Rename the original's rope type `su` to `longrope` before the stock code standardises and validates it.

        A file written here holds both forms: `rope_parameters` counts, and `rope_scaling` must say the same.
        """
        original, scaling = kwargs.pop("rope_scaling", None), self.rope_parameters
        if original and scaling:
            for key in _ROPE_FACTORS:
                if original.get(key) != scaling.get(key):
                    raise ValueError(f"{key} of rope_scaling and of rope_parameters differ; drop the wrong one")
        scaling = scaling or original
        if scaling and scaling.get("rope_type", scaling.get("type")) == "su":
            scaling = {key: value for key, value in scaling.items() if key not in ("type", "rope_type")}
            scaling["rope_type"] = "longrope"
            # What stock code derives too (32), but not without a warning.
            scaling.setdefault("factor", self.max_position_embeddings / self.original_max_position_embeddings)
        return super().convert_rope_params_to_dict(rope_scaling=scaling, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Stock, with the positions in the original's form too: code that does not know transformers 5's
        `rope_parameters` would take plain rotary positions without a word."""
        written = super().to_dict()
        rope = self.rope_parameters or {}
        original = {"type": "su", **{key: rope[key] for key in _ROPE_FACTORS if key in rope}}
        written["rope_scaling"] = original if rope.get("rope_type") == "longrope" else None
        written["rope_theta"] = rope.get("rope_theta")
        return written

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """The vision tower's configuration, built from `img_processor`; it attends as this model does."""
        return CLIPVisionConfig(**self._vision_sizes(), attn_implementation=self._attn_implementation)

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one side of a crop: patches per side, halved by the 2x2 merge (12 in the original)."""
        sizes = self._vision_sizes()
        return sizes["image_size"] // sizes["patch_size"] // 2

    def _vision_sizes(self) -> dict[str, Any]:
        img_processor = self.img_processor or {}
        sizes = {key: img_processor.get(key, default) for key, default in _CLIP_VIT_L_14_336.items()}
        if "hidden_size" not in img_processor and "image_dim_out" in img_processor:
            sizes["hidden_size"] = img_processor["image_dim_out"]  # the original's name for it
        return sizes

    def _complete_img_processor(self) -> None:
        sizes = self._vision_sizes()
        if sizes["image_size"] % (2 * sizes["patch_size"]) or sizes["image_size"] < 2 * sizes["patch_size"]:
            raise ValueError(
                f"img_processor: image_size {sizes['image_size']} must be a multiple of twice the patch_size "
                f"({sizes['patch_size']}), because patches are merged 2x2"
            )
        given = self.img_processor or {}
        derived = {"image_dim_out": sizes["hidden_size"], "num_img_tokens": self.tokens_per_side**2}
        _only_supported("img_processor", given, {**_IMG_PROCESSOR, **derived})
        self.img_processor = {"name": _IMG_PROCESSOR["name"], **derived, **given}


def _only_supported(section: str, given: dict[str, Any], supported: dict[str, Any]) -> None:
    for key, value in supported.items():
        if given.get(key, value) != value:
            raise ValueError(f"{section}: {key}={given[key]!r} is not supported, only {value!r} is")
