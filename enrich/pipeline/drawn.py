"""Generated photos to compare models on, for adapters that come without photos."""

import numpy as np
from PIL import Image

# Portrait, landscape, square and strip: every arrangement of crops.
SIZES = ((600, 800), (800, 600), (500, 500), (300, 1200))


def draw_photo(number: int) -> Image.Image:
    """Patches of random colour under a gradient, so that no crop is empty; the same `number` gives the same pixels."""
    width, height = SIZES[number % len(SIZES)]
    patches = np.random.default_rng(number).integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST), dtype=np.float32)
    return Image.fromarray((picture * np.linspace(0.5, 1.0, width)[None, :, None]).astype(np.uint8))
