"""Jumps of the wall clock, and the next tick's time; on a scripted clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from clorefleet.daemon.timers import ClockWatch, SideJob, guarded, pause_until_next
from tests.fleet.builders import NOW


@dataclass
class ScriptedClock:
    """Wall and monotonic time that move as they are told, apart from each other."""

    wall: datetime = NOW
    monotonic: float = 0.0

    def now(self) -> datetime:
        return self.wall

    def monotonic_s(self) -> float:
        return self.monotonic

    def sleep(self, seconds: float) -> None:
        self.passes(seconds)

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds

    def jumps(self, by: timedelta) -> None:
        self.wall += by


JUMPS = [
    timedelta(hours=1),
    timedelta(hours=-1),
    timedelta(days=1),
    timedelta(days=-1),
    timedelta(seconds=-30),
]


@pytest.mark.parametrize("by", JUMPS, ids=str)
def test_a_jump_is_noticed_once_with_its_size(by: timedelta):
    clock = ScriptedClock()
    watch = ClockWatch(clock)
    clock.passes(1)
    assert watch.jump() == timedelta(0)
    clock.passes(1)
    clock.jumps(by)
    assert watch.jump() == by
    clock.passes(1)
    assert watch.jump() == timedelta(0)


def test_a_suspend_looks_like_a_jump_forward():
    clock = ScriptedClock()
    watch = ClockWatch(clock)
    clock.wall += timedelta(hours=1)  # the monotonic clock stands still meanwhile
    assert watch.jump() == timedelta(hours=1)


def test_a_stalled_process_is_no_jump():
    """D3: both clocks go on while nobody runs us."""
    clock = ScriptedClock()
    watch = ClockWatch(clock)
    clock.passes(3600)
    assert watch.jump() == timedelta(0)


def test_a_clock_that_is_kept_right_is_no_jump():
    clock = ScriptedClock()
    watch = ClockWatch(clock)
    for _ in range(100):
        clock.passes(1)
        clock.jumps(timedelta(milliseconds=50))
        assert watch.jump() == timedelta(0)


@pytest.mark.parametrize(
    ("look_at", "factor", "pause_s"),
    [
        (None, 1, 60),
        (NOW + timedelta(hours=2), 1, 60),
        (NOW + timedelta(seconds=20), 1, 20),
        (NOW - timedelta(seconds=20), 1, 0),
        (NOW + timedelta(seconds=1200), 60, 20),
    ],
)
def test_the_next_tick_comes_in_time_for_the_next_window(look_at: datetime, factor: float, pause_s: float):
    assert pause_until_next(NOW, pace_s=60, look_at=look_at, clock_factor=factor) == pause_s


def test_a_side_job_that_fails_ends_nothing():
    def fail() -> None:
        raise RuntimeError("broken")

    guarded(SideJob("x", timedelta(seconds=1), fail))()
