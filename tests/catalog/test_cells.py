"""Cells of real catalogs: prices in both conventions, placeholders, invisible characters, odd paths."""

import unicodedata
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

from enrich.catalog.add import Label, Labelled, Seen, add_products
from enrich.catalog.dropped import Dropped, describe, encode, too_many
from enrich.catalog.read import Catalog, read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from enrich.storage import open_store

COLUMNS = {"sku": "", "name": "", "kind": "Hats", "cost": "10", "money": "EUR", "photo": "images/a.jpg"}


def _read(directory: Path, *rows: dict[str, str], decimal: str | None = None, without: tuple[str, ...] = ()) -> Catalog:
    (directory / "images").mkdir(exist_ok=True)
    (directory / "images/a.jpg").write_bytes(b"photo")
    names = [name for name in COLUMNS if name not in without]
    full = [COLUMNS | {"sku": f"{n}", "name": f"Hat {n}"} | row for n, row in enumerate(rows, start=1)]
    pl.DataFrame({name: [row[name] for row in full] for name in names}).write_csv(directory / "catalog.csv")
    return read_catalog(directory, _columns(decimal))


def _columns(decimal: str | None = None) -> Columns:
    return Columns.model_validate(
        {"product_code": "sku", "title": "name", "category": ["kind"], "image_path": "photo", "decimal": decimal}
        | {"price": "cost", "currency": "money"}
    )


def _prices(directory: Path, *texts: str, decimal: str | None = None, currency: str = "EUR") -> list[float | None]:
    catalog = _read(directory, *({"cost": text, "money": currency} for text in texts), decimal=decimal)
    return [product.price for product in catalog.products]


@pytest.mark.parametrize(
    ("texts", "currency", "expected"),
    [
        (["139,99", "20,5"], "EUR", [139.99, 20.5]),
        (["1.299,00 €", "€ 89,90"], "EUR", [1299, 89.9]),
        (["$1,299.00", "$89.90"], "USD", [1299, 89.9]),
        (["¥12,800", "¥900"], "JPY", [12800, 900]),
        (["12.99 EUR", "1299.00 EUR"], "EUR", [12.99, 1299]),
        (["1 299,00", "1'299.00"], "SEK", [1299, 1299]),
    ],
)
def test_prices_of_both_conventions_are_read(
    tmp_path: Path, texts: list[str], currency: str, expected: list[float]
) -> None:
    assert _prices(tmp_path, *texts, currency=currency) == expected


@pytest.mark.parametrize(("text", "currency"), [("1299.00 USD", "USD"), ("89,90 €", "EUR"), ("¥12,800", "JPY")])
def test_the_currency_comes_from_the_price_where_there_is_no_column(tmp_path: Path, text: str, currency: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"photo")
    table = {"sku": ["1"], "name": ["Hat"], "kind": ["Hats"], "cost": [text], "photo": ["images/a.jpg"]}
    pl.DataFrame(table).write_csv(tmp_path / "catalog.csv")
    columns = _columns().model_copy(update={"currency": Columns().currency})
    catalog = read_catalog(tmp_path, columns)
    assert (catalog.currency, catalog.unread) == (currency, ())


@pytest.mark.parametrize(
    ("others", "expected"), [(["89,90"], 1299), (["1.299,00"], 1299), (["89.90"], 1.299), (["1,299.00", "7"], 1.299)]
)
def test_an_ambiguous_price_is_read_as_the_others_in_its_column_are(
    tmp_path: Path, others: list[str], expected: float
) -> None:
    assert _prices(tmp_path, "1.299", *others)[0] == expected


def test_ambiguous_prices_that_nothing_decides_are_refused_and_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        _prices(tmp_path, "89", "1.299", "15.999")
    assert str(refused.value) == (
        f"catalog {tmp_path}/catalog.csv: the price in row 2 '1.299' may be 1299 or 1.299, and no other price tells "
        "which; name the decimal mark in the settings under columns.decimal, as '.' or ','"
    )
    assert _prices(tmp_path, "89", "1.299", "15.999", decimal=",") == [89, 1299, 15999]
    assert _prices(tmp_path, "1.299", "1.599", decimal=".") == [1.299, 1.599]


def test_ambiguous_prices_in_a_column_of_both_conventions_have_no_price_and_are_reported(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"cost": "89,90"}, {"cost": "89.90"}, {"cost": "1.299"})
    assert [product.price for product in catalog.products] == [89.9, 89.9, None]
    (told,) = catalog.unread
    assert (told.row, told.product_code) == (3, "3")
    assert told.detail == "'1.299' may be 1299 or 1.299, and the column writes both decimal marks"


def test_the_only_currency_of_a_catalog_decides_for_cells_that_name_none(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"cost": "12,800", "money": "JPY"}, {"cost": "9,800", "money": "N/A"})
    assert [product.price for product in catalog.products] == [12800, 9800]


