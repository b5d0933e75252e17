"""From rows that need a person to published decisions and a larger catalog."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from enrich.catalog.add import Added
from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.output import parquet
from enrich.output.asked import Asked, AskedField, write_asked
from enrich.output.reviews import read_reviews
from enrich.output.run_record import RunInfo
from enrich.output.schema import PRODUCTS_SCHEMA, Attribute, Row
from enrich.pipeline.reviewing import apply_decisions, write_queue
from enrich.settings.fields import FieldSettings
from enrich.storage import ObjectInfo, open_store
from enrich.vocabulary import Alternative, ManifestItem
from tests.testing.rows import at, enrich_night, listing, make_photo, make_row, make_run, products_table

EVIL = "</script><script>alert(1)</script>"
ROWS: dict[str, dict[str, Any]] = {
    "sure.png": {"category_confidence": 0.99},
    "cheap.png": {"category_confidence": 0.4, "price": 10.0, "needs_review": True},
    "dear.png": {"category_confidence": 0.4, "price": 1000.0, "needs_review": True, "title": EVIL},
    "copy.png": {"category_confidence": 0.4, "price": 1000.0, "needs_review": True, "same_as": "dear.png"},
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
    """An output of ROWS with its review page, the photos they are of (but lost.png), and a catalog of one product."""
    photos, output, catalog = tmp_path / "photos", tmp_path / "output", tmp_path / "catalog"
    (catalog / "images").mkdir(parents=True)
    photos.mkdir()
    for number, key in enumerate(ROWS):
        if key != "lost.png":
            Image.new("RGB", (400, 300), (40 * number, 90, 60)).save(photos / key)
    (photos / "copy.png").write_bytes((photos / "dear.png").read_bytes())
    Image.new("RGB", (8, 8)).save(catalog / "images" / "1.png")
    header = "product_code,title,category3_code,full_price,currency_code,local_image_path\n"
    (catalog / "catalog.csv").write_text(f"{header}001,Wool Coat,Coats,900,EUR,images/1.png\n")

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        values = {name: value for name, value in ROWS[item.product_id].items() if name != "same_as"}
        values |= {"sha256": sha256(photos / item.product_id), "category_alternatives": (Alternative("Hats", 0.2),)}
        return make_row(run, item.product_id, minutes, shard=item.shard, **values)

    store = open_store(str(output), create=True)
    enrich_night(store, make_run(images_uri=str(photos)), listing(*ROWS), answer)
    write_queue(str(output))
    return Place(output, photos, catalog)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def page_data(place: Place) -> dict[str, Any]:
    page = (place.output / "review.html").read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def save(place: Place, *decisions: dict[str, Any], **changes: Any) -> Path:
    """A file of decisions as the page saves it."""
    path, page = place.output.parent / "decisions.json", page_data(place)
    saved = {name: page[name] for name in ("format", "output", "runs")} | {"reviewed_by": "Ann", "decisions": decisions}
    path.write_text(json.dumps(saved | changes))
    return path


def decided(place: Place, key: str, **changes: Any) -> dict[str, Any]:
    row = next(row for row in page_data(place)["rows"] if row["product_id"] == key)
    values = {
        **{name: row[name] for name in ("product_id", "photos", "run_id")},
        "decision": "edited", "confirmed": ["title", "category", "price"],
        "title": "Felt Hat", "category": "Hats", "price": 120.0, "currency": "EUR",
        "suggested_title": row["title"], "suggested_category": row["category"], "suggested_price": row["price"],
        "reviewed_at": at(60).isoformat(),
    }  # fmt: skip
    if changes.get("decision") == "rejected":
        values |= dict.fromkeys(("title", "category", "price", "currency")) | {"confirmed": []}
    return values | changes


def shown(place: Place) -> dict[str, dict[str, Any]]:
    table = pl.read_parquet(place.output / "products.parquet")
    return {row["product_id"]: row for row in table.to_dicts()}


def test_the_queue_holds_what_needs_a_person_by_value_at_risk(place: Place) -> None:
    queue = write_queue(str(place.output))

    rows = page_data(place)["rows"]
    # 1000 x 0.6; 100 x 0.1 + 890 / 2; 500 x 0.9; 10 x 0.6
    assert [(row["product_id"], row["value_at_risk"]) for row in rows] == [
        ("copy.png", pytest.approx(600)), ("wide.png", pytest.approx(455)), ("lost.png", pytest.approx(450)),
        ("cheap.png", pytest.approx(6)),
    ]  # fmt: skip
    assert (queue.rows, queue.waiting) == (4, 5)  # the copy is asked about once
    assert [sum(picture is not None for picture in row["pictures"]) for row in rows] == [1, 1, 0, 1]
    assert page_data(place)["categories"] == ["Coats", "Hats"]


def test_a_page_is_no_longer_than_asked_for(place: Place) -> None:
    assert write_queue(str(place.output), limit=2).rows == 2
    assert len(page_data(place)["rows"]) == 2


def test_what_the_model_wrote_stays_text(place: Place) -> None:
    (place.photos / "copy.png").unlink()
    write_queue(str(place.output))

    page = (place.output / "review.html").read_text()
    assert page.count("<script") == page.count("</script>") == 3
    assert "alert" not in page.replace("alert(1)\\u003c", "")
    assert "http" not in re.sub(r"xmlns='http://www.w3.org/2000/svg'|http-equiv", "", page)


def test_decisions_are_published_and_taught(place: Place) -> None:
    path = save(place, decided(place, "copy.png"), decided(place, "wide.png", decision="rejected"))

    done = apply_decisions(str(place.output), path, str(place.catalog))

    assert (done.counts, done.outdated, done.added) == ({"edited": 1, "rejected": 1}, 0, Added(1, 0, ()))
    rows = shown(place)
    assert rows["copy.png"]["title"] == rows["dear.png"]["title"] == "Felt Hat"
    assert (rows["wide.png"]["title"], rows["wide.png"]["reviewed_by"]) == (None, "Ann")
    assert write_queue(str(place.output)).waiting == 2
    catalog = read_catalog(place.catalog)
    assert [(one.product_code, one.title, one.category, one.price) for one in catalog.products] == [
        ("001", "Wool Coat", "Coats", 900.0),
        (f"copy.png-{sha256(place.photos / 'copy.png')[:8]}", "Felt Hat", "Hats", 120.0),
    ]
    assert Path(catalog.products[1].image_paths[0]).read_bytes() == (place.photos / "copy.png").read_bytes()


def test_the_same_file_again_changes_nothing(place: Place) -> None:
    path = save(place, decided(place, "copy.png"))
    apply_decisions(str(place.output), path, str(place.catalog))
    before = (place.output / "products.parquet").read_bytes(), (place.catalog / "catalog.csv").read_bytes()

    assert apply_decisions(str(place.output), path, str(place.catalog)).added == Added(0, 0, ())

    assert before == ((place.output / "products.parquet").read_bytes(), (place.catalog / "catalog.csv").read_bytes())


def test_a_newer_decision_relabels_the_catalogs_row(place: Place) -> None:
    first, second = decided(place, "copy.png"), decided(place, "copy.png", title="Cap", reviewed_at=at(90).isoformat())
    apply_decisions(str(place.output), save(place, first), str(place.catalog))

    assert apply_decisions(str(place.output), save(place, second), str(place.catalog)).added == Added(0, 0, ())

    assert [one.title for one in read_catalog(place.catalog).products] == ["Wool Coat", "Cap"]


def test_a_parquet_catalog_keeps_its_types(place: Place) -> None:
    table = pl.read_csv(place.catalog / "catalog.csv", schema_overrides={"product_code": pl.String})
    table.with_columns(pl.col("full_price").cast(pl.Float64)).write_parquet(place.catalog / "catalog.parquet")
    (place.catalog / "catalog.csv").unlink()

    path = save(place, decided(place, "copy.png", price=None, currency=None))
    apply_decisions(str(place.output), path, str(place.catalog))

    after = pl.read_parquet(place.catalog / "catalog.parquet")
    assert after["full_price"].to_list() == [900.0, None]
    assert read_catalog(place.catalog).products[1].price is None


def refused(place: Place, path: Path, message: str, catalog: bool = False) -> None:
    """Applying is refused with one line, and nothing was written."""
    shop = str(place.catalog) if catalog else None
    before = {file: file.read_bytes() for root in (place.output, place.catalog) for file in root.rglob("*.*")}
    with pytest.raises(UsageError, match=message) as error:
        apply_decisions(str(place.output), path, shop)
    assert "\n" not in str(error.value)
    assert before == {file: file.read_bytes() for root in (place.output, place.catalog) for file in root.rglob("*.*")}
    assert not (place.output / "reviews").exists()


def wide(**changes: Any) -> dict[str, Any]:
    """The photo of wide.png as it is not."""
    return {"key": "wide.png", "etag": "e1", "sha256": sha256(Path("wide.png")), **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product_id": "other.png"}, "'other.png': these are not the photos that run night-1 answered"),
        ({"photos": [wide(etag="e9")]}, "'wide.png': these are not the photos"),
        ({"photos": [wide(sha256="0" * 64)]}, "'wide.png': these are not the photos"),
        ({"photos": [wide(key="lost.png")]}, "'wide.png': these are not the photos that run night-1 answered"),
        ({"photos": [wide(sha256=None)]}, "'wide.png': these are not the photos"),
        ({"run_id": "night-9"}, "run night-9 of output .* is not a run of"),
        ({"run_id": "../night-1"}, "run id '../night-1' is not valid"),
        ({"currency": "USD"}, "its prices are in EUR, not USD"),
        ({"price": 5_000_000.0}, "far from all prices of this output"),
        ({"confirmed": ["title", "category"]}, "neither the estimate nor confirmed"),
        ({"title": "=HYPERLINK(1)"}, "spreadsheets execute"),
        ({"category": "Dragons"}, "'Dragons' is not a category of this output"),
    ],
)
def test_decisions_that_do_not_fit_are_refused_whole(place: Place, change: dict[str, Any], message: str) -> None:
    refused(place, save(place, decided(place, "copy.png"), decided(place, "wide.png", **change)), message)


def test_an_output_without_products_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(UsageError, match=r"no products\.parquet; make one with `enrich run`"):
        write_queue(str(tmp_path / "output"))


def test_photos_are_not_added_where_the_next_run_would_enrich_them(place: Place) -> None:
    shutil.copytree(place.catalog, place.photos, dirs_exist_ok=True)
    before = sorted(place.output.rglob("*"))
    with pytest.raises(UsageError, match="would be inside the images"):
        apply_decisions(str(place.output), save(place, decided(place, "copy.png")), str(place.photos))
    assert sorted(place.output.rglob("*")) == before


def test_a_folder_without_a_catalog_is_a_usage_error(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds neither catalog\.csv nor catalog\.parquet"):
        apply_decisions(str(place.output), save(place, decided(place, "copy.png")), str(tmp_path / "empty"))


def doubtful(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
    return make_row(run, item.product_id, minutes, shard=item.shard, needs_review=True)


def test_decisions_of_another_output_are_refused_even_where_its_runs_have_the_same_names(
    place: Place, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    run = make_run(images_uri=str(place.photos), minutes=7)
    enrich_night(open_store(str(other), create=True), run, listing("a"), doubtful)
    page_runs = page_data(place)["runs"]
    write_queue(str(other))
    [foreign] = re.findall(r'"runs": (\{.*?\})', (other / "review.html").read_text())
    assert json.loads(foreign).keys() == page_runs.keys()

    refused(place, save(place, decided(place, "wide.png"), runs=json.loads(foreign)), "name the output that the page")
    first_version = {**decided(place, "wide.png")}
    del first_version["confirmed"]
    path = save(place, first_version, output=str(other))
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "runs"}))
    refused(place, path, "is for output .*other, not")


def test_an_output_that_was_moved_still_takes_its_decisions(place: Place, tmp_path: Path) -> None:
    path = save(place, decided(place, "wide.png"))
    shutil.move(place.output, tmp_path / "moved")

    assert apply_decisions(str(tmp_path / "moved"), path).counts == {"edited": 1}


def test_a_file_of_the_first_version_is_applied(place: Place) -> None:
    one = decided(place, "wide.png")
    two = decided(place, "cheap.png", price=10.0, title="Cap")
    for decision in (one, two):
        del decision["confirmed"]
    path = save(place, one, two)
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "runs"}))

    apply_decisions(str(place.output), path, str(place.catalog))

    rows = shown(place)
    assert (rows["wide.png"]["price"], rows["wide.png"]["price_low"]) == (120.0, None)
    assert {one.title: one.price for one in read_catalog(place.catalog).products} == {
        "Wool Coat": 900.0, "Felt Hat": 120.0, "Cap": None,
    }  # fmt: skip


def test_an_estimate_that_nobody_confirmed_is_published_as_one_and_not_taught(place: Place) -> None:
    accepted = {"decision": "accepted", "category": "Coats", "price": 100.0, "confirmed": ["title", "category"]}
    apply_decisions(str(place.output), save(place, decided(place, "wide.png", **accepted)), str(place.catalog))

    row = shown(place)["wide.png"]
    assert (row["price"], row["price_low"], row["price_high"], row["needs_review"]) == (100.0, 10.0, 900.0, False)
    assert row["category_confidence"] == 1.0
    assert [one.price for one in read_catalog(place.catalog).products] == [900.0, None]


def test_a_rejection_takes_back_what_was_taught(place: Place) -> None:
    apply_decisions(str(place.output), save(place, decided(place, "wide.png")), str(place.catalog))

    rejected = save(place, decided(place, "wide.png", decision="rejected"))
    assert apply_decisions(str(place.output), rejected, str(place.catalog)).added == Added(0, 1, ())
    assert [one.title for one in read_catalog(place.catalog).products] == ["Wool Coat"]


def test_an_older_file_applied_again_does_not_undo_a_newer_one(place: Place) -> None:
    older, newer = decided(place, "wide.png", title="Older"), decided(place, "wide.png", title="Newer")
    for one in (older, newer, older):
        apply_decisions(str(place.output), save(place, one), str(place.catalog))

    assert shown(place)["wide.png"]["title"] == "Newer"
    assert [one.title for one in read_catalog(place.catalog).products] == ["Wool Coat", "Newer"]


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_photo_that_changed_since_its_review_is_not_taught(place: Place, change: str) -> None:
    path = save(place, decided(place, "wide.png"), decided(place, "cheap.png"))
    if change == "replaced":
        Image.new("RGB", (9, 9)).save(place.photos / "wide.png")
    else:
        (place.photos / "wide.png").unlink()

    done = apply_decisions(str(place.output), path, str(place.catalog))

    assert done.added == Added(1, 0, ("wide.png",))
    photos = list((place.catalog / "images" / "reviewed").rglob("*.png"))
    assert [photo.read_bytes() for photo in photos] == [(place.photos / "cheap.png").read_bytes()]


def test_a_decision_about_an_earlier_runs_row_is_taken(place: Place) -> None:
    path = save(place, decided(place, "wide.png"))

    def later(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return make_row(run, item.product_id, minutes, shard=item.shard, sha256=sha256(place.photos / item.product_id),
                        category_alternatives=(Alternative("Hats", 0.2),))  # fmt: skip

    run = make_run("night-2", 100, images_uri=str(place.photos), fingerprint="f2")
    enrich_night(open_store(str(place.output)), run, listing(*ROWS), later)

    assert apply_decisions(str(place.output), path).outdated == 0
    assert (shown(place)["wide.png"]["title"], shown(place)["wide.png"]["run_id"]) == ("Felt Hat", "night-2")


def test_a_reviewed_photo_is_decided_again_under_the_etag_that_it_has_now(place: Place) -> None:
    [photo] = decided(place, "wide.png")["photos"]
    again = save(place, decided(place, "wide.png", title="Cap", photos=[{**photo, "etag": "e2"}])).read_text()
    path = save(place, decided(place, "wide.png"))
    apply_decisions(str(place.output), path)
    file = parquet.read(open_store(str(place.output)), "products.parquet", PRODUCTS_SCHEMA)
    assert file is not None
    photos = pl.col("photos").list.eval(pl.element().struct.with_fields(etag=pl.lit("e2")))
    touched = file.table.with_columns(photos)
    (place.output / "products.parquet").write_bytes(parquet.encode(touched, PRODUCTS_SCHEMA, file.metadata))
    path.write_text(again)

    apply_decisions(str(place.output), path)
    assert shown(place)["wide.png"]["title"] == "Cap"


def test_a_catalog_that_cannot_take_the_decisions_is_refused_before_they_are_published(place: Place) -> None:
    path = save(place, decided(place, "wide.png"))
    catalog = (place.catalog / "catalog.csv").read_text()
    for text, message in (
        (catalog.replace("EUR", "USD"), "its prices are in USD, the decisions' in EUR"),
        (catalog.replace("product_code", "item"), "no column for product_code"),
        (catalog.replace("title", "name"), "no column for title"),
    ):
        (place.catalog / "catalog.csv").write_text(text)
        refused(place, path, message, catalog=True)
    (place.catalog / "catalog.csv").write_bytes(catalog.replace("Wool", "W\u00f6ll").encode("cp1252"))
    refused(place, path, "catalog.csv", catalog=True)
    (place.catalog / "catalog.parquet").write_bytes(b"")
    refused(place, path, "holds both", catalog=True)


def test_a_product_teaches_with_all_photos_that_the_model_saw(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "several"
    keys = ["cheap.png", "wide.png", "dear.png"]

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        seen = [make_photo(run, key, sha256=sha256(place.photos / key)) for key in keys[:2]]
        photos = (*seen, make_photo(run, keys[2]))
        return make_row(
            run, item.product_id, minutes, shard=item.shard, photos=photos, photos_answered=2, needs_review=True
        )

    listed = products_table({"hat": [ObjectInfo(key, 1, "e1") for key in keys]})
    enrich_night(open_store(str(output), create=True), make_run(images_uri=str(place.photos)), listed, answer)
    write_queue(str(output))
    several = Place(output, place.photos, place.catalog)
    done = apply_decisions(str(output), save(several, decided(several, "hat", category="Coats")), str(place.catalog))
    assert done.added == Added(1, 0, ())
    (_, hat) = read_catalog(place.catalog).products
    assert [Path(path).read_bytes() for path in hat.image_paths] == [(place.photos / k).read_bytes() for k in keys[:2]]


PUMPS, BOOTS, COATS = "WOMAN > SHOES > PUMPS", "WOMAN > SHOES > BOOTS", "WOMAN > COATS"
IDS = {PUMPS: "187", BOOTS: "188", COATS: "203"}


def as_paths(place: Place) -> None:
    """Another night whose adapter teaches paths, with the ids of a standard; a path is sure of its first level only."""

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=sha256(place.photos / item.product_id),
            category=PUMPS, category_path=("WOMAN",), category_id="187", needs_review=True, category_confidence=0.4,
            category_alternatives=(Alternative(BOOTS, 0.3),),
        )  # fmt: skip

    store = open_store(str(place.output))
    night = make_run("night-2", 10, images_uri=str(place.photos), fingerprint="f2", adapter="a2")
    write_asked(store, enrich_night(store, night, listing(*ROWS), answer), Asked(category_ids=IDS))
    write_queue(str(place.output))


@pytest.mark.parametrize(
    ("category", "path", "identity"),
    [(PUMPS, ["WOMAN", "SHOES", "PUMPS"], "187"), (BOOTS, ["WOMAN", "SHOES", "BOOTS"], "188")],
)
def test_a_persons_category_has_its_whole_path_and_its_id(
    place: Place, category: str, path: list[str], identity: str
) -> None:
    as_paths(place)
    file = save(place, decided(place, "copy.png", category=category, category_path=["x"], category_id="forged"))

    apply_decisions(str(place.output), file, str(place.catalog))

    row = shown(place)["copy.png"]
    assert (row["category"], row["category_path"], row["category_id"]) == (category, path, identity)
    assert shown(place)["cheap.png"]["category_path"] == ["WOMAN"]
    assert read_catalog(place.catalog, category_path=True).products[1].category == category  # for the next adapter


def test_a_person_may_change_a_rejection_and_a_leaf_has_neither_path_nor_id(place: Place) -> None:
    apply_decisions(str(place.output), save(place, decided(place, "cheap.png")))
    assert (shown(place)["cheap.png"]["category_path"], shown(place)["cheap.png"]["category_id"]) == (None, None)

    as_paths(place)
    rejected = decided(place, "wide.png", decision="rejected")
    accepted = decided(place, "wide.png", category=BOOTS)
    apply_decisions(str(place.output), save(place, rejected))
    assert shown(place)["wide.png"]["category_path"] is None
    write_queue(str(place.output))
    apply_decisions(str(place.output), save(place, accepted))
    assert shown(place)["wide.png"]["category_path"] == ["WOMAN", "SHOES", "BOOTS"]
    assert shown(place)["wide.png"]["category_id"] == "188"


COLOUR = AskedField(name="colour", kind="choice", label="色", column="iro", values=("紺", "赤"), review_below=0.6)
POCKETS = AskedField(name="pockets", kind="number", label="Pockets", column="pockets")
DETAIL = AskedField(name="detail", kind="text", label="Detail", column="detail", review_below=0.6)


@pytest.fixture
def further(place: Place) -> Place:
    """Another night whose adapter answers three more fields, and a catalog that has them too."""

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return make_row(
            run, item.product_id, minutes, shard=item.shard, sha256=sha256(place.photos / item.product_id),
            attributes={"colour": Attribute("紺", 0.5), "pockets": Attribute("2", 0.9), "detail": Attribute(EVIL, 0.5)},
            category_alternatives=(Alternative("Hats", 0.2),), needs_review=True,
        )  # fmt: skip

    store = open_store(str(place.output))
    night = make_run("night-2", 10, images_uri=str(place.photos), fingerprint="f2", adapter="a2")
    run = enrich_night(store, night, listing(*ROWS), answer)
    write_asked(store, run, Asked(fields=(COLOUR, POCKETS, DETAIL), unknown="不明"))
    write_queue(str(place.output))
    table = pl.read_csv(place.catalog / "catalog.csv", infer_schema=False)
    table.with_columns(iro=pl.lit("赤"), pockets=pl.lit("4"), detail=pl.lit("")).write_csv(
        place.catalog / "catalog.csv"
    )
    return place


FIELDS = {
    "colour": FieldSettings(kind="choice", column="iro"),
    "pockets": FieldSettings(kind="number"),
    "detail": FieldSettings(kind="text"),
}


def test_the_page_has_an_input_for_each_declared_field_of_a_row(further: Place) -> None:
    page = page_data(further)
    [row] = [row for row in page["rows"] if row["product_id"] == "wide.png"]
    told = ("name", "closed", "label", "values", "review_below")
    assert [tuple(one[name] for name in told) for one in page["forms"][row["form"]]["fields"]] == [
        ("colour", True, "色", ["紺", "赤"], 0.6), ("pockets", False, "Pockets", [], 0.0),
        ("detail", False, "Detail", [], 0.6),
    ]  # fmt: skip
    assert row["attributes"]["colour"] == {"value": "紺", "confidence": 0.5}
    text = (further.output / "review.html").read_text()
    assert text.count("<script") == text.count("</script>") == 3


def test_decided_fields_are_published_and_taught_in_their_own_columns(further: Place) -> None:
    said = {"colour": "赤", "pockets": "03", "detail": "Brass  buckle"}
    hidden = {"colour": "不明", "pockets": None}
    file = save(further, decided(further, "copy.png", attributes=said), decided(further, "wide.png", attributes=hidden))
    apply_decisions(str(further.output), file, str(further.catalog))

    copy, wide = (shown(further)[name]["attributes"] for name in ("copy.png", "wide.png"))
    assert {name: tuple(one.values()) for name, one in copy.items()} == {
        "colour": ("赤", 1.0), "pockets": ("3", 1.0), "detail": ("Brass buckle", 1.0)
    }  # fmt: skip
    assert {name: tuple(one.values()) for name, one in wide.items()} == {
        "colour": (None, 1.0), "pockets": (None, 1.0), "detail": (EVIL, 0.5)
    }  # fmt: skip
    [review] = [
        row for row in read_reviews(open_store(str(further.output))).to_dicts() if row["product_id"] == "wide.png"
    ]
    assert review["attributes"] == {"colour": None, "pockets": None}
    assert review["suggested_attributes"] == {"colour": "紺", "pockets": "2", "detail": EVIL}
    coat, *taught = read_catalog(further.catalog, fields=FIELDS, unknown="不明").products
    assert coat.attributes == {"colour": "赤", "pockets": "4", "detail": None}
    assert {one.product_code[:4]: one.attributes for one in taught} == {
        "copy": {"colour": "赤", "pockets": "3", "detail": "Brass buckle"},
        "wide": {"colour": None, "pockets": None, "detail": None},
    }


def test_a_catalog_without_the_columns_takes_the_rest_and_a_typed_one_keeps_its_types(further: Place) -> None:
    file = save(further, decided(further, "copy.png", attributes={"colour": "赤", "pockets": "3"}))
    table = pl.read_csv(further.catalog / "catalog.csv", infer_schema=False).drop("iro", "detail")
    (further.catalog / "catalog.csv").unlink()
    table.with_columns(pl.col("pockets").cast(pl.Float64)).write_parquet(further.catalog / "catalog.parquet")
    apply_decisions(str(further.output), file, str(further.catalog))
    after = pl.read_parquet(further.catalog / "catalog.parquet")
    assert (after["pockets"].to_list(), after["title"].to_list()) == ([4.0, 3.0], ["Wool Coat", "Felt Hat"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"fabric": "Wool"}, "'fabric' is not a field that run night-2 answered"),
        ({"colour": "Navy"}, "'Navy' is not a value of colour"),
        ({"colour": "赤 "}, "'赤 ' is not a value of colour"),
        ({"pockets": "3.5"}, r"pockets: '3\.5' is not a whole number"),
        ({"pockets": "-1"}, "pockets: '-1' is not a whole number"),
        ({"pockets": "1" * 10}, "is not a whole number"),
        ({"detail": "=1+1"}, "spreadsheets execute"),
    ],
)
def test_values_that_a_field_cannot_have_are_refused(further: Place, attributes: dict[str, Any], message: str) -> None:
    refused(further, save(further, decided(further, "wide.png", attributes=attributes)), message, catalog=True)
