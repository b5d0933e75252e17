import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrich.errors import RunFailed, UsageError
from enrich.output import manifest, parquet, run_record, spill
from enrich.output.listing import write_listing
from enrich.output.photos_etag import photos_etag
from enrich.output.products import Products, StoredProducts, fold
from enrich.output.run_record import RunInfo
from enrich.output.schema import LISTING_SCHEMA, MANIFEST_SCHEMA, PRODUCTS_SCHEMA, ROW_SCHEMA, SOURCE_SCHEMA, Row
from enrich.storage import ObjectInfo, Store, open_store
from enrich.vocabulary import TRANSIENT, ErrorKind, ListedPhoto, ManifestItem, Reason
from tests.testing import rows
from tests.testing.rows import Wrapped, at, begin, listing, make_photo, make_row, make_run


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"), create=True)


def products_of(*outcomes: tuple[RunInfo, Row]) -> Products:
    products = Products()
    for run, row in outcomes:
        rows = parquet.from_records([asdict(row)], ROW_SCHEMA)
        products = fold(products, [run], rows, pl.Series([row.product_id]))
    return products


def plan(
    source: pl.DataFrame,
    products: Products,
    fingerprint: str = "f1",
    limit: int | None = None,
) -> pl.DataFrame:
    return rows.plan(source, products, make_run(fingerprint=fingerprint), limit)


@pytest.mark.parametrize("run_id", ["a", "20261122T020000Z-1f3a9c", "Night_1.b-c", "x" * 100])
def test_run_ids_that_name_a_folder_everywhere(run_id: str) -> None:
    assert manifest.check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "é", "a=b", "x" * 101])
def test_other_run_ids_are_refused(run_id: str) -> None:
    with pytest.raises(UsageError) as error:
        manifest.check_run_id(run_id)
    assert str(error.value) == (
        f"run id {run_id!r} is not valid: use 1 to 100 letters, digits, dots, dashes and underscores, "
        "a letter or digit first"
    )


