"""Which photos make a product, in which order, and that no two products have one id."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrich.errors import UsageError
from enrich.output import grouping, parquet, spill
from enrich.output.grouping import check_matches, write_source
from enrich.output.photos_etag import photos_etag
from enrich.output.schema import LISTING_SCHEMA
from enrich.photos import groups
from enrich.photos.groups import natural_order
from enrich.storage.scratch import scratch
from enrich.vocabulary import MOST_PHOTOS

Products = dict[str, list[str]]


def grouped(keys: Iterable[str], group_by: str = "photo") -> tuple[Products, str | None]:
    """The products of a listing with their keys in order, and the warning."""
    with scratch() as folder:
        names = sorted(keys, key=str.encode)
        objects = [{"key": key, "size": 1, "etag": f"e {key}"} for key in names]
        parquet.write(folder / "listing", [parquet.from_records(objects, LISTING_SCHEMA)], LISTING_SCHEMA, {})
        made = write_source(folder / "source", folder / "listing", group_by, {}, folder)
        table = pl.read_parquet(folder / "source")
    assert made.products == table.height
    assert table["product_id"].to_list() == sorted(table["product_id"], key=str.encode)
    for row in table.iter_rows(named=True):
        assert row["photos_etag"] == photos_etag((photo["key"], photo["etag"]) for photo in row["photos"])
    found = {row["product_id"]: [photo["key"] for photo in row["photos"]] for row in table.iter_rows(named=True)}
    return found, made.warning


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        (["10.jpg", "2.jpg", "1.jpg"], ["1.jpg", "2.jpg", "10.jpg"]),
        (["a/10/1.jpg", "a/9/2.jpg", "a/9/1.jpg"], ["a/9/1.jpg", "a/9/2.jpg", "a/10/1.jpg"]),
        (
            ["SKU1-2.jpg", "SKU1.jpg", "SKU1-10.jpg", "SKU1_3.jpg"],
            ["SKU1.jpg", "SKU1-2.jpg", "SKU1-10.jpg", "SKU1_3.jpg"],
        ),
        (["b-1/1.jpg", "b/1.jpg"], ["b/1.jpg", "b-1/1.jpg"]),
        (["0010.jpg", "9.jpg"], ["9.jpg", "0010.jpg"]),
        (["front.jpg", "back.jpg"], ["back.jpg", "front.jpg"]),
    ],
)
def test_keys_are_in_the_order_in_which_people_count(keys: list[str], order: list[str]) -> None:
    assert sorted(keys, key=natural_order) == order


def test_an_expression_that_would_take_years_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_MOST_SECONDS", 0.1)
    key = 60 * "a" + "!x"
    with pytest.raises(UsageError) as error:
        grouped([key], "(?P<product_id>(a|aa)+)x")
    assert str(error.value) == (
        f"group_by '(?P<product_id>(a|aa)+)x': more than 0.1 s for the key {key!r}; take out repetitions inside of "
        "repetitions, such as (a|b+)+"
    )


@pytest.mark.parametrize(
    ("keys", "products"),
    [
        (["a.jpg", "b/c.d.png", "e"], {"a": ["a.jpg"], "b/c.d": ["b/c.d.png"], "e": ["e"]}),
        (["SKU1/front.jpg", "SKU2/front.jpg"], {"SKU1/front": ["SKU1/front.jpg"], "SKU2/front": ["SKU2/front.jpg"]}),
        (["x.jpg", "x.png"], {"x": ["x.jpg"], "x.png": ["x.png"]}),
        (["x", "x.jpg"], {"x": ["x"], "x.jpg": ["x.jpg"]}),
        (["x.jpg", "x.png", "x.png.jpg"], {"x": ["x.jpg"], "x.png": ["x.png"], "x.png.jpg": ["x.png.jpg"]}),
        (["a.b/c", ".hidden", "d/.e.jpg"], {"a.b/c": ["a.b/c"], ".hidden": [".hidden"], "d/.e": ["d/.e.jpg"]}),
    ],
)
def test_by_default_each_photo_is_a_product_named_by_its_key_without_the_extension(
    keys: list[str], products: Products
) -> None:
    assert grouped(keys) == (products, None)


def test_the_photos_of_a_folder_are_a_product() -> None:
    keys = ["a/10.jpg", "a/2.jpg", "a/b/1.jpg", "root.jpg", "a.jpg", "c/1.jpg"]
    assert grouped(keys, "folder") == (
        {
            "a": ["a/2.jpg", "a/10.jpg"],
            "a.jpg": ["a.jpg"],
            "a/b": ["a/b/1.jpg"],
            "c": ["c/1.jpg"],
            "root": ["root.jpg"],
        },
        None,
    )


def test_an_expression_groups_photos_and_those_it_does_not_match_are_products_of_their_own() -> None:
    keys = ["SKU1-10.jpg", "SKU1-2.jpg", "SKU2-1.jpg", "logo.png", "SKU1.jpg", "-1.jpg"]
    products, _ = grouped(keys, r"(?P<product_id>[A-Z0-9]*)-\d+[.]jpg")
    assert products == {
        "SKU1": ["SKU1-2.jpg", "SKU1-10.jpg"], "SKU1.jpg": ["SKU1.jpg"], "SKU2": ["SKU2-1.jpg"], "logo": ["logo.png"],
        "-1": ["-1.jpg"],
    }  # fmt: skip


def test_a_photo_whose_whole_key_is_a_groups_id_is_still_a_product_of_its_own() -> None:
    assert grouped(["a-1.jpg", "a"], r"(?P<product_id>.*)-\d[.]jpg") == ({"a": ["a-1.jpg"], "a#": ["a"]}, None)


def test_an_expression_that_matches_nothing_is_refused_in_one_line() -> None:
    pattern = r"(?P<product_id>\d+)/.*"
    message = (
        f"group_by {pattern!r} matches no photo, such as 'a.jpg': it has to match a whole key; correct it, or use "
        "photo or folder"
    )
    with pytest.raises(UsageError) as error:
        grouped(["a.jpg", "b.jpg"], pattern)
    assert str(error.value) == message
    with pytest.raises(UsageError, match="matches no photo"):
        check_matches(iter(["a.jpg", "b.jpg"]), pattern)
    check_matches(iter(["a.jpg", "1/b.jpg"]), pattern)


def test_a_product_has_at_most_24_photos_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"all/{number}.jpg" for number in range(100)] + ["one/1.jpg"]
    for batch in (100_000, 7):
        monkeypatch.setattr(grouping, "_BATCH", batch)
        products, warning = grouped(keys, "folder")
        assert products == {"all": [f"all/{number}.jpg" for number in range(MOST_PHOTOS)], "one": ["one/1.jpg"]}
        assert warning == (
            "1 product has more than 24 photos, e.g. 'all' (100 photos): the first in natural order are used; see "
            "group_by"
        )


def in_memory(keys: set[str], group_by: str) -> Products:
    """What `write_source` does, photo by photo."""
    groups: dict[str, list[str]] = {}
    own = []
    for key in sorted(keys, key=lambda key: (natural_order(key), key)):
        folder = key.rpartition("/")[0]
        if group_by == "folder" and folder:
            groups.setdefault(folder, []).append(key)
        else:
            own.append(key)
    taken = {**groups}
    waiting = {key: Path(key).stem if "/" not in key else str(Path(key).with_suffix("")) for key in own}
    while True:
        claims: dict[str, list[str]] = {}
        for key, name in waiting.items():
            claims.setdefault(name, []).append(key)
        lost = []
        for name, claimed in claims.items():
            first = min(claimed, key=lambda key: (len(name) < len(key), natural_order(key), key))
            lost += [key for key in claimed if key != first or name in taken]
        if not lost:
            return taken | {name: [key] for key, name in waiting.items()}
        for key in lost:
            waiting[key] = key if len(waiting[key]) < len(key) else waiting[key] + "#"


NAMES = st.sampled_from(["a", "b", "a.jpg", "a.png", "a.jpg.png", "a.jpg.png.gif", "b.jpg", "1.jpg", "2.jpg", "10.jpg"])
KEYS = st.one_of(NAMES, st.tuples(st.sampled_from(["a", "a.jpg", "c"]), NAMES).map("/".join))


@settings(max_examples=80, deadline=None)
@given(st.sets(KEYS, min_size=1, max_size=14), st.sampled_from(["photo", "folder"]), st.sampled_from([2, 100_000]))
def test_every_photo_is_in_one_product_whatever_the_size_of_the_pieces(
    keys: set[str], group_by: str, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "_BATCH", piece)
        patch.setattr(spill, "PARTITION_ROWS", piece)
        patch.setattr(spill, "SAMPLE_EVERY", 1)
        products, _ = grouped(keys, group_by)
    assert sorted(key for photos in products.values() for key in photos) == sorted(keys)
    assert products == in_memory(keys, group_by)
