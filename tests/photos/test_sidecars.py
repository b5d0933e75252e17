"""A setting skips other files among photos and reports them; it never leaves out a photo."""

import polars as pl
import pytest

from enrich.photos.sidecars import Skipped
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo


def left(keys: list[str], skipped: Skipped) -> list[str]:
    listed = [one.key for one in skipped.photos(ObjectInfo(key, 1, "e") for key in keys)]
    read = [
        key
        for frame in skipped.photos_of([pl.DataFrame({"key": keys}, schema={"key": pl.String})])
        for key in frame["key"]
    ]
    assert read == listed  # an inventory is a listing
    return listed


PHOTOS = [
    "a.jpg",
    "b/c.PNG",
    "json",
    "d.json.jpg",
    "no extension",
    "e/Thumbs.db/f.webp",
    "DS_Store.gif",
    "g.bin",
    ".jpg",
]


@pytest.mark.parametrize(
    "key",
    [
        "a.jpg.json", "b/A.JSON", "Thumbs.db", "x/thumbs.DB", ".DS_Store", "x/.DS_Store", "desktop.ini", "Desktop.ini",
        "._a.jpg", "x/._a.jpg", "a.xmp", "feed.xml", "notes.txt", "list.csv", "x_$folder$", "_SUCCESS", "ehthumbs.db",
    ],
)  # fmt: skip
def test_what_desktops_cameras_and_exports_leave_next_to_photos_is_not_a_photo(key: str) -> None:
    skipped = Skipped(RunSettings().skip)
    assert left([*PHOTOS, key], skipped) == PHOTOS
    assert skipped.warning == f"1 file is skipped as non-photos (setting skip), such as {key!r}"


def test_a_setting_says_what_is_left_out_and_can_say_nothing() -> None:
    assert left(["a.jpg", "b/raw/c (1).jpg", "c.json"], Skipped(("raw/*", "C.J?ON"))) == ["a.jpg"]
    assert left(["a.jpg", "c.json"], Skipped(())) == ["a.jpg", "c.json"]
    assert Skipped(()).warning is None
