"""The page of the first of two looks at a product (`enrich.answers.looks`)."""

from dataclasses import replace

import numpy as np

from enrich.models.base import Preparation
from enrich.models.registry import layouts
from enrich.photos.decode import Photo


def first_look(photo: Photo, how: Preparation, squares: int) -> np.ndarray:
    """The page of `squares` at most for a main photo that was prepared as `how` says. Training and serving use it.

    It is scaled from the photo's page, not from its pixels, so that both looks share one download, decoding and
    transfer between processes: scaling takes 2 to 4 ms of a thread, decoding again would take 10. Its size and padding,
    and therefore its tokens, are those of a photo prepared with that many squares.
    """
    layout, side = layouts()[how.layout], how.image_size
    width, height = layout.resized(photo.width, photo.height, how.num_crops, side)
    top, left = ((whole - own) // 2 for whole, own in zip(photo.page.shape[:2], (height, width), strict=True))
    unpadded = photo.page[top : top + height, left : left + width]
    return layout.page(unpadded, squares, side, size=(photo.width, photo.height))


def with_first_look(photo: Photo, how: Preparation, squares: int | None) -> Photo:
    """The photo with a page for a first look; unchanged if there is no such look."""
    return photo if squares is None else replace(photo, first=first_look(photo, how, squares))
