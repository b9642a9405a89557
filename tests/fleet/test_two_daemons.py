"""C3, C5, D1, S8: two daemons on one store. One acts, the other takes over in a bounded time, none rents
twice.

The same cases run on SQLite and on a real PostgreSQL server. Each daemon has its own connections and clocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from clorefleet.domain.errors import LostLeadership
from clorefleet.domain.intent import Boundary, Effect
from clorefleet.domain.lease import Phase
from clorefleet.domain.money import Period
from clorefleet.domain.order import RentRequest
from clorefleet.domain.plan import PlanReport
from clorefleet.fleet.loop import Fleet
from clorefleet.store.database import Store, open_store
from clorefleet.store.leadership import STANDBY_LOOKS_EVERY_S, TAKEOVER_S_MAX, Standby, renew
from tests.fleet.builders import NOW, deployment, plan
from tests.fleet.world import Hazards, MemoryMarket, MemoryNodes, VirtualClock
from tests.postgres import empty_database

pytestmark = pytest.mark.slow
PLANS = (plan(7), plan(8), plan(9))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'fleet.db'}"
        return
    with empty_database(request.getfixturevalue("postgres")) as found:
        yield found


class Daemon:
    """What `clorefleet.daemon.service` does with a fleet, on a clock that is moved by hand."""

    def __init__(self, name: str, pair: Pair, *, skew: timedelta, nodes: MemoryNodes) -> None:
        self.clock = VirtualClock(NOW + skew)
        self.store = open_store(pair.url)
        self.standby = Standby(self.store, name, clock=self.clock)
        self.token = None
        self.deposed = 0
        self.boundary_hook = lambda effect, boundary: None
        ids = itertools.count(1)
        self.fleet = Fleet(
            store=self.store,
            market=pair.market,
            nodes=nodes,
            planner=lambda requirement, _: PlanReport(requirement, PLANS, (), (), len(PLANS)),
            clock=self.clock,
            set_routes=lambda backends: None,
            in_flight=lambda lease_id: 0,
            startup_command=lambda credentials: "#!/bin/sh\n",
            new_id=lambda: f"{name}{next(ids)}",
            reached=lambda effect, boundary: self.boundary_hook(effect, boundary),
        )

    def tick(self) -> None:
        try:
            if self.token is None:
                self.token = self.standby.try_to_lead()
            if self.token is not None:
                renew(self.store, self.token, now=self.clock.now())
                self.fleet.tick(self.token)
        except LostLeadership:
            self.token = None
            self.deposed += 1


class Pair:
    """On one machine, or with a key folder each, as on two."""

    def __init__(self, url: str, *, skew: timedelta = timedelta(0), machines: int = 1) -> None:
        self.url = url
        self.market_clock = VirtualClock()
        hazards = Hazards()
        self.market = MemoryMarket(self.market_clock, hazards)
        places = [MemoryNodes(hazards, place=f"machine {number}") for number in range(machines)]
        self.first = Daemon("a", self, skew=timedelta(0), nodes=places[0])
        self.second = Daemon("b", self, skew=skew, nodes=places[-1])
        with self.first.store.write() as tx:
            tx.put_deployment(deployment(created_at=NOW))

    def pass_time(self, seconds: float) -> None:
        for clock in (self.market_clock, self.first.clock, self.second.clock):
            clock.sleep(seconds)

    def run(self, *daemons: Daemon, ticks: int, every_s: float = STANDBY_LOOKS_EVERY_S) -> None:
        for _ in range(ticks):
            for daemon in daemons:
                daemon.tick()
            self.pass_time(every_s)

    def dispose(self) -> None:
        for daemon in (self.first, self.second):
            daemon.store.dispose()

    def assert_serving_once(self, store: Store) -> None:
        with store.read() as tx:
            [lease] = tx.open_leases()
        assert lease.phase is Phase.SERVING
        assert [order.order_id for order in self.market.live] == [lease.order_id]
        assert len(self.market.orders) == 1, "both rented"


@pytest.fixture
def pair(url: str) -> Iterator[Pair]:
    made = Pair(url)
    yield made
    made.dispose()


def test_one_acts_and_the_other_stands_by(pair: Pair):
    pair.run(pair.first, pair.second, ticks=40)
    assert pair.first.token is not None and pair.second.token is None
    pair.assert_serving_once(pair.second.store)


def test_after_a_kill_the_other_leads_within_the_stated_time_and_goes_on(pair: Pair):
    pair.run(pair.first, pair.second, ticks=4)
    waited_s = 0.0
    while pair.second.token is None:
        pair.run(pair.second, ticks=1)
        waited_s += STANDBY_LOOKS_EVERY_S
    assert waited_s <= TAKEOVER_S_MAX + STANDBY_LOOKS_EVERY_S
    pair.run(pair.second, ticks=40)
    pair.assert_serving_once(pair.second.store)


@pytest.mark.parametrize("skew_h", [-24, -1, 1, 24])
def test_clocks_that_differ_by_hours_change_nothing(url: str, skew_h: int):
    """D1, D4: no wall clock is compared with another's."""
    pair = Pair(url, skew=timedelta(hours=skew_h))
    pair.run(pair.first, pair.second, ticks=40)
    assert pair.second.token is None and pair.first.deposed == 0
    pair.assert_serving_once(pair.second.store)
    pair.dispose()


