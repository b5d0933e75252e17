"""Runs of an adapter that looks twice: which look answered each row, killed between looks too."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from enrich.answers.calibration import CALIBRATION_FILE, Calibration, CategoryCalibration, FirstLook
from enrich.answers.completion import Completion
from enrich.engines.adapter import adapter_id, read_adapter
from enrich.engines.base import EngineClock, Request
from enrich.models.checkpoint import load_processor
from enrich.pipeline.run import session
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import fingerprint
from enrich.settings.models import TINY_MODEL_PATH
from enrich.settings.run import GateSettings, RunSettings
from tests.testing.fake_engine import write_completion
from tests.testing.random_adapter import write_random_adapter

SETTINGS = RunSettings(
    engine="transformers", shard_size=4, decode_processes=1, in_flight=4, gate=GateSettings(enabled=False)
)
PHOTOS = 14
# Confidence 0.73 at the first look, 0.5 at the second.
FIRST = FirstLook(
    squares=1,
    calibration=Calibration(price=None, category=CategoryCalibration(slope=0.0, intercept=1.0, rows=0)),
    least_doubt=0.4,
)
TWICE = Calibration(price=None, category=CategoryCalibration(slope=0.0, intercept=0.0, rows=0), first=FIRST)


class Engine:
    """Cannot tell the products with an odd number from one crop; kills its process at a number of second looks."""

    name = "fake"

    def __init__(self, kill_at: int | None = None) -> None:
        processor = load_processor(TINY_MODEL_PATH)
        self.clock, self._kill_at, self.close_looks = EngineClock(), kill_at, 0
        self._tokenizer, self._side = processor.tokenizer, processor.preparation.image_size

    def complete(self, requests: Iterable[Request | None], *, grammar: bool = False) -> Iterator[Completion]:
        for request in filter(None, requests):
            page = request.pages[0]
            close = max(page.shape[:2]) > self._side
            self.close_looks += close
            if self.close_looks == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            number = round(int(page[page.shape[0] // 2, page.shape[1] // 2, 0]) / 10)
            text = f"Product: Number {number}\nCategory: BAGS\nFull Price: 12"
            odd = number % 2 == 1 and not close
            yield write_completion(self._tokenizer, "I cannot tell." if odd else text, id=request.id)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_random_adapter(tmp_path_factory.mktemp("adapter"), TINY_MODEL_PATH, num_crops=4, idle=True)
    (path / CALIBRATION_FILE).write_text(TWICE.model_dump_json())
    return path


@pytest.fixture
def request_of(adapter: Path, tmp_path: Path) -> RunRequest:
    (tmp_path / "photos").mkdir()
    for number in range(PHOTOS):
        Image.new("RGB", (90, 120), (10 * number, 90, 30)).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no photo")
    return RunRequest(str(tmp_path / "photos"), str(adapter), str(tmp_path / "out"), SETTINGS, run_id="night")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], Engine]:
    def serve(engine: Engine) -> Engine:
        monkeypatch.setattr(session, "start_verified_engine", lambda *_: engine)
        return engine

    return serve


def run_until_killed(request: RunRequest, kill_at: int) -> None:
    """In a process of its own."""
    session.start_verified_engine = lambda *_: Engine(kill_at)
    run_enrichment(request)


def check(request: RunRequest) -> None:
    """One row a product, whose look and calibration are those that its photo asks for."""
    table = pl.read_parquet(Path(request.output) / "products.parquet").sort("product_id")
    assert table["product_id"].to_list() == [*(f"{number:02}" for number in range(PHOTOS)), "broken"]
    *good, broken = table.iter_rows(named=True)
    assert (broken["status"], broken["looks"]) == ("failed", None)
    for number, row in enumerate(good):
        assert row["title"] == f"Number {number}"
        assert row["looks"] == 1 + number % 2
        assert row["category_confidence"] == pytest.approx(0.5 if number % 2 else 0.731, abs=1e-3)
        assert row["prompt_tokens"] == 100 * row["looks"]
    history = pl.concat(
        [pl.read_parquet(path) for path in Path(request.output).glob("history/*/*/*.parquet")], how="vertical"
    )
    assert history["product_id"].is_unique().all()


def test_rows_say_how_often_their_photos_were_looked_at(
    request_of: RunRequest, serve: Callable[[Engine], Engine]
) -> None:
    engine = serve(Engine())
    assert run_enrichment(request_of).counts == {"rows": PHOTOS + 1, "ok": PHOTOS, "failed": 1}
    assert engine.close_looks == PHOTOS // 2
    check(request_of)


@pytest.mark.parametrize("kill_at", [1, 5])
def test_a_run_that_is_killed_between_two_looks_neither_loses_nor_duplicates_rows(
    request_of: RunRequest, serve: Callable[[Engine], Engine], kill_at: int
) -> None:
    process = get_context("spawn").Process(target=run_until_killed, args=(request_of, kill_at))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (Path(request_of.output) / "products.parquet").exists()
    before = {path: path.read_bytes() for path in Path(request_of.output).glob("history/*/*/*.parquet")}
    serve(Engine())
    assert run_enrichment(request_of).state == "published"
    check(request_of)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_adapter_of_two_looks_answers_otherwise_than_one_without(adapter: Path) -> None:
    twice = read_adapter(adapter)
    assert twice.calibration == TWICE
    (adapter / CALIBRATION_FILE).write_text(TWICE.model_copy(update={"first": None}).model_dump_json())
    once = replace(twice, id=adapter_id(adapter))
    (adapter / CALIBRATION_FILE).write_text(TWICE.model_dump_json())
    assert fingerprint(once, SETTINGS) != fingerprint(twice, SETTINGS)
