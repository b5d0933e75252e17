"""What may be wrong with a photo: blurred, dark, tiny, blank, and that usual photos are none of these."""

import io
from collections.abc import Callable

import pytest
from PIL import Image, ImageFilter

from enrich.models.base import Preparation
from enrich.photos.decode import inspect, prepare, squeeze
from enrich.photos.decoders import Decoders
from enrich.photos.likeness import SIDE, alike, look
from enrich.settings.photos import PhotoLimits
from enrich.vocabulary import PhotoIssue
from sample.dialects import BASE
from sample.draw import render
from sample.products import sample_product

LIMITS = PhotoLimits()


def photo(seed: int = 1, side: int = 900) -> Image.Image:
    return render(sample_product(0, seed, BASE), seed, side)


def encoded(picture: Image.Image, format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    picture.save(file, format, quality=90)
    return file.getvalue()


def issues(picture: Image.Image) -> tuple[PhotoIssue, ...]:
    return inspect(encoded(picture), LIMITS).issues


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda one: one, []),
        (lambda one: one.convert("L"), []),
        (lambda one: one.resize((120, 120)), []),
        (lambda one: one.filter(ImageFilter.GaussianBlur(2)), []),
        (lambda one: one.filter(ImageFilter.GaussianBlur(12)), [PhotoIssue.BLURRED]),
        (lambda one: one.point(lambda value: value * 0.25), [PhotoIssue.DARK]),
        (lambda one: one.resize((90, 300)), [PhotoIssue.TINY]),
        (lambda one: Image.new("RGB", (300, 300), "white"), [PhotoIssue.BLANK]),
        (lambda one: Image.new("RGB", (1, 1)), [PhotoIssue.TINY, PhotoIssue.BLANK]),
    ],
)
def test_issues_of_photos(change: Callable[[Image.Image], Image.Image], found: list[PhotoIssue]) -> None:
    assert list(issues(change(photo()))) == found


def test_whatever_a_photo_is_decoded_for_its_issues_are_the_same() -> None:
    for picture in (photo(), photo().filter(ImageFilter.GaussianBlur(12))):
        data, how = encoded(picture), Preparation(num_crops=1, image_size=336, fast_decode=True)
        found = inspect(data, LIMITS).issues
        assert prepare(data, LIMITS, how).issues == squeeze(data, LIMITS, SIDE).issues == found


def test_a_decoding_process_tells_them() -> None:
    with Decoders(inspect, LIMITS, 1, most_pixels=0) as decoders:
        assert decoders.decode(encoded(photo().filter(ImageFilter.GaussianBlur(12)))).issues == (PhotoIssue.BLURRED,)


def test_a_picture_is_alike_its_copies_and_no_other() -> None:
    pictures = [photo(seed) for seed in range(6)]
    copies = [pictures[2].resize((500, 500)), pictures[4].convert("RGB").filter(ImageFilter.GaussianBlur(1))]
    looks = [look(squeeze(encoded(one), LIMITS, SIDE).page) for one in (*pictures, *copies)]
    assert alike(looks) == [[2, 6], [4, 7]]
    assert alike([]) == alike(looks[:1]) == []
