"""Every query of docs/queries.md is run as it stands, on an output before, while and after its history is packed."""

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from enrich.pipeline.tidying import tidy
from enrich.settings.run import RunSettings
from enrich.storage import open_store
from tests.testing.rows import finished_night, listing, make_run

TEXT = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()
QUERIES = re.findall(r"```(sql|python)\n(.*?)```", TEXT, re.DOTALL)
KEYS = ["coats/123", "coats/124.jpg", "bad.jpg", "d.jpg", "e f%ü.jpg"]


@pytest.fixture(scope="module", params=["as runs leave it", "while it is packed", "packed"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("queries") / "enriched"
    store = open_store(str(root), create=True)
    for number in range(2):
        run = make_run(f"2026112{number}T020000Z-00000{number}", 1440 * number, fingerprint=f"f{number}")
        finished_night(store, run, listing(*KEYS))
        _tell_categories_that_differ_in_case(root / "runs" / run.run_id / "run.json")
    if request.param != "as runs leave it":
        tidy(str(root), RunSettings(), grace=timedelta(days=1), keep=None)
    if request.param == "packed":
        tidy(str(root), RunSettings(), grace=timedelta(0), keep=None)
    return root


def _tell_categories_that_differ_in_case(path: Path) -> None:
    record = json.loads(path.read_text())
    mix = {"Coats": 0.5, "COATS": 0.5}
    stats = {"rows": 5, "ok": 4, "failed": 1, "failed_by_kind": {}, "unknown_category": 0, "review": 0}
    cost = {"per_hour": 9.0, "per_1000_photos": 500.0, "total": 2.5, "currency": "USD"}
    record |= {"stats": {**stats, "category_mix": mix, "price_median": 100.0}, "cost": cost}
    path.write_text(json.dumps(record))


def run_query(language: str, text: str, output: Path) -> Any:
    text = text.replace("enriched/", f"{output}/")
    if language == "sql":
        return duckdb.execute(text).fetchall()
    names: dict[str, Any] = {}
    exec(text, names)
    result = names["result"]
    return result.to_dict() if hasattr(result, "to_dict") and not hasattr(result, "to_dicts") else result.to_dicts()


def test_there_are_queries_of_each_kind() -> None:
    assert [language for language, _ in QUERIES].count("python") == 5
    assert len(QUERIES) == 13


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_a_copied_query_runs_and_finds_what_is_there(output: Path, number: int) -> None:
    language, text = QUERIES[number]
    found = run_query(language, text, output)
    if "needs_review" in text:
        assert found == []  # none of these needs review
        return
    assert found
    if "every answer" in text:
        assert [(row[0], row[3]) for row in found] == [(f"2026112{n}T020000Z-00000{n}", "e1") for n in range(2)]
    elif "what failed" in text:
        assert [row[1:] for row in found] == [("not_an_image", 1)] * 2
    elif "history.unique" in text:
        assert sorted((row["rows"], row["ok"]) for row in found) == [(5, 4), (5, 4)]
    elif "observed" in text:
        assert found == {f"2026112{n}T020000Z-00000{n}": 5 for n in range(2)}
    elif "drop_duplicates" in text:
        assert len(found["product_id"]) == 8
    elif "median_price" in text:
        assert found == [{"category": "Coats", "products": 4, "median_price": 100.0}]
    elif "levels" in text:
        assert found == [(None, 4, 100.0)]  # leaves
    elif "the photos of" in text:
        assert found == [("coats/123", "s3://photos/coats/123", None, None, None)]
    elif "without a good" in text:
        assert found == [("bad.jpg", "bad.jpg", "not_an_image", 1)]
    elif "run.json" in text:
        assert [(row[1], row[4], row[5]) for row in found] == [("published", 2.5, "USD")] * 2


def test_usual_readers_take_the_folder_of_history_as_one_table(output: Path) -> None:
    folder = str(output / "history")
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in Path(folder).rglob("*.parquet"))
    discovered = ds.HivePartitioning.discover(infer_dictionary=True)
    tables = [
        pd.read_parquet(folder),
        pd.read_parquet(folder, filters=[("run_id", "in", ["20261120T020000Z-000000", "20261121T020000Z-000001"])]),
        pq.read_table(folder).to_pandas(),
        ds.dataset(folder).to_table().to_pandas(),
        ds.dataset(folder, partitioning=discovered).to_table().to_pandas(),
        pl.read_parquet(folder).to_pandas(),
        pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).collect().to_pandas(),
        duckdb.execute(f"from read_parquet('{folder}/**/*.parquet', hive_partitioning = true)").df(),
        duckdb.execute(f"from read_parquet('{folder}/**/*.parquet', hive_partitioning = false)").df(),
    ]
    for table in tables:
        assert len(table) == rows
        assert set(table["run_id"]) == {"20261120T020000Z-000000", "20261121T020000Z-000001"}


def test_a_history_with_files_of_before_is_read_as_the_page_says(output: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "history"
    shutil.copytree(output / "history", mixed)
    first = min(mixed.rglob("*.parquet"))
    table = pq.ParquetFile(first).read()
    pq.write_table(
        table.set_column(table.schema.get_field_index("run_id"), "run_id", table["run_id"].cast("string")), first
    )
    options = pl.ScanCastOptions(categorical_to_string="allow")
    found = pl.scan_parquet(f"{mixed}/**/*.parquet", hive_partitioning=False, cast_options=options).collect()
    assert found.schema["run_id"] == pl.String
    assert found["run_id"].n_unique() == 2


def test_what_a_query_says_of_packing_is_true(tmp_path: Path) -> None:
    """A plain count counts twice while a pack and its shards are both there, which the page says."""
    root = tmp_path / "enriched"
    store = open_store(str(root), create=True)
    finished_night(store, make_run(), listing(*KEYS))
    tidy(str(root), RunSettings(), grace=timedelta(days=1), keep=None)
    counted = duckdb.execute(f"select count(*) from read_parquet('{root}/history/**/*.parquet')").fetchall()
    assert counted == [(10,)]
    shutil.rmtree(root)
