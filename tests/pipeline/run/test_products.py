"""Runs over products of several photos: one comes, goes or changes; and products tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from enrich.answers.fields import Field
from enrich.answers.prompt import make_prompt
from enrich.engines.adapter import Adapter
from enrich.errors import UsageError
from enrich.output.asked import Asked, AskedField, read_asked
from enrich.output.run_record import RunRecord
from enrich.pipeline.run import enrichment, start
from enrich.pipeline.run.enrichment import run_enrichment
from enrich.pipeline.run.request import RunRequest
from enrich.pipeline.run.start import dry_run
from enrich.settings.run import GateSettings, RunSettings
from enrich.storage import open_store
from tests.testing.fake_world import FakeWorld, fake_adapter

SETTINGS = RunSettings(group_by="folder", shard_size=2, engine="transformers", gate=GateSettings(enabled=False))
PHOTOS = ("p1/1.jpg", "p1/2.jpg", "p1/10.jpg", "p2/1.jpg", "p3/1.jpg", "p3/2.jpg", "alone.jpg")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    """Enrichment with all but model and photos as it is."""
    fake = FakeWorld(tmp_path)
    for name in ("images/p1", "images/p2", "images/p3", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    fake.add_photos(*PHOTOS)
    monkeypatch.setattr(enrichment, "open_session", fake.open_session)
    monkeypatch.setattr(start, "read_adapter", fake_adapter)
    monkeypatch.setattr(start, "open_adapter", lambda path, base: fake_adapter(path))
    return fake


def request(world: FakeWorld, settings: RunSettings = SETTINGS, **more: Any) -> RunRequest:
    photos, adapter, output = world.places.values()
    return RunRequest(photos, adapter, output, settings, **more)


def run(world: FakeWorld, settings: RunSettings = SETTINGS, **more: Any) -> RunRecord:
    world.asked.clear()
    return run_enrichment(request(world, settings, **more))


def table(world: FakeWorld) -> dict[str, dict[str, Any]]:
    rows = pl.read_parquet(world.root / "output" / "products.parquet").to_dicts()
    return {row["product_id"]: row for row in rows}


def test_a_folder_is_one_row_with_its_photos_in_natural_order(world: FakeWorld) -> None:
    record = run(world)
    rows = table(world)
    assert record.counts == {"rows": 4, "ok": 4, "failed": 0}
    assert sorted(world.asked) == ["alone", "p1", "p2", "p3"]
    assert [photo["key"] for photo in rows["p1"]["photos"]] == ["p1/1.jpg", "p1/2.jpg", "p1/10.jpg"]
    main, *others = rows["p1"]["photos"]
    assert (main["uri"], main["width"], main["error_kind"]) == (f"{world.root}/images/p1/1.jpg", 8, None)
    assert main["photo_issues"] == ["tiny"]
    assert [(photo["sha256"], photo["width"], photo["photo_issues"]) for photo in others] == [(None, None, None)] * 2
    assert all(photo["etag"] for photo in rows["p1"]["photos"])
    assert rows["p1"]["photos_answered"] == 1
    assert run(world).state == "nothing_to_do"


@pytest.mark.parametrize("change", ["remove", "add", "replace"])
def test_a_photo_more_less_or_other_makes_just_its_product_changed(world: FakeWorld, change: str) -> None:
    run(world)
    images = world.root / "images"
    if change == "remove":
        (images / "p1/2.jpg").unlink()
    elif change == "add":
        world.add_photos("p1/3.jpg")
    else:
        (images / "p1/2.jpg").write_bytes(b"other")
    record = run(world)
    assert record.by_reason == {"changed": 1}
    assert table(world)["p1"]["last_run_id"] == record.run.run_id
    assert world.asked == ["p1"]
    assert run(world).state == "nothing_to_do"


def test_a_product_without_its_last_photo_is_gone(world: FakeWorld) -> None:
    run(world)
    (world.root / "images" / "p2" / "1.jpg").unlink()
    run(world)
    assert {name: row["in_source"] for name, row in table(world).items()} == {
        "p1": True, "p2": False, "p3": True, "alone": True
    }  # fmt: skip


def test_only_what_a_products_table_lists_is_done_in_its_order_of_photos(world: FakeWorld) -> None:
    path = world.root / "products.csv"
    path.write_text("product_id,photos\nA,p1/2.jpg|p1/1.jpg\nB,alone.jpg\n")
    assert dry_run(request(world, products=str(path))).listed == 2
    record = run(world, products=str(path))
    rows = table(world)
    assert record.counts["rows"] == 2
    assert [photo["key"] for photo in rows["A"]["photos"]] == ["p1/2.jpg", "p1/1.jpg"]
    path.write_text("product_id,photos\nA,p1/1.jpg|p1/2.jpg\nB,alone.jpg\n")
    assert run(world, products=str(path)).by_reason == {"changed": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("product_id,photos\nA,none.jpg\n", "1 photo is not in the bucket"),
        ("product_id,photos\nA,alone.jpg\nA,p2/1.jpg\n", "1 product_id is in more than one row"),
        ("product_id,photos\nA,alone.jpg\nB,alone.jpg\n", "1 photo is listed more than once"),
    ],
)
def test_a_faulty_products_table_is_one_line_before_anything_starts(world: FakeWorld, text: str, message: str) -> None:
    path = world.root / "products.csv"
    path.write_text(text)
    for attempt in (dry_run, run_enrichment):
        with pytest.raises(UsageError, match=message):
            attempt(request(world, products=str(path)))
    assert world.asked == []
    assert [path for path in (world.root / "output").rglob("*") if path.is_file()] == []


def test_another_adapter_refreshes_some_and_the_record_says_how_many_are_left(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world)

    def other(path: Path, *_: object) -> Adapter:
        return replace(fake_adapter(path), id="a2")

    monkeypatch.setattr(start, "read_adapter", other)
    monkeypatch.setattr(start, "open_adapter", other)
    world.add_photos("new.jpg")
    some = SETTINGS.model_copy(update={"refresh": 1})
    forecast = dry_run(request(world, some))
    assert (forecast.todo, forecast.older, forecast.by_reason) == (2, 3, {"model": 1, "new": 1})
    assert forecast.lines()[1] == "3 products keep an older adapter's answer for now (refresh, limit)"
    first = run(world, some)
    assert (first.by_reason, first.older, world.asked) == ({"model": 1, "new": 1}, 3, ["new", "alone"])
    assert "3 products keep an older adapter's answer" in report(world, first)
    second = run(world, some)
    assert (second.by_reason, second.older, world.asked) == ({"model": 1}, 2, ["p1"])
    none = run(world, SETTINGS.model_copy(update={"refresh": 0}))
    assert (none.state, none.older) == ("nothing_to_do", 2)
    assert run(world).by_reason == {"model": 2}


def test_rows_carry_the_ids_of_their_categories_and_the_run_keeps_what_could_be_answered(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"Coats": "203", "Hats": "173"}
    colour = Field(name="colour", kind="choice", label="Colour", column="shade", values=("Navy",))

    def with_ids(path: Path, *_: object) -> Adapter:
        return replace(fake_adapter(path), prompt=make_prompt(tuple(ids), "EUR", category_ids=ids, others=[colour]))

    run(world)
    monkeypatch.setattr(start, "read_adapter", with_ids)
    monkeypatch.setattr(start, "open_adapter", with_ids)
    world.add_photos("bad.jpg")
    record = run(world)

    assert record.by_reason == {"model": 4, "new": 1}  # other ids are another prompt
    assert {row["category_id"] for row in table(world).values() if row["status"] == "ok"} == {"203"}
    assert table(world)["bad"]["category_id"] is None
    assert read_asked(open_store(str(world.root / "output")), record.run) == Asked(
        fields=(AskedField(**colour.model_dump(), review_below=0.0),), unknown="unknown", category_ids=ids
    )


def report(world: FakeWorld, record: RunRecord) -> str:
    return (world.root / "output" / record.run.folder / "report.html").read_text()
