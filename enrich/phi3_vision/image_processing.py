"""Phi-3-vision's HD transform on Pillow and numpy: a photo becomes a global view and up to `num_crops` square crops.

Equal to the original processor (which needs torchvision) to the bit of its uint8 resize and to float rounding after it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

# CLIP's channel statistics, RGB, of pixels scaled to 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def hd_transform(image: Image.Image | np.ndarray, num_crops: int, image_size: int = 336) -> np.ndarray:
    """Resize and pad an image to whole crops.

    The image is scaled (up or down, aspect kept, bilinear) to the largest grid of `image_size` squares of at most
    `num_crops`, and padded with white: landscape above and below, portrait left and right.

    Args:
        image: PIL image of any mode (converted to RGB as Pillow does), or uint8 array (height, width, 3).

    Returns:
        uint8 array (height, width, 3), both sides multiples of `image_size`.

    Raises:
        ValueError: num_crops < 1, or an array of another shape or type.
    """
    picture = _as_rgb(image)
    portrait = picture.width < picture.height
    # Transposed rather than computed on the other axis: Pillow rounds to uint8 between its two resize passes.
    if portrait:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    resized_width, resized_height, padded_height = _landscape_size(picture.width, picture.height, num_crops, image_size)
    if picture.size != (resized_width, resized_height):
        picture = picture.resize((resized_width, resized_height), Image.Resampling.BILINEAR)
    top = (padded_height - resized_height) // 2
    padded = np.full((padded_height, resized_width, 3), 255, dtype=np.uint8)
    padded[top : top + resized_height] = np.asarray(picture)
    return np.ascontiguousarray(padded.transpose(1, 0, 2)) if portrait else padded


def hd_size(width: int, height: int, num_crops: int, image_size: int = 336) -> tuple[int, int]:
    """The (width, height) that `hd_transform` gives an image of this size, without touching pixels."""
    if width < height:
        long_side, _, short_side = _landscape_size(height, width, num_crops, image_size)
        return short_side, long_side
    resized_width, _, padded_height = _landscape_size(width, height, num_crops, image_size)
    return resized_width, padded_height


def _landscape_size(width: int, height: int, num_crops: int, image_size: int) -> tuple[int, int, int]:
    """Resized width, resized height and padded height of an image at least as wide as high."""
    if num_crops < 1:
        raise ValueError(f"num_crops must be at least 1, got {num_crops}")
    ratio = width / height
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) / ratio) <= num_crops:
        columns += 1
    resized_width = columns * image_size
    # An image flatter than 1 : resized_width would get no rows (the original fails there).
    resized_height = max(1, int(resized_width / ratio))
    return resized_width, resized_height, math.ceil(resized_height / image_size) * image_size


def _as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return Image.fromarray(image)
    given = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"an image must be a PIL image or a uint8 array (height, width, 3), got {given}")


class Phi3VImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What `from_pretrained` may override."""

    num_crops: int
    image_size: int
    patch_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]


class Phi3VImageProcessor(BaseImageProcessor):
    """Images to the model's `pixel_values`, `image_sizes` and token counts.

    Args:
        num_crops: most crops per image beside the global view; must be the same in training and serving.
        image_size: side of a crop in pixels, the vision tower's `image_size`.
        patch_size: the vision tower's `patch_size`.
        kwargs: other keys of the original's preprocessor_config.json (auto_map, num_img_tokens, ...), ignored.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012 (as the base class declares it)
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 16,
        image_size: int = 336,
        patch_size: int = 14,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {num_crops}")
        if patch_size < 1 or image_size < 1 or image_size % (2 * patch_size):
            raise ValueError(f"image_size {image_size} must be a multiple of twice the patch_size ({patch_size})")
        self.num_crops = num_crops
        self.image_size = image_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def num_image_tokens(self, width: int, height: int) -> int:
        """Tokens that an image of this size takes in the prompt: its crops, the global view and the separators."""
        return self._tokens_of_grid(*hd_size(width, height, self.num_crops, self.image_size))

    # The original's name for it, which vLLM calls.
    calc_num_image_tokens_from_image_size = num_image_tokens

    def _tokens_of_grid(self, width: int, height: int) -> int:
        rows, columns = height // self.image_size, width // self.image_size
        side = self.image_size // self.patch_size // 2
        # Crops and global view, one separator between them, and one at the end of each of their token rows.
        return (rows * columns + 1) * side * side + 1 + (rows + 1) * side

    def preprocess(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        return_tensors: str | None = "pt",
        do_hd_transform: bool = True,
    ) -> BatchFeature:
        """Turn images into model inputs.

        Args:
            images: one image or a sequence of them, as `hd_transform` takes them.
            do_hd_transform: False where the images are `hd_transform`'s results already (made in worker processes).

        Returns:
            pixel_values: float32 (n, num_crops + 1, 3, image_size, image_size): the global view, the crops row by row,
                zeros.
            image_sizes: int64 (n, 2): padded height and width.
            num_img_tokens: list of n ints.

        Raises:
            ValueError: an image that is neither PIL nor uint8 RGB, or a prepared one of another grid.
        """
        if isinstance(images, (Image.Image, np.ndarray)):
            images = [images]
        prepare = self._transform if do_hd_transform else self._check_transformed
        prepared = [prepare(image) for image in images]
        sizes = [image.shape[:2] for image in prepared]
        side = self.image_size
        empty = torch.empty(0, self.num_crops + 1, 3, side, side)
        data = {
            "pixel_values": torch.stack([self._crops(image) for image in prepared]) if prepared else empty,
            "image_sizes": torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            "num_img_tokens": [self._tokens_of_grid(width, height) for height, width in sizes],
        }
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["num_img_tokens"])

    def _transform(self, image: Image.Image | np.ndarray) -> np.ndarray:
        return hd_transform(image, self.num_crops, self.image_size)

    def _check_transformed(self, image: Image.Image | np.ndarray) -> np.ndarray:
        pixels = np.asarray(_as_rgb(image))
        rows, columns = pixels.shape[0] // self.image_size, pixels.shape[1] // self.image_size
        if pixels.shape[0] % self.image_size or pixels.shape[1] % self.image_size or rows * columns > self.num_crops:
            raise ValueError(
                f"an image of {pixels.shape[1]}x{pixels.shape[0]} is not the result of hd_transform with "
                f"num_crops={self.num_crops} and image_size={self.image_size}"
            )
        return pixels

    def _crops(self, image: np.ndarray) -> torch.Tensor:
        """uint8 (h, w, 3) of whole crops to float32 (num_crops + 1, 3, image_size, image_size)."""
        side = self.image_size
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        pixels = torch.tensor(image).permute(2, 0, 1).to(torch.float32).div_(255).sub_(mean).div_(std)
        global_view = torch.nn.functional.interpolate(pixels[None], size=(side, side), mode="bicubic")
        rows, columns = image.shape[0] // side, image.shape[1] // side
        crops = pixels.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        padding = torch.zeros(self.num_crops - len(crops), 3, side, side)
        return torch.cat([global_view, crops, padding])
