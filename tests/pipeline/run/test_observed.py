"""What people decided about random picks is in the next run's record, report and summary."""

import json
import re
from pathlib import Path

import pytest

from enrich.output.run_record import RunRecord
from enrich.pages.report import render_summary
from enrich.pipeline.labelling import label
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.pipeline.run import enrichment, start
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.settings.run import GateSettings, RunSettings
from tests.testing.fake_world import FakeWorld, fake_adapter

SETTINGS = RunSettings(engine="transformers", gate=GateSettings(enabled=False))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    """Forty products whose category is 90 % sure."""
    fake = FakeWorld(tmp_path)
    for name in ("images", "adapter"):
        (tmp_path / name).mkdir()
    fake.add_photos(*(f"{number}.jpg" for number in range(40)))
    monkeypatch.setattr(enrichment, "open_session", fake.open_session)
    monkeypatch.setattr(start, "read_adapter", fake_adapter)
    monkeypatch.setattr(start, "open_adapter", lambda path, base: fake_adapter(path))
    return fake


def run(world: FakeWorld) -> RunRecord:
    photos, adapter, output = world.places.values()
    return run_enrichment(RunRequest(photos, adapter, output, SETTINGS))


def test_the_next_nightly_run_says_how_wrong_answers_are(world: FakeWorld) -> None:
    output = world.root / "output"
    assert run(world).observed is None
    write_queue(str(output), picked=label(str(output), 200).uri)  # a fifth, so all forty, at random
    [data] = re.findall(r'id="data">(.*?)</script>', (output / "review.html").read_text(), re.DOTALL)
    page = json.loads(data)
    decisions = [
        {name: row[name] for name in ("product_id", "photos", "run_id", "category", "price", "picked")}
        | {"title": "Coat" if number < 4 else row["title"], "decision": "edited", "confirmed": ["title", "category"]}
        for number, row in enumerate(page["rows"])
    ]
    path = world.root / "decisions.json"
    saved = {name: page[name] for name in ("format", "output", "runs")}
    path.write_text(json.dumps(saved | {"reviewed_by": "Ann", "decisions": decisions}))
    apply_decisions(str(output), path)

    record = run(world)
    assert record.state == "nothing_to_do"
    assert record.observed is not None
    assert record.observed.decisions == 40
    found = {one.field: (one.wrong, one.claimed) for one in record.observed.fields}
    assert found == {"title": (0.1, None), "category": (0.0, pytest.approx(0.1))}
    line = "title wrong in 10.0% (4.0% to 23.1%) of 40 products picked at random"
    folder = output / "runs" / record.run.run_id
    assert json.loads((folder / "run.json").read_text())["observed"]["fields"][0]["wrong"] == 0.1
    assert line in (folder / "report.html").read_text()
    summary = render_summary(record.model_dump(mode="json"), str(output))
    assert "title wrong in 10" in summary
    assert "the confidences predict 10" in summary