def test_numbers_of_a_parquet_column_are_never_ambiguous(tmp_path: Path) -> None:
    _read(tmp_path, {})
    (tmp_path / "catalog.csv").unlink()
    table = {"sku": ["1", "2"], "name": ["a", "b"], "kind": ["x", "x"], "cost": [1.299, 89.0], "money": ["EUR"] * 2}
    frame = pl.DataFrame(table).with_columns(photo=pl.lit("images/a.jpg"))
    for kind in (pl.Float64, pl.Float32, pl.Decimal(10, 3)):
        frame.with_columns(pl.col("cost").cast(kind)).write_parquet(tmp_path / "catalog.parquet")
        assert [product.price for product in read_catalog(tmp_path, _columns()).products] == [1.299, 89.0]


@pytest.mark.parametrize(
    ("cost", "detail"),
    [("12-1500", "'12-1500' is not one amount of money"), ("on request", "'on request' is not one amount of money"),
     ("0", "'0' is not a price from 0.01 to 999,999,999"), ("$5", "'$5' is not in EUR")],
)  # fmt: skip
def test_a_price_that_cannot_be_read_is_reported_with_its_row_and_text(tmp_path: Path, cost: str, detail: str) -> None:
    catalog = _read(tmp_path, {}, {"cost": cost})
    reason = "price cannot be used; taught without it"
    assert catalog.unread == (Dropped(2, "2", reason, detail),)
    assert catalog.lines == (f"without price: 1 of 2 rows: 1 {reason} (row 2, product 2: {detail})",)


@pytest.mark.parametrize("nothing", ["", "N/A", "None", "null", "-", "n.a.", "N.A.", "NaN", "\u2013", " n/a "])
def test_a_placeholder_is_not_a_value(tmp_path: Path, nothing: str) -> None:
    catalog = _read(
        tmp_path, {}, {"name": nothing}, {"kind": nothing}, {"cost": nothing}, {"cost": nothing, "money": nothing}
    )
    assert [(one.row, one.reason) for one in catalog.dropped] == [(2, "no title"), (3, "no category")]
    assert [product.price for product in catalog.products] == [10, None, None]
    assert (catalog.categories, catalog.currency, catalog.unread) == (("Hats",), "EUR", ())


def test_spellings_of_a_currency_are_one_and_several_currencies_are_refused(tmp_path: Path) -> None:
    catalog = _read(tmp_path, {"money": "EUR"}, {"money": "eur"}, {"money": "Eur"}, {"money": "€"})
    assert (catalog.currency, [product.price for product in catalog.products]) == ("EUR", [10] * 4)
    for other in ({"money": "USD"}, {"money": "", "cost": "12 USD"}):
        with pytest.raises(UsageError) as refused:
            _read(tmp_path, {"money": "EUR"}, other, {"money": "N.A."})
        assert str(refused.value) == (
            f"catalog {tmp_path}/catalog.csv: prices in several currencies (EUR, USD); keep the rows of one currency, "
            "or give rates in the settings under columns.rates, such as {EUR: 1, USD: 0.9}"
        )


@pytest.mark.parametrize("money", ["<|end|><|assistant|>", "<|image_1|>", "EURO PLEASE", "E", "EUR\x0bUSD"])
def test_a_currency_cell_that_is_not_a_code_gives_no_currency_and_no_price(tmp_path: Path, money: str) -> None:
    catalog = _read(tmp_path, {"money": money}, {"money": "EUR"})
    assert (catalog.currency, [product.price for product in catalog.products]) == ("EUR", [None, 10])
    assert catalog.unread[0].detail.endswith("is not a currency; write a code of three letters such as EUR")


@pytest.mark.parametrize(
    "token",
    ["<|end|>", "<|assistant|>", "<|image_1|>", "<|endoftext|>", "<|placeholder39|>", "<s>", "</s>", "<unk>",
     "\uff1c\uff5cend\uff5c\uff1e", "<\u200b|end|>", "<|e\u2060nd|>", "< |end| >"],
)  # fmt: skip
def test_a_title_or_category_that_spells_a_control_token_is_left_out_and_reported(tmp_path: Path, token: str) -> None:
    catalog = _read(tmp_path, {}, {"name": f"Red {token} Hat"}, {"kind": f"Hats{token}"})
    assert catalog.categories == ("Hats",)
    reason = "a value spells a control token of the model"
    assert [(one.row, one.reason) for one in catalog.dropped] == [(2, reason), (3, reason)]


@pytest.mark.parametrize("invisible", ["\u200b", "\ufeff", "\u2060", "\u00ad", "\u200e"])
def test_invisible_characters_are_stripped_from_cells(tmp_path: Path, invisible: str) -> None:
    row = {name: text[:1] + invisible + text[1:] for name, text in (COLUMNS | {"sku": "77", "name": "Hat"}).items()}
    catalog = _read(tmp_path, row | {"photo": "images/a.jpg"})
    (product,) = catalog.products
    assert (product.product_code, product.title, product.category) == ("77", "Hat", "Hats")
    assert (product.price, catalog.currency) == (10, "EUR")


def test_joiners_stay_within_words_that_need_them(tmp_path: Path) -> None:
    persian = "\u0645\u06cc\u200c\u062f\u0648\u0632\u06cc\u0645"
    catalog = _read(tmp_path, {"name": f"\u200c{persian}\u200c \u200dHat\u200d s\u200chirt"})
    assert catalog.products[0].title == f"{persian} Hat shirt"


