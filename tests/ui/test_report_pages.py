"""The report of a run and the scores of an adapter in a real browser: desktop, phone and print."""

import base64
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import duckdb
import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Page

from enrich.answers.parse import Answer
from enrich.catalog.check import check
from enrich.catalog.read import read_catalog
from enrich.output import parquet
from enrich.output.changes import compare
from enrich.output.gate import run_stats
from enrich.output.history import read_shards
from enrich.output.products import read_products
from enrich.output.run_record import Cost, RunInfo, RunRecord
from enrich.output.schema import PRODUCTS_SCHEMA, Row
from enrich.pages.catalog_page import render_catalog
from enrich.pages.report import render_scores
from enrich.pipeline.run.records import write_report
from enrich.pipeline.scoring import encode_scores
from enrich.pipeline.site import Site
from enrich.scores.assess import SCORES_FILE, assess
from enrich.scores.figures import confusion
from enrich.scores.metrics import score
from enrich.settings.catalog import Columns
from enrich.settings.photos import PhotoLimits
from enrich.settings.run import RunSettings
from enrich.settings.training import TrainSettings
from enrich.storage import open_store
from enrich.vocabulary import ErrorKind, ManifestItem, Product
from tests.testing.geometry import faults
from tests.testing.rows import at, enrich_night, listing, make_row, make_run
from tests.testing.scores import scored

pytestmark = pytest.mark.ui

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 60 photos, five of which fail, in a separate output, with its report."""
    root = tmp_path_factory.mktemp("report")
    (root / "photos").mkdir()
    keys = [f"a rather long folder/{number:03}.jpg" for number in range(60)]
    for number, key in enumerate(keys):
        (root / "photos" / key).parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 400), (4 * number, 120, 90)).save(root / "photos" / key)

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        number = int(item.product_id[-7:-4])
        if number % 12 == 11:
            return make_row(run, item.product_id, minutes, shard=item.shard, error_kind=ErrorKind.ANSWER_MALFORMED)
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=item.product_id,
            title=EVIL if number == 5 else "Felt Hat",
            category=("Hats", "Bags", "A category with a very long name indeed")[number % 3], price=100.0 + number,
            price_low=80.0, price_high=300.0, category_confidence=0.7, needs_review=number % 4 == 0,
            review_reasons=("low_confidence",) if number % 4 == 0 else (),
        )  # fmt: skip

    store = open_store(str(root / "output"), create=True)
    run = enrich_night(store, make_run(images_uri=str(root / "photos"), shard_size=25), listing(*keys), answer)
    rows = read_shards(store, run)
    stats = run_stats(rows)
    before = read_products(store).table
    known = [{**asdict(make_row(run, keys[0], title="Cap")), "in_source": True}]
    changes = compare(
        rows, parquet.from_records(known, PRODUCTS_SCHEMA).lazy(),
        pl.LazyFrame({"product_id": keys, "reason": ["model"] * 60}), before.lazy().select("product_id"),
    )  # fmt: skip
    record = RunRecord(
        run=run, state="published", counts={"rows": 60, "ok": stats.ok, "failed": stats.failed}, by_reason={"new": 60},
        stats=stats, previous=stats, changes=changes, cost=Cost(0.4, 0.021, 0.00126, "USD"), started_at=at(0),
        finished_at=at(1), seconds=60.0, images_per_second=1.0, engine="transformers", host="here",
    )  # fmt: skip
    store.put(f"{run.folder}{SCORES_FILE}", encode_scores(scored(200), assess(scored(200))))
    write_report(store, open_store(str(root / "photos")), record, rows, RunSettings())
    return root / "output"


def test_figures_are_those_of_the_parquet_files(open_page: Callable[[Path], Page], output: Path) -> None:
    page = open_page(output / "runs" / "night-1" / "report.html")
    rows = f"read_parquet('{output}/history/**/*.parquet', hive_partitioning = false)"
    ok, failed, review = duckdb.execute(
        f"""SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'failed'), avg(needs_review::int)
            FROM {rows}"""
    ).fetchall()[0]
    categories = duckdb.execute(
        f"SELECT category, count(*) FROM {rows} WHERE status = 'ok' GROUP BY category"
    ).fetchall()
    reasons = duckdb.execute(
        f"SELECT r, count(*) FROM (SELECT unnest(review_reasons) AS r FROM {rows}) GROUP BY r"
    ).fetchall()
    scores = f"'{output}/runs/night-1/scores.parquet'"
    inside = duckdb.execute(f"SELECT avg((price BETWEEN price_low AND price_high)::int) FROM {scores}").fetchall()[0][0]

    def figure(name: str) -> str:
        return page.locator(f'[data-figure="{name}"]').inner_text()

    assert [figure(name) for name in ("rows", "ok", "failed", "review")] == [
        "60",
        f"{ok}",
        f"{failed}",
        f"{review:.1%}",
    ]
    assert len(categories) == 3
    for category, count in categories:
        assert figure(f"category {category}") == str(count)
    for reason, count in reasons:
        assert figure(f"review {reason}") == str(count)
    assert f"{inside:.1%} of the true prices are inside their 90% intervals" in page.inner_text("body")


def test_everything_is_there_and_the_models_text_stays_text(open_page: Callable[[Path], Page], output: Path) -> None:
    page = open_page(output / "runs" / "night-1" / "report.html")
    text = page.inner_text("body")

    wanted = (
        "0.02", "cost per 1,000 products", "cost of the run at 0.40 USD an hour",
        "What changed since the last run", "Cap, Coats, 100",
        "1 products already had a good answer: 1 got another category", "Why products need review", "answer_malformed",
        "Prices, true and estimated", "Is the confidence right?", "Coverage of the price intervals by category",
        "Which categories are confused", "there is nothing to compare",
    )  # fmt: skip
    for words in wanted:
        assert words in text, words
    broken = page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length")
    assert broken == 0
    assert page.locator("table img").count() == 5  # photos that failed but can still be displayed
    assert page.locator("script").count() == 0


@pytest.fixture(scope="module")
def scores_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores with a further field, as `enrich score` writes them."""
    products = [Product("1", "Hat", "Hats", 10.0, ("/1.jpg",))]
    same = score(products, [Answer("Hat", "Hats", 10)])
    metrics = {**assess(scored(120), sigma=0.15), "test": same, "base": same, "fields": ["sleeve_length"]}
    metrics["baselines"] = {"category_median": same, "majority_class": same}
    page = tmp_path_factory.mktemp("scores") / "scores.html"
    page.write_text(render_scores(scored(120), metrics, "120 products of /data/catalog", "a1"))
    return page


