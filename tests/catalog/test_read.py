"""Reading a catalog: columns mapped, N.A. resolved, photos found, and what a bad table is told."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xlsxwriter

from enrich.catalog.dropped import Dropped
from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns

HEADER = "product_code,title,category1_code,category2_code,category3_code,full_price,currency_code,local_image_path"


def _catalog(directory: Path, *lines: str, header: str = HEADER) -> Path:
    (directory / "images").mkdir(exist_ok=True)
    for name in ("a", "b", "c", "d"):
        (directory / f"images/{name}.jpg").write_bytes(name.encode() * 10)
    (directory / "catalog.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return directory


def test_a_row_becomes_a_product(tmp_path: Path) -> None:
    _catalog(tmp_path, "00765432,Red Scarf,WOMAN,SCARVES,N.A.,2150,AED,images/a.jpg")
    catalog = read_catalog(tmp_path)
    (product,) = catalog.products
    assert product.product_code == "00765432"
    assert (product.title, product.category, product.price) == ("Red Scarf", "SCARVES", 2150.0)
    assert product.image_paths[0] == str(tmp_path / "images/a.jpg")
    assert (catalog.categories, catalog.currency, catalog.dropped) == (("SCARVES",), "AED", ())
    assert read_catalog(tmp_path / "catalog.csv") == catalog


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ("WOMAN,BAGS,SHOULDER", "SHOULDER"),
        ("WOMAN,BAGS,N.A.", "BAGS"),
        ("WOMAN,BAGS,", "BAGS"),
        ("WOMAN,BAGS,  ", "BAGS"),
        ("WOMAN,BAGS,n.a.", "BAGS"),
        ("WOMAN,N.A.,N.A.", "WOMAN"),
        ("WOMAN,,N.A.", "WOMAN"),
        ('WOMAN,BAGS," WALLETS &\nCARD  CASES "', "WALLETS & CARD CASES"),
    ],
)
def test_category_falls_back_where_it_says_nothing(tmp_path: Path, codes: str, expected: str) -> None:
    assert read_catalog(_catalog(tmp_path, f"1,Bag,{codes},1,USD,images/a.jpg")).products[0].category == expected


def test_a_label_is_one_however_its_marks_are_composed(tmp_path: Path) -> None:
    spellings = ("バッグ", "ハ\u3099ッグ", "ﾊﾞｯｸﾞ", "CAFÉ", "CAFE\u0301", "バッグ")
    rows = (f"{n},Ｔシャツ,{label},,,1,JPY,images/a.jpg" for n, label in enumerate(spellings))
    catalog = read_catalog(_catalog(tmp_path, *rows))
    assert set(catalog.categories) == {"バッグ", "CAFÉ"}
    assert {product.title for product in catalog.products} == {"Ｔシャツ"}  # wide letters are kept, as the shop's own


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ('"Red\nScarf"', "Red Scarf"),
        ('"  Red \t Scarf "', "Red Scarf"),
        ("Cafe\u0301 Scarf", "Caf\u00e9 Scarf"),
        ("x" * 300, "x" * 200),
        ("Red\x07Scarf", "Red Scarf"),
    ],
)
def test_titles_are_one_clean_line(tmp_path: Path, title: str, expected: str) -> None:
    assert read_catalog(_catalog(tmp_path, f"1,{title},,,A,1,USD,images/a.jpg")).products[0].title == expected


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("2150", 2150.0),
        ("35.5", 35.5),
        ("", None),
        ("N.A.", None),
        ("0", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_price_is_positive_and_finite_or_missing(tmp_path: Path, text: str, price: float | None) -> None:
    catalog = read_catalog(_catalog(tmp_path, f"1,Scarf,,,A,{text},USD,images/a.jpg"))
    assert catalog.products[0].price == price


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (",Scarf,,,A,1,USD,images/b.jpg", "no product_code"),
        ("2,,,,A,1,USD,images/b.jpg", "no title"),
        ("2, ,,,A,1,USD,images/b.jpg", "no title"),
        ("2,Scarf,,N.A.,N.A.,1,USD,images/b.jpg", "no category"),
        ("2,Scarf,,,A,1,USD,", "no image_path"),
        ("2,Scarf,,,A,1,USD,images/none.jpg", "photo not found"),
        ("2,Scarf,,,A,1,USD,images", "photo not found"),
        ("2,Scarf,,,A,1,USD,images/\0.jpg", "photo not found"),
        ("2,Scarf,,,A,1,USD,images/empty.jpg", "photo is an empty file"),
        ("2,Scarf,,,A,1,USD,../outside.jpg", "photo is outside the catalog's directory"),
        ("2,Scarf,,,A,1,USD,images/../../outside.jpg", "photo is outside the catalog's directory"),
        ("2,Scarf,,,A,1,USD,/etc/hostname", "photo is outside the catalog's directory"),
        ("1,Shawl,,,A,1,USD,images/b.jpg", "product_code is in an earlier row"),
    ],
)
def test_every_dropped_row_has_a_reason(tmp_path: Path, row: str, reason: str) -> None:
    directory = tmp_path / "catalog"
    directory.mkdir()
    (tmp_path / "outside.jpg").write_bytes(b"photo")
    _catalog(directory, "1,Scarf,,,A,1,USD,images/a.jpg", row, "3,Hat,,,B,1,USD,images/c.jpg")
    (directory / "images/empty.jpg").write_bytes(b"")
    catalog = read_catalog(directory)
    assert [(one.row, one.reason) for one in catalog.dropped] == [(2, reason)]
    assert [product.product_code for product in catalog.products] == ["1", "3"]


def test_an_absolute_path_inside_is_fine(tmp_path: Path) -> None:
    _catalog(tmp_path, f"1,Scarf,,,A,1,USD,{tmp_path}/images/a.jpg")
    assert read_catalog(tmp_path).products[0].image_paths[0] == f"{tmp_path}/images/a.jpg"


def test_a_relative_catalog_has_absolute_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _catalog(tmp_path, "1,Scarf,,,A,1,USD,images/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert read_catalog(".").products[0].image_paths[0] == str(tmp_path / "images/a.jpg")


def test_parquet_with_numbers_reads_as_the_tutorial_has_it(tmp_path: Path) -> None:
    _catalog(tmp_path)
    (tmp_path / "catalog.csv").unlink()
    table = {
        "product_code": [80795561, None, 80740821],
        "title": ["Check Cashmere Scarf", "Lost", "Cropped Jacket"],
        "category2_code": ["CASHMERE SCARVES", "A", "OUTERWEAR"],
        "category3_code": ["N.A.", "B", "QUILTED JACKETS"],
        "full_price": [2150.0, 3.0, None],
        "currency_code": ["AED", "AED", "AED"],
        "local_image_path": ["images/a.jpg", "images/b.jpg", "images/c.jpg"],
        "image": [b"\xff", b"\xd8", b"\x00"],
    }
    frame = pl.DataFrame(table, strict=False)
    frame.write_parquet(tmp_path / "catalog.parquet")
    catalog = read_catalog(tmp_path)
    told = [(p.product_code, p.category, p.price) for p in catalog.products]
    assert told == [("80795561", "CASHMERE SCARVES", 2150.0), ("80740821", "QUILTED JACKETS", None)]
    assert catalog.dropped == (Dropped(2, "", "no product_code"),)
    frame.with_columns(pl.col("product_code").cast(pl.Float64)).write_parquet(tmp_path / "catalog.parquet")
    assert read_catalog(tmp_path).products == catalog.products


def test_any_table_will_do_with_columns_mapped(tmp_path: Path) -> None:
    _catalog(tmp_path, "7,Lemon,images/a.jpg,Citrus", header="id,name,file,class")
    columns = Columns(product_code="id", title="name", category=("class",), image_path="file")
    catalog = read_catalog(tmp_path, columns)
    assert catalog.products[0].category == "Citrus"
    assert (catalog.products[0].price, catalog.currency) == (None, None)


def test_fingerprint_is_of_the_rows_not_of_their_place_or_order(tmp_path: Path) -> None:
    lines = ["1,Scarf,,,A,1,USD,images/a.jpg", "2,Hat,,,B,2,USD,images/b.jpg"]
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first = read_catalog(_catalog(tmp_path / "one", *lines)).fingerprint
    assert read_catalog(_catalog(tmp_path / "two", *reversed(lines))).fingerprint == first
    for changed in ("Scarves", "Scarf,,,C"):
        other = lines[0].replace("Scarf,,,A" if "," in changed else "Scarf", changed)
        assert read_catalog(_catalog(tmp_path / "three", other, lines[1])).fingerprint != first
    _catalog(tmp_path / "two", *lines)
    (tmp_path / "two/images/a.jpg").write_bytes(b"another photo")
    assert read_catalog(tmp_path / "two").fingerprint != first


def _say(tmp_path: Path, columns: Columns | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_catalog(tmp_path, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_without_one_table_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert _say(missing) == f"catalog {missing}: no such file or directory; name a directory with catalog.csv in it"
    neither = f"catalog {tmp_path}: holds neither catalog.csv nor catalog.parquet; put one next to images/"
    assert _say(tmp_path) == neither
    (_catalog(tmp_path) / "catalog.parquet").write_bytes(b"")
    both = f"catalog {tmp_path}: holds both catalog.csv and catalog.parquet; delete one or name the file"
    assert _say(tmp_path) == both


def test_a_workbook_with_a_cell_far_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "catalog.xlsx"
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, ["product_code", "title"])
        sheet.write(1_048_575, 16_383, "left over")
    assert _say(path) == (
        f"table {path} cannot be read: sheet1 has cells far off, 1,048,576 rows and 16,384 columns in all; delete what "
        "is beyond the table, or save it as CSV"
    )


def test_unreadable_tables(tmp_path: Path) -> None:
    table = tmp_path / "catalog.csv"
    for content in (b"", b"product_code,title\n1,2,3,4\n", b"product_code\n\x81\x98\xff\xff\n"):
        table.write_bytes(content)
        assert _say(tmp_path).startswith(f"table {table} cannot be read: ")
    table.unlink()
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1 not really")
    assert _say(tmp_path).startswith(f"table {tmp_path}/catalog.parquet cannot be read: ")
    (tmp_path / "catalog.xlsx").write_bytes(b"PK")
    assert _say(tmp_path / "catalog.xlsx").startswith(f"table {tmp_path}/catalog.xlsx cannot be read: ")
    (tmp_path / "catalog.xls").write_bytes(b"PK")
    expected = ".csv, .tsv, .parquet, .xlsx, .jsonl, .ndjson, .json; convert it to one of these"
    assert _say(tmp_path / "catalog.xls") == f"table {tmp_path}/catalog.xls: none of {expected}"


def test_missing_columns_are_named(tmp_path: Path) -> None:
    _catalog(tmp_path, "1,Scarf", header="product_code,name")
    path = tmp_path / "catalog.csv"
    assert _say(tmp_path) == (
        f"catalog {path}: no column 'title' (title); its columns are: product_code, name; "
        "name the right one in the settings under columns.title"
    )
    assert "no column 'category3_code' (category)" in _say(tmp_path, Columns(title="name", image_path="name"))
    columns = Columns(title="name", image_path="name", category=("name",), price="cost")
    assert "no column 'cost' (price)" in _say(tmp_path, columns)
    columns = Columns(title="name", image_path="name", category=("kind", "name"))
    assert _say(tmp_path, columns) == f"catalog {path}: no column 'kind' (category); take it out of columns.category"


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    _catalog(tmp_path)
    path = tmp_path / "catalog.csv"
    advice = "give each product a title, category and photo"
    assert _say(tmp_path) == f"catalog {path}: has no rows; {advice}"
    _catalog(tmp_path, "1,A,,,A,1,USD,x.jpg", "2,,,,A,1,USD,images/a.jpg", "3,A,,,A,1,USD,y.jpg")
    assert _say(tmp_path) == (
        f"catalog {path}: none of its 3 rows can be used, most often because: photo not found (2 rows); {advice}"
    )


def test_columns_that_nobody_asks_for_may_hold_what_no_text_can_say(tmp_path: Path) -> None:
    _catalog(tmp_path).joinpath("catalog.csv").unlink()
    columns = {
        "product_code": pa.array(["001"]),
        "title": pa.array(["Red Scarf"]),
        "category3_code": pa.array(["SCARVES"]),
        "local_image_path": pa.array(["images/a.jpg"]),
        "day": pa.array([2**31 - 1], pa.date32()),
        "day_ms": pa.array([86_400_000 * 2**30], pa.date64()),
        "moment": pa.array([2**62], pa.timestamp("us")),
        "nowhere": pa.array([2**62], pa.timestamp("us", tz="Nowhere/City")),
        "length": pa.array([2**62], pa.duration("us")),
        "time": pa.array([2**45], pa.time64("us")),
        "exact": pa.array([None], pa.decimal256(70, 10)),
        "photo": pa.array([b"x"]),
        "tags": pa.array([["a"]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "catalog.parquet")
    assert [product.title for product in read_catalog(tmp_path).products] == ["Red Scarf"]
