"""Decisions of people: kept as history, laid over whatever runs say of the same bytes, in any order."""

import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from enrich.errors import RunFailed, UsageError
from enrich.output import publish
from enrich.output.decisions import DecidedPhoto, Decision, DecisionFile, read_decisions
from enrich.output.parquet import from_records
from enrich.output.products import read_products
from enrich.output.publish import publish_reviews
from enrich.output.reviews import apply_reviews, next_reviews, read_reviews, write_reviews
from enrich.output.run_record import RunInfo
from enrich.output.run_rows import fetch_run
from enrich.output.schema import PRODUCTS_SCHEMA, REVIEW_SCHEMA, Attribute, Row
from enrich.storage import Store, open_store
from enrich.vocabulary import Alternative, ErrorKind, ManifestItem
from tests.testing.rows import at, enrich_night, held, listing, make_photo, make_row, make_run


def decision(
    key: str = "a.jpg", minutes: float = 50, *, etag: str = "e1", sha256: str | None = None, **changes: Any
) -> Decision:
    values: dict[str, Any] = {
        "product_id": key, "photos": (DecidedPhoto(key=key, etag=etag, sha256=sha256 or f"bytes of {key}"),),
        "run_id": "night-1",
        "decision": "edited", "confirmed": ("title", "category", "price"), "title": "Felt Hat", "category": "Hats",
        "price": 80.0, "currency": "EUR",
        "reviewed_at": at(minutes),
    }  # fmt: skip
    if changes.get("decision") == "rejected":
        values |= dict.fromkeys(("title", "category", "price", "currency")) | {"confirmed": ()}
    return Decision(**(values | changes))


def file_of(*decisions: Decision, by: str = "Ann") -> DecisionFile:
    return DecisionFile(format="enrich-review-2", output="here", reviewed_by=by, decisions=decisions)


def read_back(folder: Path, changes: dict[str, Any], **of_file: Any) -> DecisionFile:
    """A file with one decision and these changes, as it is read."""
    saved = file_of(decision()).model_dump(mode="json") | of_file
    saved["decisions"][0] |= changes
    (folder / "decisions.json").write_text(json.dumps(saved))
    return read_decisions(folder / "decisions.json")


def table_of(*decisions: Decision, sequence: int = 1) -> pl.DataFrame:
    rows = [{**one.model_dump(), "reviewed_by": "Ann", "sequence": sequence} for one in decisions]
    return from_records(rows, REVIEW_SCHEMA)


def add(output: Store, decided: DecisionFile, minutes: float = 50) -> None:
    news = next_reviews(read_reviews(output), decided.decisions, decided.reviewed_by, at(minutes))
    write_reviews(output, decided.digest, news)


def products(*keys: str, **changes: Any) -> pl.DataFrame:
    extra = {
        "in_source": True,
        "last_photos_etag": "e1",
        "last_status": "ok",
        "last_attempt": 1,
        "last_run_id": "night-1",
    }
    rows = [{**asdict(suggested(make_run(), key, **changes)), **extra} for key in keys]
    return from_records(rows, PRODUCTS_SCHEMA)


def suggested(run: RunInfo, key: str, minutes: float = 1, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "sha256": f"bytes of {key}", "category_confidence": 0.4, "price_low": 60.0, "price_high": 200.0,
        "category_alternatives": (Alternative("Bags", 0.3),), "needs_review": True,
        "review_reasons": ("low_confidence",),
    }  # fmt: skip
    return make_row(run, key, minutes, **(values | changes))


def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
    etag, title = item.photos[0].etag, f"{item.product_id} by {run.run_id}"
    digest = f"{etag} of {item.product_id}"
    return suggested(run, item.product_id, minutes, etag=etag, sha256=digest, shard=item.shard, title=title)


def night_decision(key: str, etag: str = "e1", **changes: Any) -> Decision:
    return decision(key, etag=etag, sha256=f"{etag} of {key}", **changes)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def shown(output: Store) -> dict[str, dict[str, Any]]:
    return {row["product_id"]: row for row in read_products(output).table.to_dicts()}


def test_a_decision_takes_the_place_of_the_answer() -> None:
    [row] = apply_reviews(products("a.jpg"), table_of(decision())).to_dicts()

    assert (row["title"], row["category"], row["price"], row["currency"]) == ("Felt Hat", "Hats", 80.0, "EUR")
    assert (row["reviewed_by"], row["reviewed_at"]) == ("Ann", at(50))
    assert (row["needs_review"], row["review_reasons"], row["category_alternatives"]) == (False, [], [])
    assert (row["category_confidence"], row["price_low"], row["price_high"]) == (1.0, None, None)
    assert (row["adapter"], row["run_id"], row["status"]) == ("a1", "night-1", "ok")


