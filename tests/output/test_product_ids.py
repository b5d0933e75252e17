"""Ids of products from keys, and patterns that make one product of many."""

from pathlib import Path

import polars as pl
import pytest

from enrich.output import product_ids
from enrich.output.product_ids import MOST_PHOTOS, SharedIds, find_shared, product_id
from enrich.settings.run import RunSettings

STEM = RunSettings().product_id_pattern
FOLDER = r"(?P<product_id>[^/]+)/.*"


def shared(folder: Path, keys: list[str], pattern: str = STEM) -> SharedIds | None:
    pl.DataFrame({"key": keys}).write_parquet(folder / "listing.parquet")
    return find_shared(folder / "listing.parquet", pattern, folder)


def test_photos_of_different_folders_with_one_id_are_told_with_the_setting_to_change(tmp_path: Path) -> None:
    found = shared(tmp_path, [f"SKU{n}/{view}.jpg" for n in range(401) for view in ("back", "front", "side")])

    assert found is not None
    assert found.warning == (
        "1,203 photos share 3 product ids, e.g. 'side' (401 photos): "
        "set product_id_pattern, unless they show one product each"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["listing.parquet"]


def test_two_folders_are_enough(tmp_path: Path) -> None:
    assert shared(tmp_path, ["SKU1/front.jpg", "SKU2/front.jpg", "SKU3/x.jpg"]) == SharedIds(2, 1, "front", 2)


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        (["a.jpg", "b.jpg", "more/c.jpg"], STEM),
        (["a.jpg", "a.png"], STEM),
        ([f"SKU{n}/{view}.jpg" for n in range(50) for view in ("back", "front")], FOLDER),
        ([f"SKU1/{n}.jpg" for n in range(MOST_PHOTOS)], FOLDER),
        (["x.jpg", "y/x.jpg"], FOLDER),  # the first does not match and is a product of its own
    ],
)
def test_a_pattern_that_fits_the_keys_is_not_warned_of(tmp_path: Path, keys: list[str], pattern: str) -> None:
    assert shared(tmp_path, keys, pattern) is None


def test_a_pattern_that_takes_what_all_names_begin_with_is_told(tmp_path: Path) -> None:
    keys = [f"IMG_{n:04}.jpg" for n in range(MOST_PHOTOS + 1)]

    assert shared(tmp_path, keys, r"(?P<product_id>[A-Z]+)_\d+[.]jpg") == SharedIds(21, 1, "IMG", 21)


def test_counts_are_the_same_when_not_all_ids_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"SKU{n}/{view}.jpg" for n in range(100) for view in ("front", f"{n // 2}", f"only {n}")]
    whole = shared(tmp_path, keys)

    monkeypatch.setattr(product_ids, "_IDS_AT_A_TIME", 7)
    monkeypatch.setattr(product_ids, "_BATCH", 11)

    assert shared(tmp_path, keys) == whole == SharedIds(200, 51, "front", 100)


def test_an_id_that_is_empty_or_does_not_match_is_the_whole_key() -> None:
    assert product_id(r"(?P<product_id>\d*)x?[.]jpg", "x.jpg") == "x.jpg"
    assert product_id(r"(?P<product_id>\d+)[.]jpg", "a.jpg") == "a.jpg"
    assert product_id(r"(?:a(?P<product_id>\d))?.*", "b.jpg") == "b.jpg"
