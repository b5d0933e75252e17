"""When a run must stop: after a duration, or at a time of day."""

import re
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from enrich.errors import UsageError
from enrich.settings.duration import parse_duration

_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?: +(\S+))?")


def check_until(text: object) -> object:
    """`text` if it is None or a time that `seconds_until` accepts; ValueError otherwise."""
    if text is None:
        return None
    clock = _CLOCK.fullmatch(str(text))
    try:
        if clock is None:
            parse_duration(str(text))
        elif clock[3]:
            ZoneInfo(clock[3])
    except (UsageError, ValueError, OSError, ZoneInfoNotFoundError) as error:  # OSError: `Europe` is a directory
        raise ValueError(f"{text!r} is not a time; write 6h, 90m, 07:30 or 07:30 Europe/Berlin") from error
    return text


def seconds_until(text: str | None, now: datetime, due: datetime) -> float | None:
    """Seconds from `now` until then, 0 if that has passed; None if there is no limit.

    A time of day is its first occurrence after the run was `due`: a nightly run that starts late, or continues after a
    crash, still ends on the same morning.

    Args:
        text: 6h, 90m, 2h30m, or 07:30, followed by a time zone or else in this machine's zone.
    """
    if text is None:
        return None
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return parse_duration(text).total_seconds()
    hour, minute, zone = clock.groups()
    there = due.astimezone(ZoneInfo(zone) if zone else None)
    then = there.replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
    if then <= there:
        then += timedelta(days=1)
    return max((then - now).total_seconds(), 0.0)