def test_a_leader_whose_wall_clock_stands_still_goes_on_leading(pair: Pair):
    """D3: its beat shows that it lives."""
    for _ in range(60):
        frozen = pair.first.clock.current
        pair.run(pair.first, pair.second, ticks=1)
        pair.first.clock.current = frozen
    assert pair.second.token is None


def test_a_leader_paused_between_intent_and_rent_sends_nothing_when_it_wakes(pair: Pair):
    """C5: an hour later another leads. The old one's rent would be an order that nobody looks for."""

    def sleep_for_an_hour(effect: Effect, boundary: Boundary) -> None:
        if effect is Effect.RENT and boundary is Boundary.AFTER_INTENT:
            pair.first.boundary_hook = lambda effect, boundary: None
            pair.run(pair.second, ticks=60, every_s=60)

    pair.first.boundary_hook = sleep_for_an_hour
    pair.run(pair.first, ticks=1)
    assert pair.first.deposed == 1, "the old one could still write"
    assert pair.market.rent_calls == 1, "the old one could still rent"
    pair.run(pair.first, pair.second, ticks=20)
    pair.assert_serving_once(pair.first.store)


class KilledForGood(BaseException):
    pass


def kill_first_at(pair: Pair, boundary: Boundary) -> None:
    """It dies there in its first rent, and stays dead."""

    def die(effect: Effect, reached: Boundary) -> None:
        if (effect, reached) == (Effect.RENT, boundary):
            raise KilledForGood

    pair.first.boundary_hook = die
    with pytest.raises(KilledForGood):
        pair.run(pair.first, ticks=20)


def test_a_doubtful_order_of_a_dead_machine_is_ended_by_the_other_which_has_no_key_to_it(url: str):
    """C1, C3, S1: it was reported as foreign, and billed for as long as nobody looked."""
    pair = Pair(url, machines=2)
    kill_first_at(pair, Boundary.AFTER_EFFECT)
    [doubtful] = pair.market.live
    waited = pair.second.fleet.limits.phase[Phase.WAITING]
    pair.run(pair.second, ticks=30, every_s=30)
    assert pair.market.live == [doubtful], "the other machine might be back with the key until then"
    pair.run(pair.second, ticks=60, every_s=30)
    assert doubtful.order_id not in {each.order_id for each in pair.market.live}
    ended = pair.market.orders[doubtful.order_id]
    assert ended.spend.amount <= ended.price.for_seconds(int(waited.total_seconds()) + 180).amount
    with pair.second.store.read() as tx:
        [counted] = [each for each in tx.segments() if each.order_id == ended.order_id]
        assert counted.settled_at is not None and counted.market_spend == ended.spend.amount
        assert tx.foreign_orders(seen_since=NOW) == ()
        assert tx.host_faults(since=NOW) == ()
        [lease] = tx.open_leases()
    assert lease.phase is Phase.SERVING and lease.key_place == "machine 1"
    pair.dispose()


