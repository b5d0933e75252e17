"""Reviewed products join a catalog of any form: its types, lines and columns stay, or it is refused untouched."""

import io
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enrich.catalog.add import Added, Label, Labelled, Seen, add_products, check_addition
from enrich.catalog.edit import price_text
from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.storage import Store, open_store

COLUMNS = Columns(
    product_code="code", title="title", category=("category",), price="price", currency="currency", image_path="image"
)
BASE: dict[str, Any] = {
    "code": ["00101", "00102"], "title": ["Wool Coat", "Cap"], "category": ["Coats", "Hats"],
    "price": ["900.00", "12.50"], "currency": ["EUR", "EUR"], "image": ["images/1.jpg", "images/2.jpg"],
}  # fmt: skip
TYPES: dict[str, Any] = {
    "integer codes": {"code": pa.array([101, 102], pa.int64())},
    "unsigned codes": {"code": pa.array([101, None], pa.uint16())},
    "codes that are floats": {"code": pa.array([101.0, None], pa.float64())},
    "decimal codes": {"code": pa.array([Decimal(101), Decimal(102)], pa.decimal128(9, 0))},
    "integer prices": {"price": pa.array([900, 12], pa.int32())},
    "float32 prices": {"price": pa.array([900.0, 12.5], pa.float32())},
    "decimal prices": {"price": pa.array([Decimal("900.00"), Decimal("12.50")], pa.decimal128(9, 2))},
    "dictionary categories": {"category": pa.array(["Coats", "Hats"]).dictionary_encode()},
    "large strings": {"title": pa.array(["Wool Coat", "Cap"], pa.large_string())},
    "other columns of any type": {
        "day": pa.array([date(2026, 1, 2), None]), "tags": pa.array([["a"], None], pa.list_(pa.string())),
        "bytes": pa.array([b"\0", None]), "stock": pa.array([True, None]),
    },
}  # fmt: skip


def labelled(digest: str = "d" * 64, key: str = "new/7.jpg", product_id: str = "7", **changes: Any) -> Labelled:
    label = Label(title="Felt Hat", category="Hats", priced=True, price=120.0, currency="EUR")
    return Labelled(product_id, (Seen(key, digest),), replace(label, **changes))


@pytest.fixture
def catalog(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), create=True)


def add(catalog: Store, *products: Labelled) -> Added:
    check_addition(catalog, COLUMNS, products)
    return add_products(catalog, COLUMNS, products, lambda product: b"photo")


def parquet_of(schema: pa.Schema | None = None, **changes: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({**BASE, **changes}, schema=schema), sink)
    return sink.getvalue()


def polars_file(category: Any) -> bytes:
    """A Parquet file that Polars wrote, with categories of this type."""
    sink = io.BytesIO()
    pl.DataFrame(BASE).with_columns(pl.col("category").cast(category)).write_parquet(sink)
    return sink.getvalue()


def read(catalog: Store) -> pa.Table:
    return pq.read_table(io.BytesIO(catalog.get("catalog.parquet")[0]))


@pytest.mark.parametrize("name", TYPES)
def test_a_parquet_catalog_keeps_its_types_and_takes_the_row(catalog: Store, name: str) -> None:
    catalog.put("catalog.parquet", parquet_of(**TYPES[name]))
    before = read(catalog)

    assert add(catalog, labelled()) == Added(1, 0, ())

    after = read(catalog)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.slice(0, 2).equals(before)
    row = after.to_pylist()[2]
    assert (row["title"], row["category"], float(row["price"])) == ("Felt Hat", "Hats", 120.0)
    assert row["code"] not in before["code"].to_pylist()
    assert add(catalog, labelled()) == Added(0, 0, ())
    assert read(catalog).equals(after)
    assert add(catalog, labelled(title="Cap")) == Added(0, 0, ())
    assert read(catalog)["title"].to_pylist()[2] == "Cap"
    assert read(catalog)["code"].to_pylist() == after["code"].to_pylist()


@pytest.mark.parametrize("kind", [pl.Categorical(), pl.Enum(["Coats", "Hats"])])
def test_categories_of_polars_stay_categories(catalog: Store, kind: Any) -> None:
    catalog.put("catalog.parquet", polars_file(kind))

    add(catalog, labelled())

    after = pl.read_parquet(catalog.get("catalog.parquet")[0])
    assert after.schema == pl.read_parquet(polars_file(kind)).schema
    assert after["category"].to_list() == ["Coats", "Hats", "Hats"]


