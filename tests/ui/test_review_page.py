"""The review page in a real browser, with the keyboard only: a thousand rows from start to applied decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Dialog, Page

from enrich.output.run_record import RunInfo
from enrich.output.schema import Row
from enrich.pipeline.labelling import label
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.storage import open_store
from enrich.vocabulary import Alternative, ManifestItem
from tests.testing.rows import enrich_night, listing, make_row, make_run

pytestmark = pytest.mark.ui

COUNT = 1000


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("review"), COUNT)


def make_output(root: Path, count: int) -> Path:
    """An output of `count` rows that need review, with its page."""
    (root / "photos").mkdir()
    keys = [f"{number:04}.jpg" for number in range(count)]
    for number, key in enumerate(keys):
        Image.new("RGB", (96, 128), (number % 256, number // 4 % 256, 90)).save(root / "photos" / key)

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        number = int(item.product_id[:4])
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=item.product_id, price=float(2000 - number),
            category_confidence=0.5, price_low=float(1900 - number), price_high=float(2100 - number),
            category_alternatives=(Alternative("Hats", 0.3), Alternative("Bags", 0.1)),
            needs_review=True, review_reasons=("low_confidence",), title=f"<b>Coat</b> {number} & more",
        )  # fmt: skip

    store = open_store(str(root / "output"), create=True)
    enrich_night(store, make_run(images_uri=str(root / "photos"), shard_size=500), listing(*keys), answer)
    write_queue(str(root / "output"))
    return root / "output"


@pytest.fixture
def page(open_page: Callable[[Path], Page], output: Path) -> Page:
    return open_page(output / "review.html")


@pytest.fixture
def page_in(open_page: Callable[[Path], Page], output: Path, tmp_path: Path) -> Callable[[str | None], Page]:
    """Open the page with prices in another currency."""

    def opened(currency: str | None) -> Page:
        text = (output / "review.html").read_text()
        path = tmp_path / f"{currency}.html"
        path.write_text(text.replace('"currency": "EUR"', f'"currency": {json.dumps(currency)}'))
        return open_page(path)

    return opened


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def status(page: Page) -> str:
    return page.locator("#status").inner_text()


def type_price(page: Page, text: str) -> None:
    press(page, "e", "Tab", "Tab", "Control+A")
    page.keyboard.insert_text(text)


def decided(page: Page) -> list[dict[str, Any]]:
    return page.evaluate("[...decisions.values()]")


def send(page: Page, **event: Any) -> None:
    """Send a key event that the test keyboard cannot produce."""
    page.evaluate(
        "(event) => document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', { bubbles: true, cancelable: true, ...event }))",
        event,
    )


def saved(page: Page, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        press(page, "s")
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_a_thousand_rows_by_keyboard_from_start_to_applied(page: Page, output: Path, tmp_path: Path) -> None:
    assert page.locator("#place").inner_text() == f"1 of {COUNT}: 0000.jpg"
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
    decisions = {one["product_id"]: one for one in saved(page, path)["decisions"]}
    assert len(decisions) == COUNT
    assert decisions["0004.jpg"]["decision"] == "accepted"

    done = apply_decisions(str(output), path)

    rejected = 1 + len(range(10, COUNT, 10))
    assert done.counts == {"accepted": COUNT - rejected - 2, "edited": 2, "rejected": rejected}
    table = pl.read_parquet(output / "products.parquet").sort("product_id")
    assert table["reviewed_by"].unique().to_list() == ["Ann"]
    assert table["needs_review"].sum() == 0
    outcome = table.select("title", "category", "price").rows()
    assert outcome[:4] == [
        ("<b>Coat</b> 0 & more", "Coats", 2000.0), ("Felt Hat", "Hats", 1234.5), (None, None, None),
        ("<b>Coat</b> 3 & more", "Bags", 1997.0),
    ]  # fmt: skip
    assert table["price_low"].to_list()[:4] == [1900.0, None, None, 1897.0]  # accepted: still an estimate


def test_mistakes_are_reported_and_work_survives_a_reload(page: Page) -> None:
    press(page, "s")
    assert page.locator("#status").inner_text() == "Nothing is decided yet."
    press(page, "e", "Tab", "Control+A")
    page.keyboard.type("Dragons")
    press(page, "Enter")
    assert '"Dragons" is not a category' in page.locator("#status").inner_text()
    press(page, "Escape")
    assert page.locator("#category").input_value() == "Coats"
    press(page, "e", "Tab", "Tab", "Control+A")
    page.keyboard.type("-3")
    press(page, "Enter")
    assert page.locator("#status").inner_text() == 'The price "-3" is not one amount of money.'
    press(page, "Escape", "a", "s")
    assert "Your name is missing" in page.locator("#status").inner_text()
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type("Bob")
    press(page, "Enter")
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    assert page.locator("#name").input_value() == "Bob"
    assert page.locator("#place").inner_text() == f"2 of {COUNT}: 0001.jpg"
    press(page, "k")
    assert page.locator("#decision").inner_text() == "accepted"


def test_everything_can_be_reached_with_tab_and_seen_on_a_phone(page: Page) -> None:
    reached = []
    for _ in range(10):
        press(page, "Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["name", "title", "category", "price", "sure", "accept", "edit", "reject", "undo", "save"]
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_typed_amounts_are_read_by_the_rules_of_catalogs(page: Page) -> None:
    cases = json.loads((Path(__file__).parents[1] / "answers" / "amount_cases.json").read_text("utf-8"))
    assert len(cases) > 50
    read = page.evaluate(
        "(cases) => cases.map(({ text, decimal, currency }) => parseAmount(text, { decimal, currency }))", cases
    )
    wrong = [
        (case, got)
        for case, got in zip(cases, read, strict=True)
        if (got.get("value"), bool(got.get("ambiguous"))) != (case["value"], case["ambiguous"])
    ]
    assert wrong == []


@pytest.mark.parametrize("text", ["1,234", "1.234", "1,234 EUR"])
def test_a_price_with_two_readings_is_refused_and_the_row_stays_undecided(page: Page, text: str) -> None:
    type_price(page, text)
    press(page, "Enter")
    assert "write 1234 or 1.23" in status(page)
    assert "write 1234 or 1.23" in page.locator("#understood").inner_text()
    assert decided(page) == []
    press(page, "Escape")
    type_price(page, "1.234,00")
    assert page.locator("#understood").inner_text() == "= 1,234.00 EUR"
    press(page, "Enter")
    [one] = decided(page)
    assert (one["price"], one["currency"], one["confirmed"]) == (1234, "EUR", ["title", "category", "price"])


def test_yen_have_no_decimals(page_in: Callable[[str | None], Page]) -> None:
    page = page_in("JPY")
    type_price(page, "12,80")
    press(page, "Enter")
    assert "has decimals, which JPY does not" in status(page)
    press(page, "Escape")
    type_price(page, "12,800")
    assert page.locator("#understood").inner_text() == "= 12,800 JPY"
    press(page, "Enter")
    assert decided(page)[0]["price"] == 12800


def test_a_price_in_another_currency_than_the_rows_is_refused(page_in: Callable[[str | None], Page]) -> None:
    page = page_in("EUR")
    type_price(page, "$12.50")
    press(page, "Enter")
    assert "is not in EUR" in status(page)
    page = page_in(None)
    type_price(page, "12.50 USD")
    press(page, "Enter")
    assert "this row's prices have none" in status(page)
    assert decided(page) == []


def test_accepting_a_row_does_not_confirm_its_estimate_unless_one_says_so(page: Page) -> None:
    assert "an estimate" in page.locator("#understood").inner_text()
    press(page, "a")
    press(page, "p", "a")
    type_price(page, "1998")
    press(page, "Enter")
    press(page, "p", "p", "a")
    both = ["title", "category"]
    assert [one["confirmed"] for one in decided(page)] == [both, [*both, "price"], [*both, "price"], both]
    assert [one["decision"] for one in decided(page)] == ["accepted"] * 4


def test_undo_takes_back_the_decision_just_made_and_the_file_agrees(page: Page, tmp_path: Path) -> None:
    press(page, "n")
    page.keyboard.type("Ann")
    press(page, "Enter", "u")
    assert status(page) == "There is nothing to undo."
    press(page, "a", "r", "u")
    assert (status(page), page.locator("#place").inner_text()) == (
        "Undone: 0001.jpg is undecided.", f"2 of {COUNT}: 0001.jpg",
    )  # fmt: skip
    assert [one["product_id"] for one in saved(page, tmp_path / "one.json")["decisions"]] == ["0000.jpg"]
    press(page, "k", "r")  # 0000 again, and now rejected
    press(page, "k", "k", "u")
    assert status(page) == "Undone: 0000.jpg is accepted again."
    [one] = saved(page, tmp_path / "two.json")["decisions"]
    assert one["decision"] == "accepted"
    press(page, "u")
    assert decided(page) == []


def test_undo_after_a_reload_still_finds_the_last_decision(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    press(page, "a", "a")
    page.reload()
    press(page, "u")
    assert [one["product_id"] for one in decided(page)] == ["0000.jpg"]


def test_enter_in_an_input_method_a_held_key_and_chords_decide_nothing(page: Page) -> None:
    press(page, "e")
    send(page, key="Enter", isComposing=True)
    send(page, key="Enter", keyCode=229)
    send(page, key="Escape", isComposing=True)
    send(page, key="Enter", repeat=True)
    send(page, key="Enter", ctrlKey=True)
    assert page.evaluate("document.activeElement.id") == "title"
    press(page, "Escape")
    for changes in ({"repeat": True}, {"ctrlKey": True}, {"metaKey": True}, {"altKey": True}, {"isComposing": True}):
        send(page, key="a", code="KeyA", **changes)
    send(page, code="KeyA")
    page.evaluate("document.dispatchEvent(new Event('keydown'))")  # sent when a suggestion is picked from a list
    assert decided(page) == []
    page.locator("#accept").focus()
    send(page, key="Enter", repeat=True)
    assert page.evaluate("""() => !document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', { key: 'Enter', repeat: true, bubbles: true, cancelable: true }))""")
    page.locator("#accept").dblclick()
    assert len(decided(page)) == 1


