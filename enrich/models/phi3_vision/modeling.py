"""Phi-3-vision on stock Phi3: the text model with image features where `input_ids` is negative.

Parameter names are the original checkpoint's, in memory as on disk, so that adapters fit it too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache, Phi3ForCausalLM, Phi3Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils.generic import can_return_tuple

from .configuration import Phi3VConfig
from .image_embedding import Phi3VImageEmbedding

ImageFeatures = torch.Tensor | Sequence[torch.Tensor]


class Phi3VRotaryEmbedding(Phi3RotaryEmbedding):
    """Stock, but its tables stay float32 when the model is cast, as they do when a checkpoint is loaded.

    In bf16 a frequency is off by up to 0.4 %, which changes a cosine at position 757 by up to 0.7.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Phi3VRotaryEmbedding":
        def move(table: torch.Tensor) -> torch.Tensor:
            moved = fn(table)
            return moved if moved.dtype == table.dtype else table.to(moved.device)

        return super()._apply(move, recurse)


class Phi3VModel(Phi3Model):
    """Stock Phi3Model that puts image features where `input_ids` is negative."""

    config: Phi3VConfig
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = Phi3VRotaryEmbedding(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.glb_GN)
            init.zeros_(module.sub_GN)

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """Token embeddings of images.

        Args:
            pixel_values: float (n, num_crops + 1, 3, S, S), the global view first.
            image_sizes: int (n, 2), padded height and width in pixels.

        Returns:
            n tensors (N_i, hidden_size), N_i as `Phi3VImageProcessor.num_image_tokens`. No graph is kept through a
            vision tower without trainable parameters.

        Raises:
            ValueError: shapes or sizes that do not fit each other or the configuration.
        """
        return self.vision_embed_tokens(pixel_values, image_sizes)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_features: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Stock Phi3Model.forward with images.

        Args:
            input_ids: (rows, length); negative values are image positions. Never modified.
            pixel_values, image_sizes: images in the order of their positions, see `get_image_features`.
            image_features: what `get_image_features` returned for them (or its concatenation): skips the tower.
            position_ids: by default counted from attention_mask, so that left padding shifts nothing.

        Raises:
            ValueError: not as many features as image positions, or an impossible combination of inputs.
        """
        if image_features is None and pixel_values is not None:
            if image_sizes is None:
                raise ValueError("pixel_values needs image_sizes")
            image_features = self.get_image_features(pixel_values, image_sizes)
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self._embed(input_ids, image_features)
        elif inputs_embeds is None or input_ids is not None or image_features is not None:
            raise ValueError("give input_ids, with or without images, or inputs_embeds alone")
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            counted = attention_mask.long().cumsum(-1) - 1
            position_ids = counted.clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _embed(self, input_ids: torch.Tensor, image_features: ImageFeatures | None) -> torch.Tensor:
        is_image = input_ids < 0
        embeds = self.embed_tokens(input_ids.masked_fill(is_image, 0))
        if image_features is None:
            features = embeds.new_empty(0, embeds.shape[-1])
        elif isinstance(image_features, torch.Tensor):
            features = image_features
        else:
            features = torch.cat([embeds.new_empty(0, embeds.shape[-1]), *image_features])
        positions = int(is_image.sum())
        if positions != len(features):
            raise ValueError(
                f"input_ids has {positions} image positions, but the images given have {len(features)} features"
            )
        if not positions:
            return embeds
        return embeds.masked_scatter(is_image[..., None], features.to(embeds.device, embeds.dtype))


class Phi3VForCausalLM(Phi3ForCausalLM):
    """Phi-3-vision with its language-model head; generates, trains and saves like any stock causal model."""

    config: Phi3VConfig
    _no_split_modules = Phi3VModel._no_split_modules
    # Some re-saved checkpoints repeat the text embedding under the vision module, where the original code keeps a
    # reference to it.
    _keys_to_ignore_on_load_unexpected = [r"vision_embed_tokens\.wte\."]  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        super(Phi3ForCausalLM, self).__init__(config)  # past Phi3ForCausalLM's, which would build a text-only model
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """See `Phi3VModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        predict_at: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_features: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and with labels the loss. Inputs as `Phi3VModel.forward`.

        Args:
            labels: (rows, length), -100 where nothing is learned; shifted inside, as everywhere in transformers.
            logits_to_keep: compute logits (and the loss) of only so many last positions; 0 means all. An answer of n
                tokens at the end of the rows needs at least n + 1.
            predict_at: int (n,), positions whose next token to predict, as row * length + column, none of them the
                last of its row. Logits are then (n, vocabulary), and the loss covers these positions only. For 8
                photos with answers of 45 tokens that is 46 MB of logits in float32 instead of 840 MB.

        Raises:
            ValueError: labels that the kept logits do not reach.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            image_features=image_features,
            **kwargs,
        )
        hidden, loss = outputs.last_hidden_state, None
        if predict_at is not None:
            logits = self.lm_head(hidden.flatten(0, 1)[predict_at])
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept, :])
        if labels is not None:
            targets = _targets(labels, logits_to_keep, predict_at)
            loss = self.loss_function(logits=logits, vocab_size=self.config.vocab_size, **targets, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_features: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Stock, with the images in every step whose `input_ids` still hold image positions (normally the first)."""
        # LongRoPE changes all positions at this length, so a shorter cache is void and the whole prompt runs again.
        switch = self.config.original_max_position_embeddings
        if past_key_values is not None and 0 < past_key_values.get_seq_length() <= switch < input_ids.shape[1]:
            past_key_values, next_sequence_length = None, None
        # Past Phi3ForCausalLM's, which drops the cache but not next_sequence_length, and so the prompt.
        inputs = super(Phi3ForCausalLM, self).prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, past_key_values=past_key_values, **kwargs
        )
        step_ids = inputs.get("input_ids")
        if step_ids is not None and bool((step_ids < 0).any()):
            inputs.update(pixel_values=pixel_values, image_sizes=image_sizes, image_features=image_features)
        return inputs


def _targets(
    labels: torch.Tensor, logits_to_keep: int | torch.Tensor, predict_at: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """`labels`, or `shift_labels` if they need no further shift, of the positions whose logits are computed."""
    if predict_at is not None:
        return {"labels": None, "shift_labels": labels.flatten()[predict_at + 1]}
    if not isinstance(logits_to_keep, int):
        raise ValueError("labels need logits_to_keep as a number of positions")
    if logits_to_keep == 0 or logits_to_keep >= labels.shape[1]:
        return {"labels": labels}
    # The first kept label is predicted by the position before it, whose logits are gone.
    if bool((labels[:, 1 : -logits_to_keep + 1 or None] != -100).any()):
        raise ValueError(f"labels reach further back than logits_to_keep={logits_to_keep} positions can predict")
    return {"labels": labels[:, -logits_to_keep:]}
