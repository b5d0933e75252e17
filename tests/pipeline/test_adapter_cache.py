"""Which adapter is used for a catalog."""

import json
from pathlib import Path

import pytest
import torch

from enrich.answers.prompt import make_prompt
from enrich.catalog.split import split_catalog
from enrich.catalog.taught import read_taught
from enrich.errors import UsageError
from enrich.pipeline.adapter_cache import CachedAdapter, find_adapter
from enrich.settings.training import TrainSettings
from enrich.storage import write_tree
from enrich.train.recipe import resolve_model
from tests.testing.catalogs import write_catalog

TINY = TrainSettings(model="phi3v-tiny")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    write_catalog(folder, "Wool coat")
    return folder


def make(standing: CachedAdapter) -> None:
    Path(standing.uri).mkdir(parents=True)
    (Path(standing.uri) / "train.json").write_text("{}")


def test_it_is_current_once_it_is_whole(catalog: Path, tmp_path: Path) -> None:
    first = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)
    Path(first.uri).mkdir(parents=True)
    started = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)
    (Path(first.uri) / "train.json").write_text("{}")
    whole = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)

    assert (first.ready, started.ready, whole.ready) == (False, False, True)
    assert first.uri == started.uri == whole.uri


def test_a_catalog_may_be_named_by_its_table(catalog: Path, tmp_path: Path) -> None:
    by_table = find_adapter(str(catalog / "catalog.csv"), str(tmp_path / "adapters"), TINY)
    assert by_table == find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)


def test_a_changed_catalog_needs_another_and_an_old_state_has_its_own(catalog: Path, tmp_path: Path) -> None:
    first = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)
    make(first)

    write_catalog(catalog, "Silk scarf")
    changed = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)
    write_catalog(catalog, "Wool coat")
    back = find_adapter(str(catalog), str(tmp_path / "adapters"), TINY)

    assert not changed.ready
    assert changed.uri != first.uri
    assert back == CachedAdapter(first.uri, ready=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (TINY, "phi3v-tiny"),
        (TrainSettings(model="someone/Phi 3 vision"), "Phi-3-vision"),
        (TrainSettings(model="/models/mine/"), "mine"),
    ],
)
def test_its_name_begins_with_the_base(catalog: Path, settings: TrainSettings, name: str) -> None:
    uri = find_adapter(str(catalog), "adapters/", settings).uri

    assert uri.startswith(f"adapters/{name}-")
    assert len(uri) == len(f"adapters/{name}-") + 12