def test_new_run_ids_sort_by_time_and_differ() -> None:
    ids = [manifest.new_run_id(at(minutes)) for minutes in (0, 1, 60 * 24)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261122T020000Z-")
    assert manifest.new_run_id(at(0)) != manifest.new_run_id(at(0))
    assert all(manifest.check_run_id(run_id) for run_id in ids)


def listed(path: Path, objects: list[ObjectInfo]) -> pl.DataFrame:
    write_listing(path, objects, "s3://photos")
    return pl.read_parquet(path)


def test_a_listing_becomes_columns(tmp_path: Path) -> None:
    keys = sorted(["b.jpg", "a/é.jpg", "a/z.jpg", "日本.png", "B.jpg"], key=str.encode)
    table = listed(tmp_path / "source", [ObjectInfo(key, 3, "e") for key in keys])
    assert table["key"].to_list() == keys
    assert table.schema == parquet.empty(LISTING_SCHEMA).schema
    assert listed(tmp_path / "source", []).schema == table.schema


def test_a_long_listing_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enrich.output.listing._CHUNK", 3)
    objects = [ObjectInfo(f"{number:03}", number, "e") for number in range(10)]
    assert listed(tmp_path / "source", objects)["size"].to_list() == list(range(10))
    for wrong in ([*objects[5:], *objects[:5]], [*objects[:3], objects[2]], objects[::-1]):
        with pytest.raises(RunFailed, match="its listing is not in key order; use an inventory"):
            listed(tmp_path / "source", wrong)


RUN_1, RUN_2 = make_run("r1", 0), make_run("r2", 10, fingerprint="f2")
OK = (RUN_1, make_row(RUN_1))
NOT_AN_IMAGE = (RUN_1, make_row(RUN_1, error_kind=ErrorKind.NOT_AN_IMAGE))
ENGINE_FAILED = (RUN_1, make_row(RUN_1, error_kind=ErrorKind.ENGINE_FAILED))
LAST_TRY = (RUN_1, make_row(RUN_1, error_kind=ErrorKind.ENGINE_FAILED, attempt=3))
# A newer run failed on new bytes: the table shows the older good row, and the failure is the newest outcome.
FAILED_LATER = (RUN_2, make_row(RUN_2, minutes=11, etag="e2", error_kind=ErrorKind.TRUNCATED))
OK_LATER = (RUN_2, make_row(RUN_2, minutes=11))
NEW_BYTES_LATER = (make_run("r3", 10), make_row(make_run("r3", 10), minutes=11, etag="e2"))
# The older run was resumed after the newer one, but the table still shows the row of the newer one.
RESUMED = (RUN_1, make_row(RUN_1, minutes=20))


@pytest.mark.parametrize(
    ("history", "etag", "fingerprint", "expected"),
    [
        pytest.param([], "e1", "f1", ("new", 1), id="never seen"),
        pytest.param([OK], "e1", "f1", None, id="done"),
        pytest.param([OK], "e2", "f1", ("changed", 1), id="other bytes"),
        pytest.param([OK], "e1", "f2", ("model", 1), id="other fingerprint"),
        pytest.param([OK], "e2", "f2", ("changed", 1), id="other bytes and fingerprint"),
        pytest.param([NOT_AN_IMAGE], "e1", "f1", None, id="would only fail again"),
        pytest.param([NOT_AN_IMAGE], "e2", "f1", ("changed", 1), id="failed, then other bytes"),
        pytest.param([NOT_AN_IMAGE], "e1", "f2", ("retry", 1), id="failed, then another fingerprint"),
        pytest.param([ENGINE_FAILED], "e1", "f1", ("retry", 2), id="may pass"),
        pytest.param([ENGINE_FAILED], "e1", "f2", ("retry", 1), id="may pass, another fingerprint"),
        pytest.param([LAST_TRY], "e1", "f1", None, id="no attempts left"),
        pytest.param([LAST_TRY], "e2", "f1", ("changed", 1), id="no attempts left, then other bytes"),
        pytest.param([OK, FAILED_LATER], "e2", "f2", None, id="newest outcome failed, older good row shown"),
        pytest.param([OK, FAILED_LATER], "e1", "f2", ("changed", 1), id="the old bytes are back"),
        pytest.param([RESUMED, OK_LATER], "e1", "f2", None, id="the older run continued after the newer fingerprint"),
        pytest.param([RESUMED, NEW_BYTES_LATER], "e2", "f1", None, id="the older run continued after the newer bytes"),
    ],
)
def test_what_is_to_be_done(
    history: list[tuple[RunInfo, Row]], etag: str, fingerprint: str, expected: tuple[str, int] | None
) -> None:
    table = plan(listing(a=etag), products_of(*history), fingerprint)
    assert table.schema == parquet.empty(MANIFEST_SCHEMA).schema
    assert table.select("reason", "attempt").rows() == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("older", "reason"),
    [({"photos": (make_photo(RUN_1, "a.jpg", "e0"),)}, "changed"), ({"fingerprint": "f0"}, "model")],
    ids=["bytes", "model"],
)
def test_a_table_from_before_there_were_sequences_may_show_an_older_row_which_is_done_again(
    older: dict[str, Any], reason: str
) -> None:
    products = products_of(OK)
    shown = products_of((RUN_1, replace(OK[1], **older))).table.with_columns(products.table["last_photos_etag"])
    table = plan(listing(a="e1"), replace(products, table=shown))
    assert table.select("reason", "attempt").rows() == [(reason, 1)]


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_only_failures_that_may_pass_are_retried(kind: ErrorKind) -> None:
    products = products_of((RUN_1, make_row(RUN_1, error_kind=kind)))
    assert len(plan(listing("a.jpg"), products)) == (kind in TRANSIENT)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_a_failure_is_tried_anew_when_its_circumstances_changed_and_a_good_answer_is_not(kind: ErrorKind) -> None:
    then = make_run("r1", circumstances="small limits")
    failed = (then, make_row(then, error_kind=kind, attempt=3))
    products = products_of(failed, (then, make_row(then, "good.jpg")))
    source = listing("a.jpg", "good.jpg")
    raised, same = (make_run(circumstances=name) for name in ("large limits", "small limits"))
    table = rows.plan(source, products, raised)
    assert table.select("product_id", "reason", "attempt").rows() == [("a.jpg", "retry", 1)]
    assert rows.plan(source, products, same).is_empty()
    now = make_run("r2", 10, circumstances="large limits")
    again = products_of(failed, (now, make_row(now, minutes=11, error_kind=kind, attempt=3)))
    assert rows.plan(listing("a.jpg"), again, raised).is_empty()  # once, not every night


