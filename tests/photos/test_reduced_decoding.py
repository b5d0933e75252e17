import numpy as np
import pytest
from PIL import Image

from enrich.models.phi3_vision.hd_transform import hd_transform
from enrich.photos.decode import ImageRefused, Preparation, decode, prepare
from enrich.vocabulary import ErrorKind
from tests.testing.photo_files import LIMITS, NOISE, TURNED, decoded, encoded, exif, png_header


def smooth(width: int, height: int) -> Image.Image:
    """Large shapes, which survive any scale, so that a shift or a wrong turn shows."""
    small = np.random.default_rng(5).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "wanted", "reduced"),
    [
        pytest.param((201, 267), (100, 133), True, id="half, rounded up"),
        pytest.param((200, 266), (105, 140), True, id="half, 5 % short"),
        pytest.param((200, 266), (106, 140), False, id="half, more than 5 % short in width"),
        pytest.param((200, 266), (105, 141), False, id="half, more than 5 % short in height"),
        pytest.param((400, 532), (100, 133), True, id="quarter"),
        pytest.param((801, 1065), (100, 133), True, id="eighth"),
        pytest.param((200, 266), (200, 266), False, id="full size"),
        pytest.param((200, 266), (500, 665), False, id="to be scaled up"),
        pytest.param((201, 267), (1, 1), True, id="next to nothing"),
    ],
)
def test_a_jpeg_is_decoded_at_the_scale_that_is_enough(
    size: tuple[int, int], wanted: tuple[int, int], reduced: bool
) -> None:
    data = encoded(smooth(*size), "JPEG", quality=95)
    image = decode(data, LIMITS, lambda width, height: wanted)
    assert image.mode == "RGB"
    assert image.size == (wanted if reduced else size)
    if not reduced:
        assert np.array_equal(np.asarray(image), decoded(data))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("size", [(201, 267), (200, 266), (267, 201)])
def test_a_reduced_photo_shows_what_the_whole_one_shows_upright(orientation: int, size: tuple[int, int]) -> None:
    data = encoded(smooth(*size), "JPEG", quality=95, exif=exif(orientation))
    upright = decode(data, LIMITS)
    asked = []

    def half(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return width // 2 - 3, height // 2 - 1

    image = decode(data, LIMITS, half)
    assert asked == [upright.size]
    assert image.size == (upright.width // 2 - 3, upright.height // 2 - 1)
    expected = np.asarray(upright.resize(image.size, Image.Resampling.BILINEAR)).astype(int)
    # Where the half line or column that is not there were counted, the far edge would be off by 6.
    assert np.abs(np.asarray(image) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_photos_are_rgb_whatever_they_were(mode: str) -> None:
    data = encoded(smooth(200, 266).convert(mode), "JPEG", quality=95)
    image = decode(data, LIMITS, lambda width, height: (100, 133))
    expected = np.asarray(decode(data, LIMITS).resize((100, 133), Image.Resampling.BILINEAR)).astype(int)
    assert (image.mode, image.size) == ("RGB", (100, 133))
    assert np.abs(np.asarray(image) - expected).max() <= 4


@pytest.mark.parametrize("format", sorted(set(LIMITS.formats) - {"JPEG"}))
def test_other_formats_are_decoded_whole(format: str) -> None:
    data = encoded(smooth(64, 80), format)
    image = decode(data, LIMITS, lambda width, height: (16, 20))
    assert image.size == (64, 80)
    assert np.array_equal(np.asarray(image), decoded(data))


@pytest.mark.parametrize("fast_decode", [False, True])
def test_a_photo_is_prepared_whole_or_reduced(fast_decode: bool) -> None:
    data = encoded(smooth(301, 400), "JPEG", quality=95)
    photo = prepare(data, LIMITS, Preparation(num_crops=4, image_size=100, fast_decode=fast_decode))
    assert (photo.width, photo.height, photo.page.shape) == (301, 400, (200, 200, 3))
    whole = hd_transform(decode(data, LIMITS), 4, 100)
    assert np.array_equal(photo.page, whole) != fast_decode
    assert np.abs(photo.page.astype(int) - whole).max() <= 4


def test_a_reduced_photo_keeps_the_grid_of_the_whole_one() -> None:
    data = encoded(smooth(204, 102), "JPEG", quality=95)  # half of it rounds to the ratio of one row
    pages = [prepare(data, LIMITS, Preparation(2, 28, fast)).page.shape for fast in (False, True)]
    assert pages[0] == pages[1] == (28, 56, 3)


def test_reduced_decoding_refuses_as_decoding_does() -> None:
    data = encoded(NOISE, "JPEG")
    for broken, kind in (
        (b"", ErrorKind.EMPTY),
        (b"\0" * 50, ErrorKind.NOT_AN_IMAGE),
        (data[: len(data) // 2], ErrorKind.TRUNCATED),
        (png_header(51_000, 1_000), ErrorKind.TOO_MANY_PIXELS),
    ):
        with pytest.raises(ImageRefused) as caught:
            decode(broken, LIMITS, lambda width, height: (8, 8))
        assert caught.value.kind is kind
