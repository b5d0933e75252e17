"""The demo's flow on a fake engine; what it is worth shows when `make demo` runs."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flows.demo
from enrich.errors import RunFailed, UsageError
from enrich.models.checkpoint import load_processor
from enrich.pipeline.finetuning import Finetuned
from enrich.pipeline.progress import Progress
from enrich.settings.catalog import SampleSettings
from enrich.settings.models import TINY_MODEL, TINY_MODEL_PATH
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.train.opening import open_processor
from enrich.train.recipe import TINY_RECIPE, resolve_model
from enrich.vocabulary import ErrorKind
from flows import tasks
from flows.demo import main, make_room, recipe
from sample import scores, truth
from tests.testing.fake_world import FakeWorld
from tests.testing.scores import METRICS, SCORES
from tests.testing.tiny_families import write_member


@pytest.fixture
def small(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorld]:
    """A demo of a few photos that trains nothing."""

    def finetune(
        catalog: str, out: str, settings: TrainSettings, progress: Progress, on_message: Callable[[str], object]
    ) -> Finetuned:
        Path(out).mkdir(parents=True)
        (Path(out) / "train.json").write_text("{}")
        return Finetuned(out, "a1", METRICS | {"test": SCORES | {"rows": 30}})

    def score_holdout(adapter: str, catalog: str, settings: RunSettings, progress: Progress) -> dict[str, Any]:
        assert Path(catalog, "holdout", "catalog.csv").is_file()
        return METRICS | {"test": SCORES | {"rows": 3}}

    monkeypatch.setattr(tasks, "finetune", finetune)
    monkeypatch.setattr(scores, "score_holdout", score_holdout)
    monkeypatch.setattr(scores, "write_sheet", lambda adapter, catalog, sheet: Path(sheet).touch())
    monkeypatch.setattr(flows.demo, "SAMPLE", SampleSettings(products=12, bucket=6))
    monkeypatch.chdir(world.root)
    log = logging.getLogger("enrich.pipeline.run.session")
    level = log.level
    yield world
    log.setLevel(level)  # the demo's own


def test_it_leaves_its_folders_and_prints_scores_and_places(
    small: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0

    assert sorted(path.name for path in Path("demo").iterdir()) == [
        "adapter", "bucket", "catalog", "contact_sheet.jpg", "output",
    ]  # fmt: skip
    assert Path("demo/output/products.parquet").is_file()
    said = capsys.readouterr().out
    assert "adapter" in said
    assert "majority class" in said
    assert said.index("Unseen products (30, the test split)") < said.index("Unseen combinations")
    assert "of colour, fabric and kind (3 products)" in said
    assert "contact sheet: demo/contact_sheet.jpg" in said
    assert "products: demo/output/products.parquet" in said


def test_another_base_is_taught_by_the_same_recipe_on_photos_of_its_own_size(tmp_path: Path) -> None:
    smolvlm = write_member("smolvlm", tmp_path / "smolvlm")
    load_processor(smolvlm, num_crops=16).save(smolvlm)  # by the demo's usual budget it would be 36
    usual = resolve_model(TrainSettings(model=TINY_MODEL), gpu=False, rows=2250)  # three quarters of the demo's

    for base in (TINY_MODEL_PATH, smolvlm):
        how = recipe(str(base))
        assert {name: getattr(how, name) for name in TINY_RECIPE} == TINY_RECIPE
        assert (how.model, how.effective_batch_size) == (str(base), usual.effective_batch_size)
        assert how.epochs == pytest.approx(usual.epochs)
        assert open_processor(base, how).preparation.num_crops == load_processor(base).preparation.num_crops
    assert recipe(TINY_MODEL) == TrainSettings(model=TINY_MODEL)


def test_a_base_that_is_not_there_is_said_before_anything_is_made(
    small: FakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("/nowhere") == 2

    assert "error: model /nowhere: no such directory" in capsys.readouterr().err
    assert not Path("demo").exists()


def test_hostile_files_are_counted_and_not_warned_of(
    small: FakeWorld,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile = {"sku-bad.jpg": (b"<html>", ErrorKind.NOT_AN_IMAGE)}  # by its name no photo to the fake engine
    monkeypatch.setattr(truth, "hostile_files", lambda photo: hostile)

    assert main() == 0

    assert "1 not_an_image" in capsys.readouterr().out
    assert not [record for record in caplog.records if record.name.startswith("enrich")]


def test_it_can_be_run_again(small: FakeWorld) -> None:
    assert (main(), main()) == (0, 0)


def test_a_failure_is_reported_in_one_line(small: FakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    small.faults = [RunFailed("the engine is gone")] * (1 + tasks.RETRIED["retries"])

    assert main() == 1

    assert "error: the engine is gone" in capsys.readouterr().err


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(UsageError, match=r"thesis.txt: not part of the demo, which empties .*; move it elsewhere"):
        make_room(tmp_path)
    assert (tmp_path / "catalog").is_dir()


def test_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    for name in ("catalog", "adapter", ".adapter.training"):
        (tmp_path / "demo" / name).mkdir(parents=True)

    make_room(tmp_path / "demo")

    assert not (tmp_path / "demo").exists()
