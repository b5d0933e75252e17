"""Links to the pages of a run in Prefect's UI: served, into S3 for a time, or with the command that serves them."""

import re
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError

import pytest
from markdown_it import MarkdownIt

from enrich.errors import redact
from enrich.output.run_record import RunRecord
from enrich.pages.links import render_links
from enrich.pipeline.linking import link_pages
from enrich.settings.run import RunSettings
from enrich.storage import Store, open_store
from tests.testing.rows import at, make_run


def made(output: Store, *, queue: bool = True, serve_url: str | None = None) -> RunRecord:
    output.put("runs/night-1/report.html", b"<!doctype html>the report")
    if queue:
        output.put("review.html", b"<!doctype html>the queue")
    return RunRecord(
        run=make_run(), state="published", counts={"rows": 1, "ok": 1, "failed": 0}, started_at=at(0),
        finished_at=at(1), seconds=60, images_per_second=1, engine="fake", host="h", serve_url=serve_url,
    )  # fmt: skip


def links(markdown: str) -> dict[str, str]:
    html = MarkdownIt("commonmark").render(markdown)
    return {name: url.replace("&amp;", "&") for url, name in re.findall(r'<a href="([^"]*)">([^<]*)</a>', html)}


def test_pages_that_are_served_are_linked(tmp_path: Path) -> None:
    record = made(open_store(str(tmp_path)), serve_url="http://pages.shop.example:8420/")
    text = render_links(link_pages(record, str(tmp_path), RunSettings()))
    assert links(text) == {
        "Report of the run": "http://pages.shop.example:8420/runs/night-1/report.html",
        "Products to review": "http://pages.shop.example:8420/review.html",
    }
    assert "enrich" not in text.replace("example", "")
    other = RunSettings(serve_url="https://other.example/shop")
    assert (
        "https://other.example/shop/review.html"
        in links(render_links(link_pages(record, str(tmp_path), other))).values()
    )


def test_pages_of_a_folder_are_linked_next_to_the_command_that_serves_them(tmp_path: Path) -> None:
    place = tmp_path / "it's `here`"
    place.mkdir()
    text = render_links(link_pages(made(open_store(str(place)), queue=False), str(place), RunSettings()))
    assert links(text) == {"Report of the run": "http://127.0.0.1:8420/runs/night-1/report.html"}
    quoted = "'" + str(place).replace("'", "'\"'\"'") + "'"
    assert f"\nenrich serve --output \\\n  {quoted}\n" in text
    assert f"\nenrich review --output \\\n  {quoted}\n" in text
    assert "file:" not in text


def test_a_place_closes_no_block_of_code(tmp_path: Path) -> None:
    place = tmp_path / "a\n```\n# evil"
    place.mkdir()
    text = render_links(link_pages(made(open_store(str(place))), str(place), RunSettings()))
    assert "<h1>" not in MarkdownIt("commonmark").render(text)


def test_pages_in_s3_open_for_a_time_and_no_others_do(s3_bucket: str) -> None:
    place = f"{s3_bucket}/out"
    made_links = link_pages(made(open_store(place)), place, RunSettings(link_hours=2))
    found = links(render_links(made_links))
    for name, body in (("Report of the run", b"the report"), ("Products to review", b"the queue")):
        with urllib.request.urlopen(found[name]) as answer:
            assert answer.read().endswith(body)
    assert made_links.until is not None
    assert timedelta(hours=1.9) < made_links.until - datetime.now(UTC) <= timedelta(hours=2)
    assert "X-Amz-Expires=7" in found["Products to review"]  # 7,199 or 7,200 s
    assert f"until {made_links.until:%Y-%m-%d %H:%M} UTC" in render_links(made_links)
    assert "anyone who has one can read that page" in render_links(made_links)
    with pytest.raises(HTTPError):
        urllib.request.urlopen(found["Products to review"].replace("review.html", "products.parquet"))
    assert "X-Amz-Signature=***" in redact(found["Products to review"])  # if it ever gets into a log
    for settings in (RunSettings(link_hours=0), RunSettings(serve_url="https://pages.example")):
        assert "X-Amz" not in render_links(link_pages(made(open_store(place)), place, settings))


def test_a_link_ends_with_the_credentials_that_signed_it(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.credentials import RefreshableCredentials

    end = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=40)
    role = {"access_key": "test-key", "secret_key": "test-secret", "token": "t", "expiry_time": end.isoformat()}
    credentials = RefreshableCredentials.create_from_metadata(role, refresh_using=lambda: role, method="test")
    monkeypatch.setattr("boto3.session.Session.get_credentials", lambda self: credentials)
    place = f"{s3_bucket}/out"
    assert link_pages(made(open_store(place)), place, RunSettings()).until == end


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://a b", "http://x)[y](z", "https://user:pw@host", "x"])
def test_an_address_is_a_plain_one(url: str) -> None:
    with pytest.raises(ValueError, match="serve_url"):
        RunSettings(serve_url=url)