@pytest.mark.parametrize(
    ("columns", "changes"),
    [
        (TYPES["integer prices"], {"price": 129.5}),
        (TYPES["decimal prices"], {"price": 1.2345}),
        ({"code": pa.array([126, 127], pa.int8())}, {}),
        ({"title": pa.array([1, 2])}, {}),
        ({"title": pa.array([date(2026, 1, 1)] * 2)}, {}),
        ({"price": pa.array([date(2026, 1, 1)] * 2)}, {}),
        ({"price": pa.array([[1], [2]])}, {}),
        ({"category": pa.array([["Coats"], ["Hats"]])}, {}),
        ({"image": pa.array([{"path": "a"}, {"path": "b"}])}, {}),
        ({"currency": pa.array([978, 978])}, {}),
        ({"currency": ["USD", "USD"]}, {}),
    ],
)
def test_what_does_not_fit_is_refused_and_the_catalog_stays(
    catalog: Store, columns: dict[str, Any], changes: dict[str, Any]
) -> None:
    catalog.put("catalog.parquet", parquet_of(**columns))
    before = catalog.get("catalog.parquet")[0]
    with pytest.raises(UsageError) as error:
        check_addition(catalog, COLUMNS, [labelled(**changes)])
    assert "\n" not in str(error.value)
    assert catalog.get("catalog.parquet")[0] == before
    assert [info.key for info in catalog.list()] == ["catalog.parquet"]


def test_an_enum_without_the_category_is_refused(catalog: Store) -> None:
    catalog.put("catalog.parquet", polars_file(pl.Enum(["Coats", "Hats"])))
    with pytest.raises(UsageError, match="does not fit column 'category'"):
        check_addition(catalog, COLUMNS, [labelled(category="Bags")])


def test_a_column_that_may_not_be_null_is_refused_where_nothing_is_known_for_it(catalog: Store) -> None:
    schema = pa.schema([*pa.table(BASE).schema, pa.field("stock", pa.int64(), nullable=False)])
    catalog.put("catalog.parquet", parquet_of(schema, stock=[1, 2]))
    with pytest.raises(UsageError, match="'stock'"):
        check_addition(catalog, COLUMNS, [labelled()])


CSV = (
    '\ufeffcode,title,note,category,price,currency,image\r\n00101,"Coat, wool","said ""so""\r\n twice",Coats,'
    '"1,299.00",EUR,images/1.jpg\r\n\r\n00102,Cap,,Hats,12.50,EUR,images/2.jpg'
)


def test_a_csv_keeps_its_other_lines_byte_for_byte(catalog: Store) -> None:
    catalog.put("catalog.csv", CSV.encode())

    add(catalog, labelled(price=12345.67))

    after = catalog.get("catalog.csv")[0].decode()
    path = f"images/reviewed/{'d' * 64}.jpg"
    assert after == f"{CSV}\r\n7-dddddddd,Felt Hat,,Hats,12345.67,EUR,{path}\r\n"
    add(catalog, labelled(title='Hat, 7" "felt"', priced=False))
    assert catalog.get("catalog.csv")[0].decode() == (
        f'{CSV}\r\n7-dddddddd,"Hat, 7"" ""felt""",,Hats,12345.67,EUR,{path}\r\n'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item;title;category;price;currency;image\n1;Cap;Hats;15;EUR;images/1.jpg\n", "no column for product_code"),
        ("code,title,category,price,currency,image\n1,C\u00e4p,Hats,1,EUR,images/1.jpg\n", "catalog.csv"),
        ("code,title,category,price,currency,image\n1,a,b,Hats,1,EUR,images/1.jpg\n", "line 2 has 7 cells"),
        ("", "catalog.csv"),
    ],
)
def test_a_csv_that_is_read_otherwise_than_it_would_be_written_is_refused(
    catalog: Store, text: str, message: str
) -> None:
    catalog.put("catalog.csv", text.encode("cp1252"))
    with pytest.raises(UsageError, match=message) as error:
        check_addition(catalog, COLUMNS, [labelled()])
    assert "\n" not in str(error.value)
    assert catalog.get("catalog.csv")[0] == text.encode("cp1252")


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("code;title;category;price;currency;image\n1;Cap;Hats;15;EUR;images/1.jpg\n", ";Felt Hat;Hats;120;EUR;"),
        ('code,title,category,price,currency,image\n1,Cap 7",Hats,1,EUR,images/1.jpg\n', ",Felt Hat,Hats,120,EUR,"),
    ],
)
def test_a_csv_keeps_its_separator_and_its_quotation_marks(catalog: Store, text: str, added: str) -> None:
    catalog.put("catalog.csv", text.encode())
    add(catalog, labelled())
    after = catalog.get("catalog.csv")[0].decode()
    assert after.startswith(text)
    assert added in after.removeprefix(text)