def test_keys_work_on_other_layouts_and_with_caps_lock(page: Page) -> None:
    send(page, key="A", code="KeyA")  # Caps Lock
    send(page, key="\u0444", code="KeyA")  # Cyrillic
    send(page, key="a", code="KeyQ")  # AZERTY
    send(page, key="&", code="Digit1")  # AZERTY
    send(page, key="!", code="Digit1", shiftKey=True)  # QWERTY: not a digit
    send(page, key="q", code="KeyA")  # AZERTY: not an A
    send(page, key="2", code="Numpad2")
    assert [one["category"] for one in decided(page)] == ["Coats", "Coats", "Coats", "Hats", "Bags"]


def test_what_is_typed_is_kept_by_every_way_of_accepting_and_dropped_by_none_in_silence(page: Page) -> None:
    press(page, "e")
    page.keyboard.type("Cap")
    press(page, "Tab", "Tab", "Tab", "j")
    assert "has unsaved changes" in status(page)
    assert page.locator("#place").inner_text() == f"1 of {COUNT}: 0000.jpg"
    page.locator("#save").click()
    assert "has unsaved changes" in status(page)
    page.locator("#accept").focus()
    press(page, "2")
    assert (decided(page)[0]["title"], decided(page)[0]["category"]) == ("Cap", "Bags")
    press(page, "k", "a")  # once more: the edit that is shown stays
    assert (decided(page)[0]["title"], decided(page)[0]["decision"]) == ("Cap", "edited")


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("=HYPERLINK(1)", "spreadsheets execute as a formula"),
        ("+1", "spreadsheets execute as a formula"),
        ("Felt\u202e Hat", "contains invisible characters"),
        ("Felt\u200b Hat", "contains invisible characters"),
        ("Fe\u200dlt Hat", "contains invisible characters"),
        ("Felt<|end|> Hat", "a special token"),
        ("x" * 201, "has more than 200 characters"),
    ],
)
def test_a_title_that_could_not_be_applied_is_refused_on_the_page(page: Page, title: str, message: str) -> None:
    press(page, "e")
    page.keyboard.insert_text(title)
    press(page, "Enter")
    assert message in status(page)
    assert decided(page) == []


