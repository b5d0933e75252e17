"""Phi-3-vision's HD transform on Pillow and numpy alone: a photo becomes a page of up to `num_crops` square crops.

Equal to the original processor (which needs torchvision) to the bit. Loads no torch: decoding processes run it.
"""

import math
from typing import TypeGuard

import numpy as np
from PIL import Image


def hd_transform(
    image: Image.Image | np.ndarray, num_crops: int, image_size: int = 336, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Resize and pad an image to whole crops.

    The image is scaled (up or down, aspect kept, bilinear) to the largest grid of `image_size` squares of at most
    `num_crops`, and padded with white: landscape above and below, portrait left and right.

    Args:
        image: PIL image of any mode (converted to RGB as Pillow does), or uint8 array (height, width, 3).
        size: (width, height) of the photo where `image` is the same photo decoded at a reduced scale: rounding in its
            sides must not choose another grid than the photo's.

    Returns:
        uint8 array (height, width, 3), both sides multiples of `image_size`.

    Raises:
        ValueError: num_crops < 1, or an array of another shape or type.
    """
    picture = as_rgb(image)
    width, height = resized_size(*(size or picture.size), num_crops, image_size)
    # The definition transposes a portrait and resizes that. Pillow rounds to uint8 between its two passes, so their
    # order matters: the first one is along the long side, here done by itself instead of moving every pixel twice.
    if width < height and picture.height != height:
        picture = picture.resize((picture.width, height), Image.Resampling.BILINEAR)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    padded_width, padded_height = _whole_crops(width, image_size), _whole_crops(height, image_size)
    left, top = (padded_width - width) // 2, (padded_height - height) // 2
    padded = np.full((padded_height, padded_width, 3), 255, dtype=np.uint8)
    padded[top : top + height, left : left + width] = np.asarray(picture)
    return padded


def hd_size(width: int, height: int, num_crops: int, image_size: int = 336) -> tuple[int, int]:
    """The (width, height) that `hd_transform` gives an image of this size, without touching pixels."""
    resized_width, resized_height = resized_size(width, height, num_crops, image_size)
    return _whole_crops(resized_width, image_size), _whole_crops(resized_height, image_size)


def resized_size(width: int, height: int, num_crops: int, image_size: int = 336) -> tuple[int, int]:
    """The (width, height) to which `hd_transform` scales an image of this size before it pads it to whole crops."""
    if num_crops < 1:
        raise ValueError(f"num_crops must be at least 1, got {num_crops}")
    ratio = max(width, height) / min(width, height)
    along = 1  # crops along the long side
    while (along + 1) * math.ceil((along + 1) / ratio) <= num_crops:
        along += 1
    long_side = along * image_size
    # An image flatter than 1 : long_side would get no rows (the original fails there).
    short_side = max(1, int(long_side / ratio))
    return (short_side, long_side) if width < height else (long_side, short_side)


def _whole_crops(side: int, image_size: int) -> int:
    return math.ceil(side / image_size) * image_size


def is_rgb_array(image: object) -> TypeGuard[np.ndarray]:
    """Whether it is a uint8 array (height, width, 3)."""
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image of any mode, or a uint8 array (height, width, 3), as a PIL image in RGB; ValueError for others."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if is_rgb_array(image):
        return Image.fromarray(image)
    given = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"an image must be a PIL image or a uint8 array (height, width, 3), got {given}")
