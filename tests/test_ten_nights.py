"""Ten nights with a real model: the catalog grows, is poisoned, and gets better."""

import csv
import random
from pathlib import Path

import polars as pl
import pytest

from enrich.pipeline.standing import read_standing
from flows import tasks
from flows.nightly import nightly
from sample.generate import write_sample
from sample.make import DIALECTS
from tests.flows.conftest import prefect_server as prefect_server  # a server of its own: the others are busy
from tests.testing.forms import text

PRODUCTS = 300
QUICK = {"epochs": 2}  # enough to tell from noise: 40 s on a core


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A sample catalog and eight photos of it as the bucket."""
    write_sample(tmp_path / "catalog", PRODUCTS, seed=5, dialect=DIALECTS["en"], holdout=0)
    (tmp_path / "images").mkdir()
    for photo in sorted((tmp_path / "catalog/images").iterdir())[:8]:
        (tmp_path / "images" / photo.name).write_bytes(photo.read_bytes())
    return tmp_path


def rows_of(shop: Path) -> list[dict[str, str]]:
    with open(shop / "catalog/catalog.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(shop: Path, rows: list[dict[str, str]]) -> None:
    with open(shop / "catalog/catalog.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def shuffled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Each row with the title, category and price of another."""
    names = ("title", "category1_code", "category2_code", "category3_code", "full_price")
    others = random.Random(0).sample(rows, len(rows))
    return [{**row, **{name: other[name] for name in names}} for row, other in zip(rows, others, strict=True)]


@pytest.mark.timeout(1800)  # three trainings, four minutes on an idle core
@pytest.mark.usefixtures("prefect_server")
def test_a_poisoned_adapter_never_serves_and_a_better_one_does(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    finetune = tasks.finetune

    def counted(catalog: str, out: str, *others: object, **more: object) -> object:
        trained.append(out)
        return finetune(catalog, out, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "finetune", counted)
    places = {"catalog": str(shop / "catalog"), "photos": str(shop / "images"), "output": str(shop / "output")}
    run = {"refresh": 0, "gate": {"allow_weak_adapter": True}}

    def night(training: dict[str, int]) -> str:
        """The adapter that serves after the night."""
        state = nightly(**places, settings=text(run=run, finetune=training), return_state=True)
        assert state.is_completed(), state.message
        kept = read_standing(str(shop / "adapters"))
        assert kept is not None
        return kept.uri

    rows = rows_of(shop)
    write(shop, rows[:-10])
    first = night(training=QUICK)
    answered = pl.read_parquet(shop / "output/products.parquet")["processed_at"].to_list()
    for more in (7, 4):  # three rows a night
        write(shop, rows[:-more])
        assert night(training=QUICK) == first
    assert len(trained) == 1, "a catalog that grew by three rows trains nothing"

    write(shop, shuffled(rows))
    assert [night(training=QUICK), night(training=QUICK)] == [first, first]
    assert len(trained) == 2, "the poisoned adapter was trained once, and did not serve"

    write(shop, rows)
    better = {"epochs": 10}
    second = night(training=better)
    assert second == trained[2] != first
    assert [night(training=better) for _ in range(3)] == [second] * 3
    assert len(trained) == 3

    products = pl.read_parquet(shop / "output/products.parquet")
    assert products["processed_at"].to_list() == answered, "nothing is answered again beyond refresh"
    assert len(list((shop / "adapters/challenges").iterdir())) == 2
