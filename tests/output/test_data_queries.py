"""DATA.md: the dictionary is the schema's, and every query runs and says the same in all three languages."""

import re
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
import sqlglot

from docs import dictionary
from docs.markdown import between_markers
from enrich.output import publish
from enrich.output.decisions import DecidedPhoto, Decision
from enrich.output.reviews import next_reviews, read_reviews, write_reviews
from enrich.output.run_record import RunInfo
from enrich.output.schema import PRODUCTS_SCHEMA, REVIEW_SCHEMA, ROW_SCHEMA, Row
from enrich.storage import open_store
from enrich.vocabulary import Alternative, ErrorKind, ManifestItem
from tests.testing.rows import at, enrich_night, listing, make_photo, make_row, make_run

TEXT = (Path(__file__).parents[2] / "DATA.md").read_text("utf-8")
QUESTIONS = re.findall(r"^### \d+\. (.+?)\n(.*?)(?=^### |\Z)", TEXT, re.DOTALL | re.MULTILINE)


def block(body: str, language: str) -> str:
    return next(text for text in re.findall(r"```\w+\n(.*?)```", body, re.DOTALL) if language in text.split("\n")[0])


def night(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
    """Every kind of row that a question asks about, one answer of the second night other than in the first."""
    number = int(re.sub(r"\D", "", item.product_id))
    if number % 7 == 6 or (number == 3 and run.run_id == "night-2"):
        photos = (make_photo(run, item.product_id, error_kind=ErrorKind.TRUNCATED),) if number == 6 else ()
        changes: dict[str, Any] = {"photos": photos} if photos else {}
        return make_row(run, item.product_id, minutes, error_kind=ErrorKind.ENGINE_FAILED, shard=item.shard, **changes)
    category = ["Coats", "Hats", "Bags"][number % 3]
    if run.run_id == "night-2" and number % 5 == 0:
        category = "COATS"  # another than Coats
    return make_row(
        run, item.product_id, minutes, shard=item.shard, category=category, price=100.0 + number,
        price_low=90.0 - number, price_high=200.0 + 20 * number, sha256=f"sha-{number}",
        category_confidence=0.5 + number / 100,
        category_alternatives=(Alternative("Belts", 0.25), Alternative("Hats", number / 128)),
        needs_review=number % 2 == 0, review_reasons=("low_confidence", "wide_price")[: 1 + number % 4 // 2],
    )  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "enriched"
    store = open_store(str(folder), create=True)
    keys = [f"coats/{number}.jpg" for number in (123, *range(12))]
    enrich_night(store, make_run("night-1", 0), listing(*keys), night)
    enrich_night(store, make_run("night-2", 60, fingerprint="f2"), listing(*keys[:-1]), night)
    decisions = [
        Decision(product_id=f"coats/{number}.jpg", run_id="night-2",
                 photos=(DecidedPhoto(key=f"coats/{number}.jpg", etag="e1", sha256=f"sha-{number}"),),
                 decision="accepted" if number else "edited", title="Felt Hat", category=category, price=80.0,
                 currency="EUR", reviewed_at=at(100))
        for number, category in ((0, "Hats"), (1, "Hats"), (4, "Hats"))
    ]  # fmt: skip
    write_reviews(store, "digest", next_reviews(read_reviews(store), decisions, "Ann", at(100)))
    publish.publish_reviews(store)
    return folder


def plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return tuple(plain(item) for item in value)
    return value.astimezone(None).isoformat() if hasattr(value, "astimezone") else value


def rows_of(found: list[tuple]) -> list[tuple]:
    return [tuple(plain(value) for value in row) for row in found]


@pytest.mark.parametrize(("question", "body"), QUESTIONS, ids=[question for question, _ in QUESTIONS])
def test_a_question_has_one_answer(output: Path, question: str, body: str) -> None:
    duck = duckdb.execute(block(body, "DuckDB").replace("enriched/", f"{output}/")).fetchall()
    scope: dict[str, Any] = {"pl": pl}
    exec(block(body, "Polars").replace("enriched/", f"{output}/"), scope)
    polars = scope["answer"].collect().rows()
    translated = sqlglot.transpile(block(body, "Athena"), read="athena", write="duckdb")[0]
    connection = duckdb.connect()
    connection.sql(f"CREATE VIEW products AS FROM '{output}/products.parquet'")
    connection.sql(
        f"CREATE VIEW history AS FROM read_parquet('{output}/history/**/*.parquet', hive_partitioning = false)"
    )
    athena = connection.sql(translated).fetchall()

    assert rows_of(duck), f"{question}: the fixture has no rows for it"
    assert rows_of(polars) == rows_of(duck)
    assert rows_of(athena) == rows_of(duck)


def test_there_are_twelve_questions() -> None:
    assert len(QUESTIONS) == 12


def test_the_dictionary_is_the_schemas() -> None:
    assert set(dictionary.MEANINGS) == {*PRODUCTS_SCHEMA.names, *REVIEW_SCHEMA.names}
    assert between_markers(TEXT, dictionary.data_parts()) == TEXT, "run: make docs"
    assert TEXT.count("\n| `") == len(PRODUCTS_SCHEMA) + len(REVIEW_SCHEMA)


def test_athenas_declarations_are_the_schemas() -> None:
    (declared,) = re.findall(r"<!-- athena -->\n```sql\n(.*?)```", TEXT, re.DOTALL)
    products, history = sqlglot.parse(declared, read="athena")[:2]
    for statement, schema in ((products, PRODUCTS_SCHEMA), (history, ROW_SCHEMA)):
        assert statement is not None
        columns = {column.name: column.args["kind"].sql("hive") for column in statement.find_all(sqlglot.exp.ColumnDef)}
        assert [name for name in columns if name in schema.names] == schema.names
        assert (columns["price"], columns["attempt"], columns["needs_review"]) == ("DOUBLE", "SMALLINT", "BOOLEAN")
        assert columns["category_alternatives"] == "ARRAY<STRUCT<category: STRING, confidence: FLOAT>>"


def test_decided_rows_are_not_the_models(output: Path) -> None:
    """What the fixture lays over two nights, so that the tenth question asks about something."""
    table = pl.read_parquet(output / "products.parquet").filter(pl.col("reviewed_at").is_not_null())
    assert table["product_id"].sort().to_list() == ["coats/0.jpg", "coats/1.jpg", "coats/4.jpg"]
    assert table["reviewed_at"].unique().to_list() == [at(100)]
