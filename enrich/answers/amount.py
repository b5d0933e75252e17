"""Parse amounts of money as people and shops write them. Text that could mean two amounts is refused, never guessed.

The review page parses its input by the same rules; tests/answers/amount_cases.json holds test cases for both.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DecimalMark = Literal[".", ","]

SMALLEST, LARGEST = 0.01, 999_999_999.0  # units of the currency; an answer writes at most nine digits
LONGEST = 64  # characters; no amount is longer

_TABLES = json.loads((Path(__file__).parents[1] / "assets" / "currencies.json").read_text("utf-8"))
# The codes allowed next to an amount (ISO 4217 without metals and funds), so that "12 pcs" does not name a currency.
CURRENCIES = frozenset(_TABLES["codes"])
# Currencies without a minor unit (ISO 4217): a mark before three digits can only be a group separator.
WHOLE_UNITS = frozenset(_TABLES["whole_units"])
# Currencies whose minor unit is a thousandth (ISO 4217); of all others it is a hundredth.
THOUSANDTHS = frozenset(_TABLES["thousandths"])
# Signs after NFKC and case folding, without spaces and full stops. The first currency is the sign's default; it is
# "" if the sign has no default.
SIGNS: dict[str, tuple[str, ...]] = {sign: tuple(codes) for sign, codes in _TABLES["signs"].items()}
# Characters right after a number that multiply it, as in 1.2万円.
MULTIPLES: dict[str, int] = _TABLES["multiples"]
# Whether tax is included, after NFKC. It changes no number: a catalog keeps to one of them.
TAX: tuple[str, ...] = tuple(_TABLES["tax"])

_TAX = re.compile("[(【]?(?:{})[)】]?".format("|".join(map(re.escape, TAX))))
_CODE = re.compile(r"[A-Z]{3}")
_AMOUNT = re.compile(
    r"(?P<before>[^0-9]*?)"
    r"(?P<number>(?:(?<![^\W\d_])[.,])?[0-9](?:[0-9.,' ]*[0-9])?(?:[eE][+-]?[0-9]+)?)"  # "Rs.500" has no mark
    r"(?P<after>[^0-9]*)"
)
_NO_CENTS = re.compile(r"(?<=[0-9])([.,]) ?(?:--?|[\u2013\u2014\u2212])")  # 12,-
_BARE_MARK = re.compile(r"(?<=[0-9])[.,](?= |$|[^0-9.,'-])")  # 12.
# Apostrophes, Arabic marks and Arabic and Persian digits.
_SAME = str.maketrans(
    "\u2019\u2018\u02bc`\u00b4\u066c\u066b" + "".join(map(chr, (*range(0x660, 0x66A), *range(0x6F0, 0x6FA)))),
    "''''''." + "0123456789" * 2,
)


@dataclass(frozen=True)
class Amount:
    """A positive amount. `decimal` is the decimal mark if the text determines it, else None."""

    value: float  # units of the currency
    currency: str | None
    decimal: DecimalMark | None = None


def decimals(currency: str | None) -> int:
    """How many decimals amounts of a currency have (ISO 4217); two where it is not known."""
    return 0 if currency in WHOLE_UNITS else 3 if currency in THOUSANDTHS else 2


def digits(value: float, currency: str | None) -> str:
    """An amount with the decimals of its currency: 12.50, 1,290 for yen."""
    return f"{value:,.{decimals(currency)}f}"


def money(value: float, currency: str | None) -> str:
    """An amount with its currency: 12.50 USD, 1,290 JPY; without a code where that is not known."""
    return f"{digits(value, currency)} {currency or ''}".rstrip()


class AmountError(ValueError):
    """The text is not a single amount; `ambiguous`: its mark has two possible meanings."""

    def __init__(self, reason: str, ambiguous: bool = False) -> None:
        super().__init__(reason, ambiguous)  # both, so that it survives pickling
        self.ambiguous = ambiguous

    def __str__(self) -> str:
        return str(self.args[0])


def parse_amount(text: str, *, decimal: DecimalMark | None = None, currency: str | None = None) -> Amount:
    """Parse the amount in `text`, with its currency: the one it names, else `currency` (three letters).

    Spaces and apostrophes separate groups of three digits. If both `.` and `,` occur, the last one is the decimal mark;
    a mark that occurs several times is a group separator. A single mark with one to three digits before and exactly
    three after it is ambiguous unless `decimal` is given or the currency has no minor unit; any other single mark is
    the decimal mark. 1.2万 is 12000, and a note on tax (税込) is ignored.

    Raises:
        AmountError: no amount, several amounts, another currency, out of range (SMALLEST to LARGEST), or ambiguous.
    """
    if any(character.isdigit() and not character.isdecimal() for character in text):
        raise AmountError(f"{_shown(text)} contains raised or circled digits")  # NFKC would turn 12⁹⁹ into 1299
    match = _AMOUNT.fullmatch(_plain(text)) if len(text) <= LONGEST else None
    if match is None:
        raise AmountError(f"{_shown(text)} is not one amount of money")
    before, after = (_TAX.sub("", match[part]).strip() for part in ("before", "after"))
    multiple = MULTIPLES.get(after[:1])
    named = _currency(text, before, after[1:] if multiple else after, currency)
    if multiple:  # written only where the decimal mark is a full stop
        value, mark = _number(text, match["number"], ".", False)
        value = round(value * multiple, 2)
    else:
        value, mark = _number(text, match["number"], decimal, named in WHOLE_UNITS)
    if not SMALLEST <= value <= LARGEST:
        raise AmountError(f"{_shown(text)} is not a price from {SMALLEST} to {LARGEST:,.0f}")
    return Amount(value, named, mark)


def parse_currency(text: str) -> str:
    """The currency of a code (in any case) or a sign, as three capital letters.

    Raises:
        AmountError: it is neither, or a sign that several currencies share.
    """
    written = _plain(text) if len(text) <= LONGEST else ""
    signs = SIGNS.get(_sign(written), ())
    found = signs[0] if signs else written.upper() if written.isascii() else ""
    if not is_currency(found):
        raise AmountError(f"{_shown(text)} is not a currency; write a code of three letters such as EUR")
    return found


def is_currency(code: str) -> bool:
    """Whether `code` has the form of an ISO 4217 code: three ASCII capital letters."""
    return _CODE.fullmatch(code) is not None


def _plain(text: str) -> str:
    """Normalize: NFKC, plain digits, marks and spaces, no invisible characters."""
    folded = unicodedata.normalize("NFKC", text).translate(_SAME)
    visible = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    return _BARE_MARK.sub("", _NO_CENTS.sub(r"\g<1>00", " ".join(visible.split())))


def _sign(text: str) -> str:
    return text.casefold().replace(".", "").replace(" ", "")


def _currency(text: str, before: str, after: str, expected: str | None) -> str | None:
    """The currency written before or after an amount, or the expected one."""
    candidates = [_candidates(text, part) for part in (before, after) if _sign(part)]
    if not candidates:
        return expected
    shared = [code for code in candidates[0] if all(code in others for others in candidates)]
    if expected is not None:
        if expected not in shared:
            raise AmountError(f"{_shown(text)} is not in {expected}")
        return expected
    if not shared:
        raise AmountError(f"{_shown(text)} names two currencies")
    if not shared[0]:
        raise AmountError(
            f"the currency of {_shown(text)} may be any of {', '.join(shared[1:])}; name it in a currency column, or "
            f"in the settings as `columns: {{rates: {{{shared[-1]}: 1}}}}`"
        )
    return shared[0]


def _candidates(text: str, part: str) -> tuple[str, ...]:
    sign = _sign(part)
    code = sign.upper()
    if sign in SIGNS:
        return SIGNS[sign]
    if sign.isascii() and code in CURRENCIES:
        return (code,)
    code, rest = re.sub("[^A-Z]", "", code), re.sub("[a-z]", "", sign)
    if code in CURRENCIES and code in SIGNS.get(rest, ()):  # CNY ¥
        return (code,)
    raise AmountError(f"{_shown(text)} is not one amount of money")


def _number(text: str, number: str, decimal: DecimalMark | None, whole_units: bool) -> tuple[float, DecimalMark | None]:
    """The value, and the decimal mark if the text determines it."""
    if re.fullmatch(r"[0-9]+((\.[0-9]+)?[eE][+-]?[0-9]+)?", number):
        return float(number), None
    last = max(number.rfind("."), number.rfind(","))
    mark: DecimalMark = "," if last >= 0 and number[last] == "," else "."
    other: DecimalMark = "." if mark == "," else ","
    if last < 0 or number.count(mark) > 1:
        return _grouped(text, number), other if last >= 0 else None
    head, _, tail = number.rpartition(mark)
    if _separators(head) or not re.fullmatch(r"[1-9][0-9]{0,2}", head) or not re.fullmatch("[0-9]{3}", tail):
        return _with_decimals(text, head, tail, other), mark
    if whole_units or decimal == other:
        return float(head + tail), other if whole_units else None
    if decimal == mark:
        return float(f"{head}.{tail}"), None
    reason = f"{_shown(text)} may be {head}{tail} or {head}.{tail}"
    raise AmountError(reason, ambiguous=True)


def _separators(number: str) -> set[str]:
    return {character for character in number if not character.isdigit()}


def _with_decimals(text: str, head: str, tail: str, other: DecimalMark) -> float:
    separators = _separators(head)
    if not tail.isdigit() or len(separators) > 1 or separators - {other, " ", "'"}:
        raise AmountError(f"{_shown(text)} is not one amount of money")
    whole = _grouped(text, head) if separators else float(head or 0)
    return float(f"{whole:.0f}.{tail}")


def _grouped(text: str, number: str) -> float:
    """Parse digits in groups of three or Indian groups (12,34,567), with one kind of separator."""
    mark, *others = _separators(number)
    one = re.escape(mark)
    groups = rf"[1-9][0-9]{{0,2}}({one}[0-9]{{3}})+|[1-9][0-9]?({one}[0-9]{{2}})+{one}[0-9]{{3}}"
    if others or not re.fullmatch(groups, number):
        raise AmountError(f"{_shown(text)} does not group its digits in threes")
    return float(number.replace(mark, ""))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
