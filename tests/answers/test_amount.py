"""Amounts of money: both conventions are read, and what could be either of two amounts is refused."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich.answers.amount import (
    CURRENCIES,
    LARGEST,
    SIGNS,
    SMALLEST,
    WHOLE_UNITS,
    AmountError,
    is_currency,
    parse_amount,
    parse_currency,
)

CASES = json.loads((Path(__file__).parent / "amount_cases.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['text']!r}-{case['decimal']}-{case['currency']}")
def test_amounts_are_read_as_the_table_says_or_refused(case: dict) -> None:
    if case["value"] is not None:
        found = parse_amount(case["text"], decimal=case["decimal"], currency=case["currency"])
        assert found.value == pytest.approx(case["value"], rel=1e-12)
        return
    with pytest.raises(AmountError) as refused:
        parse_amount(case["text"], decimal=case["decimal"], currency=case["currency"])
    assert refused.value.ambiguous == case["ambiguous"]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "currency"),
    [("元128", "CNY"), ("¥128元", "CNY"), ("CNY ¥128", "CNY"), ("NT$500元", "TWD"), ("3万円（税込）", "JPY"),
     ("1.299,00 €", "EUR"), ("12.99 eur", "EUR"), ("$5", "USD"), ("C$5", "CAD"), ("¥500", "JPY"), ("元 500.50", "CNY"),
     ("500円", "JPY"), ("R$ 5,50", "BRL"), ("12 zł", "PLN"), ("12", None)],
)  # fmt: skip
def test_the_currency_next_to_an_amount_is_returned(text: str, currency: str | None) -> None:
    assert parse_amount(text).currency == currency


@pytest.mark.parametrize(
    ("text", "mark"),
    [("89,90", ","), ("1.299,00", ","), ("1.299.000", ","), ("89.90", "."), ("1,299,000", "."), ("1299.000", "."),
     ("89", None), ("1 299", None), ("1.3e3", None)],
)  # fmt: skip
def test_an_amount_shows_which_decimal_mark_it_uses(text: str, mark: str | None) -> None:
    assert parse_amount(text).decimal == mark


@pytest.mark.parametrize("text", ["EUR", "eur", "Eur", "€", " eur ", "\uff25\uff35\uff32", "E\u200bUR", "euro"])
def test_spellings_of_a_currency_are_one(text: str) -> None:
    assert parse_currency(text) == "EUR"


@pytest.mark.parametrize("text", ["", "EU", "EURO2", "kr", "<|end|>", "EUR\nUSD", "\u0415UR", "12", "ß€", "eur usd"])
def test_what_is_not_three_letters_is_no_currency(text: str) -> None:
    with pytest.raises(AmountError):
        parse_currency(text)


def test_the_tables_hold_codes_of_three_letters() -> None:
    codes = {code for codes in SIGNS.values() for code in codes if code}
    assert all(map(is_currency, CURRENCIES))
    assert codes | WHOLE_UNITS <= CURRENCIES
    assert not any(map(is_currency, ("EUR\n", "eur", "", "EURO")))


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(AmountError("no amount", ambiguous=True)))
    assert (str(error), error.ambiguous) == ("no amount", True)


@given(st.text(max_size=80))
def test_any_text_is_an_amount_within_the_limits_or_refused_in_one_line(text: str) -> None:
    try:
        found = parse_amount(text)
    except AmountError as error:
        reason = str(error)
    else:
        reason = "none"
        assert SMALLEST <= found.value <= LARGEST
        assert found.currency is None or is_currency(found.currency)
    assert len(reason.splitlines()) == 1


@given(st.integers(1, 99_999_999_900), st.sampled_from([(",", "."), (".", ","), (" ", ","), ("'", "."), (" ", ".")]))
def test_amounts_come_back_from_either_convention(cents: int, marks: tuple[str, str]) -> None:
    group, decimal = marks
    text = f"{cents // 100:,}.{cents % 100:02}".replace(",", "G").replace(".", decimal).replace("G", group)
    assert parse_amount(text).value == pytest.approx(cents / 100, rel=1e-12)
