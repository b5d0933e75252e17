"""Files without their last bytes: photos while every pixel is there, refusals as soon as one is missing."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enrich.photos.decode import ImageRefused, decode, inspect
from enrich.vocabulary import ErrorKind
from tests.testing.photo_files import LIMITS, decoded
from tests.testing.photo_files import encoded as encoded_image

encoded = partial(encoded_image, Image.effect_noise((43, 30), 80).convert("RGB"))


JPEGS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0, "quality": 95}]


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_without_its_end_marker_is_the_whole_photo_with_a_note(options: dict[str, Any]) -> None:
    data = encoded("JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    assert not inspect(data, LIMITS).unfinished
    for cut in (1, 2):
        assert np.array_equal(decoded(data[:-cut]), decoded(data))
        assert inspect(data[:-cut], LIMITS).unfinished


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_a_jpeg_that_lacks_pixels_is_truncated(options: dict[str, Any]) -> None:
    """Cut anywhere: a refusal, or the very photo."""
    data, whole = encoded("JPEG", **options), decoded(encoded("JPEG", **options)).astype(int)
    refused = set()
    for cut in [*range(3, 40), *range(40, len(data), 97)]:
        try:
            found = decoded(data[:-cut]).astype(int)
        except ImageRefused as refusal:
            refused.add(refusal.kind)
        else:
            assert np.abs(found - whole).max() == 0, cut
    assert refused <= {ErrorKind.TRUNCATED, ErrorKind.NOT_AN_IMAGE}


@pytest.mark.parametrize(("format", "cut"), [("PNG", 12), ("PNG", 4), ("GIF", 1), ("GIF", 2), ("BMP", 3)])
def test_other_formats_without_their_end_are_whole_photos(format: str, cut: int) -> None:
    data = encoded(format)
    assert np.array_equal(decoded(data[:-cut]), decoded(data))


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_whose_header_or_metadata_is_wrong_about_its_length_is_a_whole_photo(lossless: bool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description that an upload lost"
    data = encoded("WEBP", lossless=lossless, exif=exif.tobytes())
    whole = decoded(data)
    for other in (data[:-10], data[:4] + (40).to_bytes(4, "little") + data[8:]):
        assert np.array_equal(decoded(other), whole)
    plain = encoded("WEBP", lossless=lossless)
    with pytest.raises(ImageRefused):
        decode(plain[:-40], LIMITS)
