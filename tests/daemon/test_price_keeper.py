"""Prices are kept from readings that are made anyway, one in a while, and only by the leader."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from clorefleet.daemon.prices import KEPT_EVERY, PriceKeeper
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
        token = leadership.acquire(self.store, "p", now=NOW, force=True)
        self.keeper = PriceKeeper(self.store, lambda: token if leads else None, self.clock, load_gpus())

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


def test_a_tick_that_reads_no_offers_leaves_a_gap():
    desk = Desk()
    desk.keeper.run()
    assert desk.kept() == []


def test_who_stands_by_keeps_nothing():
    desk = Desk(leads=False)
    desk.reads(timedelta(0))
    assert desk.kept() == []


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
