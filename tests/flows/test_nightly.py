"""The night: a new adapter only when the catalog changed, then the enrichment with it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from enrich.pipeline.finetuning import Finetuned
from enrich.pipeline.progress import Progress
from enrich.settings.run import GateSettings, RunSettings
from enrich.settings.training import TrainSettings
from flows import tasks
from flows.nightly import nightly
from flows.parameters import Training
from tests.testing.fake_world import FakeWorld
from tests.testing.scores import METRICS, SCORES, metrics


def write_catalog(folder: Path, titles: list[str]) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "catalog.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["product_code", "title", "category1_code", "category2_code", "category3_code", "full_price",
                       "currency_code", "local_image_path"])  # fmt: skip
        for number, title in enumerate(titles):
            Image.new("RGB", (8, 8)).save(folder / "images" / f"{number}.png")
            rows.writerow([number, title, "Clothes", "Coats", "N.A.", 100, "EUR", f"images/{number}.png"])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, TrainSettings]]:
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


def run(world: FakeWorld, **parameters: object) -> None:
    places = {name: str(world.root / name) for name in ("catalog", "images", "output", "adapters")}
    state = nightly(**places, **parameters, return_state=True)
    assert state.name == "Completed"


def test_the_first_night_fine_tunes_and_enriches(world: FakeWorld, made: list[tuple[str, TrainSettings]]) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    world.add_photos("a.jpg")

    run(world, training=Training(max_minutes=5))

    [(out, settings)] = made
    assert Path(out).parent == world.root / "adapters"
    assert settings.max_minutes == 5
    assert "learning_rate" not in settings.model_fields_set  # so that the base's recipe sets it
    assert pl.read_parquet(world.root / "output" / "products.parquet")["image_key"].to_list() == ["a.jpg"]


def test_the_standing_adapter_serves_until_the_catalog_changes(
    world: FakeWorld, made: list[tuple[str, TrainSettings]]
) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    world.add_photos("a.jpg")
    run(world)
    world.add_photos("b.jpg")
    run(world)
    assert len(made) == 1
    assert world.asked == ["a.jpg", "b.jpg"]

    write_catalog(world.root / "catalog", ["Wool coat", "Silk scarf"])
    run(world)

    assert len({out for out, _ in made}) == 2


def test_another_base_needs_another_adapter(world: FakeWorld, made: list[tuple[str, TrainSettings]]) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    world.add_photos("a.jpg")

    run(world)
    run(world, model="someone/other-phi3-vision")

    assert [Path(out).name.rpartition("-")[0] for out, _ in made] == ["phi3v-tiny", "other-phi3-vision"]


def test_of_nights_that_are_late_together_the_last_one_does_the_work(
    world: FakeWorld, made: list[tuple[str, TrainSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "superseded", lambda: "the night after")
    places = {name: str(world.root / name) for name in ("catalog", "images", "output", "adapters")}

    state = nightly(**places, return_state=True)

    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert state.message == "the night after was due later and is due too; it does what this one would"
    assert made == []


def test_an_adapter_that_is_no_better_than_guessing_ends_the_night_as_held(
    world: FakeWorld, made: list[tuple[str, TrainSettings]]
) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    world.add_photos("a.jpg")
    run(world)
    bad = metrics(category=(0, 0, 0), macro_f1=0, price=None, guessed_price=None)
    guess = {**SCORES, **bad["baselines"]["majority_class"]}
    shown = {"test": {**SCORES, **bad["test"]}, "baselines": {"majority_class": guess}, "intervals": None}
    (Path(made[0][0]) / "metrics.json").write_text(json.dumps(bad | shown))
    world.add_photos("b.jpg")
    places = {name: str(world.root / name) for name in ("catalog", "images", "output", "adapters")}

    state = nightly(**places, return_state=True)

    assert state.name == "Held"
    assert "no better than guessing without a photo: 0.0% of the categories are right" in str(state.message)
    assert world.asked == ["a.jpg"]  # no GPU is spent on a table that nobody may use
    assert len(made) == 1
    run(world, settings=RunSettings(gate=GateSettings(allow_weak_adapter=True)))
    assert world.asked == ["a.jpg", "b.jpg"]


def test_a_night_whose_catalog_cannot_be_read_fails_in_one_line_and_trains_nothing(
    world: FakeWorld, made: list[tuple[str, TrainSettings]]
) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    (world.root / "catalog" / "catalog.csv").write_text("product_code\n1\n")
    places = {name: str(world.root / name) for name in ("catalog", "images", "output", "adapters")}

    state = nightly(**places, return_state=True)

    assert state.is_failed()
    assert "no column" in str(state.message)
    assert len(str(state.message).splitlines()) == 1
    assert made == []


def test_scores_of_a_standing_adapter_are_shown_too(
    world: FakeWorld, made: list[tuple[str, TrainSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_catalog(world.root / "catalog", ["Wool coat"])
    world.add_photos("a.jpg")
    run(world)
    (Path(made[0][0]) / "metrics.json").write_text(json.dumps(METRICS))
    shown: list[str] = []
    monkeypatch.setattr(tasks, "show_scores", lambda metrics, where: shown.append(where))

    run(world)

    assert shown == [f"Adapter at {made[0][0]}"]
