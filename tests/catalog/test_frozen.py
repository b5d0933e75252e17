"""The frozen slice of people's decisions: decided by product, and never taught, however products are grouped later."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from enrich.catalog.add import Label, Labelled, Seen, add_products, check_addition
from enrich.catalog.frozen import FROZEN, REVIEWED, is_frozen_id
from enrich.catalog.read import read_catalog
from enrich.catalog.split import Splits, split_catalog
from enrich.settings.catalog import Columns, SplitSettings
from enrich.storage import Store, open_store
from tests.testing.catalogs import write_catalog

KEPT = next(f"coat-{n}" for n in range(100) if is_frozen_id(f"coat-{n}"))
TAUGHT, OTHER = [f"coat-{n}" for n in range(100) if not is_frozen_id(f"coat-{n}")][:2]
LABEL = Label("Wool Coat", "Coats", True, 120.0, "EUR")


def photo(name: str) -> bytes:
    return f"bytes of {name}".encode()


def seen(name: str) -> Seen:
    return Seen(f"{name}.png", hashlib.sha256(photo(name)).hexdigest())


def decided(product_id: str, *names: str, **changes: object) -> Labelled:
    return Labelled(product_id, tuple(map(seen, names)), replace(LABEL, **changes))  # type: ignore[arg-type]


class Shop:
    """A catalog of 40 titles, and the photos that people decide on."""

    def __init__(self, folder: Path) -> None:
        write_catalog(folder, *(f"Title {number}" for number in range(40)))
        self.folder, self.store = folder, open_store(str(folder))
        self.gone: set[str] = set()

    def add(self, *products: Labelled) -> None:
        photos = {seen(name).sha256: photo(name) for name in "abcdef" if name not in self.gone}
        check_addition(self.store, Columns(), products)
        add_products(self.store, Columns(), products, lambda one: photos.get(one.sha256))

    def splits(self, seed: int = 0) -> Splits:
        return split_catalog(read_catalog(self.folder).products, SplitSettings(seed=seed))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "catalog")


def photos_of(splits: Splits, name: str) -> set[str]:
    """The names of the decided photos in a split."""
    names = {seen(one).sha256: one for one in "abcdef"}
    paths = [Path(path) for product in getattr(splits, name) for path in product.image_paths]
    return {names[path.stem] for path in paths if path.stem in names}


def test_a_fifth_of_the_products_is_frozen_and_the_id_alone_says_which() -> None:
    frozen = sum(is_frozen_id(f"shoes/{number}") for number in range(10_000))
    assert 0.18 < frozen / 10_000 < 0.22


@pytest.mark.parametrize("seed", range(5))
def test_decisions_join_training_but_for_the_frozen_slice(shop: Shop, seed: int) -> None:
    before = shop.splits(seed)
    shop.add(decided(KEPT, "a"), decided(TAUGHT, "b", title="Another Coat"))
    after = shop.splits(seed)

    assert (photos_of(after, "frozen"), photos_of(after, "train")) == ({"a"}, {"b"})
    assert (after.validation, after.calibration, after.test) == (before.validation, before.calibration, before.test)
    assert len(after.train) == len(before.train) + 1


def test_no_title_puts_a_frozen_product_into_another_split(shop: Shop) -> None:
    """Not even that of rows that are taught."""
    before = shop.splits()
    for number, title in enumerate([before.train[0].title, before.test[0].title, before.validation[0].title]):
        shop.add(decided(KEPT, "abc"[number], title=title))
    after = shop.splits()

    assert photos_of(after, "frozen") == {"a", "b", "c"}
    assert {name: len(getattr(after, name)) for name in ("train", "validation", "test")} == {
        name: len(getattr(before, name)) for name in ("train", "validation", "test")
    }


def test_a_decision_with_a_held_out_title_is_not_taught(shop: Shop) -> None:
    title = shop.splits().test[0].title
    shop.add(decided(TAUGHT, "a", title=title.upper()))
    assert photos_of(shop.splits(), "test") == {"a"}


def test_photos_of_a_frozen_product_stay_frozen_when_they_are_grouped_otherwise(shop: Shop) -> None:
    shop.add(decided(KEPT, "a"))
    shop.add(decided(TAUGHT, "b", "a", title="Another Coat"))
    assert photos_of(shop.splits(), "frozen") == {"a", "b"}
    assert not photos_of(shop.splits(), "train")
    assert {path.parent.name for path in (shop.folder / REVIEWED).rglob("*.png")} == {"frozen"}


def test_what_was_taught_is_taught_no_more_once_it_shows_a_frozen_photo(shop: Shop) -> None:
    shop.add(decided(TAUGHT, "a"), decided(OTHER, "c", "d", title="Cape"))
    assert photos_of(shop.splits(), "train") == {"a", "c", "d"}
    shop.gone = {"a"}  # the catalog still has it
    shop.add(decided(KEPT, "a", "d"))

    splits = shop.splits()
    assert photos_of(splits, "frozen") == {"a", "c", "d"}
    assert not photos_of(splits, "train")
    codes = [product.product_code for product in read_catalog(shop.folder).products]
    assert len(codes) == len(set(codes)) == 42


def test_products_of_one_file_that_share_photos_are_frozen_together(shop: Shop) -> None:
    shop.add(decided(TAUGHT, "a", "b"), decided(OTHER, "b", "c", title="Cape"), decided(KEPT, "c"))
    assert photos_of(shop.splits(), "frozen") == {"a", "b", "c"}


def test_a_photo_stays_frozen_while_its_label_is_withdrawn(shop: Shop) -> None:
    shop.add(decided(KEPT, "a"))
    shop.add(replace(decided(KEPT, "a"), label=None))
    assert not photos_of(shop.splits(), "frozen")
    shop.add(decided(TAUGHT, "a"))
    assert photos_of(shop.splits(), "frozen") == {"a"}


def test_a_row_of_the_catalog_with_the_bytes_of_a_frozen_photo_is_not_taught(shop: Shop) -> None:
    own = shop.splits().train[0]
    Path(own.image_paths[0]).write_bytes(photo("a"))
    shop.add(decided(KEPT, "a"))
    splits = shop.splits()
    assert own.product_code not in {one.product_code for one in splits.train}
    assert own.product_code in {one.product_code for one in splits.frozen}


def test_decisions_keep_their_own_photos_where_folders_are_products(tmp_path: Path) -> None:
    write_catalog(tmp_path, "One")
    (tmp_path / "images/1").mkdir()
    (tmp_path / "images/0.png").rename(tmp_path / "images/1/0.png")
    table = tmp_path / "catalog.csv"
    table.write_text(table.read_text().replace("images/0.png", "images/1/0.png"))
    store: Store = open_store(str(tmp_path))
    names = {seen(name).sha256: photo(name) for name in "ab"}
    products = [decided(TAUGHT, "a"), decided(OTHER, "b", title="Cape")]
    add_products(store, Columns(), products, lambda one: names[one.sha256])

    found = read_catalog(tmp_path, group_by="folder")
    assert [len(one.image_paths) for one in found.products] == [1, 1, 1]
    assert (tmp_path / REVIEWED).is_dir()
    assert not (tmp_path / FROZEN).exists()
