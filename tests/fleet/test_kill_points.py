"""C1, C2: the process dies at each boundary of each effect, both taken from the code as data.

An effect that is added to `Effect` and not exercised by `life` fails here, since its boundaries are never
reached; an edge's method that is called without an intent fails in `WatchedEdge`.
"""

from __future__ import annotations

import inspect
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.intent import KILL_POINTS, Boundary, Effect, IntentState
from clorefleet.domain.lease import Phase
from clorefleet.domain.money import Rate
from clorefleet.fleet.action import SetSpotPrice
from clorefleet.fleet.edges import READINGS, Market, Nodes
from tests.fleet.builders import plan
from tests.fleet.world import World

SPOT_PLANS = tuple(plan(number, is_spot=True) for number in (7, 8, 9))
at_each_boundary = pytest.mark.parametrize(
    ("effect", "boundary"), KILL_POINTS, ids=[f"{effect}, {boundary}" for effect, boundary in KILL_POINTS]
)


def serve(world: World) -> None:
    world.wish()
    world.tick(40)
    [lease] = world.leases()
    assert lease.phase is Phase.SERVING
    assert [order.order_id for order in world.market.live] == [lease.order_id]
    assert [backend.lease_id for backend in world.routes] == [lease.lease_id]


def bid(world: World) -> None:
    [lease] = world.leases()
    desired = Rate.per_day(Decimal("2.5"))
    for _ in range(3):  # a policy asks until the list shows its bid
        if world.market.live[0].price != desired:
            world.act(SetSpotPrice(lease.lease_id, lease.order_id, desired, "others bid more"))
        world.tick(2)
    [lease] = world.leases()
    assert lease.price == desired


def stop(world: World) -> None:
    world.wish(desired=Desired.STOPPED)
    world.tick(30)
    assert world.market.live == [] and world.leases() == () and world.routes == ()
    assert world.ledger() == world.bill()
    with world.store.read() as tx:
        assert tx.doubtful_intents() == () and tx.open_bills() == ()


def life(world: World) -> None:
    """Every effect there is, at least once."""
    serve(world)
    bid(world)
    stop(world)


@at_each_boundary
def test_killed_at_any_boundary_the_next_process_ends_up_the_same(
    tmp_path: Path, effect: Effect, boundary: Boundary
):
    """S1, S2, S6, S7."""
    world = World(tmp_path, SPOT_PLANS)
    world.hazards.kill_at = {(effect, boundary)}
    life(world)
    assert world.hazards.kill_at == set(), "the boundary was never reached"
    assert len(world.market.orders) == 1, "a second server was rented"
    assert set(world.nodes.started.values()) <= {1, 2}


@pytest.mark.slow
@at_each_boundary
def test_killed_again_while_recovering(tmp_path: Path, effect: Effect, boundary: Boundary):
    """C2: the second death comes at the same boundary of a later process."""
    world = World(tmp_path, SPOT_PLANS)
    world.hazards.kill_at = {(effect, boundary)}
    world.wish()
    world.tick(3)
    world.hazards.kill_at |= {(effect, boundary)}
    life(world)
    assert len(world.market.orders) == 1


@pytest.mark.parametrize("effect", Effect, ids=str)
def test_every_effect_is_written_before_it_happens(tmp_path: Path, effect: Effect):
    """S5: at the moment of the effect its intent is in the store, for another process to read."""
    world = World(tmp_path, SPOT_PLANS)
    seen = []

    def look(reached: Effect, boundary: Boundary) -> None:
        world._reached(reached, boundary)
        if reached is effect and boundary is Boundary.AFTER_INTENT:
            with world.store.read() as tx:
                seen.extend(i for i in tx.doubtful_intents() if i.effect is effect)

    object.__setattr__(world.fleet, "reached", look)
    life(world)
    assert seen and all(intent.state is IntentState.OPEN for intent in seen)


@pytest.mark.parametrize("edge", [Market, Nodes])
def test_every_method_of_an_edge_is_a_reading_or_watched(edge: type):
    methods = {name for name, _ in inspect.getmembers(edge, inspect.isfunction) if not name.startswith("_")}
    assert READINGS[edge] < methods


def test_a_lost_answer_to_a_bid_is_concluded_by_the_order_list(tmp_path: Path):
    world = World(tmp_path, SPOT_PLANS)
    serve(world)
    world.hazards.bid_lost_after = 1
    bid(world)
    with world.store.read() as tx:
        assert tx.doubtful_intents() == ()
    stop(world)
