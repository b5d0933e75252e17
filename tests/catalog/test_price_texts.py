"""Prices that are more than one amount, converted currencies, and what is told of them."""

from pathlib import Path

import pytest

from enrich.answers.amount import AmountError, DecimalMark
from enrich.catalog.price_texts import CENTS, HIGHER, LOWER, SIGN, WORDS, Worded, parse_price
from enrich.catalog.read import read_catalog
from enrich.errors import UsageError
from enrich.settings.catalog import Columns
from tests.testing.tables import COLUMNS, csv_text, products, write_photos


@pytest.mark.parametrize(
    ("text", "value", "how"),
    [
        ("from 12.00", 12, WORDS), ("ab 12,00 €", 12, WORDS), ("à partir de 1 299,00 €", 1299, WORDS),
        ("12元起", 12, WORDS), ("12,00 € inkl. MwSt.", 12, WORDS), ("12.00 EUR/pc", 12, WORDS),
        ("Preis: 12,00 €", 12, WORDS), ("12 €*", 12, WORDS),
        ("12,00 - 15,00 €", 12, LOWER), ("€12.00 to €15.00", 12, LOWER), ("¥1,000～¥2,000", 1000, LOWER),
        ("was 20.00 now 15.00", 20, HIGHER), ("20,00 € 15,00 €", 20, HIGHER), ("€20.00 €15.00", 20, HIGHER),
        ("UVP 20,00 € jetzt 15,00 €", 20, HIGHER), ("20,00 € (-25%)", 20, HIGHER), ("~~20,00 €~~ 15,00 €", 20, HIGHER),
        ("1,29,900/-", 129900, WORDS), ("₹ 450/-", 450, WORDS), ("89:-", 89, WORDS), ("'1299.00", 1299, WORDS),
        ("12€50", 12.5, SIGN), ("1299 € 05", 1299.05, SIGN),
        ("99¢", 0.99, CENTS), ("99 cents", 0.99, CENTS), ("99p", 0.99, CENTS),
    ],
)  # fmt: skip
def test_the_full_price_of_a_text(text: str, value: float, how: str) -> None:
    found = parse_price(text)
    assert isinstance(found, Worded)
    assert (found.value, found.how) == (value, how)


def test_one_amount_is_read_as_everywhere() -> None:
    assert not isinstance(parse_price("1.299,00 €"), Worded)


@pytest.mark.parametrize(
    "text", ["-5", "12-1500", "15-12", "2024-01-15", "12 pcs of 5", "on request", "12 15", "S-XL", ""]
)
def test_what_is_not_a_price_is_refused(text: str) -> None:
    with pytest.raises(AmountError):
        parse_price(text)


@pytest.mark.parametrize("decimal", [".", ",", None])
def test_a_space_among_three_decimals_is_refused_whatever_the_mark(decimal: DecimalMark | None) -> None:
    with pytest.raises(AmountError):
        parse_price("90.5 0", decimal=decimal)


def test_what_was_taken_of_a_text_is_reported(tmp_path: Path) -> None:
    write_photos(tmp_path)
    cells = ["12,00-15,00 €", "12,00 €", "from 13,00 €", "1.299 €"]
    (tmp_path / "catalog.csv").write_text(csv_text(products(4, price=cells.__getitem__)))
    catalog = read_catalog(tmp_path, COLUMNS)
    assert [one.price for one in catalog.products] == [12, 12, 13, 1299]
    assert catalog.notes == (
        "prices such as '1.299 €' (row 4) are read with ',' as decimal mark, as others in the column are: 1; if that "
        "is wrong, set columns.decimal",
        f"prices that {LOWER}: 1 (the first, '12,00-15,00 €' in row 1)",
        f"prices that {WORDS}: 1 (the first, 'from 13,00 €' in row 3)",
    )


def test_several_currencies_are_converted_by_rates(tmp_path: Path) -> None:
    write_photos(tmp_path)
    rows = products(price="100", currency=lambda n: ("EUR", "USD")[n % 2])
    (tmp_path / "catalog.csv").write_text(csv_text(rows))
    columns = COLUMNS.model_dump()
    catalog = read_catalog(tmp_path, Columns.model_validate(columns | {"rates": {"EUR": 1, "usd": 0.92}}))
    assert (catalog.currency, [one.price for one in catalog.products]) == ("EUR", [100, 92] * 6)
    assert catalog.notes == ("prices in USD are converted to EUR by columns.rates",)
    with pytest.raises(UsageError, match=r"prices in USD, which are missing in columns\.rates; add their rates"):
        read_catalog(tmp_path, Columns.model_validate(columns | {"rates": {"EUR": 1}}))
    for rates in ({"EUR": 2}, {"EUR": 1, "USD": 0}):
        with pytest.raises(ValueError, match="exactly one currency must be 1"):
            Columns.model_validate({"rates": rates})


def test_what_a_shared_sign_stands_for_can_be_set(tmp_path: Path) -> None:
    write_photos(tmp_path)
    cells = ["299 kr", "1 299 kr", "49,90 kr", "299:- kr"]
    (tmp_path / "catalog.csv").write_text(csv_text(products(4, price=cells.__getitem__, currency="")))
    catalog = read_catalog(tmp_path, COLUMNS)
    assert [one.price for one in catalog.products] == [None] * 4
    assert catalog.unread[0].detail == (
        "the currency of '299 kr' may be any of DKK, ISK, NOK, SEK; name it in a currency column, or in the "
        "settings as `columns: {rates: {SEK: 1}}`"
    )
    catalog = read_catalog(tmp_path, Columns.model_validate(COLUMNS.model_dump() | {"rates": {"SEK": 1}}))
    assert (catalog.currency, [one.price for one in catalog.products]) == ("SEK", [299, 1299, 49.9, None])


def test_prices_in_cents_are_hundredths(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "catalog.csv").write_text(csv_text(products(4, price="1299")))
    catalog = read_catalog(tmp_path, Columns.model_validate(COLUMNS.model_dump() | {"cents": True}))
    assert {one.price for one in catalog.products} == {12.99}
