"""Windows of a schedule: against a naive reference that walks minute by minute, and by examples that explain.

The reference knows nothing of spans, levels or edges. It reads the local clock at each minute of three
weeks, and answers each question by looking at minutes one after the other.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.errors import BadInput
from clorefleet.domain.schedule import (
    Bounds,
    DateException,
    Schedule,
    Window,
    daily_at,
    parse_clock_time,
    parse_cron,
    parse_weekdays,
)
from clorefleet.fleet.schedule import StartUp, first_moment, levels, scheduled, transitions

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
BASE = Bounds(0, 0)
CLOCK_CHANGES = (
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
    ("Asia/Kathmandu", date(2026, 12, 31)),
    ("UTC", date(2026, 2, 28)),
)


class Minutes:
    """The local clock, and the schedule's answers, minute by minute around a day."""

    def __init__(self, schedule: Schedule, around: date) -> None:
        self.schedule = schedule
        self.first = datetime(around.year, around.month, around.day, tzinfo=UTC) - 10 * DAY
        zone = ZoneInfo(schedule.zone)
        self.count = 20 * 1440
        self.local = [
            (self.first + i * MINUTE).astimezone(zone).replace(tzinfo=None) for i in range(self.count)
        ]
        self._latest_shown = list(accumulate(self.local, max))
        self.level = self._levels()

    def index(self, instant: datetime) -> int:
        return int((instant - self.first) / MINUTE)

    def reached(self, day: date, minute: int) -> int:
        """The first minute at which the clock shows that time or has passed it."""
        shown = datetime(day.year, day.month, day.day) + minute * MINUTE
        return bisect_left(self._latest_shown, shown)

    def _levels(self) -> list[Bounds]:
        rank: list[tuple] = [(-1, 0, 0)] * self.count
        found = [BASE] * self.count

        def lay(begin: int, end: int, priority: int, bounds: Bounds) -> None:
            for i in range(max(0, begin), min(self.count, end)):
                mine = (priority, bounds.replicas_min, bounds.replicas_max)
                if mine > rank[i]:
                    rank[i], found[i] = mine, bounds

        day = self.local[0].date() + DAY
        while day < self.local[-1].date() - DAY:
            for window in self.schedule.windows:
                for minute in range(1440):
                    if not (
                        window.starts.has_date(day)
                        and minute // 60 in window.starts.hours
                        and minute % 60 in window.starts.minutes
                    ):
                        continue
                    begin = self.reached(day, minute)
                    if window.length is not None:
                        end = begin + int(window.length / MINUTE)
                    elif window.until_minute > minute:
                        end = self.reached(day, window.until_minute)
                    else:
                        end = self.reached(day + DAY, window.until_minute)
                    lay(begin, end, window.priority, window.bounds)
            day += DAY
        for each in self.schedule.exceptions:
            lay(self.reached(each.first, 0), self.reached(each.last + DAY, 0), 10**9, each.bounds)
        return found

    def wanted_min(self, i: int, lead: int, break_even: int, held: int) -> int:
        least = [bounds.replicas_min for bounds in self.level]
        answer = max(least[i : i + lead + 1])
        for count in range(min(held, 9), answer, -1):
            before = next((j for j in range(i, -1, -1) if least[j] >= count), None)
            after = next((j for j in range(i, self.count) if least[j] >= count), None)
            if before is not None and after is not None and after - (before + 1) <= break_even:
                return count
        return answer


