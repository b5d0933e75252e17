"""Which adapter stands for a catalog."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.pipeline.standing import StandingAdapter, find_standing
from enrich.settings import TrainSettings

TINY = TrainSettings(model="phi3v-tiny")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    write(folder, "Wool coat")
    return folder


def write(folder: Path, title: str) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    with open(folder / "catalog.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["product_code", "title", "category1_code", "category2_code", "category3_code", "full_price",
                       "currency_code", "local_image_path"])  # fmt: skip
        rows.writerow(["1", title, "Clothes", "Coats", "", "100", "EUR", "1.png"])


def make(standing: StandingAdapter) -> None:
    Path(standing.uri).mkdir(parents=True)
    (Path(standing.uri) / "train.json").write_text("{}")


def test_it_is_current_once_it_is_whole(catalog: Path, tmp_path: Path) -> None:
    first = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)
    Path(first.uri).mkdir(parents=True)
    begun = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)
    (Path(first.uri) / "train.json").write_text("{}")
    whole = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)

    assert (first.current, begun.current, whole.current) == (False, False, True)
    assert first.uri == begun.uri == whole.uri


def test_a_changed_catalog_needs_another_and_an_old_state_has_its_own(catalog: Path, tmp_path: Path) -> None:
    first = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)
    make(first)

    write(catalog, "Silk scarf")
    changed = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)
    write(catalog, "Wool coat")
    back = find_standing(str(catalog), str(tmp_path / "adapters"), TINY)

    assert not changed.current
    assert changed.uri != first.uri
    assert back == StandingAdapter(first.uri, current=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (TINY, "phi3v-tiny"),
        (TrainSettings(model="someone/Phi 3 vision"), "Phi-3-vision"),
        (TrainSettings(model="/models/mine/"), "mine"),
    ],
)
def test_its_name_begins_with_the_base(catalog: Path, settings: TrainSettings, name: str) -> None:
    uri = find_standing(str(catalog), "adapters/", settings).uri

    assert uri.startswith(f"adapters/{name}-")
    assert len(uri) == len(f"adapters/{name}-") + 12


def test_another_revision_is_another_base_and_another_learning_rate_is_not(catalog: Path) -> None:
    def uri(**changes: object) -> str:
        return find_standing(str(catalog), "adapters", TINY.model_copy(update=changes)).uri

    assert uri() == uri(learning_rate=1.0)
    assert uri() != uri(revision="abc")


def test_a_catalog_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing: no such directory"):
        find_standing(str(tmp_path / "nothing"), "adapters", TINY)


def test_adapters_may_lie_in_s3(catalog: Path, s3_bucket: str) -> None:
    standing = find_standing(str(catalog), f"{s3_bucket}/adapters", TINY)

    assert standing.uri.startswith(f"{s3_bucket}/adapters/phi3v-tiny-")
    assert not standing.current