def test_categories_that_differ_only_in_case_are_merged_and_reported(tmp_path: Path) -> None:
    catalog = _read(tmp_path, *({"kind": kind} for kind in ("Hats", "HATS", "hats ", "Bags", "BAGS", "BAGS")))
    assert [product.category for product in catalog.products] == ["Hats"] * 3 + ["BAGS"] * 3
    assert catalog.lines == ("categories that differ only in case are merged: HATS, hats as Hats; Bags as BAGS",)


def test_rows_that_are_no_further_photos_of_a_product_are_counted_and_reported(tmp_path: Path) -> None:
    catalog = _read(
        tmp_path, {}, {"sku": "1"}, {"sku": "1", "name": "", "kind": "", "cost": ""}, {"name": "", "kind": ""}
    )
    other = "its title differs from row 1"
    assert catalog.dropped == (
        Dropped(2, "1", "product_code is in an earlier row", other),
        Dropped(4, "4", "no title", "only a photo, for a product in another row"),
    )
    assert catalog.lines == (
        f"left out: 2 of 3 rows: 1 product_code is in an earlier row (row 2, product 1: {other}); "
        "1 no title (row 4, product 4: only a photo, for a product in another row)",
    )


def test_paths_written_on_windows_are_found(tmp_path: Path) -> None:
    assert _read(tmp_path, {"photo": "images\\a.jpg"}).products[0].image_paths[0] == str(tmp_path / "images/a.jpg")
    assert [one.detail for one in _read(tmp_path, {}, {"photo": "images\\b.jpg"}).dropped] == ["images\\b.jpg"]
    (outside,) = _read(tmp_path, {}, {"photo": "images\\..\\..\\a.jpg"}).dropped
    assert outside.reason == "photo not found"


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_with_accents_are_found_in_either_form(tmp_path: Path, on_disk: Form, in_table: Form) -> None:
    name = "\u00e9t\u00e9/caf\u00e9.jpg"
    path = tmp_path / unicodedata.normalize(on_disk, name)
    path.parent.mkdir()
    path.write_bytes(b"photo")
    assert _read(tmp_path, {"photo": unicodedata.normalize(in_table, name)}).products[0].image_paths[0] == str(path)


def test_the_list_of_dropped_rows_opens_in_a_spreadsheet_without_computing_anything(tmp_path: Path) -> None:
    dropped = (Dropped(7, "=HYPERLINK(1)", "no title"), Dropped(2, "00,7", "photo not found", "a\nb.jpg"))
    (tmp_path / "dropped.csv").write_bytes(encode(dropped))
    rows = pl.read_csv(tmp_path / "dropped.csv", infer_schema=False).rows()
    assert rows == [("2", "00,7", "photo not found", "a\nb.jpg"), ("7", "'=HYPERLINK(1)", "no title", None)]


def test_more_than_a_tenth_is_too_many_and_a_row_counts_once() -> None:
    rows = [Dropped(row, "x", "no title") for row in range(1, 11)]
    assert not too_many(rows, 100)
    assert not too_many([*rows, Dropped(3, "x", "photo not found")], 100)
    assert too_many([*rows, Dropped(11, "x", "photo not found")], 100)
    assert describe(rows) == "10 no title (row 1, product x)"


@pytest.mark.parametrize(
    ("cost", "detail"),
    [
        ("1e300", "'1e300' is not a price from 0.01 to 999,999,999"),
        ("1e-300", "'1e-300' is not a price from 0.01 to 999,999,999"),
        ("inf", "'inf' is not one amount of money"),
        ("9e8", "900,000,000 is far outside the other prices"),
        ("0.01", "0.01 is far outside the other prices"),
    ],
)
def test_an_absurd_price_is_reported_and_not_taught(tmp_path: Path, cost: str, detail: str) -> None:
    usual = [{"cost": f"{20 + 7 * number}"} for number in range(11)]
    catalog = _read(tmp_path, *usual, {"cost": cost})
    assert [one.detail for one in catalog.unread] == [detail]
    assert [product.price for product in catalog.products][10:] == [90, None]


@pytest.mark.parametrize(
    ("money", "decided", "fits"), [("€", "EUR", True), ("N/A", "EUR", True), ("usd", "EUR", False)]
)
def test_what_people_decided_joins_a_catalog_however_it_spells_its_currency(
    tmp_path: Path, money: str, decided: str, fits: bool
) -> None:
    _read(tmp_path, {"money": money})
    label = Label(title="Felt Hat", category="Hats", priced=True, price=12.0, currency=decided)
    product = Labelled("9", (Seen("9.jpg", "ab" * 32),), label)
    with nullcontext() if fits else pytest.raises(UsageError, match="its prices are in USD, the decisions' in EUR"):
        add_products(open_store(str(tmp_path)), _columns(), [product], lambda _: b"photo")
    assert len(read_catalog(tmp_path, _columns()).products) == (2 if fits else 1)
