"""SmolVLM2: a photo is stretched to a grid of square tiles with equal numbers of tokens, plus one tile of the whole."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from enrich.models.auto import Facts, family, nearest
from enrich.models.base import Published

_MOST = 6  # tiles along a side: the vocabulary has marks up to <row_6_col_6>


def resized(width: int, height: int, squares: int, side: int) -> tuple[int, int]:
    """The longer side takes as many tiles as a square of `squares` has, the shorter as many as it needs.

    As transformers' image processor, which however resizes twice to get there: the longer side, then both.
    """
    longer = min(_MOST, math.isqrt(squares)) * side
    shorter = int(longer / (max(width, height) / min(width, height)))
    rounded = max(1, math.ceil((shorter + shorter % 2) / side)) * side
    return (longer, rounded) if width >= height else (rounded, longer)


def _spelling(down: int, across: int, each: int) -> str:
    """Tiles row by row with their places, then the whole; a page of one tile is the whole."""
    mark, tile = "<fake_token_around_image>", FACTS.image_token * each
    rows = "".join(
        "".join(f"{mark}<row_{row}_col_{column}>{tile}" for column in range(1, across + 1)) + "\n"
        for row in range(1, down + 1)
    )
    whole = f"{mark}<global-img>{tile}{mark}"
    return whole if down * across == 1 else f"{rows}\n{whole}"


def _side(images: Mapping[str, Any]) -> int:
    return images["max_image_size"]["longest_edge"]


def _model_side(vision: Any) -> int:
    return vision.image_size


def _squares(images: Mapping[str, Any]) -> int:
    return (images["size"]["longest_edge"] // _side(images)) ** 2


def _settings(squares: int, side: int) -> dict[str, Any]:
    return {"size": {"longest_edge": min(_MOST, math.isqrt(squares)) * side}}


def _squares_for(tokens: int, each: int) -> int:
    """By what a photo of 3:4 takes."""
    grids = {count**2: resized(3, 4, count**2, 1) for count in range(1, _MOST + 1)}
    found = [(squares, _spelling(*grid, each).count(FACTS.image_token)) for squares, grid in grids.items()]
    return nearest(tokens, found)


def _each(config: Any) -> int:
    """Patches of a tile, some of which make up a token."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // config.scale_factor**2


def _arranged(page: np.ndarray, side: int) -> np.ndarray:
    """As transformers' image processor, which copies a page and its tiles several times."""
    down, across = (one // side for one in page.shape[:2])
    parts = [page.reshape(down, side, across, side, 3).transpose(0, 2, 4, 1, 3).reshape(1, -1, 3, side, side)]
    if down * across > 1:
        whole = np.asarray(Image.fromarray(page).resize((side, side), FACTS.resample))
        parts.append(whole.transpose(2, 0, 1)[None, None])
    return np.concatenate(parts, axis=1)


def _for_vllm(images: dict[str, Any]) -> dict[str, Any]:
    """Tiles are never padded, so their mask says nothing; vLLM asks for it."""
    import torch  # the registry reads this file without it

    tiles = images["pixel_values"][0]
    mask = torch.ones((len(tiles), *tiles.shape[2:]), dtype=torch.bool)  # as integers it would be 12 MB of 29 a photo
    return {"pixel_values": tiles, "pixel_attention_mask": mask, "num_patches": torch.tensor([len(tiles)])}


FACTS = Facts(
    image_token="<image>",
    stop_tokens=("<end_of_utterance>", "<|endoftext|>", "<|im_start|>"),
    decoder=r"model\.text_model\.layers\.\d+\.(?:self_attn|mlp)",
    vision=(
        r"model\.vision_model\.encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])",
        r"model\.connector\.modality_projection\.proj",
    ),
    unquantized=("model.vision_model", "model.connector", "lm_head"),
    resample=Image.Resampling.LANCZOS,
    resized=resized,
    spelling=_spelling,
    side=_side,
    model_side=_model_side,
    squares=_squares,
    settings=_settings,
    squares_for=_squares_for,
    each=_each,
    tensors={"pixel_values": 0},
    arranged=_arranged,
    for_vllm=_for_vllm,
    flat=("pixel_values", "pixel_attention_mask"),
    vllm_imports=("torchvision", "num2words"),
)
FAMILY = family(
    "SmolVLM2", "smolvlm", FACTS, "Apache-2.0",
    Published("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 0.2565, 30, 576, 1536, 23_040),
    Published("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 0.5075, 32, 960, 2560, 40_960),
    Published("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2.247, 24, 2048, 8192, 196_608),
)  # fmt: skip