def test_a_failure_of_new_bytes_is_tried_anew_behind_a_good_answer_when_circumstances_changed() -> None:
    first, second = make_run("r1", circumstances="c1"), make_run("r2", 10, circumstances="c1")
    refused = make_row(second, minutes=11, etag="e2", error_kind=ErrorKind.TOO_LARGE)
    products = products_of((first, make_row(first)), (second, refused))
    table = rows.plan(listing(a="e2"), products, make_run(circumstances="c2"))
    assert table.select("reason", "attempt").rows() == [("retry", 1)]
    assert rows.plan(listing(a="e2"), products, make_run(circumstances="c1")).is_empty()


def test_failures_of_a_run_that_did_not_note_its_circumstances_are_tried_once_more() -> None:
    products = products_of(NOT_AN_IMAGE)
    assert rows.plan(listing("a.jpg"), products, make_run(circumstances="c1"))["attempt"].to_list() == [1]


def test_a_run_that_products_forgot_counts_as_another_fingerprint() -> None:
    table = plan(listing("a.jpg"), replace(products_of(OK), runs={}))
    assert table["reason"].to_list() == ["model"]


def test_a_photo_that_is_gone_is_not_to_be_done() -> None:
    assert plan(listing(), products_of(ENGINE_FAILED)).is_empty()