@st.composite
def windows(draw: st.DrawFn) -> Window:
    minute = st.integers(0, 1439)
    weekdays = draw(st.frozensets(st.integers(0, 6), min_size=1))
    low = draw(st.integers(0, 4))
    ends = draw(
        st.one_of(
            st.builds(lambda m: {"until_minute": m}, st.integers(1, 1440)),
            st.builds(lambda m: {"length": m * MINUTE}, st.integers(1, 3000)),
        )
    )
    return Window(
        name="w",
        starts=daily_at(draw(st.one_of(minute, st.integers(60, 240))), weekdays),
        bounds=Bounds(low, low + draw(st.integers(0, 3))),
        priority=draw(st.integers(0, 2)),
        **ends,
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[Schedule, date, datetime]:
    zone, day = draw(st.sampled_from(CLOCK_CHANGES))
    first = day + draw(st.integers(-2, 2)) * DAY
    exceptions = draw(
        st.lists(
            st.builds(
                lambda n, low: DateException("e", first, first + n * DAY, Bounds(low, low)),
                st.integers(0, 1),
                st.integers(0, 3),
            ),
            max_size=1,
        )
    )
    schedule = Schedule(zone, tuple(draw(st.lists(windows(), max_size=4))), tuple(exceptions))
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    now = midnight + draw(st.integers(-2000, 3000)) * MINUTE
    return schedule, day, now


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(situations())
def test_levels_are_those_of_the_naive_reference(situation: tuple[Schedule, date, datetime]):
    schedule, day, now = situation
    reference = Minutes(schedule, day)
    found = levels(schedule, BASE, now, now + 2 * DAY)
    assert found[0].start == now and found[-1].end == now + 2 * DAY
    i = reference.index(now)
    for level in found:
        for _ in range(int((level.end - level.start) / MINUTE)):
            assert reference.level[i] == level.bounds, (schedule, reference.first + i * MINUTE)
            i += 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(situations(), st.integers(0, 240), st.integers(0, 240), st.integers(0, 5))
def test_lead_and_dips_are_those_of_the_naive_reference(
    situation: tuple[Schedule, date, datetime], lead: int, fee: int, held: int
):
    schedule, day, now = situation
    reference = Minutes(schedule, day)
    start_up = StartUp(lead * MINUTE, (lead + fee) * MINUTE)
    found = scheduled(schedule, BASE, now, start_up=start_up, held=held)
    expected = reference.wanted_min(reference.index(now), lead, lead + fee, held)
    assert found.bounds.replicas_min == expected


@settings(max_examples=40, deadline=None)
@given(situations(), st.integers(0, 120))
def test_nothing_changes_before_the_moment_that_is_given_as_the_next_change(
    situation: tuple[Schedule, date, datetime], lead: int
):
    schedule, _, now = situation
    start_up = StartUp(lead * MINUTE, lead * MINUTE)
    found = scheduled(schedule, BASE, now, start_up=start_up, held=2)
    last = min(found.until or now + DAY, now + DAY) - MINUTE
    for moment in (now + (last - now) / 2, last):
        if moment >= now:
            assert scheduled(schedule, BASE, moment, start_up=start_up, held=2).bounds == found.bounds


# -- examples

BERLIN = "Europe/Berlin"
WORKDAY = Window("workday", daily_at(8 * 60, parse_weekdays("mon-fri")), Bounds(2, 2), until_minute=18 * 60)


def at(text: str, zone: str = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def now_min(schedule: Schedule, text: str, **more: object) -> int:
    return scheduled(schedule, BASE, at(text), **more).bounds.replicas_min


@pytest.mark.parametrize(
    ("moment", "replicas"),
    [
        ("2026-11-25 07:59", 0),
        ("2026-11-25 08:00", 2),
        ("2026-11-25 17:59", 2),
        ("2026-11-25 18:00", 0),
        ("2026-11-28 12:00", 0),  # a Saturday
        # The clock hour stays, the UTC hour moves with it.
        ("2026-03-27 08:00", 2),
        ("2026-03-30 07:59", 0),
        ("2026-03-30 08:00", 2),
        ("2026-10-26 07:59", 0),
        ("2026-10-26 08:00", 2),
    ],
)
def test_a_window_of_the_week(moment: str, replicas: int):
    assert now_min(Schedule(BERLIN, (WORKDAY,)), moment) == replicas


def test_a_time_that_spring_skips_is_the_moment_of_the_change():
    assert first_moment(date(2026, 3, 29), 150, ZoneInfo(BERLIN)) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


def test_a_time_that_autumn_repeats_is_its_first_occurrence():
    assert first_moment(date(2026, 10, 25), 150, ZoneInfo(BERLIN)) == datetime(
        2026, 10, 25, 0, 30, tzinfo=UTC
    )


def test_a_window_across_the_change_is_an_hour_shorter_in_spring_and_longer_in_autumn():
    night = Schedule(BERLIN, (Window("night", daily_at(60), Bounds(1, 1), until_minute=5 * 60),))

    def hours(day: str) -> float:
        start = at(f"{day} 00:00")
        return sum(
            (lv.end - lv.start) / timedelta(hours=1)
            for lv in levels(night, BASE, start, start + DAY)
            if lv.name
        )

    assert (hours("2026-03-29"), hours("2026-10-25"), hours("2026-06-01")) == (3, 5, 4)


def test_a_length_is_elapsed_time_whatever_the_clock_does():
    job = Schedule(BERLIN, (Window("job", parse_cron("0 1 * * *"), Bounds(1, 1), length=timedelta(hours=4)),))
    assert now_min(job, "2026-03-29 05:59") == 1 and now_min(job, "2026-03-29 06:00") == 0
    assert now_min(job, "2026-10-25 03:59") == 1 and now_min(job, "2026-10-25 04:00") == 0


def test_of_overlapping_windows_the_priority_counts_and_among_equals_the_larger():
    big = Window("big", daily_at(10 * 60), Bounds(4, 4), until_minute=12 * 60)
    low = Window("maintenance", daily_at(11 * 60), Bounds(1, 1), until_minute=13 * 60, priority=5)
    schedule = Schedule(BERLIN, (WORKDAY, big, low))
    shown = [now_min(schedule, f"2026-11-25 {hour}:30") for hour in ("09", "10", "11", "12", "13")]
    assert shown == [2, 4, 1, 1, 2]


def test_an_exception_outranks_every_window_for_its_whole_dates():
    night = Window("night", daily_at(22 * 60), Bounds(3, 3), until_minute=6 * 60, priority=99)
    holiday = DateException("holiday", date(2026, 12, 24), date(2026, 12, 25), Bounds(0, 0))
    schedule = Schedule(BERLIN, (WORKDAY, night), (holiday,))
    moments = (
        "2026-12-23 23:59",
        "2026-12-24 00:00",
        "2026-12-25 12:00",
        "2026-12-25 23:59",
        "2026-12-26 00:00",
    )
    assert [now_min(schedule, moment) for moment in moments] == [3, 0, 0, 0, 3]


@pytest.mark.parametrize("zone", [BERLIN, "America/Los_Angeles", "UTC"])
def test_an_exception_that_reaches_the_ends_of_the_calendar_holds_and_breaks_nothing(zone: str):
    """A store may hold one that was written before files with such dates were refused."""
    always = DateException("for ever", date.min, date.max, Bounds(0, 0))
    noon = at("2026-11-25 12:00", zone)
    found = scheduled(Schedule(zone, (WORKDAY,), (always,)), BASE, noon, held=2)
    assert found.bounds == Bounds(0, 0) and found.reason == "window “for ever”"
    for other in (replace(always, last=date(2026, 11, 24)), replace(always, first=date(2026, 11, 26))):
        assert scheduled(Schedule(zone, (WORKDAY,), (other,)), BASE, noon).bounds == WORKDAY.bounds


def test_replicas_are_started_early_enough_to_be_ready_at_the_hour():
    start_up = StartUp(timedelta(minutes=25), timedelta(minutes=25), "measured")
    schedule = Schedule(BERLIN, (WORKDAY,))
    assert now_min(schedule, "2026-11-25 07:34", start_up=start_up) == 0
    assert now_min(schedule, "2026-11-25 07:35", start_up=start_up) == 2
    assert "workday" in scheduled(schedule, BASE, at("2026-11-25 07:35"), start_up=start_up).reason


def test_a_lead_that_the_user_gives_is_kept():
    schedule = Schedule(BERLIN, (WORKDAY,), lead=timedelta(hours=1))
    assert now_min(schedule, "2026-11-25 07:00", start_up=StartUp(5 * MINUTE, 5 * MINUTE)) == 2


MORNING = Window("morning", daily_at(8 * 60), Bounds(2, 2), until_minute=12 * 60)
AFTERNOON = Window("afternoon", daily_at(13 * 60), Bounds(1, 1), until_minute=18 * 60)


@pytest.mark.parametrize(
    ("break_even_min", "held", "replicas"),
    [
        (59, 2, 0),  # the hour saves more than a restart costs
        (60, 2, 1),  # it does not: what the afternoon needs stays
        (60, 0, 0),  # nothing is held: nothing is rented for a dip
    ],
)
def test_what_is_held_is_kept_over_a_dip_that_a_restart_would_cost_more_than(
    break_even_min: int, held: int, replicas: int
):
    start_up = StartUp(10 * MINUTE, break_even_min * MINUTE)
    schedule = Schedule(BERLIN, (MORNING, AFTERNOON))
    assert now_min(schedule, "2026-11-25 12:20", start_up=start_up, held=held) == replicas


def test_the_reason_of_what_always_holds_does_not_move_with_time():
    always = Schedule("UTC", (Window("always", daily_at(0), Bounds(1, 1), until_minute=1440),))
    early, late = (scheduled(always, BASE, at(f"2026-11-2{day} 12:00")) for day in (5, 6))
    assert early.reason == late.reason == "window “always”"


def test_the_next_transitions_follow_the_working_week():
    found = transitions(
        Schedule(BERLIN, (WORKDAY,)),
        BASE,
        at("2026-11-27 12:00"),
        until=at("2026-11-30 20:00"),
        start_up=StartUp(30 * MINUTE, 30 * MINUTE),
    )
    assert [(each.at, each.replicas) for each in found] == [
        (at("2026-11-27 12:00"), 2),
        (at("2026-11-27 18:00"), 0),
        (at("2026-11-30 07:30"), 2),
        (at("2026-11-30 18:00"), 0),
    ]


# -- reading


@pytest.mark.parametrize(
    ("text", "minutes", "hours", "weekdays"),
    [
        ("0 8 * * mon-fri", {0}, {8}, {0, 1, 2, 3, 4}),
        ("*/20 9-11 * * 6,7", {0, 20, 40}, {9, 10, 11}, {5, 6}),
        ("5/25 0 * * sun", {5, 30, 55}, {0}, {6}),
    ],
)
def test_cron_is_read_as_cron_means_it(text: str, minutes: set, hours: set, weekdays: set):
    times = parse_cron(text)
    assert (times.minutes, times.hours, times.weekdays) == (minutes, hours, weekdays)


def test_two_restricted_days_of_cron_mean_either():
    times = parse_cron("0 0 13 * fri")
    assert times.has_date(date(2026, 11, 13)) and times.has_date(date(2026, 11, 20))
    assert times.has_date(date(2026, 10, 13)) and not times.has_date(date(2026, 10, 14))


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "a * * * *", "*/0 * * * *", "5-1 * * * *"],
)
def test_what_is_not_cron_is_refused(text: str):
    with pytest.raises(BadInput):
        parse_cron(text)


@pytest.mark.parametrize("text", ["24:01", "7", "8:60", "-1:00", "noon"])
def test_what_is_not_a_time_of_day_is_refused(text: str):
    with pytest.raises(BadInput):
        parse_clock_time(text)


@pytest.mark.parametrize(
    ("text", "days"),
    [("daily", set(range(7))), ("fri-mon", {4, 5, 6, 0}), ("Sat, Sun", {5, 6}), ("wednesday", {2})],
)
def test_weekdays_are_read(text: str, days: set):
    assert parse_weekdays(text) == days


@pytest.mark.parametrize("text", ["", "mo", "funday", "mon-"])
def test_what_is_not_a_weekday_is_refused(text: str):
    with pytest.raises(BadInput):
        parse_weekdays(text)