def test_what_was_rejected_is_not_used() -> None:
    [row] = apply_reviews(products("a.jpg"), table_of(decision(decision="rejected"))).to_dicts()

    assert [row[name] for name in ("title", "category", "price", "currency", "category_confidence")] == [None] * 5
    assert (row["needs_review"], row["review_reasons"], row["status"]) == (False, ["rejected"], "ok")
    assert row["reviewed_by"] == "Ann"


def test_other_rows_stay_as_they_are() -> None:
    before = products("a.jpg", "b.jpg")

    after = apply_reviews(before, table_of(decision()))

    assert after.columns == before.columns
    assert after.schema == before.schema
    assert after.filter(pl.col("product_id") == "b.jpg").equals(before.filter(pl.col("product_id") == "b.jpg"))
    assert apply_reviews(before, table_of()).equals(before)


def test_the_order_of_decisions_makes_no_difference() -> None:
    decisions = [
        decision(minutes=1, title="First"), decision(minutes=9, title="Last"),
        decision(minutes=5, decision="rejected"), decision(minutes=7, price=None, currency=None),
    ]  # fmt: skip
    tables = set()
    for order in itertools.permutations(decisions):
        table = products("a.jpg")
        for one in order:  # one publish after the other, each with all there is by then
            table = apply_reviews(table, table_of(*order[: order.index(one) + 1]))
        tables.add(json.dumps(table.to_dicts(), default=str))

    assert len(tables) == 1
    assert json.loads(tables.pop())[0]["title"] == "Last"


def test_copies_of_a_photo_share_its_decision() -> None:
    rows = products("a.jpg", "copy.jpg", sha256="bytes of a.jpg")

    assert apply_reviews(rows, table_of(decision()))["title"].to_list() == ["Felt Hat", "Felt Hat"]


@pytest.mark.parametrize(
    ("photos", "holds"),
    [
        pytest.param([("1", "e1", "x"), ("2", "e1", "y")], True, id="as it was"),
        pytest.param([("1", "e2", "x"), ("2", "e2", "y")], True, id="other etags, same bytes"),
        pytest.param([("a", "e1", "x"), ("b", "e1", "y")], True, id="other keys, same bytes"),
        pytest.param([("1", "e1", "x"), ("2", "e1", None)], True, id="not read any more, same etags"),
        pytest.param([("1", "e1", "x"), ("2", "e2", None)], False, id="not read any more, other etag"),
        pytest.param([("1", "e1", "x"), ("2", "e2", "z")], False, id="other bytes"),
        pytest.param([("2", "e1", "y"), ("1", "e1", "x")], False, id="another order"),
        pytest.param([("1", "e1", "x")], False, id="one less"),
        pytest.param([("1", "e1", "x"), ("2", "e1", "y"), ("3", "e1", "z")], False, id="one more"),
    ],
)
def test_a_decision_holds_until_the_photos_change(photos: list[tuple[str, str, str | None]], holds: bool) -> None:
    said = (DecidedPhoto(key="1", etag="e1", sha256="x"), DecidedPhoto(key="2", etag="e1", sha256="y"))
    now = tuple(make_photo(make_run(), *photo) for photo in photos)
    table = apply_reviews(products("p", photos=now), table_of(decision("p", photos=said)))
    assert table["title"].to_list() == ["Felt Hat" if holds else "Title of p"]


def test_a_decision_about_photos_that_were_not_read_holds_when_they_are_read_later() -> None:
    said = (DecidedPhoto(key="1", etag="e1", sha256="x"), DecidedPhoto(key="2", etag="e1"))
    now = (make_photo(make_run(), "1", "e1", "x"), make_photo(make_run(), "2", "e1", "y"))
    rows = products("p", photos=now)
    first = table_of(decision("p", photos=said), sequence=1)
    assert apply_reviews(rows, first)["title"].to_list() == ["Felt Hat"]
    read = tuple(DecidedPhoto(key=photo.key, etag=photo.etag, sha256=photo.sha256) for photo in now)
    renamed = decision("p", photos=read, title="Cap", confirmed=("title", "category"), price=100.0)
    [row] = apply_reviews(rows, pl.concat([first, table_of(renamed, sequence=2)])).to_dicts()
    assert (row["title"], row["price"], row["price_low"]) == ("Cap", 80.0, None)  # the price of the first stands