def test_shards_are_slices_in_key_order() -> None:
    keys = [f"{number}.jpg" for number in (4, 1, 3, 0, 2)]
    table = plan(listing(*keys).reverse(), Products())
    assert table.select("product_id", "shard").rows() == [(f"{number}.jpg", number // 2) for number in range(5)]


@pytest.mark.parametrize(("limit", "count"), [(None, 5), (0, 0), (3, 3), (9, 5)])
def test_a_limit_takes_the_first_keys(limit: int | None, count: int) -> None:
    table = plan(listing(*"edcba"), Products(), limit=limit)
    assert table["product_id"].to_list() == list("abcde")[:count]


@settings(max_examples=60)
@given(st.data())
def test_the_plan_equals_a_decision_image_by_image(data: st.DataObject) -> None:
    etags, fingerprints, runs = st.sampled_from(["e1", "e2"]), st.sampled_from(["f1", "f2"]), [RUN_1, RUN_2]
    rows = data.draw(
        st.dictionaries(
            st.sampled_from("abcdef"),
            st.tuples(st.sampled_from(runs), etags, st.sampled_from([None, *ErrorKind]), st.integers(1, 4)),
        )
    )
    source = data.draw(st.dictionaries(st.sampled_from("abcdefgh"), etags))
    fingerprint = data.draw(fingerprints)

    def row(key: str, run: RunInfo, etag: str, kind: ErrorKind | None, attempt: int) -> Row:
        failure: dict[str, Any] = {"error_kind": kind} if kind else {}
        return make_row(run, f"{key}.jpg", etag=etag, attempt=attempt, **failure)

    def decide(key: str) -> tuple[Reason, int] | None:
        if key not in rows:
            return Reason.NEW, 1
        run, etag, kind, attempt = rows[key]
        if etag != source[key]:
            return Reason.CHANGED, 1
        if run.fingerprint != fingerprint:
            return (Reason.RETRY if kind else Reason.MODEL), 1
        return (Reason.RETRY, attempt + 1) if kind in TRANSIENT and attempt < 3 else None

    products = products_of(*((run, row(key, run, *rest)) for key, (run, *rest) in rows.items()))
    table = plan(listing(**source), products, fingerprint)
    expected = [(f"{key}.jpg", *decision) for key in sorted(source) if (decision := decide(key))]
    expected.sort(key=lambda one: one[1] == Reason.MODEL)  # after the others, and equally certain and valuable
    assert table.select("product_id", "reason", "attempt").rows() == expected
    assert table["shard"].to_list() == [number // 2 for number in range(len(expected))]


def test_a_manifest_is_read_back_as_it_was_written(output: Store) -> None:
    run, source = make_run(), listing("a.jpg", "b.jpg", "c.jpg")
    made = begin(output, run, source, plan(source, Products()))
    read = manifest.read_manifest(output, run.run_id)
    assert read is not None
    assert (read.run, read.shards) == (run, range(2))
    assert pl.read_parquet(read.path).equals(pl.read_parquet(made.path))
    photo = ListedPhoto("c.jpg", 10, "e1")
    version = photos_etag([("c.jpg", "e1")])
    assert manifest.items(read, 1) == [ManifestItem("c.jpg", (photo,), version, Reason.NEW, 1, 1)]
    assert manifest.items(read, 7) == []
    for name, schema in (("manifest", MANIFEST_SCHEMA), ("source", SOURCE_SCHEMA)):
        data, _ = output.get(f"runs/night-1/{name}.parquet")
        assert pq.read_schema(io.BytesIO(data)).equals(schema)


def test_an_empty_manifest_is_a_manifest(output: Store) -> None:
    made = begin(output, make_run(), listing(), plan(listing(), Products()))
    assert made.shards == range(0)
    read = manifest.read_manifest(output, "night-1")
    assert read is not None
    assert pl.read_parquet(read.path).equals(pl.read_parquet(made.path))


def test_a_sequence_is_higher_than_all_before_it(output: Store) -> None:
    assert [run_record.claim_sequence(output, "r1", 0), run_record.claim_sequence(output, "r2", 0)] == [1, 2]
    assert run_record.claim_sequence(output, "r3", 40) == 41  # the table records runs whose claims were deleted
    output.put(f"{run_record.SEQUENCES}/notes.txt", b"not a number")
    assert run_record.claim_sequence(output, "r4", 3) == 42


def test_two_runs_created_at_once_have_different_sequences(output: Store) -> None:
    class Raced(Wrapped):
        def before(self, number: int, name: str) -> None:
            if number == 1:  # after the slower one looked, before it claims
                assert run_record.claim_sequence(output, "faster", 0) == 1

    assert run_record.claim_sequence(Raced(output), "slower", 0) == 2


def test_the_manifest_that_was_first_stands(output: Store) -> None:
    first, second = make_run(), make_run(minutes=5)
    begin(output, first, listing("a.jpg"), plan(listing("a.jpg"), Products()))
    standing = begin(output, second, listing("a.jpg", "b.jpg"), plan(listing("a.jpg", "b.jpg"), Products()))
    assert standing.run == first
    assert pl.read_parquet(standing.path)["product_id"].to_list() == ["a.jpg"]


def test_a_run_exists_with_its_manifest_only(output: Store) -> None:
    class Dies(Wrapped):
        def before(self, number: int, name: str) -> None:
            if number == 1:  # after writing the listing, before the manifest
                raise KeyboardInterrupt

    source = listing("a.jpg")
    with pytest.raises(KeyboardInterrupt):
        begin(Dies(output), make_run(), source, plan(source, Products()))
    assert manifest.read_manifest(output, "night-1") is None
    again = listing("a.jpg", "b.jpg")
    begin(output, make_run(), again, plan(again, Products()))
    data, _ = output.get("runs/night-1/source.parquet")
    assert pl.read_parquet(data)["product_id"].to_list() == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not Parquet", "is not a readable Parquet file"),
        (parquet.encode(parquet.empty(SOURCE_SCHEMA), SOURCE_SCHEMA, {}), "has unexpected columns"),
        (
            parquet.encode(parquet.empty(MANIFEST_SCHEMA), MANIFEST_SCHEMA, {parquet.RUN_KEY: "{}"}),
            "does not say which run it belongs to",
        ),
    ],
)
def test_a_file_that_is_not_a_manifest_is_named(output: Store, data: bytes, message: str) -> None:
    output.put("runs/night-1/manifest.parquet", data)
    with pytest.raises(RunFailed) as error:
        manifest.read_manifest(output, "night-1")
    assert str(error.value) == f"{output.uri}/runs/night-1/manifest.parquet {message}; use another run id"


def test_a_run_id_continues_with_what_it_was_started_with() -> None:
    started = manifest.Manifest(make_run(), Path("nowhere"), 0)
    manifest.check_same_run(started, make_run(minutes=60 * 24, shard_size=9))
    with pytest.raises(UsageError) as error:
        manifest.check_same_run(started, make_run(images_uri="s3://other"))
    assert str(error.value) == "run night-1 was started on images s3://photos, not s3://other; use another run id"
    with pytest.raises(UsageError) as error:
        manifest.check_same_run(started, make_run(fingerprint="f2", adapter="a2"))
    assert str(error.value) == (
        "run night-1 was started with fingerprint f1 (adapter a1), not f2 (adapter a2); use another run id"
    )


KEPT = make_row(RUN_1, "a.jpg", sha256="bytes", fingerprint="f1")


@pytest.mark.parametrize(
    ("row", "etag", "kept"),
    [
        pytest.param(KEPT, "e2", True, id="another etag"),
        pytest.param(KEPT, "e1", False, id="not to be done"),
        pytest.param(replace(KEPT, photos_answered=0), "e2", False, id="no photo was shown"),
        pytest.param(replace(KEPT, fingerprint="f0"), "e2", False, id="answered by another model"),
        pytest.param(make_row(RUN_1, "a.jpg", sha256="bytes", error_kind=ErrorKind.EMPTY), "e2", False, id="no answer"),
    ],
)
def test_answers_that_may_stay_are_those_of_this_model_about_known_bytes(
    tmp_path: Path, row: Row, etag: str, kept: bool
) -> None:
    found = answers_of(tmp_path, products_of((RUN_1, row)), listing("new.jpg", a=etag))
    assert list(found) == (["a.jpg"] if kept else [])
    if kept:
        assert found["a.jpg"]["title"] == row.title


def test_what_a_person_decided_does_not_stay_as_if_the_model_had_said_it(tmp_path: Path) -> None:
    products = products_of((RUN_1, KEPT))
    decided = replace(products, table=products.table.with_columns(reviewed_by=pl.lit("Ann")))
    assert answers_of(tmp_path, decided, listing(a="e2")) == {}


def test_answers_that_may_stay_come_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:02}.jpg" for number in range(40)]
    rows = [(RUN_1, replace(KEPT, product_id=key)) for key in keys]
    source = listing(**{key.removesuffix(".jpg"): "e2" for key in keys[3:]})
    for piece in (100, 7):
        monkeypatch.setattr(manifest, "PARTITION_ROWS", piece)
        monkeypatch.setattr(spill, "PARTITION_ROWS", piece)
        folder = tmp_path / str(piece)
        folder.mkdir()
        assert list(answers_of(folder, products_of(*rows), source)) == keys[3:]


