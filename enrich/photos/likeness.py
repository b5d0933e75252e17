"""Find photos that show the same picture with different bytes: saved again, scaled, or with a mark on them.

A picture's hash is pHash (64 bits: the signs of its lowest frequencies relative to their median), as ImageHash computes
it, which would bring SciPy and PyWavelets for these lines. Two pictures are alike if their hashes nearly agree and so
do their colours; without colours, a shirt in red and one in blue would be the same picture.
"""

from collections.abc import Sequence

import numpy as np

SIDE = 32  # pixels of the square that a picture is squeezed into (`decode.squeeze`)
_CELLS = 8  # of the coarse picture whose colours are compared, a side
# Found on 2,000 photos of shops and their copies: benchmarks/photo_issues.
_BITS = 6  # of 64 that may differ
_COLOUR = 10.0  # root mean square of the differences between the cells' colours, of 255
_GREY = np.array([0.299, 0.587, 0.114])


def look(picture: np.ndarray) -> np.ndarray:
    """What is kept of a picture of SIDE x SIDE pixels, RGB: 8 bytes of hash, then the colours of its cells."""
    waves = _DCT @ (picture @ _GREY) @ _DCT.T
    low = waves[:8, :8].round(3)  # a picture of one colour must not be hashed by its rounding
    step = SIDE // _CELLS
    cells = picture.reshape(_CELLS, step, _CELLS, step, 3).mean((1, 3))
    return np.concatenate([np.packbits(low > np.median(low)), cells.round().astype(np.uint8).reshape(-1)])


def alike(looks: Sequence[np.ndarray]) -> list[list[int]]:
    """Groups of the positions of pictures that look like the first of their group. Those without any are left out."""
    if not len(looks):
        return []
    all_looks = np.stack(looks)
    bits, colours = all_looks[:, :8].copy().view(np.uint64)[:, 0], all_looks[:, 8:].astype(np.float32)
    left = np.arange(len(bits))
    groups = []
    while len(left) > 1:
        first = left[0]
        near = np.bitwise_count(bits[left] ^ bits[first]) <= _BITS
        near[near] = np.sqrt(np.square(colours[left[near]] - colours[first]).mean(1)) <= _COLOUR
        if near.sum() > 1:
            groups.append(left[near].tolist())
        left = left[~near]
    return groups


def _cosines(side: int) -> np.ndarray:
    """The matrix of a discrete cosine transform (DCT-II)."""
    at = np.arange(side)
    return np.cos(np.pi * at[:, None] * (2 * at + 1) / (2 * side))


_DCT = _cosines(SIDE)
