"""Which bounds a schedule sets at a moment, and when replicas are started and kept so that it holds. Pure.

A clock time means *the first moment at which the local clock shows it or has passed it*. So a time that
spring skips is the moment of the change, a time that autumn repeats is its first occurrence, and a window's
end is the first such moment after its start. Lengths and leads are elapsed time.

Two corrections make a level of replicas cheap and true:

- **Lead.** A level that rises at T is wanted from T - lead on, since a replica is not ready the moment it
  is rented.
- **Gaps.** What is held is kept over a dip that is too short to be worth a stop: stopping saves the dip's
  rent less the lead's, and costs another creation fee. The dip is bridged up to `break_even`, where both
  are equal. Only what is held is kept: nothing is ever rented for a dip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from clorefleet.domain.schedule import MINUTES_A_DAY, Bounds, Schedule, Window

HORIZON = timedelta(days=8)
"""How far ahead the next change is looked for: a week, and a day for changes of the clock."""
_EXCEPTION_PRIORITY = 1_000_000
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Level:
    """Bounds that hold from `start` until `end`, and the window or exception that sets them ("": none)."""

    start: datetime
    end: datetime
    bounds: Bounds
    name: str = ""


@dataclass(frozen=True, slots=True)
class StartUp:
    """What it takes to have a replica serving: how long before, and the dip that is not worth a stop."""

    lead: timedelta = timedelta(0)
    break_even: timedelta = timedelta(0)
    """At least `lead`: a dip shorter than that ends before a stopped replica could be back."""
    source: str = ""
    """Where the lead comes from, for the user: measured, estimated or assumed."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The bounds in force, why, and the next moment at which they may change."""

    bounds: Bounds
    reason: str
    """"" where no window is in force."""
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _Span:
    start: datetime
    end: datetime
    priority: int
    bounds: Bounds
    name: str


def scheduled(
    schedule: Schedule, base: Bounds, now: datetime, *, start_up: StartUp = StartUp(), held: int = 0
) -> Scheduled:
    """The bounds at `now`, with lead and gaps; `held` replicas serve or come to serve."""
    lead = start_up.lead if schedule.lead is None else schedule.lead
    break_even = max(start_up.break_even, lead)
    found = levels(schedule, base, now - break_even, now + max(HORIZON, break_even, lead) + _DAY)
    here = next(index for index, level in enumerate(found) if level.start <= now < level.end)
    current = found[here]
    bounds, reason = current.bounds, ""
    if current.name:
        # A level that reaches the horizon has no end that could be told: it would move with each look.
        until = f" until {_clock(current.end, schedule)}" if current is not found[-1] else ""
        reason = f"window “{current.name}”{until}"
    coming = [each for each in found[here + 1 :] if each.start <= now + lead]
    higher = max(coming, key=lambda each: each.bounds.replicas_min, default=current)
    if higher.bounds.replicas_min > bounds.replicas_min:
        bounds = _at_least(bounds, higher.bounds.replicas_min)
        at = _clock(higher.start, schedule)
        reason = f"window “{higher.name}” begins {at}; starting takes about {_words(lead)}"
    kept, ends_at = _kept_over_dip(found, now, break_even)
    kept = min(kept, held)
    if kept > bounds.replicas_min:
        bounds = _at_least(bounds, kept)
        reason = (
            f"kept until {_clock(ends_at, schedule)}, when they are wanted again: "
            "stopping and starting would cost more"
        )
    return Scheduled(bounds, reason, _next_change(found, now, lead))


def _at_least(bounds: Bounds, replicas: int) -> Bounds:
    return Bounds(max(bounds.replicas_min, replicas), max(bounds.replicas_max, replicas))


def _kept_over_dip(found: tuple[Level, ...], now: datetime, break_even: timedelta) -> tuple[int, datetime]:
    """The highest level that ended at most `break_even` before it comes again, on both sides of `now`."""
    best, until = 0, now
    for count in {level.bounds.replicas_min for level in found}:
        ended = max(
            (each.end for each in found if each.bounds.replicas_min >= count and each.end <= now),
            default=None,
        )
        begins = min(
            (each.start for each in found if each.bounds.replicas_min >= count and each.start > now),
            default=None,
        )
        if ended is None or begins is None or count <= best:
            continue
        if begins - ended <= break_even:
            best, until = count, begins
    return best, until


def _next_change(found: tuple[Level, ...], now: datetime, lead: timedelta) -> datetime | None:
    """When to look again at the latest: a level changes, or the lead to a higher one begins."""
    moments = []
    for before, after in pairwise(found):
        moments.append(after.start)
        if after.bounds.replicas_min > before.bounds.replicas_min:
            moments.append(after.start - lead)
    return min((moment for moment in moments if moment > now), default=None)


@dataclass(frozen=True, slots=True)
class Transition:
    """From `at` on, `replicas` are kept, until the next transition."""

    at: datetime
    replicas: int
    reason: str


TRANSITIONS_MAX = 200


