"""Declared fields on the review page, in a real browser and by keyboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Page

from enrich.output.asked import Asked, AskedField, write_asked
from enrich.output.run_record import RunInfo
from enrich.output.schema import Attribute, Row
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.storage import open_store
from enrich.vocabulary import ManifestItem
from tests.testing.rows import enrich_night, listing, make_row, make_run

pytestmark = pytest.mark.ui

EVIL = "</script><img src=x onerror=alert(1)>"
ASKED = Asked(
    unknown="不明",
    fields=(
        AskedField(
            name="colour", kind="choice", label="カラー", column="iro", values=("紺", "赤", EVIL), review_below=0.6
        ),
        AskedField(name="fabric", kind="choice", label="Fabric", column="fabric", values=("Wool",), review_below=0.6),
        AskedField(name="pockets", kind="number", label="Pockets", column="pockets"),
        AskedField(name="constructor", kind="text", label="<b>Detail</b>", column="detail"),
    ),
)
ANSWERED = {"colour": ("紺", 0.97), "fabric": (None, 0.41), "pockets": ("2", 0.9), "constructor": (EVIL, 0.8)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output of three rows: two with the fields of ASKED, the third from a run that declared none."""
    keys = ["a.png", "b.png", "c.png"]
    (tmp_path / "photos").mkdir()
    for key in keys:
        Image.new("RGB", (96, 128), (180, 160, 120)).save(tmp_path / "photos" / key)

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        plain = item.product_id == "c.png"
        said = {} if plain else {name: Attribute(*one) for name, one in ANSWERED.items()}
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=item.product_id, attributes=said, needs_review=True,
            category_confidence=0.9 if plain else 0.5, review_reasons=("low_attribute_confidence",),
        )  # fmt: skip

    store = open_store(str(tmp_path / "output"), create=True)
    uri = str(tmp_path / "photos")
    enrich_night(store, make_run(images_uri=uri), listing("c.png"), answer)
    write_asked(store, enrich_night(store, make_run("night-2", 10, images_uri=uri), listing(*keys), answer), ASKED)
    write_queue(str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def page(open_page: Callable[[Path], Page], output: Path) -> Page:
    return open_page(output / "review.html")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def type_over(page: Page, text: str) -> None:
    press(page, "Control+A")
    page.keyboard.insert_text(text)


def decided(page: Page) -> list[dict[str, Any]]:
    return page.evaluate("[...decisions.values()]")


def test_fields_are_decided_by_keyboard_saved_and_applied(page: Page, output: Path, tmp_path: Path) -> None:
    press(page, "n")
    page.keyboard.type("Ann")
    press(page, "Enter", "f")  # the first doubtful one
    assert page.evaluate("document.activeElement.id") == "field-fabric"
    type_over(page, "Wool")
    press(page, "Tab")
    type_over(page, "\uff13")  # full-width, as an input method types digits
    press(page, "Tab")
    type_over(page, "真鍮の ボタン")
    press(page, "Enter")
    press(page, "f", "Shift+Tab")
    type_over(page, "不明")
    press(page, "Enter", "a")
    with page.expect_download() as download:
        press(page, "s")
    download.value.save_as(tmp_path / "decisions.json")
    assert [one["decision"] for one in decided(page)] == ["edited", "edited", "accepted"]

    apply_decisions(str(output), tmp_path / "decisions.json")

    rows = pl.read_parquet(output / "products.parquet").sort("product_id")["attributes"].to_list()
    assert [{name: one["value"] for name, one in row.items()} for row in rows] == [
        {"colour": "紺", "fabric": "Wool", "pockets": "3", "constructor": "真鍮の ボタン"},
        {"colour": None, "fabric": None, "pockets": "2", "constructor": EVIL},
        {},
    ]
    assert {one["confidence"] for row in rows for one in row.values()} == {1.0}


def test_confidences_and_doubts_are_shown_and_what_the_model_wrote_stays_text(page: Page) -> None:
    told = page.locator("#fields > label").all_inner_texts()
    assert [" ".join(text.split()) for text in told] == [
        "カラー 97 % sure", "Fabric 41 % sure, doubtful", "Pockets 90 % sure", "<b>Detail</b> 80 % sure",
    ]  # fmt: skip
    assert page.locator("#fields .doubtful").count() == 1
    assert page.locator("#field-constructor").input_value() == EVIL
    assert page.locator("#field-fabric").input_value() == ""
    options = page.locator("#values-colour option").evaluate_all("(all) => all.map((one) => one.value)")
    assert options == ["(cannot be seen)", "紺", "赤", EVIL]
    assert page.locator("#card").get_attribute("lang") == "ja"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    press(page, "j", "j")
    assert page.locator("#fields > label").count() == 0


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("colour", "Navy", 'カラー "Navy" is none of its values'),
        ("pockets", "two", 'Pockets "two" is not a whole number'),
        ("pockets", "2.5", 'Pockets "2.5" is not a whole number'),
        ("constructor", "=1+1", "spreadsheets run as a formula"),
        ("constructor", "a<|end|>", "a special token"),
        ("constructor", "x" * 201, "has more than 200 characters"),
    ],
)
def test_values_that_a_field_cannot_have_are_refused_on_the_page(
    page: Page, field: str, text: str, message: str
) -> None:
    page.locator(f"#field-{field}").focus()
    type_over(page, text)
    press(page, "Enter")
    assert message in page.locator("#status").inner_text()
    assert page.evaluate("document.activeElement.id") == f"field-{field}"
    assert decided(page) == []
    press(page, "Tab", "Tab", "Tab", "Tab", "Tab", "Tab", "j")  # on a button by now
    assert "has an edit" in page.locator("#status").inner_text()


@pytest.mark.parametrize("text", ["", "(cannot be seen)", "\u4e0d\u660e "])
def test_what_cannot_be_seen_may_be_said_in_three_ways_and_survives_a_reload(page: Page, text: str) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#field-colour").focus()
    type_over(page, text)
    if not text:
        press(page, "Delete")
    press(page, "Enter")
    assert decided(page)[0]["attributes"] == {
        name: None if name == "colour" else one[0] for name, one in ANSWERED.items()
    }
    assert decided(page)[0]["suggested_attributes"] == {name: one[0] for name, one in ANSWERED.items()}
    page.reload()
    press(page, "k")
    assert page.locator("#field-colour").input_value() == ""
    press(page, "a")
    assert [one["decision"] for one in decided(page)] == ["edited"]
