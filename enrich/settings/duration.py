"""Lengths of time as people write them."""

import re
from datetime import timedelta

from enrich.errors import UsageError


def parse_duration(text: str) -> timedelta:
    """90d, 6h, 2h30m, 45s; UsageError for anything else."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a length of time; write 90d, 6h, 2h30m or 45s")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
