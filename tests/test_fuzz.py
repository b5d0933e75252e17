"""Photos and answers of any bytes at all: a result or a refusal of a known kind, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from enrich.answers.parse import AnswerMalformed, parse_answer
from enrich.answers.prompt import make_prompt
from enrich.errors import EnrichError
from enrich.output import parquet
from enrich.output.schema import MANIFEST_SCHEMA
from enrich.photos.decode import ImageRefused, Preparation, prepare
from enrich.settings.photos import PhotoLimits
from tests.testing.photo_files import encoded, exif

HOW = Preparation(num_crops=1, image_size=336)
LIMITS = PhotoLimits(max_pixels=1_000_000)


def seed(format: str) -> bytes:
    image = Image.effect_noise((24, 16), 90).convert("RGB")
    return encoded(image, format, **({"exif": exif(6)} if format in ("JPEG", "PNG", "WEBP", "AVIF") else {}))


SEEDS = {format: seed(format) for format in LIMITS.formats}
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=4)), max_size=5)


@pytest.mark.parametrize("format", LIMITS.formats)
@settings(max_examples=60, deadline=None)
@given(changes=CHANGES, cut=st.none() | st.integers(0, 2000), tail=st.binary(max_size=40))
def test_a_photo_with_any_bytes_changed(
    format: str, changes: list[tuple[int, bytes]], cut: int | None, tail: bytes
) -> None:
    data = bytearray(SEEDS[format])
    for at, value in changes:
        at %= len(data)
        data[at : at + len(value)] = value
    accept(bytes(data[:cut]) + tail)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"]),
)
def test_any_bytes_as_a_photo(data: bytes, magic: bytes) -> None:
    accept(magic + data)


def accept(data: bytes) -> None:
    try:
        photo = prepare(data, LIMITS, HOW)
    except ImageRefused as refusal:
        message = str(refusal)
    else:
        assert photo.page.shape == (336, 336, 3)
        assert 0 < photo.width * photo.height <= LIMITS.max_pixels
        message = ""
    assert "\n" not in message


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            ["Product: ", "Category: ", "Full Price: ", "\n", "x", "9", "-", "\0", "BAGS", "unknown", "1" * 400]
        )
    ).map("".join)
)
def test_any_text_as_an_answer(text: str) -> None:
    try:
        answer = parse_answer(text, make_prompt(("BAGS",), "EUR"))
    except AnswerMalformed as refusal:
        message = str(refusal)
    else:
        assert answer.title.strip()
        message = ""
    assert "\n" not in message


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6), st.booleans()
)
def test_any_bytes_as_a_manifest(data: bytes, changes: list[tuple[int, int]], whole: bool) -> None:
    if whole:
        row = {"key": "a.jpg", "size": 1, "etag": "e", "reason": "new", "attempt": 1, "shard": 0}
        content = bytearray(
            parquet.encode(parquet.from_records([row] * 5, MANIFEST_SCHEMA), MANIFEST_SCHEMA, {"a": "b"})
        )
        for at, value in changes:
            content[at % len(content)] = value
        data = bytes(content)
    try:
        table, _ = parquet.decode(data, MANIFEST_SCHEMA, "there")
    except EnrichError as error:
        message = str(error)
    else:
        assert table.columns == MANIFEST_SCHEMA.names
        message = "there "
    assert message.startswith("there ")