def test_a_failed_photo_has_no_suggestion_to_decide_on() -> None:
    rows = products("a.jpg").with_columns(status=pl.lit("failed"), error_kind=pl.lit(ErrorKind.TRUNCATED.value))

    assert apply_reviews(rows, table_of(decision())).equals(rows)


def test_a_decision_outlives_another_model_and_a_failure(output: Store) -> None:
    enrich_night(output, make_run("night-1"), listing("a.jpg", "b.jpg"), answer)
    add(output, file_of(night_decision("a.jpg")))
    publish_reviews(output)
    assert shown(output)["a.jpg"]["title"] == "Felt Hat"

    enrich_night(output, make_run("night-2", 100, fingerprint="f2"), listing("a.jpg", "b.jpg"), answer)

    rows = shown(output)
    assert (rows["a.jpg"]["title"], rows["a.jpg"]["run_id"], rows["a.jpg"]["reviewed_by"]) == (
        "Felt Hat", "night-2", "Ann",
    )  # fmt: skip
    assert (rows["b.jpg"]["title"], rows["b.jpg"]["reviewed_by"]) == ("b.jpg by night-2", None)

    def fails(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return make_row(run, item.product_id, minutes, error_kind=ErrorKind.ENGINE_FAILED, shard=item.shard)

    enrich_night(output, make_run("night-3", 200, fingerprint="f3"), listing("a.jpg", "b.jpg"), fails)
    assert (shown(output)["a.jpg"]["title"], shown(output)["a.jpg"]["last_status"]) == ("Felt Hat", "failed")


def test_a_new_photo_is_the_models_again_and_the_old_one_comes_back_decided(output: Store) -> None:
    enrich_night(output, make_run("night-1"), listing(a="e1"), answer)
    add(output, file_of(night_decision("a.jpg")))
    publish_reviews(output)

    enrich_night(output, make_run("night-2", 100), listing(a="e2"), answer)
    row = shown(output)["a.jpg"]
    assert (row["title"], row["reviewed_by"], row["needs_review"]) == ("a.jpg by night-2", None, True)

    enrich_night(output, make_run("night-3", 200), listing(a="e1"), answer)
    assert shown(output)["a.jpg"]["title"] == "Felt Hat"


def test_runs_published_again_in_any_order_leave_the_same_table(output: Store) -> None:
    first, second = make_run("night-1"), make_run("night-2", 100, fingerprint="f2")
    enrich_night(output, first, listing("a.jpg", "b.jpg"), answer)
    enrich_night(output, second, listing("a.jpg", "b.jpg"), answer)
    add(output, file_of(night_decision("a.jpg"), night_decision("b.jpg", decision="rejected")))
    publish_reviews(output)
    expected = read_products(output).table

    assert not publish_reviews(output).changed
    for run in (first, second, first):
        assert not publish.publish(output, run).changed
    output.delete("products.parquet")
    for run in (second, first):
        publish.publish(output, run)
    assert read_products(output).table.equals(expected)


def test_a_decision_that_comes_while_a_run_is_published_is_in_the_table(output: Store, tmp_path: Path) -> None:
    """The publisher has the decisions from before, and the table, which is replaced meanwhile."""
    enrich_night(output, make_run("night-1"), listing("a.jpg"), answer)
    add(output, file_of(night_decision("a.jpg", title="First")))
    run = make_run("night-2", 100, fingerprint="f2")
    held(output, run, listing("a.jpg", "b.jpg"), 101)
    rows, table = fetch_run(output, run, tmp_path), publish.current_products(output, tmp_path)
    known = read_reviews(output)
    add(output, file_of(night_decision("a.jpg", title="Last")), minutes=70)
    publish_reviews(output)

    done = publish.publish(output, run, rows=rows, products=table, reviews=known)

    assert (done.rows, done.attempts) == (2, 2)
    assert shown(output)["a.jpg"]["title"] == "Last"


def test_a_file_is_added_once(output: Store) -> None:
    decided = file_of(decision())
    add(output, decided)
    add(output, decided, minutes=70)
    [row] = read_reviews(output).to_dicts()
    assert (row["reviewed_at"], row["sequence"]) == (at(50), 1)

    add(output, file_of(decision(), by="Bob"))
    assert read_reviews(output).sort("sequence")["reviewed_by"].to_list() == ["Ann", "Bob"]


def test_files_of_others_beside_the_decisions_are_no_decisions(output: Store) -> None:
    add(output, file_of(decision()))
    output.put("reviews/.DS_Store", b"of a desktop")
    output.put("reviews/notes.txt", b"of a person")
    assert read_reviews(output).height == 1
    output.put("reviews/other.parquet", b"damaged")
    with pytest.raises(
        RunFailed, match=r"other\.parquet is not a readable Parquet file; restore it, or move it away and lose its"
    ):
        read_reviews(output)


def test_what_was_applied_last_stands_whatever_the_clocks_say(output: Store) -> None:
    enrich_night(output, make_run("night-1"), listing("a.jpg"), answer)
    add(output, file_of(night_decision("a.jpg", title="First", minutes=999_999)), minutes=999_999)
    add(output, file_of(night_decision("a.jpg", title="Last", minutes=1)), minutes=1)
    publish_reviews(output)

    assert (shown(output)["a.jpg"]["title"], shown(output)["a.jpg"]["reviewed_at"]) == ("Last", at(1))


def test_a_price_that_nobody_confirmed_stays_an_estimate_with_its_interval() -> None:
    accepted = decision(decision="accepted", confirmed=("title", "category"), price=100.0)
    [row] = apply_reviews(products("a.jpg"), table_of(accepted)).to_dicts()

    assert (row["title"], row["category_confidence"], row["needs_review"]) == ("Felt Hat", 1.0, False)
    assert (row["price"], row["price_low"], row["price_high"], row["currency"]) == (100.0, 60.0, 200.0, "EUR")


def test_a_price_that_was_set_outlives_a_later_decision_about_the_title() -> None:
    priced = table_of(decision(price=80.0), sequence=1)
    renamed = table_of(decision(title="Cap", confirmed=("title", "category"), price=100.0), sequence=2)
    for before in (
        products("a.jpg"),
        apply_reviews(products("a.jpg"), renamed),
        apply_reviews(products("a.jpg"), priced),
    ):
        [row] = apply_reviews(before, pl.concat([renamed, priced])).to_dicts()
        assert (row["title"], row["price"], row["price_low"]) == ("Cap", 80.0, None)


FURTHER = {"colour": Attribute("Navy", 0.5), "fabric": Attribute("Wool", 0.25), "sleeve": Attribute(None, 0.75)}


def attributes(*decisions: pl.DataFrame, answered: dict[str, Attribute] | None = None) -> dict[str, Any]:
    """What a row shows under these decisions, the oldest first, published one after the other and all at once alike."""
    before = products("a.jpg", attributes=FURTHER if answered is None else answered)
    once = apply_reviews(before, pl.concat(decisions))
    step = before
    for count in range(1, len(decisions) + 1):
        step = apply_reviews(step, pl.concat(decisions[:count]))
    assert step.equals(once)
    assert once.schema == before.schema
    return {name: (one["value"], one["confidence"]) for name, one in once["attributes"][0].items()}


def test_a_decided_field_takes_the_place_of_its_answer_and_others_stay() -> None:
    said = table_of(decision(attributes={"colour": "Red", "fabric": None}))
    assert attributes(said) == {"colour": ("Red", 1.0), "fabric": (None, 1.0), "sleeve": (None, 0.75)}
    assert attributes(table_of(decision())) == {
        "colour": ("Navy", 0.5),
        "fabric": ("Wool", 0.25),
        "sleeve": (None, 0.75),
    }


def test_the_newest_decision_about_each_field_holds_and_a_rejection_is_one_about_all() -> None:
    colour = table_of(decision(attributes={"colour": "Red", "fabric": "Silk"}), sequence=1)
    fabric = table_of(decision(attributes={"fabric": "Linen"}), sequence=2)
    rejected = table_of(decision(decision="rejected"), sequence=3)
    again = table_of(decision(attributes={"sleeve": "Long"}), sequence=4)
    assert attributes(colour, fabric) == {"colour": ("Red", 1.0), "fabric": ("Linen", 1.0), "sleeve": (None, 0.75)}
    assert attributes(colour, fabric, rejected) == {}
    assert attributes(colour, fabric, rejected, again) == {"sleeve": ("Long", 1.0)}
    assert attributes(colour, answered={}) == {"colour": ("Red", 1.0), "fabric": ("Silk", 1.0)}  # of another adapter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "two\nlines"}, "must be one line of 1 to 200 characters"),
        ({"title": "x" * 201}, "must be one line of 1 to 200 characters"),
        ({"title": " "}, "must be one line of 1 to 200 characters"),
        ({"title": None}, "an accepted or edited row needs a title and a category"),
        ({"category": None}, "an accepted or edited row needs a title and a category"),
        ({"price": -1}, "greater than or equal to 0.01"),
        ({"price": 1e300}, "less than or equal to"),
        ({"price": "12"}, "decisions.0.price"),
        ({"title": "Felt\u202e Hat"}, "without control or invisible characters"),
        ({"title": "Felt\u200b Hat"}, "without control or invisible characters"),
        ({"title": "Felt\u3164 Hat"}, "without control or invisible characters"),
        ({"title": "Felt<|end|> Hat"}, "special token"),
        ({"title": "Felt</s> Hat"}, "special token"),
        ({"category": "Hats<|image_1|>"}, "special token"),
        ({"title": '=HYPERLINK("http://x")'}, "spreadsheets execute"),
        ({"title": " @SUM(1)"}, "spreadsheets execute"),
        ({"title": "+1"}, "spreadsheets execute"),
        ({"title": "-1"}, "spreadsheets execute"),
        ({"title": "\uff1d1"}, "spreadsheets execute"),
        ({"currency": "eur"}, "decisions.0.currency"),
        ({"currency": "E<|end|>"}, "decisions.0.currency"),
        ({"price": None}, "a currency without a price"),
        ({"confirmed": ["price"]}, "confirms its title and category"),
        ({"confirmed": ["colour"]}, "decisions.0.confirmed"),
        ({"price": "NaN"}, "decisions.0.price"),
        ({"price": float("nan")}, "decisions.0.price"),
        ({"decision": "rejected"}, "a rejected row has no title, category or price"),
        ({"decision": "maybe"}, "decisions.0.decision"),
        ({"reviewed_at": "2026-11-22T02:00:00"}, "a time needs a zone"),
        ({"surprise": 1}, "decisions.0.surprise"),
        (
            {"attributes": {"colour": "two\nlines"}},
            "decisions.0.attributes.colour: must be one line of 1 to 200 characters",
        ),
        ({"attributes": {"colour": "x" * 201}}, "must be one line of 1 to 200 characters"),
        ({"attributes": {"colour": ""}}, "must be one line of 1 to 200 characters"),
        ({"attributes": {"colour": "Na\u202evy"}}, "without control or invisible characters"),
        ({"attributes": {"colour": "Navy<|end|>"}}, "special token"),
        ({"attributes": {"colour": 3}}, "decisions.0.attributes.colour"),
        ({"attributes": {"Colour=1": "Navy"}}, "decisions.0.attributes"),
        ({"attributes": {f"field{number}": "x" for number in range(101)}}, "at most 100 items"),
        ({"suggested_attributes": {"colour": "x" * 10_001}}, "decisions.0.suggested_attributes.colour"),
        (
            dict.fromkeys(("title", "category", "price", "currency"))
            | {"decision": "rejected", "confirmed": [], "attributes": {"colour": "Navy"}},
            "nor other fields",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=r"save it again from the review page$") as error:
        read_back(tmp_path, changes)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the file that the review page saved"):
        read_decisions(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["Ann\u202eb", "=cmd()", "x" * 201, "\n", "A<|end|>"])
def test_a_name_is_validated_as_a_title_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="reviewed_by"):
        read_back(tmp_path, {}, reviewed_by=name)


def test_two_decisions_about_one_photo_and_files_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"2 decisions about 'a\.jpg'"):
        read_back(tmp_path, {}, decisions=file_of(decision()).model_dump(mode="json")["decisions"] * 2)
    monkeypatch.setattr("enrich.output.decisions.MAX_FILE_BYTES", 100)
    with pytest.raises(UsageError, match="decide fewer rows a file"):
        read_back(tmp_path, {})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="name the file that the review page saved"):
        read_decisions(tmp_path / "fifo")


def test_the_path_and_the_id_of_a_category_follow_a_decision() -> None:
    before = products("a.jpg", "b.jpg", category_path=("WOMAN",), category_id="187")
    path: dict[str, Any] = {"category": "WOMAN > HATS", "category_path": ("WOMAN", "HATS"), "category_id": "173"}
    said = table_of(decision("a.jpg", **path), decision("b.jpg", decision="rejected"))

    edited, rejected = apply_reviews(before, said).sort("product_id").to_dicts()

    assert (edited["category"], edited["category_path"], edited["category_id"]) == (
        "WOMAN > HATS", ["WOMAN", "HATS"], "173"
    )  # fmt: skip
    assert (rejected["category"], rejected["category_path"], rejected["category_id"]) == (None, None, None)
