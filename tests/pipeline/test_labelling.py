"""`enrich label`: products picked, shown in that order with the reasons, decided, and counted in the next run."""

import json
import re
from pathlib import Path
from random import Random
from string import ascii_letters
from typing import Any

import pytest
from PIL import Image

from enrich.errors import UsageError
from enrich.output.reviews import read_reviews
from enrich.output.run_record import RunInfo
from enrich.output.schema import Row
from enrich.pipeline.labelling import label
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.storage import open_store
from enrich.vocabulary import ManifestItem
from tests.testing.cli import RunCli
from tests.testing.rows import enrich_night, listing, make_row, make_run

KEYS = [f"{number:02}.png" for number in range(30)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output of thirty products, the later the surer, that need no review."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, key in enumerate(KEYS):
        Image.new("RGB", (16, 16), (8 * number, 90, 60)).save(photos / key)

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        number = int(item.product_id.removesuffix(".png"))
        values: dict[str, Any] = {
            "title": "".join(Random(number).sample(ascii_letters, 12)), "sha256": f"of {number}",
            "category_confidence": 0.3 + number / 50, "price_low": 80.0, "price_high": 125.0,
        }  # fmt: skip
        return make_row(run, item.product_id, minutes, shard=item.shard, **values)

    store = open_store(str(tmp_path / "output"), create=True)
    enrich_night(store, make_run(images_uri=str(photos)), listing(*KEYS), answer)
    return tmp_path / "output"


def test_products_of_deep_folders_are_picked_and_decided_on(tmp_path: Path) -> None:
    key = 400 * "folder/" + "a.jpg"
    (tmp_path / "photos").mkdir()
    store = open_store(str(tmp_path / "output"), create=True)
    run = make_run(images_uri=str(tmp_path / "photos"))
    enrich_night(store, run, listing(key), lambda run, item, at: make_row(run, item.product_id, at, title="Coat"))
    assert label(store.uri, 1).products == 1
    write_queue(store.uri, picked=f"{store.uri}/label.json")
    assert apply_decisions(store.uri, decisions_of(tmp_path / "output", 1)).counts == {"accepted": 1}


def page_data(output: Path) -> dict[str, Any]:
    [data] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', (output / "review.html").read_text(), re.DOTALL
    )
    return json.loads(data)


def decisions_of(output: Path, count: int) -> Path:
    """What the page saves when the first `count` rows are accepted."""
    page = page_data(output)
    decisions = [
        {name: row[name] for name in ("product_id", "photos", "run_id", "title", "category", "price", "picked")}
        | {"decision": "accepted", "confirmed": ["title", "category"]}
        for row in page["rows"][:count]
    ]
    path = output.parent / "decisions.json"
    saved = {name: page[name] for name in ("format", "output", "runs")}
    path.write_text(json.dumps(saved | {"reviewed_by": "Ann", "decisions": decisions}))
    return path


def test_the_page_shows_what_was_picked_in_that_order_with_the_reasons(output: Path) -> None:
    done = label(str(output), 10)
    assert (done.products, done.random, done.undecided) == (10, 2, 30)
    picks = json.loads(Path(done.uri).read_text())["picks"]

    queue = write_queue(str(output), limit=3, picked=done.uri)

    assert (queue.rows, queue.waiting) == (10, 10)
    rows = page_data(output)["rows"]
    assert [(row["product_id"], row["picked"], row["why"]) for row in rows] == [
        (one["product_id"], one["picked"], one["why"]) for one in picks
    ]
    assert "as enrich label picked them" in (output / "review.html").read_text()


def test_decided_products_are_not_picked_again_and_their_decisions_say_how_they_were_picked(output: Path) -> None:
    first = label(str(output), 10, str(output.parent / "picks.json"))
    write_queue(str(output), picked=first.uri)
    apply_decisions(str(output), decisions_of(output, 7))

    reviews = read_reviews(open_store(str(output)))
    shown = [row["picked"] for row in page_data(output)["rows"][:7]]
    assert sorted(reviews["picked"]) == sorted(shown)
    assert set(shown) == {"chosen", "random"}
    assert set(reviews["adapter"]) == {make_run().adapter}
    assert reviews["suggested_price_low"].to_list() == [80.0] * 7
    assert reviews["suggested_confidence"].min() == pytest.approx(0.3)  # of the model, not what a decision makes of it

    assert write_queue(str(output), picked=first.uri).rows == 3
    second = label(str(output), 100)
    assert (second.products, second.undecided) == (23, 23)
    picked = {one["product_id"] for one in json.loads(Path(second.uri).read_text())["picks"]}
    assert not picked & set(reviews["product_id"])


def test_wrong_input_is_one_line_and_code_2(output: Path, tmp_path: Path, run_cli: RunCli) -> None:
    def refused(words: str, message: str) -> None:
        code, _, error = run_cli(words)
        assert (code, error.count("\n")) == (2, 1)
        assert re.search(message, error)

    picks = output.parent / "picks.json"
    (tmp_path / "empty").mkdir()
    refused(f"label --output {output} --budget 0", "Input should be greater than or equal to 1")
    refused(f"label --output {output} --budget 100001", "give the number of products to pick, 1 to 100,000")
    refused(f"label --output {output}", "Missing option '--budget'")
    refused(f"label --output {tmp_path}/nowhere --budget 5", "nowhere")
    refused(f"label --output {tmp_path}/empty --budget 5", r"no products\.parquet; make one with `enrich run`")
    refused(f"label --output {output} --budget 5 --to {tmp_path}", "is a directory; name a file in it")
    refused(f"review --output {output} --picked {picks}", "no such file; write it with `enrich label`")

    code, out, _ = run_cli(f"label --output {output} --budget 50 --to {picks}")
    assert (code, f"show them: enrich review --output {output} --picked {picks}" in out) == (0, True)
    code, out, _ = run_cli(f"review --output {output} --picked {picks}")
    assert (code, "30 of 30 rows that were picked" in out) == (0, True)
    refused(f"review --output {output} --picked {picks} --apply {picks}", "--picked cannot be combined with --apply")
    apply_decisions(str(output), decisions_of(output, 30))
    refused(f"label --output {output} --budget 5", "no undecided product with an answer is left")
    refused(f"review --output {output} --picked {picks}", "none of its 30 products is still undecided .*; pick others")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "enrich-review-2"}', '{"format": "enrich-label-1"}', "\xff"])
def test_what_is_not_a_file_of_picks_is_refused(output: Path, text: str) -> None:
    path = output.parent / "picks.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="is not a file that `enrich label` wrote"):
        write_queue(str(output), picked=str(path))
