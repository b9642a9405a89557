"""The daemon's loop, with a fleet that only counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from clorefleet.daemon import service as module
from clorefleet.daemon.metrics import TickCounts
from clorefleet.daemon.service import Pace, Service
from clorefleet.daemon.timers import SideJob
from clorefleet.fleet.loop import TickResult
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from clorefleet.store.leadership import Standby
from tests.fleet.builders import NOW
from tests.fleet.world import VirtualClock

WAIT_S = 20
"""Far longer than needed; passing it is the failure."""


@dataclass
class CountingFleet:
    clock: VirtualClock = field(default_factory=VirtualClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    ticks: int = 0
    ticked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    inside: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    look_at: datetime | None = None

    def tick(self, token: object) -> TickResult:
        self.inside.set()
        self.go_on.wait(WAIT_S)
        self.ticks += 1
        self.ticked.release()
        return TickResult((), "", is_busy=False, look_at=self.look_at)


class Running:
    def __init__(self, fleet: CountingFleet, *side_jobs: SideJob) -> None:
        self.fleet = fleet
        self.ended = threading.Event()
        self.counts = TickCounts(NOW)
        token = leadership.acquire(fleet.store, "p", now=NOW, force=True)
        pace = Pace(busy_s=3600, quiet_s=3600)
        standby = Standby(fleet.store, "p", clock=fleet.clock)
        self.service = Service(fleet, token, pace, standby, ended=self.ended, counts=self.counts)
        self.service.beside_the_tick(*side_jobs)
        self.thread = threading.Thread(target=self.service.run_until_ended)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fleet.go_on.set()
        self.service.end()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def test_ending_waits_for_the_tick_in_hand():
    fleet = CountingFleet()
    with Running(fleet) as running:
        assert fleet.inside.wait(WAIT_S)
        running.service.end()
        assert running.thread.is_alive() and fleet.ticks == 0
        fleet.go_on.set()
        running.thread.join(WAIT_S)
        assert fleet.ticks == 1


def test_a_wake_during_a_tick_is_followed_by_another_tick():
    fleet = CountingFleet()
    with Running(fleet) as running:
        assert fleet.inside.wait(WAIT_S)
        running.service.wake()
        fleet.go_on.set()
        assert fleet.ticked.acquire(timeout=WAIT_S) and fleet.ticked.acquire(timeout=WAIT_S)


def test_a_tick_comes_when_the_schedule_changes_and_not_a_quiet_pause_later():
    fleet = CountingFleet(look_at=NOW + timedelta(milliseconds=100))
    fleet.go_on.set()
    with Running(fleet):
        assert fleet.ticked.acquire(timeout=WAIT_S) and fleet.ticked.acquire(timeout=WAIT_S)


@pytest.mark.parametrize("by", [timedelta(hours=-1), timedelta(hours=1)], ids=str)
def test_after_a_jump_of_the_clock_everything_is_planned_from_the_present(
    by: timedelta, monkeypatch: pytest.MonkeyPatch
):
    """D1: a clock set back must not leave the next tick an hour in the future."""
    jumps = iter([timedelta(0), by])
    monkeypatch.setattr(module.ClockWatch, "jump", lambda self: next(jumps, timedelta(0)))
    fleet = CountingFleet()
    fleet.go_on.set()
    side = threading.Semaphore(0)
    job = SideJob("side", timedelta(hours=1), side.release)
    with Running(fleet, job) as running:
        for semaphore in (fleet.ticked, fleet.ticked, side, side):
            assert semaphore.acquire(timeout=WAIT_S)
        assert running.counts.clock_jumps == 1


def test_a_slow_side_job_delays_no_tick():
    fleet = CountingFleet()
    fleet.go_on.set()
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(WAIT_S)

    with Running(fleet, SideJob("slow", timedelta(hours=1), slow)) as running:
        assert begun.wait(WAIT_S) and fleet.ticked.acquire(timeout=WAIT_S)
        running.service.wake()
        assert fleet.ticked.acquire(timeout=WAIT_S)
        release.set()


def test_ending_does_not_wait_until_a_slow_side_job_is_done(monkeypatch: pytest.MonkeyPatch):
    """A mail server that does not answer: `daemon stop` would give up before the daemon ends."""
    monkeypatch.setattr(module, "SIDE_END_S_MAX", 0.05)
    fleet = CountingFleet()
    fleet.go_on.set()
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(3 * WAIT_S)

    with Running(fleet, SideJob("slow", timedelta(hours=1), slow)) as running:
        assert begun.wait(WAIT_S)
        running.service.end()
        running.thread.join(WAIT_S)
        has_ended = not running.thread.is_alive()
        release.set()
    assert has_ended


def test_no_run_is_dropped_and_none_runs_beside_itself(caplog: pytest.LogCaptureFixture):
    """APScheduler warns of, and drops, what is due while the last run of it is under way."""
    fleet = CountingFleet()
    inside, begun, overlaps = threading.Lock(), threading.Semaphore(0), []
    go_on = threading.Event()

    def slow() -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(1)
            return
        begun.release()
        go_on.wait(WAIT_S)
        inside.release()

    often = timedelta(milliseconds=20)
    pulse = threading.Semaphore(0)
    with Running(fleet, SideJob("slow", often, slow), SideJob("pulse", often, pulse.release)) as running:
        assert begun.acquire(timeout=WAIT_S) and fleet.inside.wait(WAIT_S)
        running.service.wake()
        for _ in range(6):  # it is due as often meanwhile
            assert pulse.acquire(timeout=WAIT_S)
        fleet.go_on.set()
        for _ in range(2):
            assert fleet.ticked.acquire(timeout=WAIT_S), "a tick that was asked for was dropped"
        go_on.set()
        for _ in range(3):
            assert begun.acquire(timeout=WAIT_S)
        assert not overlaps
    assert not [each for each in caplog.records if "maximum number" in each.getMessage()]