@pytest.mark.parametrize(
    "title", ["\u0646\u06cc\u0645\u200c\u0641\u0627\u0635\u0644\u0647", "Hat \U0001f468\u200d\U0001f467"]
)
def test_joiners_inside_words_are_part_of_a_title(page: Page, title: str) -> None:
    """Persian is spelled with them; `enrich review --apply` takes them too."""
    press(page, "e")
    page.keyboard.insert_text(title)
    press(page, "Enter")
    assert [(one["title"], one["decision"]) for one in decided(page)] == [(title, "edited")]


def test_pasted_lines_become_one_with_spaces(page: Page) -> None:
    press(page, "e")
    page.evaluate("""() => {
        const pasted = new DataTransfer();
        pasted.setData("text", "Felt\\r\\nHat\\n");
        document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true, cancelable: true }));
    }""")
    assert page.locator("#title").input_value() == "Felt Hat"


def test_leaving_with_unsaved_decisions_is_asked_about(page: Page, tmp_path: Path) -> None:
    asked: list[str] = []

    def accept(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", accept)
    press(page, "n")
    page.keyboard.type("Ann")
    press(page, "Enter", "a")
    page.reload()
    assert asked == ["beforeunload"]
    saved(page, tmp_path / "decisions.json")
    page.reload()
    assert len(asked) == 1  # saved decisions need no confirmation
    press(page, "e")
    page.keyboard.type("half")
    page.reload()
    assert len(asked) == 2


def test_two_tabs_share_their_decisions(open_page: Callable[[Path], Page], output: Path) -> None:
    first, second = open_page(output / "review.html"), open_page(output / "review.html")
    press(first, "a")
    second.wait_for_function("decisions.size === 1")
    press(second, "j", "r")
    first.wait_for_function("decisions.size === 2")
    press(first, "j", "a")
    second.wait_for_function("decisions.size === 3")
    assert decided(first) == decided(second)


def test_a_browser_that_remembers_nothing_or_nonsense_still_works(chromium: Any, output: Path) -> None:
    for script in (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } })",
        "Storage.prototype.setItem = () => { throw new DOMException('full'); }",
        'Storage.prototype.getItem = () => \'{"name": 7, "decisions": [null, [1], {"product_id": 1}], "done": [[]]}\'',
        "Storage.prototype.getItem = () => '[\"0000.jpg\"]'",
        "Storage.prototype.getItem = () => '{'",
    ):
        context = chromium.new_context(offline=True)
        context.add_init_script(script)
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto((output / "review.html").as_uri())
        press(page, "a")
        assert (errors, page.locator("#bar").evaluate("(bar) => bar.value") >= (0 if "getItem" in script else 1)) == (
            [], True,
        )  # fmt: skip
        if "getItem" not in script:
            assert "does not store your decisions" in page.locator("#memory").inner_text()
        context.close()


def test_products_that_were_picked_say_why_and_their_decisions_how(
    open_page: Callable[[Path], Page], tmp_path: Path
) -> None:
    mine = make_output(tmp_path, 20)
    picks = label(str(mine), 10)
    write_queue(str(mine), picked=picks.uri)
    expected = json.loads(Path(picks.uri).read_text())["picks"]

    page = open_page(mine / "review.html")
    for number, one in enumerate(expected, start=1):
        assert page.locator("#place").inner_text() == f"{number} of {len(expected)}: {one['product_id']}"
        assert page.locator("#reasons li").all_inner_texts()[: len(one["why"])] == one["why"]
        press(page, "a")
    assert [(one["product_id"], one["picked"]) for one in decided(page)] == [
        (one["product_id"], one["picked"]) for one in expected
    ]
    press(page, "n")
    page.keyboard.type("Ann")
    press(page, "Enter")
    saved(page, tmp_path / "decisions.json")
    assert apply_decisions(str(mine), tmp_path / "decisions.json").counts == {"accepted": len(expected)}
