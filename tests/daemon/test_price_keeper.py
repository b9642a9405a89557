"""Prices are kept from readings that are made anyway, else read once an hour, and only by the leader."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from clorefleet.daemon.prices import KEPT_EVERY, PriceKeeper
from clorefleet.domain.errors import MarketUnreachable
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, MarketView
from clorefleet.planner.gpus import load_gpus
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import NOW, deployment, offer
from tests.fleet.world import VirtualClock, World

VIEW = MarketView((offer(),), MarketRates.of([]), DOCUMENTED_FEES, NOW)


class Desk:
    def __init__(self, *, leads: bool = True) -> None:
        self.store, self.clock = MemoryStore(), VirtualClock()
        self.clock.current = NOW
        self.token = leadership.acquire(self.store, "p", now=NOW, force=True) if leads else None
        self.asked: list[timedelta] = []
        self.is_reachable = True
        self.restart()

    def restart(self) -> None:
        self.keeper = PriceKeeper(self.store, lambda: self.token, self.clock, load_gpus(), read=self.read)

    def read(self) -> MarketView:
        now = self.clock.now()
        self.asked.append(now - NOW)
        if not self.is_reachable:
            raise MarketUnreachable("no answer")
        return replace(VIEW, read_at=now)

    def is_quiet_for(self, hours: float) -> None:
        """No tick reads offers; the job looks every minute."""
        for _ in range(round(hours * 60)):
            self.clock.current += timedelta(minutes=1)
            self.keeper.run()

    def reads(self, after: timedelta) -> None:
        self.clock.current = NOW + after
        self.keeper.note(replace(VIEW, read_at=NOW + after))
        self.keeper.run()

    def kept(self) -> list[timedelta]:
        with self.store.read() as tx:
            return [row.at - NOW for row in tx.prices()]


def test_one_reading_in_a_while_is_kept():
    desk, short = Desk(), KEPT_EVERY / 3
    for count in range(5):
        desk.reads(count * short)
    assert desk.kept() == [0 * short, 3 * short]


def test_a_fleet_that_reads_no_offers_reads_prices_once_an_hour():
    desk = Desk()
    desk.reads(timedelta(0))
    desk.is_quiet_for(3.5)
    assert desk.asked == [timedelta(hours=1), timedelta(hours=2), timedelta(hours=3)]
    assert desk.kept() == [timedelta(0), *desk.asked]


def test_while_ticks_read_offers_no_request_is_made():
    desk = Desk()
    for count in range(12):
        desk.reads(count * timedelta(minutes=20))
    assert desk.asked == []


def test_without_any_history_one_is_begun_at_once():
    desk = Desk()
    desk.keeper.run()
    assert desk.asked == desk.kept() == [timedelta(0)]


def test_a_new_daemon_counts_the_hour_from_what_was_kept_before_it():
    desk = Desk()
    desk.reads(timedelta(0))
    desk.is_quiet_for(0.5)
    desk.restart()
    desk.is_quiet_for(0.4)
    assert desk.asked == []
    desk.is_quiet_for(0.2)
    assert desk.asked == [timedelta(hours=1)]


def test_a_market_that_does_not_answer_is_asked_again_an_hour_later():
    desk = Desk()
    desk.is_reachable = False
    desk.is_quiet_for(2.5)
    assert desk.asked == [timedelta(minutes=1), timedelta(minutes=61), timedelta(minutes=121)]
    assert desk.kept() == []


def test_who_stands_by_keeps_nothing():
    desk = Desk(leads=False)
    desk.reads(timedelta(0))
    desk.is_quiet_for(2)
    assert desk.kept() == desk.asked == []


def test_a_clock_that_was_set_back_does_not_stop_the_history():
    desk = Desk()
    desk.reads(timedelta(days=300))
    desk.reads(timedelta(0))
    assert len(desk.kept()) == 2


def test_old_readings_are_thinned_once_a_day():
    desk = Desk()
    for minutes in (0, 15, 30):
        desk.reads(timedelta(minutes=minutes))
    desk.reads(timedelta(days=9))
    with desk.store.read() as tx:
        assert [(row.lasts, row.readings) for row in tx.prices()] == [
            (timedelta(hours=1), 3), (timedelta(0), 1)
        ]  # fmt: skip


def test_the_tick_hands_over_the_reading_that_it_plans_with(tmp_path: Path):
    seen: list[MarketView] = []
    world = World(tmp_path)
    with world.store.write() as tx:
        tx.put_deployment(deployment())
    world.fleet = replace(world.fleet, note_view=seen.append)
    world.fleet.tick(world.token)
    assert len(seen) == 1
