"""An output of schema version 2 continues: table, history and decisions are read as if always of products."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enrich.errors import RunFailed
from enrich.output import history, parquet, publish
from enrich.output.decisions import DecidedPhoto, Decision
from enrich.output.listing import fetch_listing
from enrich.output.manifest import items, read_manifest
from enrich.output.products import read_products
from enrich.output.reviews import next_reviews, read_reviews, write_reviews
from enrich.output.run_record import RunInfo
from enrich.output.schema import HISTORY_SCHEMA, PRODUCTS_SCHEMA, ROW_SCHEMA, SCHEMA_VERSION, Row
from enrich.pipeline import releasing
from enrich.pipeline.tidying import tidy
from enrich.settings.run import RunSettings
from enrich.storage import ObjectInfo, Store, open_store
from enrich.storage.scratch import scratch
from enrich.vocabulary import ManifestItem
from tests.testing.rows import (
    answer,
    at,
    enrich_night,
    finished_night,
    make_photo,
    make_row,
    make_run,
    plan,
    products_table,
)
from tests.testing.version_2 import downgrade


def source(**etags: str) -> pl.DataFrame:
    """Photos below coats/ that are a product each, as `group_by: photo` names them."""
    return products_table(
        {f"coats/{name}": [ObjectInfo(f"coats/{name}.jpg", 10, etag)] for name, etag in etags.items()}
    )


@pytest.fixture
def output(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path), create=True)
    finished_night(store, make_run("n1"), source(a="e1", b="e1", bad="e1"))
    finished_night(store, make_run("n2", 10), source(a="e2", b="e1", bad="e1"))
    photo = DecidedPhoto(key="coats/b.jpg", etag="e1")
    said = Decision(
        product_id="coats/b", photos=(photo,), run_id="n1", decision="edited", title="Cap", category="Coats"
    )
    write_reviews(store, "digest", next_reviews(read_reviews(store), [said], "Ann", at(20)))
    publish.publish_reviews(store)
    return store


def same(table: pl.DataFrame) -> pl.DataFrame:
    """What version 2 did not have is null afterwards, where today it may be empty."""
    return table.drop("attributes").sort("product_id")


def test_table_and_history_read_as_they_were(output: Store, tmp_path: Path) -> None:
    before, rows = read_products(output), history.read_shards(output, make_run("n1"))
    reviews, manifest = read_reviews(output), read_manifest(output, "n2")
    assert manifest is not None
    listed = items(manifest, 0)
    downgrade(tmp_path)
    assert pq.read_metadata(tmp_path / "products.parquet").metadata[b"enrich.schema_version"] == b"2"

    after = read_products(output)
    assert same(after.table).equals(same(before.table))
    assert (after.runs, after.last) == (before.runs, before.last)
    assert after.table.schema == parquet.empty(PRODUCTS_SCHEMA).schema
    assert set(after.table["schema_version"]) == {SCHEMA_VERSION}
    assert same(history.read_shards(output, make_run("n1"))).equals(same(rows))
    assert read_reviews(output).equals(reviews)
    older = read_manifest(output, "n2")
    assert older is not None
    assert items(older, 0) == listed
    with scratch() as folder:
        assert fetch_listing(output, "n2", folder).ids(None, None).to_list() == ["coats/a", "coats/b", "coats/bad"]


def test_the_next_nightly_run_does_what_is_new_and_no_more(output: Store, tmp_path: Path) -> None:
    downgrade(tmp_path)
    products = read_products(output)
    assert plan(source(a="e2", b="e1", bad="e1"), products, make_run("n3", 20)).is_empty()
    assert plan(source(a="e3", c="e1"), products, make_run("n3", 20)).select("product_id", "reason").rows() == [
        ("coats/a", "changed"), ("coats/c", "new")
    ]  # fmt: skip

    finished_night(output, make_run("n3", 30), source(a="e3", b="e1", c="e1"))

    stored = pq.ParquetFile(tmp_path / "products.parquet")
    assert stored.schema_arrow.equals(PRODUCTS_SCHEMA)
    table = {row["product_id"]: row for row in read_products(output).table.to_dicts()}
    assert {name: (row["title"], row["in_source"]) for name, row in table.items()} == {
        "coats/a": ("e3", True), "coats/b": ("Cap", True), "coats/c": ("e1", True), "coats/bad": (None, False)
    }  # fmt: skip


PICKED = ("picked", "adapter", "suggested_confidence", "suggested_price_low", "suggested_price_high",
          "suggested_confidences")  # fmt: skip


@pytest.mark.parametrize("lacking", [PICKED, (*PICKED, "attributes", "suggested_attributes")])
def test_decisions_from_before_they_had_all_columns_are_read(
    output: Store, tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    reviews = read_reviews(output)
    [path] = (tmp_path / "reviews").iterdir()
    with pq.ParquetFile(path) as file:
        table, pairs = file.read(), file.metadata.metadata
    with pq.ParquetWriter(path, table.drop_columns(lacking).schema) as writer:
        writer.write_table(table.drop_columns(lacking))
        writer.add_key_value_metadata(pairs)
    assert read_reviews(output).equals(reviews)
    pq.write_table(table.drop_columns(["attributes", "title"]), path)
    with pytest.raises(RunFailed, match="has unexpected columns"):
        read_reviews(output)


def without_looks(path: Path) -> None:
    """Write a file as before rows had looks."""
    with pq.ParquetFile(path) as file:
        table, pairs = file.read().drop_columns("looks"), file.metadata.metadata
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(pairs)


def without_issues(path: Path) -> None:
    """Write a file as before photos had issues, when rows had no looks either."""
    without_looks(path)
    with pq.ParquetFile(path) as file:
        table, pairs = file.read(), file.metadata.metadata
    at = table.schema.get_field_index("photos")
    photos = pa.list_(pa.struct([one for one in table.schema.field(at).type.value_type if one.name != "photo_issues"]))
    table = table.set_column(at, "photos", without(table["photos"], photos))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(pairs)


def without(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """A column of lists of structs with the fields of `kind` only."""
    names = [one.name for one in kind.value_type]
    return pa.array([[{name: photo[name] for name in names} for photo in cell] for cell in column.to_pylist()], kind)


@pytest.mark.parametrize("earlier", [without_looks, without_issues])
def test_tables_and_history_from_before_looks_and_photo_issues_are_read_and_folded(
    output: Store, tmp_path: Path, earlier: Callable[[Path], None]
) -> None:
    before, rows = read_products(output), history.read_shards(output, make_run("n1"))
    files = [tmp_path / "products.parquet", *tmp_path.glob("history/*/*/*.parquet")]
    for path in files:
        earlier(path)
        assert "looks" not in pq.read_schema(path).names
        assert ("photo_issues" in str(pq.read_schema(path))) == (earlier is without_looks)
    assert read_products(output).table.equals(before.table)
    assert history.read_shards(output, make_run("n1")).equals(rows)

    finished_night(output, make_run("n3", 30), source(a="e3", b="e1", c="e1"))

    assert pq.ParquetFile(files[0]).schema_arrow.equals(PRODUCTS_SCHEMA)
    assert set(read_products(output).table["product_id"]) >= {"coats/a", "coats/b", "coats/c"}


def test_it_can_be_packed_rebuilt_and_gone_back_from(output: Store, tmp_path: Path) -> None:
    expected = same(read_products(output).table)
    downgrade(tmp_path)
    tidy(str(tmp_path), RunSettings(), grace=timedelta(0), keep=None)
    packs = [path for path in tmp_path.glob("history/**/*.parquet") if path.name.startswith("shards-")]
    assert packs
    assert all(pq.read_schema(path).equals(HISTORY_SCHEMA) for path in packs)
    output.delete("products.parquet")
    releasing.rebuild(str(tmp_path))
    assert same(read_products(output).table).equals(expected)
    releasing.roll_back(str(tmp_path), "n1")
    assert read_products(output).table.filter(pl.col("product_id") == "coats/a")["title"].to_list() == ["e1"]


def test_two_photos_of_one_stem_become_one_row_and_the_other_is_answered_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    photos = {name: [ObjectInfo(name, 10, f"of {name}")] for name in ("x.jpg", "x.png", "y.jpg")}

    def said(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return answer(run, item, minutes)

    finished_night(store, make_run("n1"), products_table(photos))
    downgrade(tmp_path)
    now = products_table({"x": photos["x.jpg"], "x.png": photos["x.png"], "y": photos["y.jpg"]})
    todo = plan(now, read_products(store), make_run("n2", 10))
    assert ("x.png", "new") in todo.select("product_id", "reason").rows()
    assert todo["product_id"].is_unique().all()
    finished_night(store, make_run("n2", 10), now)
    shown = {row["product_id"]: row["title"] for row in read_products(store).table.to_dicts()}
    assert shown == {"x": "of x.jpg", "x.png": "of x.png", "y": "of y.jpg"}
    assert plan(now, read_products(store), make_run("n3", 20)).is_empty()


def test_other_versions_are_refused(output: Store, tmp_path: Path) -> None:
    rows = parquet.from_records([], ROW_SCHEMA)
    for version in ("4", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet, "SCHEMA_VERSION", version)
            data = parquet.encode(rows.drop("photos"), ROW_SCHEMA.remove(ROW_SCHEMA.names.index("photos")), {})
        with pytest.raises(RunFailed, match=f"has schema version {version}, not 3"):
            parquet.decode(data, ROW_SCHEMA, "here")


def test_what_was_wrong_with_a_photo_is_said_of_the_photo(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)

    def fails(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        read = item.product_id == "read"
        photo = make_photo(run, f"{item.product_id}.jpg", width=9 if read else None, height=9 if read else None)
        kind = "engine_failed" if read else "truncated"
        return make_row(
            run, minutes=minutes, product_id=item.product_id, photos=(photo,), shard=item.shard, error_kind=kind
        )

    names = {name: [ObjectInfo(f"{name}.jpg", 1, "e1")] for name in ("read", "cut")}
    run = make_run("n1")
    enrich_night(store, run, products_table(names), fails)
    downgrade(tmp_path)
    found = {row["product_id"]: row for row in read_products(store).table.to_dicts()}
    kinds = {name: (row["photos"][0]["error_kind"], row["photos_answered"]) for name, row in found.items()}
    assert kinds == {"read": (None, 1), "cut": ("truncated", 0)}
