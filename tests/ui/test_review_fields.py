"""Declared fields on the review page, in a real browser and by keyboard."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Page

from enrich.output.asked import Asked, AskedField, write_asked
from enrich.output.run_record import RunInfo
from enrich.output.schema import Attribute, Row
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.pipeline.serving import PageServer
from enrich.pipeline.site import Site
from enrich.storage import open_store
from enrich.vocabulary import ManifestItem
from tests.testing.geometry import faults
from tests.testing.rows import enrich_night, listing, make_photo, make_row, make_run

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
    for key in ("a.png", "a-2.png", "a-3.png", "a-4.png", "a-5.png", "b.png", "c.png"):
        Image.new("RGB", (600, 800), (180, 160, 120)).save(tmp_path / "photos" / key)
    (tmp_path / "photos" / "a-3.png").write_bytes(b"no photo")

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        plain = item.product_id == "c.png"
        said = {} if plain else {name: Attribute(*one) for name, one in ANSWERED.items()}
        several: dict[str, Any] = {}
        if item.product_id == "a.png":
            names = (item.product_id, *(f"a-{number}.png" for number in range(2, 6)))
            several["photos"] = tuple(make_photo(run, name, sha256=name) for name in names)
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=item.product_id, attributes=said, needs_review=True,
            category_confidence=0.9 if plain else 0.5, review_reasons=("low_attribute_confidence",), **several,
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
        ("constructor", "=1+1", "spreadsheets execute as a formula"),
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
    assert "has unsaved changes" in page.locator("#status").inner_text()


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


def test_all_photos_are_large_enough_and_enlarged_by_key_and_click(page: Page) -> None:
    assert page.locator("#place").inner_text() == "1 of 3: a.png"
    sizes = page.locator("#photos img").evaluate_all("(all) => all.map((one) => [one.naturalHeight, one.offsetHeight])")
    assert sizes == [[800, 432], [800, 240], [800, 240], [800, 240]]  # as they are, in CSS pixels
    assert page.locator("#photos .none").inner_text() == "photo 3 cannot be read"
    assert page.locator("#zoom").is_hidden()
    press(page, "z")
    window = page.viewport_size
    assert window is not None
    assert page.locator("#zoomed").bounding_box() == {"x": 0, "y": 0, **window}
    press(page, "ArrowRight", "ArrowRight")
    assert page.locator("#zoom-place").inner_text().startswith("photo 4 of 5")
    press(page, "a", "r", "1")  # decide nothing while a photo covers the row
    assert decided(page) == []
    press(page, "ArrowRight", "ArrowRight")
    assert page.locator("#zoom-place").inner_text().startswith("photo 1 of 5")
    page.locator("#zoomed").click()
    assert page.locator("#zoomed").evaluate("(one) => one.offsetWidth") == 2 * window["width"]
    press(page, "Escape")
    assert page.locator("#zoom").is_hidden()
    page.locator("#photos img").nth(1).click()
    assert page.locator("#zoom-place").inner_text().startswith("photo 2 of 5")
    press(page, "z", "a")
    assert [one["product_id"] for one in decided(page)] == ["a.png"]


def test_the_page_fits_a_phone_and_a_window(page: Page) -> None:
    assert faults(page) == {}
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator("#photos img").evaluate_all("(all) => Math.min(...all.map((one) => one.offsetWidth))") >= 170


def test_the_page_works_where_it_is_served_and_runs_no_other_script(chromium: Any, output: Path) -> None:
    evil = "<script>document.title = 'evil'</script><b onclick=\"document.title = 'evil'\">x</b>"
    path = output / "review.html"
    path.write_text(path.read_text().replace("<main", f"{evil}<main"))
    with PageServer(Site(open_store(str(output))), "127.0.0.1", 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page()
        refused: list[str] = []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(server.url)
        page.get_by_role("link", name="products to review").click()
        page.locator("b", has_text="x").first.click()
        press(page, "a")
        assert len(decided(page)) == 1
        assert page.title() == "Review queue"
        assert len(refused) >= 2  # by the page and by the server
        assert all("Content Security Policy" in text for text in refused)
        page.close()
        server.shutdown()
