"""The half page about a run that is shown where Markdown is rendered."""

import html
import re
from itertools import pairwise
from typing import Any

import pytest
from markdown_it import MarkdownIt

from enrich.pages.report import render_summary

EVIL = "<img src=x onerror=alert(1)> | a`b` *c* _d_ [e](http://f) ![g](h) ~~i~~ &lt; \\ # https://evil.example\n\n- j"


def record(**changes: Any) -> dict[str, Any]:
    values = {
        "state": "published",
        "older": 3,
        "run": {"run_id": "night", "images_uri": "s3://photos", "model": "tiny", "adapter": "a1"},
        "counts": {"rows": 3, "ok": 1, "failed": 2},
        "by_error_kind": {"not_an_image": 2},
        "by_reason": {"new": 3},
        "findings": [],
        "engine": "transformers",
        "seconds": 12.3,
        "images_per_second": 0.24,
        "adapter_uri": "s3://adapters/new",
        "catalog_uri": "s3://catalog",
        "cost": {"per_hour": 4.5, "per_1000_photos": 5.0, "total": 0.015, "currency": "EUR"},
        "stages": {
            "photos_per_second": 5.21,
            "bottleneck": "decode",
            "advice": "raise decode_processes from 2 to 5",
            "starved": 0.456,
            "uses": [
                {"stage": "decode", "seconds": 0.0114, "busy": 0.98},
                {"stage": "engine", "seconds": 0.24, "busy": 0.5},
            ],
        },
    }
    return values | changes


def render(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough").render(text)


def cells(page: str) -> list[str]:
    return [html.unescape(cell.replace("<br>", " ")) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]


def test_counts_and_reasons_are_tables() -> None:
    page = render(render_summary(record(), "s3://out/"))

    assert {("ok", "1"), ("failed with not_an_image", "2"), ("new", "3")} <= set(pairwise(cells(page)))
    assert {
        "s3://out/runs/night/report.html", "a1, s3://adapters/new", "0.01 EUR, at 4.50 EUR an hour",
        "12 s in all, 5.2 products per second while answering",
        "decode (busy 98%): raise decode_processes from 2 to 5",
        "46 % of the time", "decode 11.4 ms, engine 240 ms",
    } <= set(cells(page))  # fmt: skip
    assert "bottleneck" not in render_summary(record(stages=None), "s3://out")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("published", "<strong>Published:</strong> s3://out/products.parquet"),
        ("nothing_to_do", "<strong>Nothing to do:</strong> every product already had its answer."),
        ("held", "enrich publish --output s3://out --run-id night"),
    ],
)
def test_the_first_line_says_how_it_ended(state: str, words: str) -> None:
    assert words in render(render_summary(record(state=state), "s3://out"))


def test_above_a_form_that_asks_for_the_decision_no_command_is_named() -> None:
    page = render(render_summary(record(state="held"), "s3://out", deciding=True))
    assert "then decide below" in page
    assert "enrich publish" not in page


def test_words_from_outside_are_shown_as_they_are() -> None:
    page = render(render_summary(record(findings=[{"message": EVIL}]), "s3://out"))

    (item,) = re.findall(r"<li>(.*?)</li>", page)
    assert "<" not in item
    assert html.unescape(item) == " ".join(EVIL.split())


def test_words_from_outside_do_not_leave_their_cell() -> None:
    run = {"run_id": "night", "images_uri": EVIL, "model": "tiny", "adapter": "a1"}

    page = render(render_summary(record(run=run), "s3://out"))

    assert ("photos", " ".join(EVIL.split())) in pairwise(cells(page))
    assert page.count("<tr>") == render(render_summary(record(), "s3://out")).count("<tr>")


def test_what_people_found_is_a_line_a_field() -> None:
    fields = [
        {"field": "category", "decisions": 97, "wrong": 0.04, "low": 0.016, "high": 0.1, "claimed": 0.052},
        {"field": "sleeve_length", "decisions": 1031, "wrong": 0.2, "low": 0.13, "high": 0.29, "claimed": None},
    ]
    page = render(render_summary(record(observed={"decisions": 97, "fields": fields}), "s3://out"))
    lines = re.findall(r"<li>what people found: (.*?)</li>", page)
    assert lines == [
        "category wrong in 4.0% (1.6% to 10.0%) of 97 products picked at random; the confidences predict 5.2%",
        "sleeve length wrong in 20.0% (13.0% to 29.0%) of 1,031 products picked at random",
    ]
    assert "people found" not in render_summary(record(observed=None), "s3://out")