def test_the_first_machine_goes_on_with_its_doubtful_order_when_it_is_back_in_time(url: str):
    pair = Pair(url, machines=2)
    kill_first_at(pair, Boundary.AFTER_EFFECT)
    pair.run(pair.second, ticks=30, every_s=30)
    pair.first.boundary_hook = lambda effect, boundary: None
    pair.first.token = None
    pair.run(pair.first, ticks=60, every_s=10)
    pair.assert_serving_once(pair.first.store)
    pair.dispose()


def test_an_order_that_the_user_made_by_hand_on_that_server_is_never_ended_by_the_other_machine(url: str):
    """B8, S9: the first machine died before its request left; the user took the server half an hour later."""
    pair = Pair(url, machines=2)
    kill_first_at(pair, Boundary.AFTER_INTENT)
    with pair.second.store.read() as tx:
        [lease] = tx.open_leases()
    pair.pass_time(1800)
    by_hand = RentRequest(lease.server_id, False, lease.plan.price.billed, lease.image)
    pair.market.rent(by_hand)
    [made] = pair.market.live
    pair.run(pair.second, ticks=120, every_s=30)
    assert made.order_id in {each.order_id for each in pair.market.live}
    with pair.second.store.read() as tx:
        assert [each[0] for each in tx.foreign_orders(seen_since=NOW)] == [made.order_id]
    pair.dispose()


def test_an_order_that_comes_after_its_rent_was_given_up_is_told_with_its_price_and_left_alone(url: str):
    """C3, S9: the machine that has its key is down; the one that acts can only say what it may be."""
    pair = Pair(url, machines=2)
    kill_first_at(pair, Boundary.AFTER_EFFECT)
    [late] = pair.market.live
    pair.market.visible_from[late.order_id] = pair.market_clock.now() + timedelta(minutes=9)
    pair.run(pair.second, ticks=160, every_s=30)
    assert late.order_id in {each.order_id for each in pair.market.live}
    with pair.second.store.read() as tx:
        [told] = [event for _, event in tx.events() if event.name == "order_disowned"]
        [strange] = tx.strange_orders()
        [lease] = tx.open_leases()
    assert lease.phase is Phase.SERVING and lease.order_id != late.order_id
    assert strange.order_id == late.order_id and strange.usd_per_day == late.price.amount
    assert f"bills {late.price.per(Period.HOUR)} and may be of a rent of tiny" in told.text
    assert "its key is elsewhere" in told.text
    assert f"`clorefleet sweep --end {late.order_id}` ends it" in told.text
    pair.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("boundary", Boundary, ids=str)
@pytest.mark.parametrize("effect", [Effect.RENT, Effect.CANCEL, Effect.START_JOB], ids=str)
def test_a_takeover_at_any_boundary_rents_once(pair: Pair, effect: Effect, boundary: Boundary):
    """The leader is killed there for good; the one that stood by ends what it began."""

    def die(reached: Effect, at: Boundary) -> None:
        if (reached, at) == (effect, boundary):
            raise KilledForGood

    def stop_wish() -> None:
        from clorefleet.domain.deployment import Desired

        with pair.second.store.write() as tx:
            tx.put_deployment(deployment(created_at=NOW, desired=Desired.STOPPED))

    pair.first.boundary_hook = die
    try:
        pair.run(pair.first, pair.second, ticks=20)
        stop_wish()
        pair.run(pair.first, pair.second, ticks=20)
    except KilledForGood:
        pass
    else:
        pytest.fail("the boundary was never reached")
    pair.run(pair.second, ticks=60)
    if effect is not Effect.CANCEL:
        pair.assert_serving_once(pair.second.store)
        stop_wish()
        pair.run(pair.second, ticks=20)
    assert pair.market.live == [] and len(pair.market.orders) == 1
