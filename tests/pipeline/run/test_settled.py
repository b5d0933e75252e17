"""What an earlier run settled: decided again when what it depended on changed, and not answered again otherwise."""

import os
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.engines.predictor import Predictor
from enrich.output.run_record import RunRecord
from enrich.pipeline.releasing import publish_held
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import dry_run
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import GateSettings, RunSettings
from tests.testing.random_adapter import write_random_adapter

KEYS = [f"{number:05}.jpg" for number in range(101, 105)]
SETTINGS = RunSettings(shard_size=2, batch_size=4, max_new_tokens=32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_random_adapter(tmp_path_factory.mktemp("adapter"), TINY_MODEL_PATH, num_crops=1, idle=True))


@pytest.fixture(scope="module")
def enriched(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and the output of a first run over them."""
    root = tmp_path_factory.mktemp("first")
    (root / "photos").mkdir()
    for number, key in enumerate(KEYS):
        Image.new("RGB", (40, 60), (60 * number, 90, 30)).save(root / "photos" / key, "JPEG")
    run_enrichment(RunRequest(str(root / "photos"), adapter, str(root / "out"), SETTINGS))
    return root


@pytest.fixture
def places(enriched: Path, adapter: str, tmp_path: Path) -> tuple[str, str, str]:
    """Photos (as other files than those of the first run, so touched), adapter, output."""
    shutil.copytree(enriched, tmp_path / "copy", copy_function=shutil.copy2)
    return str(tmp_path / "copy" / "photos"), adapter, str(tmp_path / "copy" / "out")


@pytest.fixture
def nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Predictor, images: Any) -> Any:
        for image in images:
            raise AssertionError(f"{image.key} was given to the engine")
        yield from ()

    monkeypatch.setattr(Predictor, "answer", answer)


def table(places: tuple[str, str, str]) -> pl.DataFrame:
    return pl.read_parquet(f"{places[2]}/products.parquet").sort("product_id")


OF_THE_ANSWER = ["title", "category", "price", "category_confidence", "price_low", "price_high", "status", "engine"]


@pytest.mark.usefixtures("nothing_is_answered")
def test_photos_of_another_etag_and_the_same_bytes_keep_their_answer(places: tuple[str, str, str]) -> None:
    before = table(places)
    assert (before["status"] == "ok").all()
    for key in KEYS:
        os.utime(Path(places[0]) / key, (1, 1))
    assert dry_run(RunRequest(*places, SETTINGS)).lines()[0].startswith("at most 4 of 4 products to do (4 changed)")
    record = run_enrichment(RunRequest(*places, SETTINGS))
    assert (record.state, record.by_reason, record.same_bytes) == ("published", {"changed": 4}, 4)
    after = table(places)
    assert after.select(OF_THE_ANSWER).equals(before.select(OF_THE_ANSWER))
    assert (after["last_photos_etag"] != before["last_photos_etag"]).all()
    assert after["run_id"].unique().to_list() == [record.run.run_id]
    assert after["output_tokens"].null_count() == 4
    assert run_enrichment(RunRequest(*places, SETTINGS)).state == "nothing_to_do"


def test_a_product_that_would_be_shown_what_it_was_keeps_its_answer(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, settings = tmp_path / "photos", SETTINGS.model_copy(update={"group_by": "folder"})
    (photos / "coat").mkdir(parents=True)
    Image.new("RGB", (40, 60), "teal").save(photos / "coat" / "1.jpg", "JPEG")
    places = str(photos), adapter, str(tmp_path / "out")
    run_enrichment(RunRequest(*places, settings))
    before = table(places)
    Image.new("RGB", (40, 60), "navy").save(photos / "coat" / "2.jpg", "JPEG")
    monkeypatch.setattr(Predictor, "answer", lambda self, images: iter([(image.key, None) for image in images][:0]))
    record = run_enrichment(RunRequest(*places, settings))
    assert (record.by_reason, record.same_bytes) == ({"changed": 1}, 1)
    after = table(places)
    assert after.select(OF_THE_ANSWER).equals(before.select(OF_THE_ANSWER))
    assert [photo["key"] for photo in after["photos"][0]] == ["coat/1.jpg", "coat/2.jpg"]
    assert [photo["sha256"] is None for photo in after["photos"][0]] == [False, True]


def test_photos_of_other_bytes_are_answered(places: tuple[str, str, str]) -> None:
    Image.new("RGB", (60, 40), "white").save(Path(places[0]) / KEYS[0], "JPEG")
    for key in KEYS:
        os.utime(Path(places[0]) / key, (1, 1))
    record = run_enrichment(RunRequest(*places, SETTINGS))
    assert (record.by_reason, record.same_bytes) == ({"changed": 4}, 3)
    assert table(places)["output_tokens"].null_count() == 3


def test_photos_missing_from_a_listing_hold_the_run_until_a_person_says_so(places: tuple[str, str, str]) -> None:
    for key in KEYS[1:]:
        (Path(places[0]) / key).unlink()
    record: RunRecord = run_enrichment(RunRequest(*places, SETTINGS, run_id="sync"))
    assert (record.state, [finding.limit for finding in record.findings]) == ("held", ["max_gone"])
    assert table(places)["in_source"].all()
    assert publish_held(places[2], "sync").state == "published"
    assert table(places)["in_source"].to_list() == [key == KEYS[0] for key in KEYS]


def test_photos_refused_under_a_limit_are_answered_once_it_is_raised(places: tuple[str, str, str]) -> None:
    output = f"{places[2]}-new"
    small = SETTINGS.model_copy(update={"limits": PhotoLimits(max_bytes=10), "gate": GateSettings(enabled=False)})
    first = run_enrichment(RunRequest(places[0], places[1], output, small))
    assert first.by_error_kind == {"too_large": 4}
    again = run_enrichment(RunRequest(places[0], places[1], output, small))
    assert (again.state, again.answered_before, again.failed_before) == ("nothing_to_do", 0, {"too_large": 4})
    raised = run_enrichment(RunRequest(places[0], places[1], output, SETTINGS))
    assert (raised.by_reason, raised.counts["ok"]) == ({"retry": 4}, 4)