def answers_of(folder: Path, products: Products, source: pl.DataFrame) -> dict[str, dict[str, Any]]:
    run = make_run()
    parquet.write(folder / "plan", [plan(source, products)], MANIFEST_SCHEMA, {})
    parquet.write(folder / "products", [products.table], PRODUCTS_SCHEMA, {})
    stored = StoredProducts(folder / "products", 0, products.runs, products.last, None, None)
    manifest.write_answers(folder / "answers", folder / "plan", stored, run, folder)
    items = [manifest.item_of(row) for row in pl.read_parquet(folder / "plan").iter_rows(named=True)]
    return manifest.known_answers(folder / "answers", items)


def test_a_run_id_does_not_continue_under_other_limits() -> None:
    started = manifest.Manifest(make_run(circumstances="c1"), Path("nowhere"), 0)
    with pytest.raises(UsageError, match="run night-1 was started with other limits on photos or answers"):
        manifest.check_same_run(started, make_run(circumstances="c2"))
    before = manifest.Manifest(make_run(), Path("nowhere"), 0)
    manifest.check_same_run(before, make_run(circumstances="c2"))  # it did not record them


def test_a_restart_on_another_day_writes_to_the_same_place() -> None:
    assert make_run().history == "history/run_date=2026-11-22/run_id=night-1/"
    assert RunInfo.from_json(make_run().to_json()) == make_run()


def test_a_new_run_id_is_not_a_number_to_readers_of_history() -> None:
    with pytest.raises(UsageError, match=r"^run id 42: .* add a letter, such as run-42$"):
        manifest.check_new_run_id("42")
    manifest.check_new_run_id("run-42")
