"""The prices of a catalog, read as a column: what one cell leaves open, the others' writing decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from enrich.answers.amount import Amount, AmountError, DecimalMark, parse_amount, parse_currency
from enrich.answers.calibration import beyond
from enrich.errors import UsageError


@dataclass(frozen=True)
class Cell:
    """What a row says of its price; "" where it says nothing."""

    row: int  # counts from 1
    price: str
    currency: str


@dataclass(frozen=True)
class Price:
    """A price in the catalog's currency, or why a row that states one has none."""

    value: float | None = None
    problem: str = ""


def read_prices(cells: Sequence[Cell], decimal: DecimalMark | None, where: str) -> tuple[list[Price], str | None]:
    """A price for each cell, and the currency of all of them; None where no cell names one.

    An amount that could be either of two is read by the decimal mark that other cells of the column prove. Where they
    prove both it has no price. A price far beyond all the others has none either.

    Raises:
        UsageError: several currencies, or an ambiguous amount that neither the column nor `decimal` decides.
    """
    currencies = [_currency(cell) for cell in cells]
    found = [_amount(cell, currency, None) for cell, currency in zip(cells, currencies, strict=True)]
    currency = _only(
        {own for own in currencies if isinstance(own, str)}
        | {amount.currency for amount in found if isinstance(amount, Amount) and amount.currency},
        where,
    )
    found = [
        own if isinstance(own, AmountError) else _amount(cell, currency, None)
        for cell, own in zip(cells, currencies, strict=True)
    ]
    found = _decide(cells, found, currency, decimal, where)
    return _plausible(found), currency


def _currency(cell: Cell) -> str | AmountError | None:
    try:
        return parse_currency(cell.currency) if cell.currency else None
    except AmountError as error:
        return error


def _amount(cell: Cell, currency: str | AmountError | None, decimal: DecimalMark | None) -> Amount | AmountError | None:
    if not cell.price:
        return None
    if isinstance(currency, AmountError):
        return currency
    try:
        return parse_amount(cell.price, decimal=decimal, currency=currency)
    except AmountError as error:
        return error


def _only(currencies: set[str], where: str) -> str | None:
    if len(currencies) > 1:
        listed = ", ".join(sorted(currencies)[:5])
        raise UsageError(f"{where}: prices in several currencies ({listed}); keep the rows of one currency")
    return next(iter(currencies), None)


def _decide(
    cells: Sequence[Cell],
    found: list[Amount | AmountError | None],
    currency: str | None,
    decimal: DecimalMark | None,
    where: str,
) -> list[Amount | AmountError | None]:
    """The same with ambiguous amounts read."""
    open_ones = [i for i, amount in enumerate(found) if isinstance(amount, AmountError) and amount.ambiguous]
    proved = {amount.decimal for amount in found if isinstance(amount, Amount) and amount.decimal}
    if not open_ones or (decimal is None and len(proved) > 1):
        return found
    mark = decimal or next(iter(proved), None)
    if mark is None:
        cell = cells[open_ones[0]]
        raise UsageError(
            f"{where}: the price in row {cell.row} {found[open_ones[0]]}, and no other price tells which; name the "
            "decimal mark in the settings under columns.decimal, as '.' or ','"
        )
    return [
        _amount(cell, currency, mark) if isinstance(amount, AmountError) and amount.ambiguous else amount
        for cell, amount in zip(cells, found, strict=True)
    ]


def _plausible(found: Sequence[Amount | AmountError | None]) -> list[Price]:
    odd = beyond([amount.value for amount in found if isinstance(amount, Amount)])
    prices = []
    for amount in found:
        if isinstance(amount, Amount):
            price = Price(amount.value)
            if amount.value in odd:
                price = Price(problem=f"{amount.value:,.15g} is far beyond the other prices")
            prices.append(price)
        elif amount is None:
            prices.append(Price())
        else:
            both = ", and the column writes both decimal marks" if amount.ambiguous else ""
            prices.append(Price(problem=f"{amount}{both}"))
    return prices
