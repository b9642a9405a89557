"""Load, sleep, waking and moving, tick by tick on a real store: what the fleet then holds."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.deployment import ConsolidatePolicy, Desired, IdlePolicy, ScalePolicy
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.load import LoadSample, LoadTaken, ReplicaLoad
from clorefleet.domain.node import NodeView
from clorefleet.domain.order import Order
from clorefleet.domain.schedule import Bounds, Schedule, Window, daily_at
from clorefleet.domain.wanted import NotReady
from clorefleet.fleet.follow import Record, load_decision, this_minute, whole_minutes
from clorefleet.fleet.wanted import asleep
from tests.fleet.builders import NOW, deployment, lease, minutes, plan
from tests.fleet.world import World

IDLE = IdlePolicy(timedelta(minutes=10))


class Use:
    """What the gateway counts, and what engines tell, as a test wants it."""

    def __init__(self, world: World) -> None:
        self.taken: deque[LoadTaken] = deque()
        self.engine_tokens = 0
        self.told: dict[str, NotReady] = {}
        look = world.nodes.look

        def looked(of: Lease, order: Order) -> NodeView:
            view = look(of, order)
            return replace(view, engine_tokens=self.engine_tokens) if of.phase is Phase.SERVING else view

        world.nodes.look = looked  # type: ignore[method-assign]
        world.fleet = replace(
            world.fleet,
            take_load=lambda: self.taken.popleft() if self.taken else LoadTaken(),
            set_wanted=self.told.update,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def serve(world: World) -> None:
    for _ in range(20):
        world.tick()
        if any(each.phase is Phase.SERVING for each in world.leases()):
            return
    raise AssertionError("it never served")


def test_a_deployment_that_nobody_uses_sleeps_and_its_order_ends(world: World):
    use = Use(world)
    world.wish(idle=IDLE)
    serve(world)
    world.tick(16, every_s=60)
    assert not world.leases() and not world.market.live
    with world.store.read() as tx:
        assert "no request and no token for 10 min" in next(iter(tx.wanted().values())).reason
    world.tick(30, every_s=60)
    assert not world.market.live, "what sleeps is not rented again by itself"
    told = use.told["smollm2-135m"]
    assert "it sleeps" in told.reason and told.ready_in is not None
    with world.store.read() as tx:
        [took] = tx.start_ups(DeploymentId("tiny"), limit=5)
    assert told.ready_in == took, "as long as its last start took"


def test_tokens_at_the_engine_keep_it_awake_though_the_gateway_saw_no_request(world: World):
    use = Use(world)
    world.wish(idle=IDLE)
    serve(world)
    for _ in range(20):
        use.engine_tokens += 5
        world.tick(every_s=60)
    assert len(world.market.live) == 1


def test_a_request_wakes_it(world: World):
    use = Use(world)
    world.wish(idle=IDLE)
    serve(world)
    world.tick(12, every_s=60)
    assert not world.market.live
    use.taken.append(LoadTaken(turned_away={"smollm2-135m": 1}))
    serve(world)
    assert len(world.market.live) == 1


def test_what_was_stopped_and_is_enabled_again_is_not_taken_for_asleep(world: World):
    """`enabled = true` and `apply`: nobody could know that it also takes a request."""
    Use(world)
    world.wish(idle=IDLE)
    serve(world)
    world.wish(idle=IDLE, desired=Desired.STOPPED)
    world.tick(6)
    assert not world.market.live
    world.wish(idle=IDLE)
    serve(world)
    assert len(world.market.live) == 1


def test_what_a_window_held_down_begins_again_when_that_ends(world: World):
    Use(world)
    night = Window("night", daily_at(0), Bounds(0, 0), length=timedelta(hours=1))
    until = NOW.replace(hour=0, minute=0) + timedelta(days=1, hours=1)
    world.wish(idle=IDLE, schedule=Schedule("UTC", (night,), lead=timedelta(minutes=1)))
    world.clock.sleep((until - world.clock.now()).total_seconds() - 1800)
    world.tick(5, every_s=60)
    assert not world.market.live
    world.clock.sleep((until - world.clock.now()).total_seconds())
    serve(world)
    assert len(world.market.live) == 1


def test_deploying_what_sleeps_wakes_it_and_nobody_else_does(world: World):
    Use(world)
    world.wish(idle=IDLE)
    serve(world)
    world.tick(12, every_s=60)
    with world.store.read() as tx:
        [sleeping], last = tx.deployments(), tx.wanted()["tiny"]
    assert asleep(sleeping, last, world.clock.now())
    world.wish(idle=IDLE, woken_at=world.clock.now())
    serve(world)
    assert len(world.market.live) == 1
    world.tick(20, every_s=60)
    assert not world.market.live, "it sleeps again once nobody uses it"


def test_one_that_load_scaled_to_nothing_is_woken_too(world: World):
    use = Use(world)
    scaled = {"replicas": 0, "replicas_max": 2, "scale": ScalePolicy()}
    world.wish(**scaled)
    world.tick(5)
    assert not world.market.live and not use.taken
    world.wish(**scaled, woken_at=world.clock.now())
    world.tick(3)
    assert len(world.market.live) == 1


def test_who_asks_while_it_starts_is_told_what_is_left_of_the_start(world: World):
    use = Use(world)
    world.wish(idle=IDLE, start_up_estimate=timedelta(minutes=20))
    world.tick(1)
    assert use.told["smollm2-135m"].ready_in == timedelta(minutes=20)
    world.clock.sleep(300)
    world.tick(1)
    left = use.told["smollm2-135m"].ready_in
    assert timedelta(minutes=14) < left < timedelta(minutes=16)


def test_a_request_for_another_model_wakes_nobody(world: World):
    use = Use(world)
    world.wish(idle=IDLE)
    serve(world)
    world.tick(12, every_s=60)
    use.taken.append(LoadTaken(turned_away={"another": 3}))
    world.tick(5)
    assert not world.market.live


def test_the_floor_stays(world: World):
    Use(world)
    world.wish(replicas=2, idle=replace(IDLE, floor=1))
    serve(world)
    world.tick(30, every_s=60)
    assert len(world.market.live) == 1


def test_load_rents_more_and_gives_back_when_it_is_gone(world: World):
    use = Use(world)
    world.wish(replicas=1, replicas_max=3, scale=ScalePolicy())
    serve(world)

    def go_on(count: int, tokens_per_s: float) -> int:
        for _ in range(count):
            serving = [each for each in world.leases() if each.phase is Phase.SERVING]
            share = round(tokens_per_s * 60 / max(1, len(serving)))
            use.taken.append(
                LoadTaken(tuple(ReplicaLoad(each.lease_id, 10, 0, share, 0.2) for each in serving))
            )
            world.tick(every_s=60)
        return len(world.market.live)

    # The plan predicts 100 tokens/s and 9 were measured: one replica does 9.
    assert go_on(30, 1) == 1
    assert go_on(40, 14) > 1
    assert go_on(150, 0.5) == 1


# -- moving


def move_to(world: World, *, usd_per_day: str) -> None:
    world.plans = (plan(8, usd_per_day), plan(7, "10"), plan(9, "12"))


def settle_down(world: World, hours: int = 30) -> None:
    """Serving for so long that it is expected to go on for as long."""
    serve(world)
    world.tick(hours * 2, every_s=1800)


def test_a_cheaper_server_serves_before_the_dearer_one_ends(world: World):
    world.plans = (plan(7, "10"), plan(9, "12"))
    world.wish(budget="40/day", consolidate=ConsolidatePolicy())
    settle_down(world)
    move_to(world, usd_per_day="5")
    both = False
    for _ in range(90):
        world.tick(every_s=60)
        both = both or len(world.market.live) == 2
        assert any(each.phase is Phase.SERVING for each in world.leases())
    assert both and [order.server_id for order in world.market.live] == [8]


def test_a_move_that_fails_leaves_what_serves(world: World):
    world.plans = (plan(7, "10"), plan(9, "12"))
    world.wish(budget="40/day", consolidate=ConsolidatePolicy())
    settle_down(world)
    move_to(world, usd_per_day="5")
    world.nodes.bad_servers.add(8)
    world.tick(90, every_s=60)
    assert [order.server_id for order in world.market.live] == [7]


def test_a_budget_that_cannot_carry_both_forbids_the_move(world: World):
    world.plans = (plan(7, "10"), plan(9, "12"))
    world.wish(budget="14/day", consolidate=ConsolidatePolicy())
    settle_down(world)
    move_to(world, usd_per_day="5")
    world.tick(90, every_s=60)
    assert [order.server_id for order in world.market.live] == [7]


def test_without_the_policy_nothing_moves(world: World):
    world.plans = (plan(7, "10"), plan(9, "12"))
    world.wish(budget="40/day")
    settle_down(world)
    move_to(world, usd_per_day="1")
    world.tick(90, every_s=60)
    assert [order.server_id for order in world.market.live] == [7]


# -- minutes


def minute(ago: int, **counts: int) -> LoadSample:
    return LoadSample(NOW - minutes(ago), 60, **counts)


def test_a_minute_without_a_tick_was_a_minute_without_a_request():
    found = whole_minutes([minute(9, requests=1), minute(7, requests=2)], now=NOW)
    assert [each.requests for each in found] == [1, 0, 2]


def test_what_was_before_a_long_gap_is_forgotten():
    found = whole_minutes([minute(30, requests=1), minute(7, requests=2)], now=NOW)
    assert [each.requests for each in found] == [2]


def test_the_minute_that_is_not_over_does_not_count():
    assert whole_minutes([minute(1), minute(0)], now=NOW) == [minute(1)]


def test_two_deployments_of_a_model_do_not_both_answer_for_one_request():
    wishes = [deployment("a", idle=IDLE), deployment("b", idle=IDLE)]
    found = this_minute(wishes, [], {}, LoadTaken(turned_away={"smollm2-135m": 2}), now=NOW)
    assert [found[each.deployment_id].turned_away for each in wishes] == [2, 0]


def test_load_has_no_say_without_a_policy_or_without_a_minute_seen():
    serving = lease(phase=Phase.SERVING)
    record = Record((minute(2), minute(1)))
    kwargs = {"start_up": minutes(10), "now": NOW}
    assert load_decision(deployment(), [serving], record, None, **kwargs) is None
    scaled = deployment(scale=ScalePolicy(), replicas_max=3)
    assert load_decision(scaled, [serving], Record(), None, **kwargs) is None
    assert load_decision(scaled, [serving], record, None, **kwargs) is not None


def test_two_parts_of_a_minute_are_one():
    first = LoadSample(NOW, 60, requests=1, generated_tokens=10, running=3, first_byte_s=1.0)
    later = LoadSample(NOW, 60, requests=3, generated_tokens=5, running=1, first_byte_s=3.0)
    both = first.plus(later)
    assert (both.requests, both.generated_tokens, both.running) == (4, 15, 1)
    assert both.first_byte_s == pytest.approx(2.5) and Decimal(both.length_s) == 60