@pytest.fixture(scope="module")
def catalog_page(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of yen with a long file name and a row that is left out."""
    root = tmp_path_factory.mktemp("catalog")
    shutil.copytree(output.parent / "photos", root / "images")
    names = [f"images/a rather long folder/{number:03}.jpg" for number in range(30)]
    rows = [f"{n},Hat {n},{'HATS' if n % 2 else 'A VERY LONG CATEGORY NAME INDEED'},{1200 + n},JPY,{name}"
            for n, name in enumerate(names)]  # fmt: skip
    lines = ["product_code,title,category,price,currency,local_image_path", *rows, "x,,HATS,1,JPY,images/none.jpg"]
    (root / "catalog.csv").write_text("\n".join(lines))
    page = root / "catalog.html"
    named = {name: name for name in ("product_code", "title", "price", "currency")}
    columns = Columns.model_validate({**named, "category": ("category",), "image_path": "local_image_path"})
    catalog = read_catalog(root, columns)
    found = check(catalog, TrainSettings(), lambda done, total: None)
    page.write_text(
        render_catalog(str(root), found.as_page(), lambda path, most: Path(path).read_bytes(), PhotoLimits())
    )
    return page


def test_every_page_fits_a_phone_a_window_and_paper(
    open_page: Callable[[Path], Page], output: Path, scores_page: Path, catalog_page: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.html"
    (output / "runs" / "not-finished-yet").mkdir(exist_ok=True)
    (output / "runs" / "not-finished-yet" / "manifest.parquet").touch()
    index.write_bytes(Site(open_store(str(output))).index())
    for path in (output / "runs" / "night-1" / "report.html", scores_page, catalog_page, index):
        page = open_page(path)
        assert faults(page) == {}, path
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_product_is_named_and_yen_have_no_decimals(
    open_page: Callable[[Path], Page], output: Path, catalog_page: Path
) -> None:
    report = open_page(output / "runs" / "night-1" / "report.html")
    captions = report.locator(".sheet figcaption").all_inner_texts()
    assert all(re.search(r"\d{3}\.jpg\n.+", caption) for caption in captions)
    catalog = open_page(catalog_page).inner_text("body")
    assert "1,214 JPY" in catalog
    assert not re.search(r"\d[.]\d\d\b", catalog)


@pytest.mark.parametrize("categories", [12, 13, 40])
def test_labels_of_the_confusion_figure_do_not_overlap(
    open_page: Callable[[Path], Page], tmp_path: Path, categories: int
) -> None:
    names = [f"WOMAN > CLOTHING {number:02}" for number in range(categories)]
    table = pl.DataFrame(
        [{"category": names[n % categories], "answered_category": names[n * n % categories]} for n in range(600)]
    )
    drawn = confusion(table)
    assert drawn
    svg = base64.b64decode(drawn.partition(",")[2])
    (tmp_path / "figure.html").write_bytes(b"<!doctype html>" + svg[svg.index(b"<svg") :])
    page = open_page(tmp_path / "figure.html")
    boxes = page.evaluate("""() => [...document.querySelectorAll("svg text")].map((one) => {
        const box = one.getBoundingClientRect();
        return [one.textContent, box.left, box.top, box.right, box.bottom];
    })""")
    assert len([box for box in boxes if "CLOTHING" in box[0]]) >= 22
    for one, other in combinations(boxes, 2):
        apart = one[3] <= other[1] + 1 or other[3] <= one[1] + 1 or one[4] <= other[2] + 1 or other[4] <= one[2] + 1
        assert apart, (one, other)
    assert min(box[1] for box in boxes) >= 0
