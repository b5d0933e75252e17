"""Prices of catalogs that are more than one amount: ranges, `from 12`, discounts, and amounts in cents.

`answers.amount` reads single amounts by the rules that the review page shares. price-parser (0.5.1) cannot replace it:
it reads `1.299` as 1299, `12-15` as 12 and `99¢` as 99 without a word. babel (2.19) reads by a locale, which a catalog
does not name, and `89.90` in German as 8990.
"""

import re
from dataclasses import dataclass

from enrich.answers.amount import LONGEST, Amount, AmountError, DecimalMark, parse_amount

LOWER, HIGHER, WORDS, CENTS, SIGN = (
    "are ranges and read as their lower end",
    "name a price before and after a discount; the higher one is the full price",
    "come with words such as `from`, `each` or `incl. VAT`, which are ignored",
    "are in cents and divided by 100",
    "use the currency sign as their decimal mark",
)
_WORDS = re.compile(
    r"(?ix)^(?:(?:prices?|preis|prix|precio)\s*:?\s*)?"
    r"(?:(?:from|starting\ (?:at|from)|as\ low\ as|ab|à\ partir\ de|a\ partir\ de|dès|desde|vanaf|från|fra|da|od|от"
    r"|ca|circa|approx|about|only|nur)(?![^\W\d_])[:.]?\s*)?"
    r"|\s*(?:起|から|より|〜|~|\uff5e|\+|and\ up)$"
    r"|\s*\(?(?:inkl|incl|exkl|excl|inc|zzgl|plus|\+)\b\.?[^0-9]*$|\s*\b(?:ttc|ht|iva\ incl\S*)\b\.?$"
    r"|\s*(?:/|\b(?:per|pro|je|each|le|la|por)\b)\s*[^\W\d_]*\.?$|\s*\*+$"
    r"|\s*[/:][-\u2013\u2014\u2212]$|^'(?=[0-9])"  # 1,299/- in India, 89:- in Sweden, and how spreadsheets mark a text
)
_SIGN_AS_MARK = re.compile(r"(?P<whole>\d{1,6})\s?(?P<sign>[€$£])\s?(?P<cents>\d{2})")  # 12€50
_DISCOUNT = re.compile(r"(?i)\(?\s*[-\u2212]?\s*\d{1,2}(?:[.,]\d+)?\s?%\s*(?:off|rabatt|sale|discount)?\s*\)?")
_BETWEEN_PRICES = re.compile(
    r"(?i)~~|(?:^|[\s,;:()/])(?:was|now|rrp|msrp|uvp|statt|jetzt|nur|only|sale|special|regular|original|list|old|new|price|"
    r"preis|reg|instead of|au lieu de|antes|ahora|prima|ora|before|after)(?=$|[\s:.;,])[:.]?"
)
_SIGNS = "€$£¥円元₩₹"
_AFTER_SIGN, _BEFORE_SIGN = re.compile(rf"(?<=[{_SIGNS}])\s+(?=\d)"), re.compile(rf"(?<=\d)\s+(?=[{_SIGNS}]\s?\d)")
_RANGE = re.compile(r"(?i)\s*(?:[-\u2012-\u2015\u2212~〜\uff5e]|\bto\b|\bbis\b|\btot\b|\bà\b|\buntil\b)\s*")
_CENTS = re.compile(r"(?i)(?P<number>\d{1,5}(?:[.,]\d)?)\s?(?P<unit>¢|cents?|ct|pence|p)\.?")
_WIDEST = 20  # how many times its lower end the upper end of a range of prices may be; else it is a number of something


@dataclass(frozen=True)
class Worded(Amount):
    """An amount that was found in a text of more; `how` says by which rule."""

    how: str = ""


def parse_price(text: str, *, decimal: DecimalMark | None = None, currency: str | None = None) -> Amount:
    """The full price in a cell, as `parse_amount` where it is one amount.

    Of a range this is the lower end, as shops show it (`from`); of a price before and after a discount the higher one.

    Raises:
        AmountError: as `parse_amount`.
    """
    try:
        return parse_amount(text, decimal=decimal, currency=currency)
    except AmountError as error:
        if error.ambiguous or len(text) > LONGEST:
            raise
        found = _worded(text.strip(), decimal, currency)
        if found is None:
            raise
        return found


def _worded(text: str, decimal: DecimalMark | None, currency: str | None) -> Worded | None:
    """The amount in a text of more; None if no rule fits. Raises AmountError where only the decimal mark is unclear."""
    if match := _CENTS.fullmatch(text):
        of = "GBP" if match["unit"].lower() in ("p", "pence") else None
        if of and currency not in (None, of):
            return None
        return Worded(float(match["number"].replace(",", ".")) / 100, of or currency, None, CENTS)
    if match := _SIGN_AS_MARK.fullmatch(text):
        found = _all([f"{match['whole']}.{match['cents']} {match['sign']}"], decimal, currency)
        return Worded(found[0].value, found[0].currency, None, SIGN) if found else None
    plain = _WORDS.sub("", text)
    if plain != text and (found := _all([plain], decimal, currency)):
        return _as(found[0], WORDS)
    without = _DISCOUNT.sub(" ", plain)
    between = (_BEFORE_SIGN if without.lstrip()[:1] in _SIGNS else _AFTER_SIGN).sub("\0", without.strip())
    parts = _BETWEEN_PRICES.sub("\0", between).split("\0")
    if parts[1:] or without != plain:
        found = _all(parts, decimal, currency)
        return _as(max(found, key=lambda one: one.value), HIGHER) if 1 <= len(found) <= 2 else None
    ends = _all(_RANGE.split(plain), decimal, currency) if len(_RANGE.findall(plain)) == 1 else []
    if len(ends) == 2 and ends[0].value <= ends[1].value <= _WIDEST * ends[0].value:
        return _as(ends[0], LOWER, next((one.currency for one in ends if one.currency), None))
    return None


def _all(parts: list[str], decimal: DecimalMark | None, currency: str | None) -> list[Amount]:
    """The amounts of all parts that say something; none if one is not an amount."""
    found = []
    for part in parts:
        if not (stripped := part.strip(" ,;:/()")):
            continue
        try:
            found.append(parse_amount(stripped, decimal=decimal, currency=currency))
        except AmountError as error:
            if error.ambiguous:
                raise
            return []
    return found


def _as(amount: Amount, how: str, currency: str | None = None) -> Worded:
    return Worded(amount.value, currency or amount.currency, amount.decimal, how)