def transitions(
    schedule: Schedule,
    base: Bounds,
    now: datetime,
    *,
    until: datetime,
    start_up: StartUp = StartUp(),
    held: int = 0,
) -> tuple[Transition, ...]:
    """What the lower bounds do from `now` on, as `scheduled` would decide then; the first one is at `now`.

    Where load or use move the number, they do so above or below these.
    """
    found: list[Transition] = []
    moment: datetime | None = now
    while moment is not None and moment < until and len(found) < TRANSITIONS_MAX:
        here = scheduled(schedule, base, moment, start_up=start_up, held=held)
        replicas = here.bounds.replicas_min
        if not found or found[-1].replicas != replicas:
            found.append(Transition(moment, replicas, here.reason))
        held, moment = replicas, here.until
    return tuple(found)


def replica_days(
    schedule: Schedule | None, base: Bounds, since: datetime, until: datetime
) -> tuple[Decimal, Decimal]:
    """How many replica-days the bounds ask for, at least and at most; leads are not counted."""
    found = (Level(since, until, base),) if schedule is None else levels(schedule, base, since, until)
    least = most = Decimal(0)
    for level in found:
        days = Decimal(int((level.end - level.start).total_seconds())) / 86_400
        least += level.bounds.replicas_min * days
        most += level.bounds.replicas_max * days
    return least, most


def levels(schedule: Schedule, base: Bounds, since: datetime, until: datetime) -> tuple[Level, ...]:
    """The bounds between two instants, side by side without gap; neighbours differ."""
    spans = [span for span in _spans(schedule, since, until) if span.end > since and span.start < until]
    edges = sorted({since, until, *(s.start for s in spans), *(s.end for s in spans)})
    edges = [edge for edge in edges if since <= edge <= until]
    starting = sorted(spans, key=lambda span: span.start)
    active: list[_Span] = []
    found: list[Level] = []
    taken = 0
    for start, end in pairwise(edges):
        while taken < len(starting) and starting[taken].start <= start:
            active.append(starting[taken])
            taken += 1
        active = [span for span in active if span.end > start]
        winner = max(active, key=_rank, default=None)
        level = Level(start, end, base) if winner is None else Level(start, end, winner.bounds, winner.name)
        if found and (found[-1].bounds, found[-1].name) == (level.bounds, level.name):
            level = Level(found[-1].start, end, level.bounds, level.name)
            found.pop()
        found.append(level)
    return tuple(found)


def _rank(span: _Span) -> tuple[int, int, int, str]:
    return span.priority, span.bounds.replicas_min, span.bounds.replicas_max, span.name


def _spans(schedule: Schedule, since: datetime, until: datetime) -> Iterator[_Span]:
    zone = zone_of(schedule.zone)
    # What lies beyond these is not asked for, and no calendar has a moment for the end of its last day.
    earliest = (since - 2 * _DAY).astimezone(zone).date()
    latest = (until + 2 * _DAY).astimezone(zone).date()
    for exception in schedule.exceptions:
        if exception.last < earliest or exception.first > latest:
            continue
        yield _Span(
            first_moment(max(exception.first, earliest), 0, zone),
            first_moment(min(exception.last, latest), MINUTES_A_DAY, zone),
            _EXCEPTION_PRIORITY,
            exception.bounds,
            exception.name,
        )
    for window in schedule.windows:
        reach = (window.length or _DAY) + 2 * _DAY
        day = (since - reach).astimezone(zone).date()
        last = (until + _DAY).astimezone(zone).date()
        while day <= last:
            if window.starts.has_date(day):
                yield from _spans_on(window, day, zone)
            day += _DAY


def _spans_on(window: Window, day: date, zone: ZoneInfo) -> Iterator[_Span]:
    for hour in window.starts.hours:
        for minute in window.starts.minutes:
            start_minute = hour * 60 + minute
            start = first_moment(day, start_minute, zone)
            if window.length is not None:
                end = start + window.length
            else:
                until = window.until_minute or 0
                end = first_moment(day, until if until > start_minute else until + MINUTES_A_DAY, zone)
            if end > start:
                yield _Span(start, end, window.priority, window.bounds, window.name)


@lru_cache(maxsize=256)
def zone_of(name: str) -> ZoneInfo:
    """
    Raises:
        ZoneInfoNotFoundError, ValueError: there is no such time zone.
    """
    return ZoneInfo(name)


@lru_cache(maxsize=65_536)
def first_moment(day: date, minute: int, zone: ZoneInfo) -> datetime:
    """The first instant (UTC) at which the clock of `zone` shows `minute` after midnight of `day`, or has
    passed it."""
    shown = datetime(day.year, day.month, day.day) + timedelta(minutes=minute)  # noqa: DTZ001 - a wall clock
    instant = shown.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == shown:
        return instant
    # The clock skips this time. Read with the later offset it lies before the change, with the earlier
    # behind it.
    before, after = shown.replace(tzinfo=zone, fold=1).astimezone(UTC), instant
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=int((after - before).total_seconds()) // 2)
        if middle.astimezone(zone).replace(tzinfo=None) >= shown:
            after = middle
        else:
            before = middle
    return after


def _clock(instant: datetime, schedule: Schedule) -> str:
    return f"{instant.astimezone(zone_of(schedule.zone)):%a %d %b %H:%M} ({schedule.zone})"


def _words(duration: timedelta) -> str:
    minutes = round(duration.total_seconds() / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
