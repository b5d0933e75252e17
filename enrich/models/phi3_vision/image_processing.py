"""Photos to the model's inputs: a global view and up to `num_crops` square crops, normalised.

Equal to the original processor (which needs torchvision) to the bit of its uint8 resize and to float rounding after it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .hd_transform import as_rgb, hd_size, hd_transform, is_rgb_array

# CLIP's channel statistics, RGB, of pixels scaled to 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_crops(
    crops: torch.Tensor,
    image_sizes: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:
    """Crops of pixels to the model's `pixel_values`: scaled, normalised, with the global view before them.

    Computes in float32 where the crops are and casts once, at the end. Nothing waits for a GPU.

    Args:
        crops: uint8 (n, num_crops, S, S, 3), as `Phi3VImageProcessor.preprocess` gives them with do_normalize=False.
        image_sizes: int (n, 2) on the CPU, padded height and width.
        mean, std: of the channels, of pixels scaled to 0..1.

    Returns:
        `dtype` (n, num_crops + 1, 3, S, S) on the device of `crops`: global view, crops row by row, zeros.

    Raises:
        ValueError: shapes, types or sizes that do not fit each other.
    """
    if crops.dtype != torch.uint8 or crops.ndim != 5 or crops.shape[2] != crops.shape[3] or crops.shape[4] != 3:
        given = f"{str(crops.dtype).removeprefix('torch.')} {tuple(crops.shape)}"
        raise ValueError(f"crops must be uint8 (images, num_crops, side, side, 3), got {given}")
    images, num_crops, side = crops.shape[:3]
    grids = crop_grids(image_sizes, images, num_crops, side)
    pixel_values = crops.new_zeros((images, num_crops + 1, 3, side, side), dtype=dtype)
    # Images of one grid are computed together: a batch has few grids, mostly one, and then there is nothing to gather.
    for rows, columns in dict.fromkeys(grids):
        members = [i for i, grid in enumerate(grids) if grid == (rows, columns)]
        chosen = slice(None) if len(members) == images else _index(members, crops.device)
        count = rows * columns
        own = crops[chosen, :count].unflatten(1, (rows, columns))
        pages = own.new_empty((len(members), 3, rows, side, columns, side), dtype=torch.float32)
        pages.copy_(own.permute(0, 5, 1, 3, 2, 4)).div_(255)
        for channel in range(3):  # numbers, not tensors of them, which would have to be copied to a GPU
            pages[:, channel].sub_(mean[channel]).div_(std[channel])
        whole = pages.view(len(members), 3, rows * side, columns * side)
        pixel_values[chosen, 0] = torch.nn.functional.interpolate(whole, size=(side, side), mode="bicubic").to(dtype)
        pixel_values[chosen, 1 : count + 1] = pages.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).to(dtype)
    return pixel_values


def _index(members: list[int], device: torch.device) -> torch.Tensor:
    """Pinned on its way to a GPU: a copy from pageable memory may wait for all work queued there."""
    index = torch.tensor(members, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)


def crop_grids(image_sizes: torch.Tensor, images: int, num_crops: int, side: int) -> list[tuple[int, int]]:
    """Rows and columns of the crops of each of `images`. ValueError: another number of them, or an impossible size."""
    sizes = image_sizes.tolist()
    if len(sizes) != images:
        raise ValueError(f"{images} images of crops, but {len(sizes)} in image_sizes")
    for height, width in sizes:
        if height % side or width % side or not 0 < height * width // side**2 <= num_crops:
            raise ValueError(
                f"image_sizes: {height}x{width} (height x width) is not a grid of 1 to {num_crops} crops of "
                f"{side} pixels"
            )
    return [(height // side, width // side) for height, width in sizes]


class Phi3VImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What `from_pretrained` may override."""

    num_crops: int
    image_size: int
    patch_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    fast_decode: bool
    preparation_version: int
    photos_per_product: int
    more_crops: int


