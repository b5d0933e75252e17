"""The prices of a catalog, read as a column: how other cells are written decides how ambiguous ones are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from enrich.answers.amount import Amount, AmountError, DecimalMark, parse_currency
from enrich.answers.calibration import beyond
from enrich.catalog.price_texts import Worded, parse_price
from enrich.errors import UsageError
from enrich.settings.catalog import Columns

Found = Amount | AmountError | None  # in a cell; None: it states no price


@dataclass(frozen=True)
class Cell:
    """A row's cells about its price; "" if they are empty."""

    row: int  # counts from 1
    price: str
    currency: str


@dataclass(frozen=True)
class Price:
    """A price in the catalog's currency, or why a row that states one has none."""

    value: float | None = None
    problem: str = ""


def read_prices(cells: Sequence[Cell], columns: Columns, where: str) -> tuple[list[Price], str | None, list[str]]:
    """A price for each cell, the common currency (None if no cell names one), and messages for the user.

    An amount that could be either of two is read by the decimal mark that other cells of the column prove. If they
    prove both, it has no price. A price far outside all others is dropped, too. Several currencies are converted by
    `columns.rates`.

    Raises:
        UsageError: currencies without rates, or an ambiguous amount that neither the column nor `decimal` decides.
    """
    own = [_currency(cell) for cell in cells]
    found = [_amount(cell, currency) for cell, currency in zip(cells, own, strict=True)]
    named = {currency for currency in own if isinstance(currency, str)}
    named |= {amount.currency for amount in found if isinstance(amount, Amount) and amount.currency}
    common = _common(named, columns.rates, where)
    if len(named) < 2:
        own = [currency or common for currency in own]
        found = [_amount(cell, currency) for cell, currency in zip(cells, own, strict=True)]
    mark = _decimal_mark(cells, found, columns.decimal, where)
    notes = _decided(cells, found, mark) if columns.decimal is None else []
    if mark is not None:
        found = [
            _amount(cell, currency, mark) if isinstance(amount, AmountError) and amount.ambiguous else amount
            for cell, currency, amount in zip(cells, own, found, strict=True)
        ]
    found = [_converted(amount, columns) for amount in found]
    return _plausible(found), common, [*notes, *_worded(cells, found), *_exchanged(named, common)]


def _common(named: set[str], rates: dict[str, float], where: str) -> str | None:
    """The currency of the catalog."""
    if rates and (unknown := named - set(rates)):
        raise UsageError(
            f"{where}: prices in {', '.join(sorted(unknown)[:5])}, which are missing in columns.rates; add their rates"
        )
    if rates:
        return next(code for code, rate in rates.items() if rate == 1)
    if len(named) > 1:
        listed = ", ".join(sorted(named)[:5])
        raise UsageError(
            f"{where}: prices in several currencies ({listed}); keep the rows of one currency, or give rates in the "
            f"settings under columns.rates, such as {{{min(named)}: 1, {max(named)}: 0.9}}"
        )
    return next(iter(named), None)


def _converted(amount: Found, columns: Columns) -> Found:
    if not isinstance(amount, Amount):
        return amount
    rate = columns.rates.get(amount.currency or "", 1.0)
    return (
        replace(amount, value=round(amount.value * rate / (100 if columns.cents else 1), 2))
        if rate != 1 or columns.cents
        else amount
    )


def _decided(cells: Sequence[Cell], found: Sequence[Found], mark: DecimalMark | None) -> list[str]:
    """One line about amounts that the rest of the column decides."""
    unsure = [n for n, amount in enumerate(found) if isinstance(amount, AmountError) and amount.ambiguous]
    if not unsure or mark is None:
        return []
    first = cells[unsure[0]]
    return [
        f"prices such as {first.price!r} (row {first.row}) are read with {mark!r} as decimal mark, as others in the "
        f"column are: {len(unsure):,}; if that is wrong, set columns.decimal"
    ]


def _worded(cells: Sequence[Cell], found: Sequence[Found]) -> list[str]:
    """A line for each way in which prices were texts of more than one amount."""
    groups: dict[str, list[Cell]] = {}
    for cell, amount in zip(cells, found, strict=True):
        if isinstance(amount, Worded):
            groups.setdefault(amount.how, []).append(cell)
    return [f"prices that {how}: {len(one):,} (the first, {one[0].price[:40]!r} in row {one[0].row})"
            for how, one in groups.items()]  # fmt: skip


def _exchanged(named: set[str], common: str | None) -> list[str]:
    others = sorted(named - {common})
    return [f"prices in {', '.join(others)} are converted to {common} by columns.rates"] if others and common else []


def _currency(cell: Cell) -> str | AmountError | None:
    try:
        return parse_currency(cell.currency) if cell.currency else None
    except AmountError as error:
        return error


def _amount(cell: Cell, currency: str | AmountError | None, decimal: DecimalMark | None = None) -> Found:
    if isinstance(currency, AmountError) or not cell.price:
        return currency if isinstance(currency, AmountError) else None
    try:
        return parse_price(cell.price, decimal=decimal, currency=currency)
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
            prices.append(Price(problem=f"{amount.value:,.15g} is far outside the other prices"))
        else:
            prices.append(Price(amount.value if amount else None))
    return prices
