"""A move is made only where it pays, and every other one has its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from clorefleet.domain.deployment import ConsolidatePolicy
from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Currency, Rate, parse_budget
from clorefleet.domain.offer import MarketRates
from clorefleet.domain.plan import Plan, Requirement, Speed
from clorefleet.domain.recipe import Precision
from clorefleet.domain.spot import SpotBid, SpotMarket
from clorefleet.fleet.action import Rent
from clorefleet.fleet.budget import FleetSpending
from clorefleet.fleet.consolidate import Verdict, judge
from clorefleet.fleet.moves import bid_servers, move_verdicts
from clorefleet.fleet.reconcile import reconcile
from clorefleet.fleet.snapshot import Snapshot
from tests.fleet.builders import NOW, deployment, lease, order, orders, plan, report, snapshot

POLICY = ConsolidatePolicy()
TWO_DAYS = NOW - timedelta(days=2)


def serving(usd_per_day: str = "10", **changes: object) -> Lease:
    the_plan = plan(7, usd_per_day)
    values: dict[str, object] = {"created_at": TWO_DAYS, "ordered_at": TWO_DAYS, "plan": the_plan}
    return lease(LeaseState.ORDERED, Phase.SERVING, **(values | changes))


def verdict(*plans: Plan, of: Lease | None = None, **changes: object) -> Verdict:
    values: dict[str, object] = {
        "avoided": frozenset(),
        "now": NOW,
        "last_move_at": None,
        "start_up": timedelta(minutes=30),
    }
    found = judge(deployment(), POLICY, [of or serving()], plans, **(values | changes))
    return found[0]


def test_a_much_cheaper_server_pays():
    found = verdict(plan(8, "6"))
    assert found.pays and found.saving_usd_per_day == Decimal("4.2")
    assert "saves $4.20/day, $8.40 over the 2.0 days expected" in found.reason and found.gain_usd > 8


def slower(one: Plan) -> Plan:
    return replace(one, speed=Speed(50.0, ()))


def less_exact(one: Plan) -> Plan:
    return replace(one, setup=replace(one.setup, precision=Precision.Q2))


def on_spot(one: Plan) -> Plan:
    return replace(one, price=replace(one.price, is_spot=True))


@pytest.mark.parametrize(
    ("candidate", "changes", "reason"),
    [
        (plan(8, "12"), {}, "it is not cheaper"),
        (plan(8, "9.8"), {}, "is less than 5% of what it costs"),
        (plan(8, "6"), {"start_up": timedelta(hours=30)}, "the move costs"),
        (plan(8, "6"), {"until": NOW + timedelta(minutes=20)}, "over the 20 min expected"),
        (plan(8, "6"), {"last_move_at": NOW - timedelta(hours=1)}, "it moved 60 min ago"),
        (plan(8, "6"), {"busy": "another replica moves"}, "another replica moves"),
        (plan(8, "6"), {"forbids": lambda plan: "that is too much"}, "new one serves: that is too much"),
        (slower(plan(8, "6")), {}, "is slower than"),
        (less_exact(plan(8, "6")), {}, "is less exact than"),
        (on_spot(plan(8, "6")), {}, "a spot server can be taken away"),
    ],
)
def test_a_move_that_does_not_pay_says_why(candidate: Plan, changes: dict[str, object], reason: str):
    found = verdict(candidate, **changes)
    assert not found.pays and reason in found.reason


# -- to a spot server: what others bid there decides


def spot_plan(server_id: int, least: str) -> Plan:
    base = plan(server_id, least, is_spot=True)
    return replace(
        base, offer=replace(base.offer, on_demand=(Rate.per_day("9.9"),), spot=(Rate.per_day(least),))
    )


def auction(server_id: int, least: str, *rivals: str) -> SpotMarket:
    bids = tuple(SpotBid(OrderId(n), Rate.per_day(bid), True, False) for n, bid in enumerate(rivals, 1))
    floor = (Rate.per_day(least),)
    return SpotMarket(ServerId(server_id), True, bids, floor, MarketRates(()), True, NOW)


def among_bids(*markets: SpotMarket) -> Snapshot:
    """A spot replica at $10 a day; server 8 is listed from $4 a day."""
    wish = deployment(
        consolidate=POLICY, requirement=Requirement("smollm2-135m", parse_budget("40/day"), spot=True)
    )
    return snapshot(
        deployments=(wish,),
        leases=(serving(plan=spot_plan(7, "10"), price=Rate.per_day("10")),),
        plans={"tiny": report(spot_plan(8, "4"))},
        orders=orders(order(price=Rate.per_day("10"), is_spot=True)),
        spot_markets={each.server_id: each for each in markets},
    )


def test_a_move_to_a_spot_server_is_made_at_the_bid_that_has_it():
    the_snapshot = among_bids(auction(8, "4", "6"))
    [moved] = [each for each in reconcile(the_snapshot) if isinstance(each, Rent)]
    assert moved.replaces and moved.plan.price.billed == Rate.per_day("6.06")
    assert moved.plan.price.running_usd_per_day == Decimal("6.06") * Decimal("1.05")
    [judged] = move_verdicts(the_snapshot, the_snapshot.deployments[0])
    assert judged.saving_usd_per_day == (Decimal("10") - Decimal("6.06")) * Decimal("1.05")


@pytest.mark.parametrize(
    ("markets", "reason"),
    [
        ((auction(8, "4", "9.9"),), "leaves no bid below its on-demand price"),
        ((auction(8, "4", "9.6"),), "is less than 5% of what it costs"),
        ((), "what others bid for it could not be read"),
    ],
)
def test_rivals_bids_that_are_too_high_or_unknown_forbid_the_move(
    markets: tuple[SpotMarket, ...], reason: str
):
    the_snapshot = among_bids(*markets)
    assert not [each for each in reconcile(the_snapshot) if isinstance(each, Rent)]
    [judged] = move_verdicts(the_snapshot, the_snapshot.deployments[0])
    assert not judged.pays and reason in judged.reason


def test_the_bids_are_read_of_the_spot_servers_that_a_move_would_look_at():
    plans = [spot_plan(n, "4") for n in (8, 9)] + [plan(10, "4")] + [spot_plan(n, "4") for n in (11, 12)]
    assert list(bid_servers(plans, frozenset({8}))) == [9, 11]


def test_a_server_that_was_rented_just_now_is_not_left_for_a_small_saving():
    """It may well be stopped within the hour: the move would never earn its cost."""
    young = serving(created_at=NOW - timedelta(minutes=10), ordered_at=NOW - timedelta(minutes=10))
    assert not verdict(plan(8, "9"), of=young).pays
    assert verdict(plan(8, "9"), of=serving()).pays


def test_servers_in_use_or_blocked_are_no_candidates():
    found = verdict(plan(8, "6"), avoided=frozenset({8}))
    assert not found.pays and found.reason == "no other server on the market fits"


def test_nothing_moves_while_another_replica_of_it_starts():
    starting = lease(LeaseState.ORDERED, Phase.LAUNCHING, slot=1)
    found = judge(
        deployment(),
        POLICY,
        [serving(), starting],
        [plan(8, "6")],
        avoided=frozenset(),
        now=NOW,
        last_move_at=None,
    )
    assert len(found) == 1 and not found[0].pays and "replica 1 is launching" in found[0].reason


def test_the_most_worthwhile_move_comes_first():
    found = judge(
        deployment(),
        POLICY,
        [serving("8"), serving("20", slot=1)],
        [plan(8, "6")],
        avoided=frozenset(),
        now=NOW,
        last_move_at=None,
    )
    assert [each.pays for each in found] == [True, True] and found[0].saving_usd_per_day > 10


def test_the_billed_price_counts_where_it_differs_from_the_plan():
    cheaper_bill = serving("10", price=Rate.per_day("5"))
    assert not verdict(plan(8, "6"), of=cheaper_bill).pays


def in_clore(server_id: int, per_day: str, usd_per_unit: str) -> Plan:
    base = plan(server_id)
    billed = Rate.per_day(per_day, Currency.CLORE)
    return replace(base, price=replace(base.price, billed=billed, usd_per_unit=Decimal(usd_per_unit)))


CLORE = Rate.per_day("200", Currency.CLORE)


@pytest.mark.parametrize("price", [None, CLORE], ids=["not read yet", "as billed"])
def test_what_runs_counts_at_the_present_rate_of_its_coin(price: Rate | None):
    """It was rented for $4.20 a day, and the coin has halved since: $3.15 elsewhere would be dearer."""
    of = serving(plan=in_clore(7, "200", "0.02"), price=price)
    assert verdict(plan(8, "3"), of=of).pays
    fallen = verdict(plan(8, "3"), of=of, usd_per_unit={Currency.CLORE: Decimal("0.01")})
    assert not fallen.pays and fallen.reason == "it is not cheaper ($1.05/day more)"
    risen = verdict(plan(8, "3"), of=of, usd_per_unit={Currency.CLORE: Decimal("0.04")})
    assert risen.pays and risen.saving_usd_per_day == Decimal("5.25")


def test_a_tick_moves_nothing_to_a_dearer_server_after_a_coin_has_fallen():
    one = deployment(consolidate=POLICY)
    running = serving(plan=in_clore(7, "200", "0.02"), price=CLORE, is_proven=True)
    now = snapshot(
        deployments=(one,),
        leases=(running,),
        orders=orders(order(running.order_id, 7, price=CLORE)),
        plans={one.deployment_id: report(plan(8, "3"))},
    )
    assert [each for each in reconcile(now) if isinstance(each, Rent)]
    spending = FleetSpending(open_leases=(running,), usd_per_unit={Currency.CLORE: Decimal("0.01")})
    assert [each for each in reconcile(replace(now, spending=spending)) if isinstance(each, Rent)] == []


@pytest.mark.parametrize(("own", "fleets"), [("100/day", "12/day"), ("12/day", "100/day")])
def test_no_move_pays_that_a_ceiling_forbids_beside_what_runs(own: str, fleets: str):
    running = serving()
    guard = FleetGuard(per_day=parse_budget(fleets))
    now = snapshot(
        deployments=(deployment(consolidate=POLICY, budget=own),),
        leases=(running,),
        orders=orders(order(price=running.price)),
        plans={"tiny": report(plan(8, "3"))},
        spending=FleetSpending(guard=guard, open_leases=(running,)),
    )
    [judged] = move_verdicts(now, now.deployments[0])
    assert not judged.pays and "budget of $12/day" in judged.reason
    assert not [each for each in reconcile(now) if isinstance(each, Rent)]
