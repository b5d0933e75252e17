"""`enrich export`: which rows are taken, and that every file is as its reader's published rules say."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from python_calamine import CalamineWorkbook

from enrich.errors import UsageError
from enrich.feeds.formats import FORMATS
from enrich.feeds.rows import money
from enrich.output.decisions import DecidedPhoto, Decision
from enrich.output.publish import publish_reviews
from enrich.output.reviews import next_reviews, read_reviews, write_reviews
from enrich.output.run_record import RunInfo
from enrich.output.schema import Attribute, Row
from enrich.pipeline.exporting import Exported, export
from enrich.settings.export import ExportSettings
from enrich.storage import open_store
from enrich.vocabulary import ErrorKind, ManifestItem
from tests.testing.cli import RunCli
from tests.testing.feed_rules import MERCHANT, MERCHANT_REQUIRED, SHOPIFY, SHOPIFY_REQUIRED, broken
from tests.testing.rows import at, enrich_night, listing, make_photo, make_row, make_run

PREFIX = "https://cdn.shop.example/photos"
PRIMARY = ExportSettings(
    link_prefix=PREFIX, product_link="https://shop.example/p/{product_id}", availability="in_stock", condition="new",
    brand="Shop & Co",
)  # fmt: skip
HOSTILE = (
    "=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1+1", "\r=1+1", "\uff1d1+1", '"quoted", and "more"', "a:b",
    "<b>bold</b> & co", "line\nbreak", "日本語のコート", "x" * 200, "tab\there", "'apostrophe", "|", "emoji 🧥",
)  # fmt: skip


def hostile(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
    """Ordinary and hostile products, each with all kinds of further fields."""
    n = int(item.product_id.removeprefix("p-"))
    text = [*(f"Coat no. {m}" for m in range(4)), *HOSTILE][n]
    said = {
        "colour": text, "material": "Wool", "gender": ("male", "Women", "dog", "unisex")[n % 4], "age_group": "kids",
        "sleeve_length": text, "size": None, "description": text * 30,
    }  # fmt: skip
    return make_row(
        run, item.product_id, minutes, shard=item.shard, title=text, category=text if n % 2 else "Coats",
        category_confidence=0.5 + n / 100, category_path=None if n % 2 else ("Clothing", "Coats"),
        category_id=("5598", "aa-1-10-2", "10001352", None)[n % 4], price=10.0 + n / 8, price_low=9.0, price_high=20.0,
        photos=tuple(make_photo(run, f"p {n}/{m},ü.jpg") for m in range(1 + n % 13)),
        attributes={name: Attribute(value, 0.9) for name, value in said.items()},
    )  # fmt: skip


ALL = [f"p-{n}" for n in range(4 + len(HOSTILE))]


def output_of(folder: Path, answer: Callable[[RunInfo, ManifestItem, float], Row], *products: str) -> str:
    """An output of one run over these products."""
    enrich_night(open_store(str(folder), create=True), make_run(), listing(*products), answer)
    return str(folder)


def one(**changes: Any) -> Callable[[RunInfo, ManifestItem, float], Row]:
    """Every product answered alike."""

    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        usual = {"category_confidence": 0.9, "shard": item.shard}
        return make_row(run, item.product_id, minutes, **{**usual, **changes})

    return answer


def cells_of(path: Path) -> list[dict[str, str]]:
    """The rows of a delimited file, read as RFC 4180 has it."""
    separator = "," if path.suffix == ".csv" else "\t"
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), delimiter=separator, strict=True))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return output_of(tmp_path_factory.mktemp("feeds") / "out", hostile, *ALL)


@pytest.mark.parametrize(
    ("format", "name", "rules", "required"),
    [
        ("merchant", "feed.tsv", MERCHANT, MERCHANT_REQUIRED), ("merchant", "feed.csv", MERCHANT, MERCHANT_REQUIRED),
        ("shopify", "products.csv", SHOPIFY, SHOPIFY_REQUIRED),
    ],
)  # fmt: skip
def test_files_are_as_their_readers_rules_say(
    output: str, tmp_path: Path, format: str, name: str, rules: Any, required: Any
) -> None:
    done = export(output, format, str(tmp_path / name), PRIMARY)
    rows = cells_of(tmp_path / name)
    assert (done.products, done.left_out) == (len(ALL), {})
    assert broken(rows, rules, required) == []
    key = "id" if format == "merchant" else "Handle"
    assert list(dict.fromkeys(row[key] for row in rows)) == sorted(ALL, key=lambda one: rows_order(output, one))


def rows_order(output: str, product: str) -> int:
    return pl.read_parquet(f"{output}/products.parquet")["product_id"].to_list().index(product)


@pytest.mark.parametrize("format", list(FORMATS))
def test_the_same_rows_make_the_same_bytes(output: str, tmp_path: Path, format: str) -> None:
    files = [tmp_path / f"{n}.csv" for n in range(2)]
    for file in files:
        export(output, format, str(file), PRIMARY)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("format", "name"),
    [("merchant", "feed.tsv"), ("merchant", "feed.csv"), ("csv", "all.csv"), ("shopify", "shop.csv")],
)
def test_no_cell_is_a_formula_and_every_row_is_a_line(output: str, tmp_path: Path, format: str, name: str) -> None:
    done = export(output, format, str(tmp_path / name), PRIMARY)
    rows = cells_of(tmp_path / name)
    assert all(None not in row and len(row) == len(rows[0]) for row in rows)
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20"))]
    assert done.notes[-1].startswith(
        "cells that a spreadsheet would execute as formulas are prefixed with an apostrophe: "
    )
    assert len(rows) == len(ALL) if format != "shopify" else sum(1 + n % 13 for n in range(len(ALL)))


IDS = ("007", " =1", "\u00a0=2", "\x0b=3", "a\x00b", "a\x1b[31mb", "a\nb", "+49", "plain", "\u200b@x")


@pytest.mark.parametrize(
    ("format", "name", "usable"),
    [("merchant", "feed.tsv", 6), ("merchant", "feed.csv", 6), ("shopify", "shop.csv", 6), ("csv", "all.csv", 10)],
)
def test_odd_product_ids_make_neither_formulas_nor_broken_files(
    tmp_path: Path, format: str, name: str, usable: int
) -> None:
    output = output_of(tmp_path / "out", one(), *IDS)
    done = export(output, format, str(tmp_path / name), PRIMARY)
    rows = cells_of(tmp_path / name)
    cells = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in cells if re.match(r"[\s\x00-\x1f\u200b]*[=@]", cell)]
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", (tmp_path / name).read_text("utf-8"))
    key = {"merchant": "id", "shopify": "Variant SKU", "csv": "product_id"}[format]
    assert {"007", "+49", "plain"} < {row[key] for row in rows}
    assert (done.products, len(rows)) == (usable, usable)
    if usable < len(IDS):
        assert done.left_out_line == "left out: 4: 4 with control characters in its product_id"


def test_an_excel_sheet_of_odd_product_ids_is_readable(tmp_path: Path) -> None:
    export(output_of(tmp_path / "out", one(), *IDS), "xlsx", str(tmp_path / "sheet.xlsx"))
    rows = CalamineWorkbook.from_path(tmp_path / "sheet.xlsx").get_sheet_by_index(0).to_python()
    changed = {"\x0b=3": "\ufffd=3", "a\x00b": "a\ufffdb", "a\x1b[31mb": "a\ufffd[31mb"}
    assert {row[0] for row in rows[1:]} == {changed.get(name, name) for name in IDS}


@pytest.mark.parametrize(
    "file", ["products.parquet", "runs/night-1/run.json", "reviews/../history/x.csv", "reviews/x.csv"]
)
def test_no_file_replaces_one_of_the_outputs_own(tmp_path: Path, run_cli: RunCli, file: str) -> None:
    output = output_of(tmp_path / "out", one(), "a")
    before = (tmp_path / "out" / "products.parquet").read_bytes()
    for command in (("export", "--format", "csv"), ("label", "--budget", "1")):
        code, _, err = run_cli(command[0], "--output", output, *command[1:], "--to", f"{output}/{file}")
        assert code == 2
        assert err.startswith(f"error: --to {output}/{file}: would replace what output {output} keeps in ")
        code, _, err = run_cli(command[0], "--output", output, *command[1:], "--to", "")
        assert (code, err) == (2, "error: --to is empty; name a file, such as --to s3://bucket/key\n")
    assert (tmp_path / "out" / "products.parquet").read_bytes() == before


def test_an_excel_sheet_has_texts_as_they_are_and_numbers_as_numbers(output: str, tmp_path: Path) -> None:
    export(output, "xlsx", str(tmp_path / "sheet.xlsx"), PRIMARY)
    [header, *rows] = CalamineWorkbook.from_path(tmp_path / "sheet.xlsx").get_sheet_by_name("Products").to_python()
    found = {str(row[0]): dict(zip(header, row, strict=True)) for row in rows}
    assert [str(found[f"p-{4 + n}"]["title"]).replace("_x000D_", "\r") for n in range(5)] == list(HOSTILE[:5])
    assert (found["p-1"]["price"], found["p-3"]["price"]) == (10.13, 10.38)  # 10.125 and 10.375 in cents
    assert found["p-0"]["colour_confidence"] == 0.9
    with zipfile.ZipFile(tmp_path / "sheet.xlsx") as archive:
        assert b"<f>" not in archive.read("xl/worksheets/sheet1.xml")


def test_titles_of_a_model_are_declared_and_those_of_people_are_not(tmp_path: Path) -> None:
    output = output_of(tmp_path / "out", one(title="Coat: Navy", needs_review=True), "a", "b", "c", "d")
    store = open_store(output)
    decided: dict[str, tuple[Literal["accepted", "edited", "rejected"], str | None]] = {
        "a": ("edited", "Pea Coat"), "b": ("accepted", "Coat: Navy"), "c": ("rejected", None),
    }  # fmt: skip
    decisions = [
        Decision(
            product_id=name, run_id="night-1", photos=(DecidedPhoto(key=name, etag="e1"),), decision=decision,
            title=title, category=title and "Coats", suggested_title="Coat: Navy", suggested_category="Coats",
            reviewed_at=at(5),
        )
        for name, (decision, title) in decided.items()
    ]  # fmt: skip
    write_reviews(store, "d" * 32, next_reviews(read_reviews(store), decisions, "Ann", at(6)))
    publish_reviews(store)
    done = export(output, "merchant", str(tmp_path / "feed.tsv"), ExportSettings(link_prefix=PREFIX))
    told = {row["id"]: (row["title"], row["structured_title"]) for row in cells_of(tmp_path / "feed.tsv")}
    assert told == {"a": ("Pea Coat", ""), "b": ("", 'trained_algorithmic_media:"Coat: Navy"')}
    assert done.left_out_line == "left out: 2: 1 waiting for review, 1 rejected by a person"
    export(output, "csv", str(tmp_path / "all.csv"))
    made = {row["product_id"]: row["digital_source_type"] for row in cells_of(tmp_path / "all.csv")}
    assert made == {"a": "", "b": "trained_algorithmic_media"}


def test_rows_that_may_not_be_used_are_left_out_and_counted(tmp_path: Path, run_cli: RunCli) -> None:
    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        changes: dict[str, dict[str, Any]] = {
            "failed": {"error_kind": ErrorKind.EMPTY}, "doubtful": {"needs_review": True},
            "unsure": {"category_confidence": 0.4}, "silent": {"category_confidence": None},
        }  # fmt: skip
        return one(**changes.get(item.product_id, {}))(run, item, minutes)

    names = ("good", "failed", "doubtful", "unsure", "silent", "gone")
    output = output_of(tmp_path / "out", answer, *names)
    enrich_night(open_store(output), make_run("night-2", 60), listing(*names[:-1]), answer)
    (tmp_path / "s.yaml").write_text("run: {shard_size: 3}\nexport: {min_confidence: 0.5}\n")
    file = tmp_path / "new" / "all.csv"
    code, out, _ = run_cli(
        "export", "--output", output, "--format", "csv", "--to", str(file), "--config", str(tmp_path / "s.yaml")
    )
    assert code == 0
    assert [row["product_id"] for row in cells_of(file)] == ["good"]
    assert out.splitlines()[-2] == f"1 products: {file}"
    assert out.splitlines()[-1] == (
        "left out: 5: 2 below min_confidence 0.5, 1 waiting for review, 1 no longer in the source, 1 failed"
    )


@pytest.mark.parametrize(
    ("currency", "merchant", "shopify"),
    [("EUR", "1290.50 EUR", "1290.50"), ("JPY", "1291 JPY", "1291"), ("KWD", "1290.500 KWD", "1290.500"),
     (None, "", "1290.50")],
)  # fmt: skip
def test_amounts_have_the_decimals_of_their_currency(
    tmp_path: Path, currency: str | None, merchant: str, shopify: str
) -> None:
    output = output_of(tmp_path / "out", one(price=1290.5, currency=currency), "a")
    settings = ExportSettings(link_prefix=PREFIX)
    export(output, "merchant", str(tmp_path / "feed.tsv"), settings)
    export(output, "shopify", str(tmp_path / "shop.csv"), settings)
    export(output, "csv", str(tmp_path / "all.csv"), settings)
    assert cells_of(tmp_path / "feed.tsv")[0]["price"] == merchant
    assert cells_of(tmp_path / "shop.csv")[0]["Variant Price"] == shopify
    assert cells_of(tmp_path / "all.csv")[0]["price"] == shopify


def test_amounts_of_any_size_are_whole(tmp_path: Path) -> None:
    prices = pl.DataFrame({"price": [0.01, 0.125, 1.5, 999_999_999.0, 12345.678], "currency": ["EUR"] * 5})
    assert prices.select(money("price", ["EUR"])).to_series().to_list() == [
        "0.01", "0.13", "1.50", "999999999.00", "12345.68",
    ]  # fmt: skip


def test_categories_of_a_standard_go_where_it_belongs(output: str, tmp_path: Path) -> None:
    export(output, "merchant", str(tmp_path / "feed.tsv"), PRIMARY)
    export(output, "shopify", str(tmp_path / "shop.csv"), PRIMARY)
    google = {row["id"]: row for row in cells_of(tmp_path / "feed.tsv")}
    assert (google["p-0"]["google_product_category"], google["p-0"]["product_type"]) == ("5598", "Clothing > Coats")
    assert {google[f"p-{n}"]["google_product_category"] for n in (1, 2, 3)} == {""}
    shop = {row["Handle"]: row for row in cells_of(tmp_path / "shop.csv") if row["Title"]}
    assert (shop["p-0"]["Product Category"], shop["p-0"]["Type"]) == ("", "Clothing > Coats")
    assert shop["p-1"]["Product Category"] == shop["p-1"]["Type"] == "Coat no. 1"


def test_fields_go_to_columns_of_the_same_meaning(output: str, tmp_path: Path) -> None:
    export(output, "merchant", str(tmp_path / "feed.tsv"), PRIMARY)
    rows = {row["id"]: row for row in cells_of(tmp_path / "feed.tsv")}
    assert [rows[f"p-{n}"]["gender"] for n in range(4)] == ["male", "female", "", "unisex"]
    assert rows["p-2"]["product_detail"] == "General:Gender:dog,General:Sleeve length:Coat no. 2"
    assert (rows["p-2"]["color"], rows["p-2"]["material"], rows["p-2"]["size"]) == ("Coat no. 2", "Wool", "")
    assert "General:Colour:" + "x" * 200 in rows["p-16"]["product_detail"]  # too long for color
    assert rows["p-0"]["structured_description"] == "trained_algorithmic_media:" + "Coat no. 0" * 30
    export(output, "shopify", str(tmp_path / "shop.csv"), PRIMARY)
    tags = next(row["Tags"] for row in cells_of(tmp_path / "shop.csv") if row["Handle"] == "p-5")
    assert tags == "Age group: kids, Colour: +cmd|' /C calc'!A0, Gender: Women, Material: Wool, " + (
        "Sleeve length: +cmd|' /C calc'!A0"
    )
    export(output, "csv", str(tmp_path / "all.csv"), PRIMARY)
    first = cells_of(tmp_path / "all.csv")[0]
    assert (first["material"], first["material_confidence"], first["size"]) == ("Wool", "0.9", "")


@pytest.mark.parametrize("format", ["csv", "xlsx"])
def test_a_field_takes_the_place_of_no_column(tmp_path: Path, format: str) -> None:
    names = ("currency", "field_photos", "photos", "price_low", "run_id", "sleeve", "sleeve_confidence")
    said = {name: Attribute(f"said {name}", 0.75) for name in names}
    output = output_of(tmp_path / "out", one(attributes=said, price=10.0, price_low=9.0, price_high=11.0), "a")
    path = tmp_path / f"products.{format}"
    export(output, format, str(path))
    if format == "csv":
        [row] = cells_of(path)
    else:
        header, cells = CalamineWorkbook.from_path(str(path)).get_sheet_by_index(0).to_python()
        row = dict(zip(map(str, header), map(str, cells), strict=True))
    assert (float(row["price_low"]), row["currency"], row["photos"].startswith("said")) == (9.0, "EUR", False)
    places = {text: column for column, text in row.items() if text.startswith("said")}
    assert places == {
        "said currency": "field_currency", "said field_photos": "field_photos", "said photos": "field_field_photos",
        "said price_low": "field_price_low", "said run_id": "field_run_id", "said sleeve": "sleeve",
        "said sleeve_confidence": "field_sleeve_confidence",
    }  # fmt: skip
    assert (row["sleeve_confidence"], row["sleeve_confidence_confidence"]) == ("0.75", "0.75")


def test_fields_less_sure_than_asked_are_not_in_a_feed(output: str, tmp_path: Path) -> None:
    sure = PRIMARY.model_copy(update={"min_confidence": 0.95})
    with pytest.raises(UsageError, match=r"none of 21 rows can be exported: 21 below min_confidence 0\.95"):
        export(output, "merchant", str(tmp_path / "feed.tsv"), sure)
    unsure = output_of(tmp_path / "out", one(attributes={"material": Attribute("Wool", 0.5)}), "a")
    export(unsure, "merchant", str(tmp_path / "feed.tsv"), PRIMARY.model_copy(update={"min_confidence": 0.8}))
    assert cells_of(tmp_path / "feed.tsv")[0]["material"] == ""


def test_broken_photos_have_no_link_and_handles_tell_ids_apart(tmp_path: Path) -> None:
    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        photos = (make_photo(run, "1.jpg", error_kind=ErrorKind.TRUNCATED), make_photo(run, "a b/2.jpg"))
        return one(photos=photos)(run, item, minutes)

    output = output_of(tmp_path / "out", answer, "Coats/ä.1", "Coats/ä-1", "コート")
    export(output, "shopify", str(tmp_path / "shop.csv"), ExportSettings(link_prefix=f"{PREFIX}/"))
    rows = cells_of(tmp_path / "shop.csv")
    assert {row["Image Src"] for row in rows} == {f"{PREFIX}/a%20b/2.jpg"}
    assert broken(rows, SHOPIFY, SHOPIFY_REQUIRED) == []
    assert len({row["Handle"] for row in rows}) == 3
    assert {row["Variant SKU"] for row in rows} == {"Coats/ä.1", "Coats/ä-1", "コート"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--format", "merchant", "--to", "feed.tsv"), "give --link-prefix https://cdn.shop.example/photos/"),
        (("--format", "merchant", "--to", "feed.xml", "--link-prefix", PREFIX), "ends with .tsv, .txt or .csv"),
        (("--format", "pdf", "--to", "feed.tsv"), "format pdf: choose from csv, merchant, shopify, xlsx"),
        (("--format", "csv", "--to", "."), "is a directory; name a file in it"),
        (("--format", "csv", "--to", "x.csv", "--min-confidence", "7"), "less than or equal to 1"),
        (("--format", "csv", "--to", "x.csv", "--link-prefix", "photos/"), "link_prefix"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    output: str, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_cli("export", "--output", output, *options)
    assert (code, told in err, err.strip().count("\n")) == (2, True, 0), err
    assert list(tmp_path.iterdir()) == []


def test_a_shop_has_one_currency(tmp_path: Path) -> None:
    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return one(currency={"a": "EUR", "b": "USD"}[item.product_id])(run, item, minutes)

    output = output_of(tmp_path / "out", answer, "a", "b")
    with pytest.raises(UsageError, match=r"^shopify: prices in EUR, USD, but a file has one currency"):
        export(output, "shopify", str(tmp_path / "shop.csv"))


def test_rows_that_google_would_refuse_are_left_out_of_a_primary_source(tmp_path: Path) -> None:
    def answer(run: RunInfo, item: ManifestItem, minutes: float) -> Row:
        return one(**({"price": None, "currency": None} if item.product_id == "b" else {}))(run, item, minutes)

    output = output_of(tmp_path / "out", answer, "a", "b", "c" * 51)
    done = export(output, "merchant", str(tmp_path / "feed.tsv"), PRIMARY)
    assert done.left_out == {
        "with a product_id of more than 50 characters": 1, "without a price and its currency": 1,
    }  # fmt: skip
    assert done.notes == ()
    done = export(output, "merchant", str(tmp_path / "feed.tsv"), ExportSettings(link_prefix=PREFIX))
    assert (done.products, done.notes[0].split(":")[0]) == (
        2, "without product_link and availability this is a supplemental data source",
    )  # fmt: skip


def test_a_format_is_one_file(output: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    shutil.copytree(root / "enrich", tmp_path / "enrich", ignore=shutil.ignore_patterns("phi3v-tiny", "__pycache__"))
    section = (root / "docs" / "extending.md").read_text("utf-8").partition("## An export format")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    (tmp_path / "enrich/feeds/formats/titles.py").write_text(code[1])
    command = [sys.executable, "-m", "enrich.cli", "export", "--output", output, "--format", "titles", "--to", "x.tsv"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": "."})
    assert {"sku": "p-0", "name": "Coat no. 0"} in cells_of(tmp_path / "x.tsv")


def test_exports_on_s3(output: str, s3_bucket: str) -> None:
    done: Exported = export(output, "merchant", f"{s3_bucket}/feeds/feed.tsv", PRIMARY)
    assert done.uri == f"{s3_bucket}/feeds/feed.tsv"
    data, _ = open_store(f"{s3_bucket}/feeds").get("feed.tsv")
    assert data.count(b"\n") == 1 + len(ALL)
