"""Which product a photo belongs to, by its key, and the order of a product's photos."""

import re
from collections.abc import Callable

import regex

from enrich.errors import UsageError

_MOST_SECONDS = 5.0  # of CPU time of this process, for a key; usual expressions take some microseconds
STEM = r"(?s)^((?:.*/)?[^/]+?)(?:\.[^./]*)?$"  # the part of a key before its extension


def natural_order(key: str) -> str:
    """Natural order of keys: 2.jpg before 10.jpg, SKU1.jpg before SKU1-2.jpg, and folders before longer names.

    Numbers are compared by their value. Extensions do not count, so equal results are to be ordered by key.
    """
    match = re.match(STEM, key)
    text = (match[1] if match else key).replace("/", "\1")  # below all that names hold
    return re.sub(r"[0-9]+", lambda digits: f"{len(digits[0].lstrip('0')):04d}{digits[0].lstrip('0')}", text)


def group_of(group_by: str) -> Callable[[str], str | None]:
    """The function from a photo's key to the product that it is grouped into; None for a product of its own.

    Args:
        group_by: folder, or an expression on the whole key with a group `product_id`. Of one that would take years the
            function raises UsageError.
    """
    if group_by == "folder":
        return lambda key: key.rpartition("/")[0] or None
    pattern = regex.compile(group_by)

    def matched(key: str) -> str | None:
        try:
            match = pattern.fullmatch(key, timeout=_MOST_SECONDS)
        except TimeoutError as error:
            raise UsageError(
                f"group_by {group_by!r}: more than {_MOST_SECONDS:g} s for the key {key!r}; take out repetitions "
                "inside of repetitions, such as (a|b+)+"
            ) from error
        return (match["product_id"] or None) if match else None

    return matched
