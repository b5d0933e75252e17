"""Loading, adapting and serving by transformers' own classes: see `enrich.models.protocols.VisionModel`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from enrich.models.auto import Facts
from enrich.models.auto.processor import PhotoProcessor, load_processor
from enrich.models.base import PhotoTokens, Preparation
from enrich.models.checkpoint import load_whole, nf4


@dataclass(frozen=True)
class AutoModel:
    """A `VisionModel`; see its docstrings."""

    facts: Facts
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tower_lora: bool = False

    @property
    def vllm_imports(self) -> tuple[str, ...]:
        """See `VisionModel`."""
        return self.facts.vllm_imports

    def load_processor(self, directory: Path, **changes: Any) -> PhotoProcessor:
        """See `processor.load_processor`."""
        return load_processor(self.facts, directory, **changes)

    def load_model(
        self,
        directory: Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device,
        attention: str = "sdpa",
        load_in_4bit: bool = False,
    ) -> PreTrainedModel:
        """See `VisionModel`."""
        model = load_whole(
            AutoModelForImageTextToText,
            directory,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=attention,
            quantization_config=nf4(dtype, self.facts.unquantized) if load_in_4bit else None,
        )
        return self._answering(model)

    def empty_model(self, directory: Path) -> PreTrainedModel:
        """See `VisionModel`."""
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return self._answering(AutoModelForImageTextToText.from_config(config))

    def decoder_linears(self, _: PreTrainedModel) -> str:
        """See `VisionModel`."""
        return self.facts.decoder

    def vision_linears(self, _: PreTrainedModel) -> list[str]:
        """See `VisionModel`."""
        return list(self.facts.vision)

    def compile_layers(self, model: PreTrainedModel) -> None:
        """See `VisionModel`."""
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # transformers' base class of what is repeated
                layer.compile()

    def square_side(self, config: PretrainedConfig) -> int:
        """See `VisionModel`."""
        return self.facts.model_side(config.vision_config)

    def feature_width(self, config: PretrainedConfig) -> int:
        """See `VisionModel`."""
        inner = getattr(config.vision_config, "deepstack_visual_indexes", None) or ()
        return config.get_text_config().hidden_size * (1 + len(inner))

    def image_features(self, model: PreTrainedModel, pixels: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """See `VisionModel`. Features for deeper layers stand behind those of the first in each row."""
        found = model.base_model.get_image_features(**pixels, return_dict=True)
        first = found.pooler_output
        if isinstance(first, torch.Tensor):  # of all tiles: those of a photo are its rows that are not padding
            tiles = pixels["pixel_values"].flatten(2).any(-1).sum(1).tolist()
            first = [own.flatten(0, 1) for own in first.split(tiles)]
        deeper = getattr(found, "deepstack_features", None) or ()
        return [torch.cat(sets, dim=-1) for sets in zip(first, *deeper, strict=True)]

    def with_features(
        self, features: torch.Tensor | Sequence[torch.Tensor], photos: Sequence[PhotoTokens]
    ) -> dict[str, Any]:
        """See `VisionModel`."""
        joined = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
        grids = self.facts.grids([photo.grid for photo in photos])
        return {"mm_encoder_outputs": {"image": joined}, **{name: torch.tensor(one) for name, one in grids.items()}}

    def vllm_arguments(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Where pixels are normalised, since by default vLLM would do it again in families that it can do it for; and
        the family's attention."""
        chosen = {"attention_backend": self.facts.attention} if self.facts.attention and device.type == "cuda" else {}
        return {"mm_device_do_normalize": self.facts.bytes_for_vllm, **chosen}

    def vllm_photo_arguments(self, how: Preparation) -> dict[str, Any]:
        """See `VisionModel`."""
        return self.facts.settings(max(how.num_crops, how.more_crops), how.image_size)

    def _answering(self, model: PreTrainedModel) -> PreTrainedModel:
        stock: Any = type(model)
        model.__class__ = _answering(stock)
        return model


@cache
def _answering(stock: Any) -> Any:
    """The class `stock` with the forward that `VisionModel.load_model` describes, under its own name."""

    @wraps(stock.forward)
    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        predict_at: torch.Tensor | None = None,
        **arguments: Any,
    ) -> Any:
        known = arguments.get("mm_encoder_outputs")
        if known and isinstance(known.get("image"), torch.Tensor):
            arguments["mm_encoder_outputs"] = {"image": _encoded(self, known["image"])}
        if input_ids is not None and (known or arguments.get("pixel_values") is not None):
            shown = input_ids < 0
            if typed:
                arguments["mm_token_type_ids"] = shown.long()
            input_ids = input_ids.masked_fill(shown, self.config.image_token_id)
        if predict_at is None:
            outputs = stock.forward(self, input_ids=input_ids, **arguments)
        else:
            outputs = _at(self, predict_at, lambda: stock.forward(self, input_ids=input_ids, **arguments))
        if labels is not None:
            outputs.loss = self.loss_function(
                logits=outputs.logits,
                vocab_size=outputs.logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                **_targets(labels, predict_at, outputs.logits),
            )
        return outputs

    @wraps(stock.generate)
    def generate(self: Any, *given: Any, **arguments: Any) -> Any:
        """Positions are asked for before the forward, by these types."""
        if typed and not given:
            arguments["mm_token_type_ids"] = (arguments["input_ids"] < 0).long()
        return stock.generate(self, *given, **arguments)

    typed = "mm_token_type_ids" in inspect.signature(stock.forward).parameters
    # Trainer asks this before it passes num_items_in_batch.
    own = {"forward": forward, "generate": generate, "accepts_loss_kwargs": True, "__module__": stock.__module__}
    return type(stock.__name__, (stock,), own)


def _at(model: Any, places: torch.Tensor, run: Callable[[], Any]) -> Any:
    """`run` the model with logits (n, vocabulary) of these positions only; later steps, such as a cap, still apply."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1)[places],))
    try:
        return run()
    finally:
        hook.remove()


def _targets(labels: torch.Tensor, predict_at: torch.Tensor | None, logits: torch.Tensor) -> dict[str, Any]:
    if predict_at is not None:
        return {"labels": None, "shift_labels": labels.flatten()[predict_at + 1]}
    return {"labels": labels[:, -logits.shape[1] :]}


def _encoded(model: Any, features: torch.Tensor) -> Any:
    """What the model's own `get_image_features` returned, from what `AutoModel.image_features` made of it."""
    width = model.config.get_text_config().hidden_size
    first, *deeper = features.to(model.device).split(width, dim=-1)
    tile = getattr(model.base_model, "image_seq_len", None)
    return SimpleNamespace(
        pooler_output=first.reshape(-1, tile, width) if tile else [first], deepstack_features=[[one] for one in deeper]
    )
