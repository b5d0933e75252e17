"""From rows that need a person to published decisions and a larger catalog."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image
from rows import at, enrich_night, listing, make_row, make_run

from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.run_record import RunInfo
from enrich.schema import Alternative, ManifestItem, Row
from enrich.storage import open_store

EVIL = "</script><script>alert(1)</script>"
ROWS: dict[str, dict[str, Any]] = {
    "sure.png": {"category_confidence": 0.99},
    "cheap.png": {"category_confidence": 0.4, "price": 10.0, "needs_review": True},
    "dear.png": {"category_confidence": 0.4, "price": 1000.0, "needs_review": True, "title": EVIL},
    "copy.png": {"category_confidence": 0.4, "price": 1000.0, "needs_review": True, "image_sha256": "dear.png"},
    "wide.png": {"category_confidence": 0.9, "price": 100.0, "price_low": 10.0, "price_high": 900.0,
                 "needs_review": True, "review_reasons": ("wide_price",)},
    "lost.png": {"category_confidence": 0.1, "price": 500.0, "needs_review": True},
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    output: Path
    photos: Path
    catalog: Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An output of ROWS, the photos they are of (but lost.png), and a catalog of one product."""
    photos, output, catalog = tmp_path / "photos", tmp_path / "output", tmp_path / "catalog"
    (catalog / "images").mkdir(parents=True)
    photos.mkdir()
    for number, key in enumerate(ROWS):
        if key != "lost.png":
            Image.new("RGB", (400, 300), (40 * number, 90, 60)).save(photos / key)
    Image.new("RGB", (8, 8)).save(catalog / "images" / "1.png")
    header = "product_code,title,category3_code,full_price,currency_code,local_image_path\n"
    (catalog / "catalog.csv").write_text(f"{header}001,Wool Coat,Coats,900,EUR,images/1.png\n")

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return make_row(
            run, item.key, minutes, shard=item.shard,
            **({"image_sha256": item.key, "category_alternatives": (Alternative("Hats", 0.2),)} | ROWS[item.key]),
        )  # fmt: skip

    store = open_store(str(output), create=True)
    enrich_night(store, make_run(images_uri=str(photos)), listing(*ROWS), answer)
    return Place(output, photos, catalog)


def page_data(place: Place) -> dict[str, Any]:
    page = (place.output / "review.html").read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def save(place: Place, *decisions: dict[str, Any], by: str = "Ann") -> Path:
    path = place.output.parent / "decisions.json"
    path.write_text(json.dumps({"format": "enrich-review-1", "output": "x", "reviewed_by": by, "decisions": decisions}))
    return path


def decided(place: Place, key: str, **changes: Any) -> dict[str, Any]:
    row = next(row for row in page_data(place)["rows"] if row["image_key"] == key)
    values = {
        **{name: row[name] for name in ("image_key", "image_etag", "image_sha256", "run_id")},
        "decision": "edited", "title": "Felt Hat", "category": "Hats", "price": 120.0, "currency": "EUR",
        "suggested_title": row["title"], "suggested_category": row["category"], "suggested_price": row["price"],
        "reviewed_at": at(60).isoformat(),
    }  # fmt: skip
    if changes.get("decision") == "rejected":
        values |= dict.fromkeys(("title", "category", "price", "currency"))
    return values | changes


def shown(place: Place) -> dict[str, dict[str, Any]]:
    table = pl.read_parquet(place.output / "products.parquet")
    return {row["image_key"]: row for row in table.to_dicts()}


def test_the_queue_holds_what_needs_a_person_by_value_at_risk(place: Place) -> None:
    queue = write_queue(str(place.output))

    rows = page_data(place)["rows"]
    # 1000 x 0.6; 100 x 0.1 + 890 / 2; 500 x 0.9; 10 x 0.6
    assert [(row["image_key"], row["value_at_risk"]) for row in rows] == [
        ("copy.png", pytest.approx(600)), ("wide.png", pytest.approx(455)), ("lost.png", pytest.approx(450)),
        ("cheap.png", pytest.approx(6)),
    ]  # fmt: skip
    assert (queue.rows, queue.waiting) == (4, 5)  # the copy is asked about once
    assert [row["photo"] is None for row in rows] == [False, False, True, False]
    assert page_data(place)["categories"] == ["Coats", "Hats"]


