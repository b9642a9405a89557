"""Lengths of time as people write them: `45s`, `30 min`, `1h30m`, `2 days`."""

from __future__ import annotations

import re
from datetime import timedelta

from clorefleet.domain.errors import BadInput

_UNITS = {
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hr": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
}  # fmt: skip
_PART = re.compile(r"\s*(?P<count>[0-9]{1,6})\s*(?P<unit>[a-z]+)", re.IGNORECASE)
DURATION_MAX = timedelta(days=366)


def parse_duration(text: str) -> timedelta:
    """
    Raises:
        BadInput: it is not a length of time, or one of more than a year.
    """
    rest, seconds = text.strip(), 0
    while rest:
        match = _PART.match(rest)
        unit = "" if match is None else match["unit"].lower()
        factor = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if match is None or factor is None:
            seconds = 0
            break
        seconds += int(match["count"]) * factor
        rest = rest[match.end() :].strip()
    if not 0 < seconds <= DURATION_MAX.total_seconds():
        raise BadInput(
            f"“{text[:30]}” is not a length of time.", remedy='Write "45s", "30 min", "1h30m" or "2 days".'
        )
    return timedelta(seconds=seconds)


def in_words(duration: timedelta) -> str:
    """Short and exact enough to read: `45 s`, `30 min`, `1.5 h`."""
    seconds = round(duration.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds / 3600:.1f} h"
