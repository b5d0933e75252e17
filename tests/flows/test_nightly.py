"""The night: a new adapter only when the catalog changed, then the enrichment with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prefect.client.schemas.objects import State

from enrich.catalog.read import row_digests
from enrich.catalog.split import split_catalog
from enrich.catalog.taught import read_taught
from enrich.engines.adapter import adapter_id
from enrich.pipeline import standing
from enrich.pipeline.challenging import Challenge
from enrich.pipeline.finetuning import Finetuned
from enrich.pipeline.progress import Progress
from enrich.scores.contest import Contest, Difference
from enrich.settings.training import TrainSettings
from enrich.train.recipe import resolve_model
from flows import nights, tasks
from flows.nightly import nightly
from tests.testing.catalogs import write_catalog
from tests.testing.fake_world import FakeWorld
from tests.testing.forms import text
from tests.testing.scores import METRICS, SCORES, metrics

ONE_EACH = {"shard_size": 1}
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
    monkeypatch.setattr(standing, "challenge", lambda new, old, *_: compared(new, old, better=True))
    monkeypatch.setattr(standing, "read_adapter", lambda folder: None)
    return calls


def compared(new: Path, old: Path, *, better: bool) -> Challenge:
    """A comparison that the new adapter wins, or loses at categories."""
    high = 0.01 if better else -0.2
    found = Difference(measure="category", what="categories right", new=0.5, standing=0.9, low=-0.6, high=high)
    contests = (Contest(labels="today's labels", products=300, differences=(found,)),)
    return Challenge(new=adapter_id(new), standing=adapter_id(old), contests=contests, changed=0.4, decided=0)


@pytest.fixture
def shop(world: FakeWorld) -> FakeWorld:
    """A catalog of one product and one photo."""
    write_catalog(world.root / "catalog", "Wool coat")
    world.add_photos("a.jpg")
    return world


def night(world: FakeWorld, **parameters: object) -> State[Any]:
    places = {name: world.places[name] for name in ("photos", "output")}
    return nightly(str(world.root / "catalog"), **places, settings=text(**parameters), return_state=True)


def run(world: FakeWorld, **parameters: object) -> None:
    assert night(world, **parameters).name == "Completed"


def test_the_first_nightly_run_fine_tunes_and_enriches(shop: FakeWorld, made: Made) -> None:
    run(shop, finetune={"max_minutes": 5})

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
    run(shop, finetune={"model": "someone/other-phi3-vision"})

    assert [Path(out).name.rpartition("-")[0] for out, _ in made] == ["phi3v-tiny", "other-phi3-vision"]


def test_a_new_adapter_that_is_worse_does_not_serve_until_a_person_promotes_it(
    shop: FakeWorld, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons: list[str] = []

    def lost(new: Path, old: Path, *_: object) -> Challenge:
        comparisons.append(str(new))
        return compared(new, old, better=False)

    run(shop)
    monkeypatch.setattr(standing, "challenge", lost)
    write_catalog(shop.root / "catalog", "Wool coat", "Silk scarf")
    (Path(shop.root) / "shown.txt").write_text("")
    shop.add_photos("b.jpg")
    run(shop)
    run(shop)

    adapters = str(shop.root / "adapters")
    (first, _), (second, _) = made
    kept = standing.read_standing(adapters)
    assert kept is not None
    assert (kept.uri, kept.person) == (first, None)
    assert comparisons == [second], "a pair is compared once"

    standing.promote(adapters, second, "Ann", "the old labels were wrong")
    shop.add_photos("c.jpg")
    run(shop)
    kept = standing.read_standing(adapters)
    assert kept is not None
    assert (kept.uri, kept.person) == (second, "Ann")


def keep_what_was_taught(catalog: Path, adapter: Path, settings: TrainSettings) -> None:
    """The files of an adapter by which a night tells how much of the catalog changed since."""
    labelled = read_taught(catalog, settings)
    rows = len(split_catalog(labelled.products, settings.split).train)
    record = {"settings": resolve_model(settings, gpu=False, rows=rows).model_dump(mode="json")}
    (adapter / "train.json").write_text(json.dumps(record | {"data_fingerprint": labelled.fingerprint}))
    digests = row_digests(labelled)
    table = pl.DataFrame({"product_code": list(digests), "digest": list(digests.values())})
    table.write_parquet(adapter / "taught.parquet")


def test_a_catalog_that_changed_a_little_trains_nothing(shop: FakeWorld, made: Made) -> None:
    titles = [f"Wool coat {n}" for n in range(60)]
    catalog = shop.root / "catalog"
    write_catalog(catalog, *titles)
    run(shop)
    keep_what_was_taught(catalog, Path(made[0][0]), made[0][1])
    write_catalog(catalog, *titles, "Silk scarf", "Felt hat", "Silk tie")
    run(shop)
    assert len(made) == 1
    run(shop, retrain={"rows": 3})
    assert len(made) == 2
    keep_what_was_taught(catalog, Path(made[1][0]), made[1][1])
    write_catalog(catalog, *titles, "Silk scarf", "Felt hat")
    run(shop)
    assert len(made) == 2
    run(shop, retrain={"days": 0.000000001})
    assert len(made) == 3


def test_of_nightly_runs_that_are_late_together_the_last_one_does_the_work(
    shop: FakeWorld, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights, "superseded", lambda: "the night after")

    state = night(shop)

    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert state.message == "the night after was due later and is due too; it does this run's work"
    assert made == []


def test_a_nightly_run_next_to_one_that_is_still_at_work_leaves_the_work_to_it(
    shop: FakeWorld, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights, "still_at_work", lambda: "last night")

    state = night(shop)

    assert state.name == "Skipped"
    assert state.message == "last night is still running; the next nightly run does what is new"
    assert made == []


def test_the_next_nightly_run_publishes_what_a_killed_one_answered_and_asks_for_nothing_twice(
    shop: FakeWorld, made: Made
) -> None:
    run(shop)
    shop.add_photos("b.jpg", "c.jpg", "d.jpg")
    shop.faults = [None, None, SystemExit()]  # as if its process was killed: nothing is retried
    with pytest.raises(SystemExit):
        night(shop, run=ONE_EACH)
    output = shop.root / "output"
    assert shop.asked == ["a", "b", "c"]
    assert products_of(output) == ["a"]
    shop.add_photos("e.jpg")

    run(shop, run=ONE_EACH)

    assert shop.asked == ["a", "b", "c", "d", "e"]
    assert products_of(output) == ["a", "b", "c", "d", "e"]
    assert len(list(output.glob("runs/*/run.json"))) == 3


@pytest.mark.parametrize("change", [{"run": {"max_new_tokens": 20}}, {"catalog": "another"}])
def test_what_would_get_other_answers_is_not_taken_over(shop: FakeWorld, made: Made, change: dict[str, Any]) -> None:
    shop.add_photos("b.jpg")
    shop.faults = [None, SystemExit()]
    with pytest.raises(SystemExit):
        night(shop, run=ONE_EACH)

    if "catalog" in change:
        write_catalog(shop.root / "catalog", "Wool coat", "Silk scarf")
    run(shop, run=change.get("run", ONE_EACH))

    assert products_of(shop.root / "output") == ["a", "b"]


def products_of(output: Path) -> list[str]:
    return sorted(pl.read_parquet(output / "products.parquet")["product_id"])


def test_an_adapter_that_is_no_better_than_guessing_ends_the_nightly_run_as_held(shop: FakeWorld, made: Made) -> None:
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
    run(shop, run={"gate": {"allow_weak_adapter": True}})
    assert shop.asked == ["a", "b"]


def test_a_nightly_run_whose_catalog_cannot_be_read_fails_in_one_line_and_trains_nothing(
    shop: FakeWorld, made: Made
) -> None:
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
