"""The night: a new adapter only when the catalog changed, then the enrichment with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prefect.client.schemas.objects import State

from enrich.pipeline.finetuning import Finetuned
from enrich.pipeline.progress import Progress
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.training import TrainSettings
from flows import tasks
from flows.nightly import nightly
from flows.parameters import Training
from tests.testing.catalogs import write_catalog
from tests.testing.fake_world import FakeWorld
from tests.testing.scores import METRICS, SCORES, metrics

Made = list[tuple[str, TrainSettings]]  # where each adapter went, and what it was trained with


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Fine-tunings that were asked for; each leaves what makes an adapter whole."""
    calls = []

    def finetune(
        catalog: str, out: str, settings: TrainSettings, progress: Progress, on_message: Callable[[str], object]
    ) -> Finetuned:
        calls.append((out, settings))
        Path(out).mkdir(parents=True)
        (Path(out) / "train.json").write_text("{}")
        return Finetuned(out, "a1", METRICS)

    monkeypatch.setattr(tasks, "finetune", finetune)
    return calls


@pytest.fixture
def shop(world: FakeWorld) -> FakeWorld:
    """A catalog of one product and one photo."""
    write_catalog(world.root / "catalog", "Wool coat")
    world.add_photos("a.jpg")
    return world


def night(world: FakeWorld, **parameters: object) -> State[Any]:
    places = {name: str(world.root / name) for name in ("catalog", "images", "output", "adapters")}
    return nightly(**places, **parameters, return_state=True)


def run(world: FakeWorld, **parameters: object) -> None:
    assert night(world, **parameters).name == "Completed"


def test_the_first_night_fine_tunes_and_enriches(shop: FakeWorld, made: Made) -> None:
    run(shop, training=Training(max_minutes=5))

    [(out, settings)] = made
    assert Path(out).parent == shop.root / "adapters"
    assert settings.max_minutes == 5
    assert "learning_rate" not in settings.model_fields_set  # so that the base's recipe sets it
    assert pl.read_parquet(shop.root / "output" / "products.parquet")["product_id"].to_list() == ["a"]


def test_the_standing_adapter_serves_until_the_catalog_changes(shop: FakeWorld, made: Made) -> None:
    run(shop)
    shop.add_photos("b.jpg")
    run(shop)
    assert len(made) == 1
    assert shop.asked == ["a", "b"]

    write_catalog(shop.root / "catalog", "Wool coat", "Silk scarf")
    run(shop)

    assert len({out for out, _ in made}) == 2


def test_another_base_needs_another_adapter(shop: FakeWorld, made: Made) -> None:
    run(shop)
    run(shop, model="someone/other-phi3-vision")

    assert [Path(out).name.rpartition("-")[0] for out, _ in made] == ["phi3v-tiny", "other-phi3-vision"]


def test_of_nights_that_are_late_together_the_last_one_does_the_work(
    shop: FakeWorld, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "superseded", lambda: "the night after")

    state = night(shop)

    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert state.message == "the night after was due later and is due too; it does what this one would"
    assert made == []


def test_an_adapter_that_is_no_better_than_guessing_ends_the_night_as_held(shop: FakeWorld, made: Made) -> None:
    run(shop)
    bad = metrics(category=(0, 0, 0), macro_f1=0, price=None, guessed_price=None)
    guess = {**SCORES, **bad["baselines"]["majority_class"]}
    shown = {"test": {**SCORES, **bad["test"]}, "baselines": {"majority_class": guess}, "intervals": None}
    (Path(made[0][0]) / "metrics.json").write_text(json.dumps(bad | shown))
    shop.add_photos("b.jpg")

    state = night(shop)

    assert state.name == "Held"
    assert "no better than guessing without a photo: 0.0% of the categories are right" in str(state.message)
    assert shop.asked == ["a"]  # no GPU is spent on a table that nobody may use
    assert len(made) == 1
    run(shop, settings=RunSettings(gate=GateSettings(allow_weak_adapter=True)))
    assert shop.asked == ["a", "b"]


def test_a_night_whose_catalog_cannot_be_read_fails_in_one_line_and_trains_nothing(shop: FakeWorld, made: Made) -> None:
    (shop.root / "catalog" / "catalog.csv").write_text("product_code\n1\n")

    state = night(shop)

    assert state.is_failed()
    assert "no column" in str(state.message)
    assert len(str(state.message).splitlines()) == 1
    assert made == []


def test_scores_of_a_standing_adapter_are_shown_too(
    shop: FakeWorld, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(shop)
    (Path(made[0][0]) / "metrics.json").write_text(json.dumps(METRICS))
    shown: list[str] = []
    monkeypatch.setattr(tasks, "show_scores", lambda metrics, where: shown.append(where))

    run(shop)

    assert shown == [f"Adapter at {made[0][0]}"]
