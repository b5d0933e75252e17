"""Image embedding of Phi-3-vision: crops through CLIP, merged 2x2, arranged with separators, projected."""

from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel

from .configuration import Phi3VConfig
from .image_processing import crop_grids


class Phi3VImageEmbedding(nn.Module):
    """Crops to token embeddings: CLIP features, merged 2x2, arranged with separators, projected to the text width."""

    def __init__(self, config: Phi3VConfig, tower: nn.Module | None = None) -> None:
        super().__init__()
        vision = config.vision_config
        self.image_size: int = vision.image_size
        self.tokens_per_side = config.tokens_per_side
        self.merged_size = 4 * vision.hidden_size
        # transformers 5 dropped CLIPVisionModel's inner level `vision_model`; the checkpoint's names still have it.
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
        """The layers of the vision tower that are used: all but the last one."""
        tower: Any = self.img_processor["vision_model"]
        return list(tower.encoder.layers[:-1])

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> list[torch.Tensor]:
        """See `Phi3VModel.get_image_features`."""
        side = self.image_size
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[2:]) != (3, side, side):
            given = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values must be (images, crops, 3, {side}, {side}), got {given}")
        grids = crop_grids(image_sizes, len(pixel_values), pixel_values.shape[1] - 1, side)
        counts = [rows * columns + 1 for rows, columns in grids]
        # Zero crops after an image's own are padding and never reach the tower.
        merged = self._merged_features(
            torch.cat([own[:count] for own, count in zip(pixel_values, counts, strict=True)])
        )
        starts = list(accumulate(counts, initial=0))
        features: list[torch.Tensor] = [merged] * len(grids)
        # Images of one grid are arranged together: a batch has few grids, and arranging each image alone would launch
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

    def _merged_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) to (n, g, g, 4 * vision width): the last layer but one, without its class token, merged 2x2."""
        side = self.tokens_per_side
        blocks = self._hidden_states(crops)[:, 1:].reshape(len(crops), side, 2, side, 2, -1)
        return blocks.permute(0, 1, 3, 2, 4, 5).reshape(len(crops), side, side, self.merged_size)

    def _hidden_states(self, crops: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) to (n, 1 + patches, vision width): the output of the last layer but one.

        The checkpoint's last layer and post_layernorm are not used, and so not computed.
        """
        tower: Any = self.img_processor["vision_model"]
        # A frozen tower keeps no activations, even if gradient checkpointing switches input gradients on.
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