def test_prices_follow_the_columns_decimal_comma(catalog: Store) -> None:
    text = 'code,title,category,price,currency,image\n1,Cap,Hats,"12,50",EUR,images/1.jpg\n'
    catalog.put("catalog.csv", text.encode())
    add(catalog, labelled(price=1234.5))
    assert '"1234,50"' in catalog.get("catalog.csv")[0].decode()


@pytest.mark.parametrize(
    ("price", "text"),
    [(12345678.9, "12345678.90"), (1.234, "1.2340"), (0.05, "0.05"), (1e8, "100000000"), (1299.0, "1299")],
)
def test_a_written_price_has_one_meaning(price: float, text: str) -> None:
    assert price_text(price) == text


def test_a_photos_name_can_neither_be_a_formula_nor_break_a_line(catalog: Store) -> None:
    catalog.put("catalog.csv", CSV.encode())
    add(catalog, labelled(product_id='=cmd|"/c calc"!A1\n2', key="x.j\np,g"), labelled("e" * 64, product_id="\t-@"))
    codes = pl.read_csv(catalog.get("catalog.csv")[0], infer_schema=False)["code"].to_list()
    assert [code[0] for code in codes if code][2:] == ["_", "_"]
    assert all("\n" not in code for code in codes if code)


def test_photos_of_one_name_have_codes_of_their_own(catalog: Store) -> None:
    catalog.put("catalog.csv", CSV.encode())
    add(catalog, labelled("a" * 63 + "1"), labelled("a" * 63 + "2"))
    codes = pl.read_csv(catalog.get("catalog.csv")[0], infer_schema=False)["code"].drop_nulls().to_list()
    assert len(set(codes)) == len(codes) == 4


@pytest.mark.parametrize("table", ["csv", "text", "list"])
def test_a_product_of_several_photos_joins_with_those_that_still_exist(catalog: Store, table: str) -> None:
    if table == "csv":
        lines = ["code,title,category,price,currency,image", "1,Wool Coat,Coats,900.00,EUR,images/1.jpg|images/1b.jpg"]
        catalog.put("catalog.csv", "\n".join([*lines, ""]).encode())
    else:
        paths = pa.array([["images/1.jpg", "images/1b.jpg"], ["images/2.jpg"]])
        catalog.put("catalog.parquet", parquet_of(**({"image": paths} if table == "list" else {})))
    photos = tuple(Seen(f"new/{number}.jpg", str(number) * 64) for number in (7, 8, 9))
    product = replace(labelled(), photos=photos)

    def bytes_of(photo: Seen) -> bytes | None:
        return None if photo.key == "new/8.jpg" else b"photo"

    assert add_products(catalog, COLUMNS, [product], bytes_of) == Added(1, 0, ())
    added = read_catalog(Path(catalog.uri), COLUMNS).products
    wanted = [f"images/reviewed/{str(number) * 64}.jpg" for number in (7, 9)]
    assert not [one for one in added if one.title == "Wool Coat"]  # its photos are not there
    (hat,) = [one for one in added if one.title == "Felt Hat"]
    assert [str(Path(path).relative_to(catalog.uri)) for path in hat.image_paths] == wanted
    newer = replace(product, label=labelled(title="Straw Hat").label)
    assert add_products(catalog, COLUMNS, [newer], bytes_of) == Added(0, 0, ())
    (hat,) = read_catalog(Path(catalog.uri), COLUMNS).products
    assert (hat.title, len(hat.image_paths)) == ("Straw Hat", 2)
    assert add_products(catalog, COLUMNS, [product], lambda photo: None).missed == ()
    assert add_products(catalog, COLUMNS, [replace(product, label=None)], bytes_of) == Added(0, 1, ())


def test_a_product_whose_main_photo_changed_since_is_missed(catalog: Store) -> None:
    catalog.put("catalog.parquet", parquet_of())
    product = replace(labelled(), photos=(Seen("new/7.jpg", "7" * 64), Seen("new/8.jpg", "8" * 64)))
    gone = add_products(catalog, COLUMNS, [product], lambda photo: b"" if photo.key == "new/8.jpg" else None)
    assert gone == Added(0, 0, ("new/7.jpg",))
