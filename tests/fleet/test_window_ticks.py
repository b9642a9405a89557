"""Real ticks through the hours of a schedule: each window is kept once, whatever the clock does.

D1, D2, D5, C5: jumps of an hour and a day, changes to and from daylight saving time, a machine that slept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from clorefleet.daemon.timers import pause_until_next
from clorefleet.domain.lease import Phase
from clorefleet.domain.schedule import Bounds, Schedule, Window, daily_at
from clorefleet.fleet.slots import held
from tests.fleet.world import VirtualClock, World

BERLIN = ZoneInfo("Europe/Berlin")
MORNING = Window("morning", daily_at(8 * 60), Bounds(1, 1), until_minute=12 * 60)
LEAD = timedelta(minutes=10)
DAILY = Schedule("Europe/Berlin", (MORNING,), lead=LEAD)


@dataclass
class Wrong:
    """Our machine's clock, while the market's is right."""

    clock: VirtualClock
    by: timedelta

    def now(self) -> datetime:
        return self.clock.now() + self.by

    def monotonic_s(self) -> float:
        return self.clock.monotonic_s()

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).astimezone(UTC)


def world_at(folder: Path, text: str) -> World:
    world = World(folder)
    world.clock.current = berlin(text)
    world.start()
    world.wish(replicas=0, schedule=DAILY)
    return world


def run_until(world: World, text: str) -> None:
    """Ticks as the daemon paces them: soon while something is under way, in time for the next change."""
    until = berlin(text)
    while world.clock.now() < until:
        result = world.fleet.tick(world.token)
        pace_s = 20 if result.is_busy else 600
        pause_s = pause_until_next(world.clock.now(), pace_s=pace_s, look_at=result.look_at)
        world.clock.sleep(min(pause_s, (until - world.clock.now()).total_seconds()))


def serving(world: World) -> int:
    return sum(1 for lease in held(world.leases()) if lease.phase is Phase.SERVING)


def test_a_replica_serves_at_the_hour_and_is_gone_after_it(tmp_path: Path):
    world = world_at(tmp_path, "2026-11-25 07:00")
    run_until(world, "2026-11-25 07:48")
    assert world.market.rent_calls == 0
    run_until(world, "2026-11-25 08:02")
    assert serving(world) == 1
    run_until(world, "2026-11-25 12:10")
    assert world.leases() == () and world.market.live == [] and world.market.rent_calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24"])
def test_over_a_change_of_the_clock_each_morning_is_kept_once(tmp_path: Path, day: str):
    world = world_at(tmp_path, f"{day} 06:00")
    at_nine = []
    for _ in range(3):
        nine = world.clock.now().astimezone(BERLIN).replace(hour=9, minute=0)
        run_until(world, nine.replace(tzinfo=None).isoformat(sep=" "))
        at_nine.append(serving(world))
        run_until(world, nine.replace(hour=13, tzinfo=None).isoformat(sep=" "))
        assert world.market.live == []
        world.clock.current = (nine + timedelta(days=1)).replace(hour=6).astimezone(UTC)
    assert at_nine == [1, 1, 1] and world.market.rent_calls == 3


def test_a_machine_that_slept_over_the_start_begins_at_once_and_over_the_end_stops_at_once(tmp_path: Path):
    world = world_at(tmp_path, "2026-11-25 07:00")
    world.tick(2)
    world.clock.current = berlin("2026-11-25 09:30")
    world.tick(1)
    assert world.market.rent_calls == 1
    run_until(world, "2026-11-25 10:00")
    assert serving(world) == 1
    world.clock.current = berlin("2026-11-25 15:00")
    world.tick(6, every_s=30)
    assert world.market.live == [] and world.market.rent_calls == 1


@pytest.mark.parametrize(
    "jump",
    [timedelta(hours=1), timedelta(hours=-1), timedelta(days=1), timedelta(days=-1)],
    ids=str,
)
def test_a_jump_inside_a_window_rents_nothing_twice(tmp_path: Path, jump: timedelta):
    world = world_at(tmp_path, "2026-11-25 07:00")
    run_until(world, "2026-11-25 10:00")
    assert serving(world) == 1
    right = world.fleet
    world.fleet = replace(right, clock=Wrong(world.clock, jump))
    world.tick(5, every_s=30)
    world.fleet = right
    world.tick(5, every_s=30)
    assert serving(world) == 1 and world.market.rent_calls == 1 and len(world.market.live) == 1


def test_a_clock_that_wanders_over_the_start_does_not_start_and_stop_again_and_again(tmp_path: Path):
    """The replica that was rented in the lead is kept over a step back of a minute or two: a dip is not
    worth a stop."""
    world = world_at(tmp_path, "2026-11-25 07:49")
    for _ in range(10):
        world.tick(1, every_s=120)
        world.clock.current -= timedelta(seconds=110)
    run_until(world, "2026-11-25 08:05")
    assert world.market.rent_calls == 1 and serving(world) == 1


def test_a_daemon_that_was_down_over_a_whole_window_does_not_make_up_for_it(tmp_path: Path):
    world = world_at(tmp_path, "2026-11-25 07:00")
    world.tick(1)
    world.clock.current = berlin("2026-11-25 13:00")
    world.start()
    world.tick(3)
    assert world.market.rent_calls == 0
