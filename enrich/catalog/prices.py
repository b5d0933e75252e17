"""The prices of a catalog, read as a column: what one cell leaves open, the others' writing decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from enrich.answers.amount import Amount, AmountError, DecimalMark, parse_amount, parse_currency
from enrich.answers.calibration import beyond
from enrich.errors import UsageError

Found = Amount | AmountError | None  # in a cell; None: it states no price


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
    """A price for each cell, and the currency of all of them; None if no cell names one.

    An amount that could be either of two is read by the decimal mark that other cells of the column prove. If they
    prove both, it has no price. A price far beyond all the others has none either.

    Raises:
        UsageError: several currencies, or an ambiguous amount that neither the column nor `decimal` decides.
    """
    own = [_currency(cell) for cell in cells]
    found = [_amount(cell, currency) for cell, currency in zip(cells, own, strict=True)]
    named = {currency for currency in own if isinstance(currency, str)}
    named |= {amount.currency for amount in found if isinstance(amount, Amount) and amount.currency}
    if len(named) > 1:
        listed = ", ".join(sorted(named)[:5])
        raise UsageError(f"{where}: prices in several currencies ({listed}); keep the rows of one currency")
    common = next(iter(named), None)
    found = [
        currency if isinstance(currency, AmountError) else _amount(cell, common)
        for cell, currency in zip(cells, own, strict=True)
    ]
    mark = _decimal_mark(cells, found, decimal, where)
    if mark is not None:
        found = [
            _amount(cell, common, mark) if isinstance(amount, AmountError) and amount.ambiguous else amount
            for cell, amount in zip(cells, found, strict=True)
        ]
    return _plausible(found), common


def _currency(cell: Cell) -> str | AmountError | None:
    try:
        return parse_currency(cell.currency) if cell.currency else None
    except AmountError as error:
        return error


def _amount(cell: Cell, currency: str | AmountError | None, decimal: DecimalMark | None = None) -> Found:
    if not cell.price or isinstance(currency, AmountError):
        return None
    try:
        return parse_amount(cell.price, decimal=decimal, currency=currency)
    except AmountError as error:
        return error


def _decimal_mark(
    cells: Sequence[Cell], found: Sequence[Found], decimal: DecimalMark | None, where: str
) -> DecimalMark | None:
    """The mark by which to read the ambiguous amounts; None if there are none, or the column proves both marks."""
    unsure = [n for n, amount in enumerate(found) if isinstance(amount, AmountError) and amount.ambiguous]
    proved = {amount.decimal for amount in found if isinstance(amount, Amount) and amount.decimal}
    if not unsure or decimal or len(proved) > 1:
        return decimal
    if not proved:
        raise UsageError(
            f"{where}: the price in row {cells[unsure[0]].row} {found[unsure[0]]}, and no other price tells which; "
            "name the decimal mark in the settings under columns.decimal, as '.' or ','"
        )
    return proved.pop()


def _plausible(found: Sequence[Found]) -> list[Price]:
    odd = beyond([amount.value for amount in found if isinstance(amount, Amount)])
    prices = []
    for amount in found:
        if isinstance(amount, AmountError):
            both = ", and the column writes both decimal marks" if amount.ambiguous else ""
            prices.append(Price(problem=f"{amount}{both}"))
        elif amount is not None and amount.value in odd:
            prices.append(Price(problem=f"{amount.value:,.15g} is far beyond the other prices"))
        else:
            prices.append(Price(amount.value if amount else None))
    return prices
