"""Times of the week at which another number of replicas is kept. Values, and the reading of cron's five
fields.

A *window* begins at the times of a cron expression, or at a clock time on some weekdays, and lasts until a
clock time or for a length of time. An *exception* holds for whole dates and outranks every window. Clock
times are those of the schedule's time zone; what a change to or from daylight saving time does to them is
said in `fleet/schedule.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta

from clorefleet.domain.errors import BadInput

WINDOW_LENGTH_MAX = timedelta(days=7)
MINUTES_A_DAY = 1440
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKDAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_PART = re.compile(
    r"(?P<first>\*|[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?(?:/(?P<step>[0-9]{1,3}))?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between how many and how many replicas are kept."""

    replicas_min: int
    replicas_max: int

    def __post_init__(self) -> None:
        if not 0 <= self.replicas_min <= self.replicas_max:
            raise ValueError(f"bounds must rise from at least 0: {self.replicas_min} to {self.replicas_max}")

    def clamped(self, replicas: int) -> int:
        return max(self.replicas_min, min(self.replicas_max, replicas))


@dataclass(frozen=True, slots=True)
class CronTimes:
    """Minutes of the local clock, as cron's five fields name them. Weekdays: Monday is 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days_of_month: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool = False
    """Both kinds of day are restricted: cron then takes a date that matches one of the two."""

    def has_date(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days_of_month, day.weekday() in self.weekdays
        return by_month or by_week if self.either_day else by_month and by_week


@dataclass(frozen=True, slots=True)
class Window:
    """Bounds that hold from each start until a clock time, or for a length. Exactly one of both is given."""

    name: str
    starts: CronTimes
    bounds: Bounds
    until_minute: int | None = None
    """Clock time of the end, in minutes after midnight, 1 to 1440; one not after the start's is on the
    next day."""
    length: timedelta | None = None
    """Elapsed time, whatever the clock does meanwhile."""
    priority: int = 0
    """Of overlapping windows the highest priority counts; among equals the one that keeps more replicas."""

    def __post_init__(self) -> None:
        if (self.until_minute is None) == (self.length is None):
            raise ValueError("a window ends at a clock time or after a length, one of the two")


@dataclass(frozen=True, slots=True)
class DateException:
    """Bounds for whole local dates, `first` to `last` inclusive, above every window."""

    name: str
    first: date
    last: date
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Schedule:
    zone: str
    """IANA name, for instance `Europe/Berlin`."""
    windows: tuple[Window, ...] = ()
    exceptions: tuple[DateException, ...] = ()
    lead: timedelta | None = None
    """How long before a window its replicas are started; None: as long as earlier starts took."""


def parse_cron(text: str) -> CronTimes:
    """Read `minute hour day-of-month month day-of-week`: numbers, names, lists, ranges and steps.

    Raises:
        BadInput: for anything else, naming the field.
    """
    fields = text.split()
    if len(fields) != 5:
        raise BadInput(
            f"“{text[:60]}” is not a cron expression: it has {len(fields)} fields, not 5.",
            remedy='Write minute, hour, day of month, month and weekday, for instance "0 8 * * mon-fri".',
        )
    minutes = _field(fields[0], "minute", 0, 59)
    hours = _field(fields[1], "hour", 0, 23)
    days = _field(fields[2], "day of month", 1, 31)
    months = _field(fields[3], "month", 1, 12, _MONTHS, 1)
    # Cron counts from Sunday, and takes 7 for it as well; we count from Monday as Python does.
    numbers = _field(fields[4], "weekday", 0, 7, ("sun", *_WEEKDAYS[:6]), 0)
    weekdays = frozenset((number - 1) % 7 for number in numbers)
    is_either = not fields[2].startswith("*") and not fields[4].startswith("*")
    return CronTimes(minutes, hours, days, months, weekdays, is_either)


def daily_at(minute: int, weekdays: frozenset[int] = frozenset(range(7))) -> CronTimes:
    """Once a day at `minute` after midnight, on some weekdays."""
    return CronTimes(
        frozenset({minute % 60}),
        frozenset({minute // 60}),
        frozenset(range(1, 32)),
        frozenset(range(1, 13)),
        weekdays,
    )


def parse_weekdays(text: str) -> frozenset[int]:
    """Read `mon-fri`, `sat,sun` or `daily`; Monday is 0.

    Raises:
        BadInput: for a word that is no weekday.
    """
    if text.strip().lower() in ("daily", "*"):
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        words = [word.strip() for word in part.split("-", 1)]
        ends = [_weekday(words[0]), _weekday(words[-1])]
        found |= {number % 7 for number in range(ends[0], ends[1] + (7 if ends[1] < ends[0] else 0) + 1)}
    return frozenset(found)


def _weekday(word: str) -> int:
    for number, name in enumerate(_WEEKDAY_NAMES):
        if len(word) >= 3 and name.startswith(word):
            return number
    raise BadInput(
        f"“{word[:20]}” is not a weekday.", remedy=f"Use {', '.join(_WEEKDAYS)}, mon-fri, or daily."
    )


def parse_clock_time(text: str) -> int:
    """Read `08:00` to `24:00` as minutes after midnight.

    Raises:
        BadInput: it is not a time of day.
    """
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", text.strip())
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else MINUTES_A_DAY + 1
    if minute > MINUTES_A_DAY:
        raise BadInput(
            f"“{text[:20]}” is not a time of day.", remedy='Write hours and minutes: "08:00" to "24:00".'
        )
    return minute


def _field(
    text: str, what: str, least: int, most: int, names: tuple[str, ...] = (), first_name: int = 0
) -> frozenset[int]:
    def number(word: str) -> int:
        if word.lower() in names:
            return names.index(word.lower()) + first_name
        value = int(word) if word.isdigit() and len(word) < 4 else -1
        if not least <= value <= most:
            raise BadInput(
                f"“{word[:20]}” is not a {what} in a cron expression.",
                remedy=f"Use {least} to {most}{', or ' + ', '.join(names) if names else ''}.",
            )
        return value

    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None or match["step"] == "0":
            raise BadInput(
                f"“{part[:20]}” is not a {what} in a cron expression.", remedy="Use *, 5, 1-5, 1,3 or */15."
            )
        if match["first"] == "*":
            start, end = least, most
        else:
            start = number(match["first"])
            end = number(match["last"]) if match["last"] else (most if match["step"] else start)
        if end < start:
            raise BadInput(f"“{part[:20]}” runs backwards.", remedy=f"Write the earlier {what} first.")
        found.update(range(start, end + 1, int(match["step"] or 1)))
    return frozenset(found)
