"""Photo issues, measured in the decoding process: cheap, with numpy and Pillow only.

OpenCV has such measures too, but would add 20 MB to the 40 of each decoding process; CleanVision needs pandas, SciPy
and matplotlib. benchmarks/photo_issues measures what these checks cost and how often they are wrong.
"""

from bisect import bisect_left
from itertools import accumulate

import numpy as np
from PIL import Image

from enrich.vocabulary import PhotoIssue

COMPARED = 160  # pixels of the longer side at which a picture is measured: what is blurred here is blurred for a model
_TINY = 100  # pixels of the shorter side; Merchant Center refuses photos below 100 x 100
_DARK = 82  # of 255, which 99 % of the pixels do not reach; CleanVision's 0.32
_BLANK = 12  # levels between the darkest and the brightest pixel, except one in 1,000 at either end
# The strongest steps between neighbours, one in 200, are of 0.5 to 1.9 of a picture's contrast in sharp photos; after a
# Gaussian blur of 1 % of the longer side, of 0.23 at most.
_BLURRED = 0.25
_STRONG = 0.005


def issues_of(image: Image.Image, size: tuple[int, int]) -> tuple[PhotoIssue, ...]:
    """The issues of an RGB `image` that was decoded from a photo of `size` pixels, perhaps at a reduced scale."""
    width, height = image.size
    scale = max(1.0, max(width, height) / COMPARED)
    # Every n-th pixel and no mean of them: a thirtieth of the time, and a blurred picture stays as smooth as it was.
    small = image.resize((max(1, round(width / scale)), max(1, round(height / scale))), Image.Resampling.NEAREST)
    grey = small.convert("L")
    counted = list(accumulate(grey.histogram()))
    found = [PhotoIssue.TINY] if min(size) < _TINY else []
    if _level(counted, 0.999) - _level(counted, 0.001) < _BLANK:  # and so neither sharp nor blurred
        return (*found, PhotoIssue.BLANK)
    brightest = _level(counted, 0.99)
    if brightest < _DARK:
        found.append(PhotoIssue.DARK)
    if _is_blurred(np.asarray(grey), brightest - _level(counted, 0.01)):
        found.append(PhotoIssue.BLURRED)
    return tuple(found)


def _is_blurred(grey: np.ndarray, contrast: int) -> bool:
    """Whether steps between neighbours (the Laplacian) are weak relative to the picture's contrast, except one in
    200."""
    if min(grey.shape) < 3:
        return False
    levels = grey.astype(np.int16)
    rows = len(levels[1:-1:2])  # every other one, for half of the time
    middle = levels[1:-1:2, 1:-1] * -4
    for further in (levels[1:-1:2, :-2], levels[1:-1:2, 2:], levels[:-2:2, 1:-1], levels[2::2, 1:-1]):
        middle += further[:rows]
    strong = np.count_nonzero(np.abs(middle, out=middle) >= max(1, _BLURRED * contrast))
    return bool(strong < middle.size * _STRONG)


def _level(counted: list[int], share: float) -> int:
    """The level that a share of all pixels does not exceed, from the counts of pixels up to each."""
    return bisect_left(counted, share * counted[-1])
