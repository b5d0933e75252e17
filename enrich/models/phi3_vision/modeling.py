"""Phi-3-vision on stock Phi3 and stock CLIP: only the image embedding between them is written here.

Parameter names are the original checkpoint's, in memory as on disk, so that adapters fit it too.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import Cache, CLIPVisionModel, Phi3ForCausalLM, Phi3Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils.generic import can_return_tuple

from .configuration import Phi3VConfig

ImageFeatures = torch.Tensor | Sequence[torch.Tensor]


class Phi3VImageEmbedding(nn.Module):
    """Crops to token embeddings: CLIP features, merged 2x2, arranged with separators, projected to the text width."""

    def __init__(self, config: Phi3VConfig, tower: nn.Module | None = None) -> None:
        super().__init__()
        vision = config.vision_config
        self.image_size: int = vision.image_size
        self.tokens_per_side = config.tokens_per_side
        self.merged_size = 4 * vision.hidden_size
        # transformers 5 dropped the level `vision_model` that CLIPVisionModel had inside; here it stays in the names.
        self.img_processor: Any = tower or nn.ModuleDict({"vision_model": CLIPVisionModel(vision)})
        self.img_projection = nn.Sequential(
            nn.Linear(self.merged_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, self.merged_size))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, self.merged_size))

    @property
    def tower_layers(self) -> list[nn.Module]:
        """The layers of the vision tower that are used: all but the last."""
        tower: Any = self.img_processor["vision_model"]
        return list(tower.encoder.layers[:-1])

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """See `Phi3VModel.get_image_features`."""
        grids = self._grids(pixel_values, image_sizes)
        counts = [rows * columns + 1 for rows, columns in grids]
        # The zero crops after an image's own are padding: they never reach the tower.
        merged = self._merged_features(
            torch.cat([own[:count] for own, count in zip(pixel_values, counts, strict=True)])
        )
        starts = list(accumulate(counts, initial=0))
        features: list[torch.Tensor] = [merged] * len(grids)
        # Images of one grid are arranged together: a batch has few grids, and one image at a time would launch
        # thousands of small kernels.
        for rows, columns in dict.fromkeys(grids):
            members = [i for i, grid in enumerate(grids) if grid == (rows, columns)]
            if len(members) == len(grids):  # nothing to gather, and no index to copy, for which a GPU would wait
                own = merged.unflatten(0, (len(grids), -1))
            else:
                crops = torch.tensor([starts[i] for i in members])[:, None] + torch.arange(rows * columns + 1)
                own = merged[crops.to(merged.device)]
            for i, tokens in zip(members, self.img_projection(self._arrange(own, rows, columns)).unbind(), strict=True):
                features[i] = tokens
        return features

    def _grids(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[tuple[int, int]]:
        """Rows and columns of each image's crops."""
        side = self.image_size
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[2:]) != (3, side, side):
            raise ValueError(
                f"pixel_values must be (images, crops, 3, {side}, {side}), got {tuple(pixel_values.shape)}"
            )
        sizes = image_sizes.tolist()
        if len(sizes) != len(pixel_values):
            raise ValueError(f"{len(pixel_values)} images in pixel_values, but {len(sizes)} in image_sizes")
        for height, width in sizes:
            if height % side or width % side or not 0 < height * width // side**2 < pixel_values.shape[1]:
                raise ValueError(
                    f"image_sizes: {height}x{width} (height x width) is no grid of 1 to {pixel_values.shape[1] - 1} "
                    f"crops of {side} pixels"
                )
        return [(height // side, width // side) for height, width in sizes]

    def _merged_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) to (n, g, g, 4 * vision width): the last layer but one, without its class token, merged 2x2."""
        side = self.tokens_per_side
        blocks = self._hidden_states(crops)[:, 1:].reshape(len(crops), side, 2, side, 2, -1)
        return blocks.permute(0, 1, 3, 2, 4, 5).reshape(len(crops), side, side, self.merged_size)

    def _hidden_states(self, crops: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) to (n, 1 + patches, vision width): what the last layer but one puts out.

        The last layer and post_layernorm exist in the checkpoint and are never used; they are not computed.
        """
        tower: Any = self.img_processor["vision_model"]
        # A frozen tower keeps no activations, even where input gradients are switched on for checkpointing.
        trainable = any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trainable):
            hidden = tower.pre_layrnorm(tower.embeddings(crops))
            for layer in self.tower_layers:
                hidden = layer(hidden, None)
        return hidden

    def _arrange(self, merged: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """(n, 1 + rows * columns, g, g, C), global view first, to (n, N, C): [crops | glb_GN | global view]."""
        side, images = self.tokens_per_side, len(merged)
        crops = merged[:, 1:].reshape(images, rows, columns, side, side, -1)
        page = crops.transpose(2, 3).reshape(images, rows * side, columns * side, -1)
        between = self.glb_GN.to(merged.dtype).expand(images, 1, -1)
        return torch.cat([self._end_rows(page), between, self._end_rows(merged[:, 0])], dim=1)

    def _end_rows(self, pages: torch.Tensor) -> torch.Tensor:
        """(n, height, width, C) to (n, height * (width + 1), C): a separator ends each row."""
        ends = self.sub_GN.to(pages.dtype).expand(*pages.shape[:2], 1, -1)
        return torch.cat([pages, ends], dim=2).flatten(1, 2)


class Phi3VRotaryEmbedding(Phi3RotaryEmbedding):
    """Stock, with tables that stay float32 whatever the model is cast to, as those of a checkpoint that is read are.

    In bf16 a frequency is off by up to 0.4 %: at position 757 that turns a cosine by up to 0.7.
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
            position_ids: counted from attention_mask where not given, so that left padding shifts nothing.

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
        if self.config._attn_implementation == "sdpa" and torch.is_grad_enabled() and past_key_values is None:
            attention_mask = _let_padding_see_itself(attention_mask)
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


def _let_padding_see_itself(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """A causal mask (rows, 1, length, length), bool, in which a left-padded position attends to itself.

    Stock masks let it attend to nothing. Training the tiny base so (H200, torch 2.11, batches of 256, left-padded), all
    of 21 steps had NaN gradients at a finite loss; with this mask none of 3,566 did. What padding computes is never
    looked at. None and masks without padding pass through.
    """
    if attention_mask is None or attention_mask.ndim != 2 or bool(attention_mask.all()):
        return attention_mask
    length = attention_mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=attention_mask.device)
    return (causal & attention_mask[:, None, None].bool()) | itself


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
            logits_to_keep: compute logits (and the loss) of the last so many positions only; 0 means all. To learn an
                answer of n tokens at the end of the rows it must be n + 1 or more, or this raises.
            predict_at: int (n,), positions whose next token is asked for, as row * length + column, none of them the
                last of its row. Logits are then (n, vocabulary), and the loss is over these positions alone. For 8
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
        if labels is not None and predict_at is not None:
            next_tokens = labels.flatten()[predict_at + 1]
            loss = self.loss_function(
                logits=logits, labels=None, shift_labels=next_tokens, vocab_size=self.config.vocab_size, **kwargs
            )
        elif labels is not None:
            loss = self.loss_function(
                logits=logits, labels=_kept_labels(labels, logits_to_keep), vocab_size=self.config.vocab_size, **kwargs
            )
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


def _kept_labels(labels: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    if not isinstance(logits_to_keep, int):
        raise ValueError("labels need logits_to_keep as a number of positions")
    if logits_to_keep == 0 or logits_to_keep >= labels.shape[1]:
        return labels
    # The first kept label is predicted by the position before it, whose logits are gone.
    if bool((labels[:, 1 : -logits_to_keep + 1 or None] != -100).any()):
        raise ValueError(f"labels reach further back than logits_to_keep={logits_to_keep} positions can predict")
    return labels[:, -logits_to_keep:]
