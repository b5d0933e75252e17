"""Durations as people write them."""

import re
from datetime import timedelta

from enrich.errors import UsageError

MOST_DAYS = 36_500  # of a duration: a date that long ago can still be written


def parse_duration(text: str) -> timedelta:
    """90d, 6h, 2h30m, 45s, up to 100 years; UsageError for anything else."""
    match = re.fullmatch(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a duration; write 90d, 6h, 2h30m or 45s")
    days, hours, minutes, seconds = (int(part[:18]) for part in match.groups("0"))
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds > MOST_DAYS * 86_400:
        raise UsageError(f"{text!r} is more than {MOST_DAYS:,} days; write a shorter time")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def parse_deadline(text: str) -> timedelta:
    """As `parse_duration`; a plain number, such as 6 or 1.5, is hours."""
    if re.fullmatch(r"[0-9]{1,5}(?:\.[0-9]{1,5})?", text.strip()):
        return timedelta(hours=float(text))
    return parse_duration(text)
