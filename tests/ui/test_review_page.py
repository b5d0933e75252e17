"""The review page in a real browser, by keyboard alone: a thousand rows from start to applied decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Page
from rows import enrich_night, listing, make_row, make_run

from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.run_record import RunInfo
from enrich.schema import Alternative, ManifestItem, Row
from enrich.storage import open_store

pytestmark = pytest.mark.ui

COUNT = 1000


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("review")
    (root / "photos").mkdir()
    keys = [f"{number:04}.jpg" for number in range(COUNT)]
    for number, key in enumerate(keys):
        Image.new("RGB", (96, 128), (number % 256, number // 4 % 256, 90)).save(root / "photos" / key)

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        number = int(item.key[:4])
        return make_row(
            run, item.key, minutes, shard=item.shard, image_sha256=item.key, price=float(2000 - number),
            category_confidence=0.5, category_alternatives=(Alternative("Hats", 0.3), Alternative("Bags", 0.1)),
            needs_review=True, review_reasons=("low_confidence",), title=f"<b>Coat</b> {number} & more",
        )  # fmt: skip

    store = open_store(str(root / "output"), create=True)
    enrich_night(store, make_run(images_uri=str(root / "photos"), shard_size=500), listing(*keys), answer)
    write_queue(str(root / "output"))
    return root / "output"


@pytest.fixture
def page(open_page: Callable[[Path], Page], output: Path) -> Page:
    return open_page(output / "review.html")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Page, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        press(page, "s")
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_a_thousand_rows_by_keyboard_from_start_to_applied(page: Page, output: Path, tmp_path: Path) -> None:
    assert page.locator("#place").inner_text() == f"1 of {COUNT}: 0000"
    press(page, "n")
    page.keyboard.type("Ann")
    press(page, "Enter")
    press(page, "a")  # 0: accepted
    press(page, "e")  # 1: edited
    page.keyboard.type("Felt Hat")
    press(page, "Tab")
    press(page, "Control+A")
    page.keyboard.type("Hats")
    press(page, "Tab", "Control+A")
    page.keyboard.type("1234.5")
    press(page, "Enter")
    press(page, "r")  # 2: rejected
    press(page, "2")  # 3: the second alternative
    press(page, "r", "k", "u", "a")  # 4: rejected, undone, accepted
    for number in range(5, COUNT):
        press(page, "r" if number % 10 == 0 else "a")
    assert page.locator("#status").inner_text() == "All decided. Press S to save the file."
    assert page.locator("#bar").get_attribute("max") == str(COUNT)

    path = tmp_path / "decisions.json"
    decisions = {one["image_key"]: one for one in saved(page, path)["decisions"]}
    assert len(decisions) == COUNT
    assert decisions["0004.jpg"]["decision"] == "accepted"

    done = apply_decisions(str(output), path)

    rejected = 1 + len(range(10, COUNT, 10))
    assert done.counts == {"accepted": COUNT - rejected - 2, "edited": 2, "rejected": rejected}
    table = pl.read_parquet(output / "products.parquet").sort("image_key")
    assert table["reviewed_by"].unique().to_list() == ["Ann"]
    assert table["needs_review"].sum() == 0
    outcome = table.select("title", "category", "price").rows()
    assert outcome[:4] == [
        ("<b>Coat</b> 0 & more", "Coats", 2000.0), ("Felt Hat", "Hats", 1234.5), (None, None, None),
        ("<b>Coat</b> 3 & more", "Bags", 1997.0),
    ]  # fmt: skip


def test_mistakes_are_told_and_work_survives_a_reload(page: Page) -> None:
    press(page, "s")
    assert page.locator("#status").inner_text() == "Nothing is decided yet."
    press(page, "e", "Tab", "Control+A")
    page.keyboard.type("Dragons")
    press(page, "Enter")
    assert '"Dragons" is no category' in page.locator("#status").inner_text()
    press(page, "Escape")
    assert page.locator("#category").input_value() == "Coats"
    press(page, "e", "Tab", "Tab", "Control+A")
    page.keyboard.type("-3")
    press(page, "Enter")
    assert page.locator("#status").inner_text() == "A price is a number above 0, or empty."
    press(page, "Escape", "a", "s")
    assert "Your name is missing" in page.locator("#status").inner_text()
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type("Bob")
    press(page, "Enter")
    page.reload()
    assert page.locator("#name").input_value() == "Bob"
    assert page.locator("#place").inner_text() == f"2 of {COUNT}: 0001"
    press(page, "k")
    assert page.locator("#decision").inner_text() == "accepted"


def test_everything_can_be_reached_with_tab_and_seen_on_a_phone(page: Page) -> None:
    reached = []
    for _ in range(9):
        press(page, "Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["name", "title", "category", "price", "accept", "edit", "reject", "undo", "save"]
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