def test_a_page_is_no_longer_than_asked_for(place: Place) -> None:
    assert write_queue(str(place.output), limit=2).rows == 2
    assert len(page_data(place)["rows"]) == 2


def test_what_the_model_wrote_stays_text(place: Place) -> None:
    (place.photos / "copy.png").unlink()
    write_queue(str(place.output))

    page = (place.output / "review.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert" not in page.replace("alert(1)\\u003c", "")
    assert "http" not in re.sub(r"xmlns='http://www.w3.org/2000/svg'|http-equiv", "", page)


def test_decisions_are_published_and_taught(place: Place) -> None:
    write_queue(str(place.output))
    path = save(place, decided(place, "copy.png"), decided(place, "wide.png", decision="rejected"))

    done = apply_decisions(str(place.output), path, str(place.catalog))

    assert (done.counts, done.outdated, done.learned) == ({"edited": 1, "rejected": 1}, 0, 1)
    rows = shown(place)
    assert rows["copy.png"]["title"] == rows["dear.png"]["title"] == "Felt Hat"
    assert (rows["wide.png"]["title"], rows["wide.png"]["reviewed_by"]) == (None, "Ann")
    assert write_queue(str(place.output)).waiting == 2
    catalog = read_catalog(place.catalog)
    assert [(one.product_code, one.title, one.category, one.price) for one in catalog.products] == [
        ("001", "Wool Coat", "Coats", 900.0),
        ("copy-dear.png", "Felt Hat", "Hats", 120.0),
    ]
    assert Path(catalog.products[1].image_path).read_bytes() == (place.photos / "copy.png").read_bytes()


def test_the_same_file_again_changes_nothing(place: Place) -> None:
    write_queue(str(place.output))
    path = save(place, decided(place, "copy.png"))
    apply_decisions(str(place.output), path, str(place.catalog))
    before = (place.output / "products.parquet").read_bytes(), (place.catalog / "catalog.csv").read_bytes()

    assert apply_decisions(str(place.output), path, str(place.catalog)).learned == 0

    assert before == ((place.output / "products.parquet").read_bytes(), (place.catalog / "catalog.csv").read_bytes())


def test_a_newer_decision_relabels_the_catalogs_row(place: Place) -> None:
    write_queue(str(place.output))
    first, second = decided(place, "copy.png"), decided(place, "copy.png", title="Cap", reviewed_at=at(90).isoformat())
    apply_decisions(str(place.output), save(place, first), str(place.catalog))

    assert apply_decisions(str(place.output), save(place, second), str(place.catalog)).learned == 0

    assert [one.title for one in read_catalog(place.catalog).products] == ["Wool Coat", "Cap"]


def test_a_parquet_catalog_keeps_its_types(place: Place) -> None:
    table = pl.read_csv(place.catalog / "catalog.csv", schema_overrides={"product_code": pl.String})
    table.with_columns(pl.col("full_price").cast(pl.Float64)).write_parquet(place.catalog / "catalog.parquet")
    (place.catalog / "catalog.csv").unlink()
    write_queue(str(place.output))

    apply_decisions(str(place.output), save(place, decided(place, "copy.png", price=None)), str(place.catalog))

    after = pl.read_parquet(place.catalog / "catalog.parquet")
    assert after["full_price"].to_list() == [900.0, None]
    assert read_catalog(place.catalog).products[1].price is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: {**one, "image_key": "other.png"}, "'other.png' is not in this output"),
        (lambda one: {**one, "category": "Dragons"}, "'Dragons' is no category of this output"),
    ],
)
def test_decisions_that_do_not_fit_are_refused_whole(
    place: Place, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    write_queue(str(place.output))
    before = (place.output / "products.parquet").read_bytes()

    with pytest.raises(UsageError, match=message):
        apply_decisions(str(place.output), save(place, decided(place, "copy.png"), change(decided(place, "wide.png"))))

    assert (place.output / "products.parquet").read_bytes() == before
    assert not (place.output / "reviews").exists()


def test_an_output_without_products_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(UsageError, match=r"no products\.parquet there; make one with `enrich run`"):
        write_queue(str(tmp_path / "output"))


def test_a_folder_without_a_catalog_is_a_usage_error(place: Place, tmp_path: Path) -> None:
    write_queue(str(place.output))
    with pytest.raises(UsageError, match=r"holds neither catalog\.csv nor catalog\.parquet"):
        apply_decisions(str(place.output), save(place, decided(place, "copy.png")), str(place.photos))
