"""The contact sheet of the UI: thumbnails with answers, none of which becomes markup."""

import io
from pathlib import Path

import polars as pl
from PIL import Image

from enrich.pages.report import render_sheet
from enrich.pages.units import width
from enrich.settings.photos import PhotoLimits
from enrich.storage import open_store

HOSTILE = "<img src=x onerror=alert(1)> | ![x](http://evil) [a](javascript:alert(1)) `b` **c**"


def test_what_a_model_says_stays_text_and_the_photo_is_shown(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    row = {
        "status": "ok", "product_id": "a", "photos": [{"key": "a.jpg", "sha256": "00"}], "title": HOSTILE,
        "category": "Coats|Hats",
        "category_confidence": 0.87, "price": 1200.0, "price_low": 900.0, "price_high": 1500.0, "currency": "EUR",
        "review_reasons": ["wide_price"],
        "attributes": {"heel_height": {"value": HOSTILE, "confidence": 0.5}},
    }  # fmt: skip

    sheet = render_sheet(pl.DataFrame([row]), open_store(str(tmp_path)), PhotoLimits(), most=12)

    line = sheet.splitlines()[2]
    assert line.startswith("| ![photo](data:image/jpeg;base64,")
    said = line.partition(") | ")[2]
    assert "<" not in said.replace("<br>", "")
    assert "![" not in said
    assert "](" not in said
    assert r"Coats\|Hats (87%)" in said.replace("\\%", "%").replace(r"\(", "(").replace(r"\)", ")")
    assert "1,200 EUR" in said.replace("\\,", ",")
    assert len(sheet) < 12_000


def test_long_titles_are_cut_also_without_blanks(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    title = "紺色ウールコート" * 12
    row = {
        "status": "ok", "product_id": "a", "photos": [{"key": "a.jpg", "sha256": "00"}], "title": title,
        "category": "コート", "category_confidence": None, "price": None, "price_low": None, "currency": None,
        "review_reasons": None,
        "attributes": None,
    }  # fmt: skip
    sheet = render_sheet(pl.DataFrame([row]), open_store(str(tmp_path)), PhotoLimits(), most=12)
    assert f"| a<br>{title[:19]}<br>{title[19:38]}<br>" in sheet
    assert "…<br>コート |" in sheet
    assert max(width(line) for line in sheet.splitlines()[2].rpartition("base64")[2].split("<br>")[1:]) < 48
