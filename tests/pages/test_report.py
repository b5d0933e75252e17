"""What people read: the page about a run and the card of an adapter. What the model wrote stays text."""

import base64
import html
import io
import re
import shlex
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from PIL import Image

from enrich.answers.parse import Answer
from enrich.answers.prompt import make_prompt
from enrich.output.parquet import from_records
from enrich.output.run_record import RunRecord, Stages, StageUse
from enrich.output.schema import ROW_SCHEMA, Attribute, Row
from enrich.pages.pictures import SHEET, THUMBNAIL
from enrich.pages.report import render_card, render_report, score_table
from enrich.scores.metrics import score
from enrich.settings.photos import PhotoLimits
from enrich.storage import Store, open_store
from enrich.vocabulary import ErrorKind, Product
from tests.testing.rows import at, make_photo, make_row, make_run

RUN = make_run()
OUT = "s3://out/it's here"
EVIL = "<script>alert(1)</script> \" onerror='x' =cmd()|'/c calc'!A1 & {{ 7 * 7 }}"


class Page(HTMLParser):
    """The text of a page, its tags, and the attributes of its images."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def frame(*rows: Row) -> pl.DataFrame:
    return from_records([asdict(row) for row in rows], ROW_SCHEMA)


def ok_row(key: str, **changes: Any) -> Row:
    values: dict[str, Any] = {"category_confidence": 0.87, "sha256": key, "price_low": 80.0, "price_high": 1250.4}
    return make_row(RUN, key, **(values | changes))


def record(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "run": RUN,
        "state": "published",
        "counts": {"rows": 1234, "ok": 1230, "failed": 4},
        "by_reason": {"new": 1200, "changed": 34},
        "started_at": at(0),
        "finished_at": at(3),
        "seconds": 180.4,
        "images_per_second": 6.84,
        "engine": "transformers",
        "host": "here",
        "stages": Stages(
            1234,
            7.5,
            (
                StageUse("download", 0.0123, 18, 0.05),
                StageUse("queue", 0.5, None, None),
                StageUse("engine", 0.129, 1, 0.97),
            ),
            0.01,
            "engine",
            "set quantization to fp8",
        ),
    }
    return RunRecord.model_validate(values | changes).model_dump(mode="json")


@pytest.fixture
def photos(tmp_path: Path) -> Store:
    """Photos 0.png .. 29.png of 400 x 200 pixels."""
    for i in range(30):
        Image.new("RGB", (400, 200), (i * 8, 100, 50)).save(tmp_path / f"{i}.png")
    return open_store(str(tmp_path))


def test_a_page_shows_the_runs_figures(photos: Store) -> None:
    page = Page(render_report(record(), frame(ok_row("1.png")), photos, PhotoLimits(), output=OUT))

    for words in ("Run night-1", "Published to products.parquet.", "1,234 products", "1,230 ok", "4 failed",
                  "7.5 products per second while answering", "180 s in total", "new 1,200", "changed 34",
                  "download 12.3 ms 18 5%", "queue 500 ms engine 129 ms 1 97%",
                  "Bottleneck: engine (busy 97%): set quantization to fp8.",
                  "adapter a1 on tiny", "engine transformers"):  # fmt: skip
        assert words in page.text
    assert "script" not in page.tags
    assert not [image for image in page.images if not str(image["src"]).startswith("data:")]  # nothing is fetched


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "nothing_to_do"}, "Nothing to do: every product already had its answer."),
        ({"state": "held"}, f"Release the run with enrich publish --output {shlex.quote(OUT)} --run-id night-1 ."),
        (
            {"findings": [{"limit": "max_failed", "value": 0.5, "allowed": 0.2, "message": f"half failed {EVIL}"}]},
            f"half failed {EVIL}",
        ),
        (
            {
                "stats": {
                    "rows": 4, "ok": 4, "failed": 0, "failed_by_kind": {}, "unknown_category": 0, "review": 1,
                    "category_mix": {}, "price_median": None,
                }
            },
            "25.0% to review",
        ),
    ],
)  # fmt: skip
def test_a_page_says_how_the_run_ended(photos: Store, changes: dict[str, Any], words: str) -> None:
    page = Page(render_report(record(**changes), frame(), photos, PhotoLimits(), output=OUT))

    assert words in page.text


def test_photos_with_issues_and_pictures_of_many_products_are_counted_and_shown(photos: Store) -> None:
    blurred = make_photo(RUN, "1.png", sha256="a", photo_issues=("blurred", "dark"))
    rows = [ok_row("blurred", photos=(blurred, make_photo(RUN, "2.png"))), ok_row("older")]
    rows += [ok_row(str(n), photos=(make_photo(RUN, "3.png", sha256="same", photo_issues=()),)) for n in range(8)]
    page = Page(render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT))
    assert "Out of 9 decoded photos." in page.text
    assert "blurred 1 dark 1 the same picture for 8 products or more 8" in page.text
    assert [(image.get("class"), image.get("alt")) for image in page.images].count(("small", "")) == 3
    assert (
        "Photos to look at"
        not in Page(render_report(record(), frame(*rows[1:3]), photos, PhotoLimits(), output=OUT)).text
    )


def test_titles_have_the_language_of_their_letters_and_may_run_from_right_to_left(photos: Store) -> None:
    page = render_report(record(), frame(ok_row("1.png", title="紺色ウールコート")), photos, PhotoLimits(), output=OUT)
    assert '<html lang="en">' in page  # the words around the titles
    assert '<div class="sheet" lang="ja">' in page
    assert '<b dir="auto">紺色ウールコート</b>' in page
    arabic = render_report(record(), frame(ok_row("1.png", title="قميص")), photos, PhotoLimits(), output=OUT)
    assert arabic.count(' lang="') == 1  # only the page's own


def test_a_photo_is_shown_with_what_was_said_of_it(photos: Store) -> None:
    row = ok_row("1.png", title="Felt Hat", price=1000.0, needs_review=True, review_reasons=("low_confidence",))

    page = Page(render_report(record(), frame(row), photos, PhotoLimits(), output=OUT))

    assert "1.png Felt Hat Coats 87% 1,000 EUR 80 to 1,250 low confidence" in page.text
    [image] = page.images
    assert image["alt"] == "Felt Hat"
    thumbnail = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).removeprefix("data:image/jpeg;base64,"))))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (THUMBNAIL, THUMBNAIL // 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"price": None, "price_low": None, "price_high": None, "currency": None}, "no price"),
        ({"price_low": None, "price_high": None}, "87% 100 EUR Categories"),
        ({"currency": None}, "87% 100 80 to 1,250"),
    ],
)
def test_a_photo_without_price_or_interval(photos: Store, changes: dict[str, Any], words: str) -> None:
    page = Page(render_report(record(), frame(ok_row("1.png", **changes)), photos, PhotoLimits(), output=OUT))

    assert words in page.text


def test_the_sheet_is_a_sample_of_ok_photos(photos: Store) -> None:
    rows = [ok_row(f"{i}.png", sha256=f"{30 - i:02}") for i in range(30)]
    rows += [make_row(RUN, "failed.png", error_kind=ErrorKind.TRUNCATED, sha256="00")]

    page = Page(render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT))
    again = Page(render_report(record(), frame(*reversed(rows)), photos, PhotoLimits(), output=OUT))

    assert [image["alt"] for image in page.images] == [f"Title of {i}.png" for i in range(29, 29 - SHEET, -1)]
    assert again.images == page.images


def test_photos_that_cannot_be_shown_are_left_out(photos: Store, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no photo any more")
    (tmp_path / "big.png").write_bytes(b"x" * 5000)
    rows = [ok_row(key) for key in ("1.png", "gone.png", "text.png", "big.png", "../outside.png")]

    page = Page(render_report(record(), frame(*rows), photos, PhotoLimits(max_bytes=4000), output=OUT))

    assert [image["alt"] for image in page.images] == ["Title of 1.png"]


def test_failed_photos_are_listed_with_their_errors(photos: Store) -> None:
    rows = [make_row(RUN, "z.jpg", error_kind=ErrorKind.EMPTY), make_row(RUN, "a.jpg", error_kind=ErrorKind.TRUNCATED)]

    page = Page(render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT))

    assert "z.jpg empty made to fail 1 a.jpg truncated made to fail 1" in page.text  # by kind
    assert "more" not in page.text


def test_a_long_list_of_failures_is_cut(photos: Store) -> None:
    rows = [make_row(RUN, f"{i:03}.jpg", error_kind=ErrorKind.EMPTY) for i in range(203)]

    page = Page(render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT))

    assert "199.jpg" in page.text
    assert "200.jpg" not in page.text
    assert "and 3 more" in page.text


def test_declared_fields_are_shown_and_counted(photos: Store) -> None:
    said = {"heel_height": Attribute("7", 0.91), "colour": Attribute(None, 0.6), "note": Attribute("<b>new</b>", None)}
    rows = [ok_row("1.png", attributes=said), ok_row("2.png", attributes={"colour": Attribute("Red", 0.8)})]

    page = render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT)

    assert "heel height 7 91% colour unknown 60% note <b>new</b>" in Page(page).text
    assert "heel height 100% 91% 7 1 colour 50% 70% Red 1 note 100% <b>new</b> 1" in Page(page).text
    assert "<b>new" not in page


def test_categories_are_counted(photos: Store) -> None:
    rows = [ok_row(f"{i}.png", category="Hats" if i < 3 else "Bags") for i in range(4)]

    page = render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT)

    assert "Hats 3 87% 100 0% Bags 1 87% 100 0%" in Page(page).text
    assert "width:100.0%" in page
    assert "width:33.3%" in page


def test_what_the_model_wrote_stays_text(photos: Store) -> None:
    rows = [
        ok_row("1.png", title=EVIL, category=EVIL, currency=EVIL),
        make_row(RUN, f"{EVIL}.jpg", error_kind=ErrorKind.ANSWER_MALFORMED, error_message=EVIL),
    ]

    source = render_report(record(), frame(*rows), photos, PhotoLimits(), output=OUT)
    page = Page(source)

    assert "<script" not in source
    assert "{{ 7 * 7 }}" in source
    assert page.text.count("<script>alert(1)</script>") == 6
    [image] = page.images
    assert {*image} == {"src", "alt"}
    assert image["alt"] == EVIL


def card_metrics(**changes: Any) -> dict[str, Any]:
    products = [Product("P", "Felt Hat", "HATS", 100.0, ("/a",)), Product("Q", "Bag", "BAGS", 50.0, ("/b",))]
    right = score(products, [Answer("Felt Hat", "HATS", 110), Answer("Bag", "BAGS", 50)])
    wrong = score(products, [Answer("Felt Hat", "HATS", 200), Answer("Felt Hat", "HATS", 200)])
    values = {
        "test": right,
        "base": score(products, [None, None]),
        "baselines": {"majority_class": wrong},
        "intervals": {"coverage": 0.91, "mean_ratio": 2.5},
        "category_ece": 0.0421,
    }
    return values | changes


PREFLIGHT = {"photos_per_product": 1, "image_tokens": {"least": 313, "median": 757, "most": 781}}
TRAIN = {"settings": {"model": "owner/base"}, "rows": {"train": 480}, "preflight": PREFLIGHT}


def test_a_card_states_scores_next_to_the_baselines() -> None:
    card = render_card(TRAIN, card_metrics(), make_prompt(("HATS", "BAGS"), "EUR"))

    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "owner/base"
    assert "from 480 labelled photos\nof 2 categories, prices in EUR." in body
    assert (
        "A turn of the user in the base's chat template: first the photo, then\n\n"
        "    What product is this? Give its title, category and full price in EUR.\n\n" in body
    )
    assert "The photos of a prompt take 313 to 781 tokens, with a median of 757.\n" in body
    assert "Category, Full Price; the last is a whole number of units, or `unknown`." in body
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert table == [
        "| | parsed | category accuracy | macro F1 | title exact | title token F1 | title edit score "
        "| price MdAPE | price within 20 % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| adapter | 100.0% | 100.0% | 1.000 | 100.0% | 1.000 | 1.000 | 5.0% | 100.0% |",
        "| base without adapter | 0.0% | 0.0% | 0.000 | 0.0% | 0.000 | 0.000 | 100.0% | 0.0% |",
        "| majority class | 100.0% | 50.0% | 0.333 | 50.0% | 0.500 | 0.562 | 200.0% | 0.0% |",
    ]
    assert "Price intervals at 90 %: 91.0% of the true prices are inside; from low to high the mean width is" in body
    assert "expected calibration error 0.042." in body


@pytest.mark.parametrize(
    "model", ["a`b`c", "x\n---\n# Mine", "![i](http://x/y)", "<script>alert(1)</script>", "a: b # c", "| x |"]
)
def test_a_card_shows_names_as_they_are(model: str) -> None:
    train = {**TRAIN, "settings": {"model": model}}
    card = render_card(train, card_metrics(), make_prompt(("HATS",), "EUR"))

    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == model
    line = next(line for line in body.splitlines() if line.startswith("A LoRA adapter on "))
    shown = html.unescape(re.sub(r"\\(.)", r"\1", line))
    assert shown.startswith(f"A LoRA adapter on {' '.join(model.split())}, made by")
    assert "<script>" not in body
    assert "![i]" not in body


def test_a_card_has_the_scores_of_declared_fields() -> None:
    names = ("accuracy", "accuracy_known", "accuracy_always", "ece", "review_share")
    estimates = {f"heel_height_{name}": {"value": 0.25, "low": 0.2, "high": 0.3} for name in names}
    card = render_card(TRAIN, card_metrics(fields=["heel_height"], estimates=estimates), make_prompt(("HATS",), "EUR"))

    assert "| heel height | 25.0% | 25.0% | 25.0% | - | - | 0.250 | 25.0% |" in card
    assert "Further fields" not in render_card(TRAIN, card_metrics(), make_prompt(("HATS",), "EUR"))


def test_a_table_stands_whole_in_markdown() -> None:
    """No blank line within it, a blank line before and after."""
    lines = render_card(TRAIN, card_metrics(), make_prompt(("HATS",), None)).splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]

    assert rows == list(range(rows[0], rows[0] + 5))
    assert lines[rows[0] - 1] == lines[rows[-1] + 1] == ""


def test_a_card_of_a_catalog_without_prices_and_an_adapter_without_answers() -> None:
    products = [Product("P", "Felt Hat", "HATS", None, ("/a",))]
    metrics = card_metrics(test=score(products, [None]), base=None, baselines={}, intervals=None, category_ece=None)

    card = render_card(TRAIN, metrics, make_prompt(("HATS",), None))

    assert "| adapter | 0.0% | 0.0% | 0.000 | 0.0% | 0.000 | 0.000 | - | - |" in card
    assert "prices in" not in card
    assert "Price intervals" not in card
    assert "calibration error" not in card
    assert [name for name, _ in score_table(metrics)] == ["adapter"]


def test_where_the_best_possible_is_known_it_stands_below() -> None:
    ideal = {"price_mdape": 0.163, "price_within_20_percent": 0.58, "price_crps": 0.14}

    *_, (name, best) = score_table(card_metrics(ideal=ideal))

    assert name == "best possible"
    assert {column: value for column, value in best.items() if value != "-"} == {
        "price MdAPE": "16.3%", "price within 20 %": "58.0%",
    }  # fmt: skip