@pytest.mark.parametrize(
    "change", [{"revision": "abc"}, {"learning_rate": 1.0}, {"num_crops": 1}, {"max_minutes": 1.0}]
)
def test_another_base_or_way_to_train_is_another_adapter(catalog: Path, change: dict[str, object]) -> None:
    def uri(**changes: object) -> str:
        return find_adapter(str(catalog), "adapters", TINY.model_copy(update=changes)).uri

    assert uri() != uri(**change)
    assert uri() == uri(batch_size=4, run_name="mine", report_to=("wandb",), device="cpu")


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A catalog with as many titles as splits."""
    folder = tmp_path / "four"
    write_catalog(folder, "Wool coat", "Silk scarf", "Felt hat", "Leather bag")
    return folder


def made_by_hand(adapter: Path, catalog: Path, **changes: object) -> str:
    """Write the files of `enrich finetune --catalog --out` that are read here."""
    settings = TINY.model_copy(update=changes)
    labelled = read_taught(catalog, settings)
    rows = len(split_catalog(labelled.products, settings.split).train)
    record = {
        "data_fingerprint": labelled.fingerprint,
        "settings": resolve_model(settings, gpu=torch.cuda.is_available(), rows=rows).model_dump(mode="json"),
    }
    adapter.mkdir(parents=True)
    (adapter / "train.json").write_text(json.dumps(record))
    (adapter / "prompt.json").write_text(make_prompt(labelled.categories, labelled.currency).model_dump_json())
    return str(adapter)


@pytest.mark.parametrize("place", ["adapter", "adapters", "adapters/mine"])
def test_an_adapter_that_was_made_from_this_very_catalog_serves_no_matter_who_made_it(
    four: Path, tmp_path: Path, place: str
) -> None:
    mine = made_by_hand(tmp_path / place, four)

    found = find_adapter(str(four), str(tmp_path / "adapters"), TINY, str(tmp_path / "adapter"))

    assert found == CachedAdapter(mine, ready=True)


def test_it_serves_from_s3_as_well(four: Path, tmp_path: Path, s3_bucket: str) -> None:
    write_tree(Path(made_by_hand(tmp_path / "mine", four)), f"{s3_bucket}/adapters/mine", last="train.json")

    assert find_adapter(str(four), f"{s3_bucket}/adapters", TINY) == CachedAdapter(
        f"{s3_bucket}/adapters/mine", ready=True
    )


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1.0}, {"revision": "abc"}, {"model": "someone/other"}, {"max_minutes": 1.0}]
)
def test_one_that_was_trained_otherwise_does_not_serve(four: Path, tmp_path: Path, change: dict[str, object]) -> None:
    adapter = made_by_hand(tmp_path / "adapter", four, **change)

    assert not find_adapter(str(four), str(tmp_path / "adapters"), TINY, adapter).ready


def test_one_of_another_catalog_or_prompt_or_that_is_damaged_does_not_serve(four: Path, tmp_path: Path) -> None:
    adapter = Path(made_by_hand(tmp_path / "adapter", four))

    def serves() -> bool:
        return find_adapter(str(four), str(tmp_path / "adapters"), TINY, str(adapter)).ready

    assert serves()
    prompt, record = (adapter / "prompt.json").read_text(), (adapter / "train.json").read_text()
    for name, text in (("prompt.json", prompt.replace("product", "thing")), ("prompt.json", "{"), ("train.json", "[]"),
                       ("train.json", '{"settings": 1}'), ("train.json", "{")):  # fmt: skip
        (adapter / name).write_text(text)
        assert not serves(), text
        (adapter / "prompt.json").write_text(prompt)
        (adapter / "train.json").write_text(record)
    write_catalog(four, "Wool coat", "Silk scarf", "Felt hat", "Canvas bag")
    assert not serves()


def test_photos_that_group_by_adds_are_of_the_catalog(four: Path, tmp_path: Path) -> None:
    (four / "images" / "0-back.png").write_bytes((four / "images" / "0.png").read_bytes())
    grouped = TINY.model_copy(update={"group_by": r"images/(?P<product_id>\d+).*"})
    mine = made_by_hand(tmp_path / "adapter", four, group_by=grouped.group_by)

    assert find_adapter(str(four), str(tmp_path / "adapters"), grouped, mine) == CachedAdapter(mine, ready=True)


def test_other_ids_in_a_standards_table_need_another_adapter(four: Path, tmp_path: Path) -> None:
    table = tmp_path / "standard.csv"
    settings = TINY.model_copy(update={"category_path": True, "taxonomy": str(table)})
    table.write_text("path,id\nClothes > Coats,1\n")
    first = find_adapter(str(four), str(tmp_path / "adapters"), settings)
    make(first)
    assert find_adapter(str(four), str(tmp_path / "adapters"), settings).ready

    table.write_text("path,id\nClothes > Coats,2\n")
    other = find_adapter(str(four), str(tmp_path / "adapters"), settings)
    assert (other.ready, other.uri == first.uri) == (False, False)


def test_a_name_that_holds_an_adapter_of_another_catalog_is_not_trusted(four: Path, tmp_path: Path) -> None:
    standing = find_adapter(str(four), str(tmp_path / "adapters"), TINY)
    Path(standing.uri).mkdir(parents=True)
    (Path(standing.uri) / "train.json").write_text('{"data_fingerprint": "of another"}')

    assert find_adapter(str(four), str(tmp_path / "adapters"), TINY) == standing


def test_a_catalog_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing: no such directory"):
        find_adapter(str(tmp_path / "nothing"), "adapters", TINY)


def test_adapters_may_be_stored_in_s3(catalog: Path, s3_bucket: str) -> None:
    standing = find_adapter(str(catalog), f"{s3_bucket}/adapters", TINY)

    assert standing.uri.startswith(f"{s3_bucket}/adapters/phi3v-tiny-")
    assert not standing.ready