class Phi3VImageProcessor(BaseImageProcessor):
    """Images to the model's `pixel_values`, `image_sizes` and token counts.

    Args:
        num_crops: most crops of a prompt's first image in addition to the global view; the same in training and
            serving.
        image_size: side of a crop in pixels, the vision tower's `image_size`.
        patch_size: the vision tower's `patch_size`.
        fast_decode: whether large JPEGs are decoded at a reduced scale before they get here. Nothing here depends on
            it; like num_crops it must be the same in training and serving, and so it is kept in the same file.
        preparation_version: of how bytes become the images that get here (colours, say); kept as fast_decode is.
        photos_per_product: how many images a prompt shows at most; kept as fast_decode is.
        more_crops: most crops of a prompt's other images; None: num_crops, as in the original.
        kwargs: other keys of the original's preprocessor_config.json (auto_map, num_img_tokens, ...), ignored.

    The attribute `num_img_tokens`, the tokens of a crop, is only written to the file: the original's code reads it.
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
        fast_decode: bool = False,
        preparation_version: int = 1,
        photos_per_product: int = 1,
        more_crops: int | None = None,
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
        self.fast_decode = fast_decode
        self.preparation_version = preparation_version
        self.photos_per_product = photos_per_product
        self.more_crops = more_crops
        self.num_img_tokens = (image_size // patch_size // 2) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Stock; what only several images need is left out where a prompt shows one."""
        unused = ("photos_per_product", "more_crops") if self.photos_per_product == 1 else ()
        return {name: value for name, value in super().to_dict().items() if name not in unused}

    def crops_at(self, position: int) -> int:
        """Most crops of the image at `position` of a prompt, counted from 0."""
        return self.num_crops if position == 0 or self.more_crops is None else self.more_crops

    def num_image_tokens(self, width: int, height: int, position: int = 0) -> int:
        """Tokens that an image of this size takes in the prompt: its crops, the global view and the separators."""
        return self._tokens_of_grid(*hd_size(width, height, self.crops_at(position), self.image_size))

    def most_image_tokens(self, position: int = 0) -> int:
        """Tokens that an image of any size takes at most: those of one that becomes a column of crops."""
        return self._tokens_of_grid(self.image_size, self.crops_at(position) * self.image_size)

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
        do_normalize: bool = True,
        positions: Sequence[int] | None = None,
    ) -> BatchFeature:
        """Turn images into model inputs.

        Args:
            images: one image or a sequence of them, as `hd_transform` takes them.
            do_hd_transform: False where the images are `hd_transform`'s results already (made in worker processes).
            do_normalize: False leaves the rest to `normalize_crops`, on a GPU say: a fifth of the bytes to send there.
            positions: each image's place in its prompt, counted from 0; None: all are first.

        Returns:
            pixel_values: float32 (n, crops + 1, 3, image_size, image_size): the global view, the crops row by row,
                zeros. Without do_normalize uint8 (n, crops, image_size, image_size, 3): the crops, zeros. There are as
                many `crops` as the images' positions allow at most.
            image_sizes: int64 (n, 2): padded height and width.
            num_img_tokens: list of n ints.

        Raises:
            ValueError: an image that is neither PIL nor uint8 RGB, or a prepared one of another grid.
        """
        if isinstance(images, (Image.Image, np.ndarray)):
            images = [images]
        prepare = self._transform if do_hd_transform else self._check_transformed
        most = [self.crops_at(position) for position in positions or [0] * len(images)]
        prepared = [prepare(image, crops) for image, crops in zip(images, most, strict=True)]
        sizes = [image.shape[:2] for image in prepared]
        image_sizes = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
        pixel_values = torch.from_numpy(self._crops(prepared, max(most, default=self.num_crops)))
        if do_normalize:
            pixel_values = normalize_crops(pixel_values, image_sizes, mean=self.image_mean, std=self.image_std)
        data = {
            "pixel_values": pixel_values,
            "image_sizes": image_sizes,
            "num_img_tokens": [self._tokens_of_grid(width, height) for height, width in sizes],
        }
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["num_img_tokens"])

    def _transform(self, image: Image.Image | np.ndarray, most: int) -> np.ndarray:
        return hd_transform(image, most, self.image_size)

    def _check_transformed(self, image: Image.Image | np.ndarray, most: int) -> np.ndarray:
        # Pillow would copy an array twice: 2 ms a page, of which a serving process has none to spare.
        pixels = image if is_rgb_array(image) else np.asarray(as_rgb(image))
        rows, columns = pixels.shape[0] // self.image_size, pixels.shape[1] // self.image_size
        if pixels.shape[0] % self.image_size or pixels.shape[1] % self.image_size or rows * columns > most:
            raise ValueError(
                f"an image of {pixels.shape[1]}x{pixels.shape[0]} is not the result of hd_transform with "
                f"num_crops={most} and image_size={self.image_size}"
            )
        return pixels

    def _crops(self, images: Sequence[np.ndarray], most: int) -> np.ndarray:
        """n uint8 arrays (h, w, 3) of whole crops to uint8 (n, most, image_size, image_size, 3), zeros last."""
        side = self.image_size
        crops = np.zeros((len(images), most, side, side, 3), np.uint8)
        for own, image in zip(crops, images, strict=True):
            rows, columns = image.shape[0] // side, image.shape[1] // side
            grid = own[: rows * columns].reshape(rows, columns, side, side, 3)
            grid[:] = image.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        return crops
