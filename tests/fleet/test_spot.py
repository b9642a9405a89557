"""Spot: what is bid, when a bid falls or rises, how a loss is noticed, and who replaces what was lost."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.deployment import ConsolidatePolicy, Desired
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Currency, ExchangeRate, Rate, parse_budget
from clorefleet.domain.node import NodeView
from clorefleet.domain.offer import MarketRates
from clorefleet.domain.plan import Plan, Requirement
from clorefleet.domain.spot import SpotBid, SpotMarket
from clorefleet.fleet import spot
from clorefleet.fleet.action import ApproveBid, End, GiveBack, NoteOutbid, Rent, SetSpotPrice
from clorefleet.fleet.limits import DEFAULT_LIMITS
from clorefleet.fleet.reconcile import reconcile
from clorefleet.fleet.spot import Standing
from tests.fleet.builders import NOW, deployment, lease, minutes, order, orders, plan, report, snapshot
from tests.fleet.world import World

USD = Rate.per_day
CLORE = partial(Rate.per_day, currency=Currency.CLORE)
SILENT = NodeView(trouble="no answer")
ANSWERS = NodeView(is_healthy=True)


def spot_plan(server_id: int = 7, bid: str = "1.0", on_demand: str | None = "2.0") -> Plan:
    base = plan(server_id, bid, is_spot=True, fee_percent=Decimal("1.25"))
    prices = () if on_demand is None else (USD(on_demand),)
    return replace(base, offer=replace(base.offer, on_demand=prices, spot=(USD(bid),)))


def auction(
    least: str = "1.0",
    *rivals: str | Rate,
    mine: str | None = None,
    holds: bool = True,
    server_id: int = 7,
    rates: tuple[ExchangeRate, ...] = (),
) -> SpotMarket:
    """`mine` is order 900's bid; without it the server is free."""
    bids = [
        SpotBid(OrderId(number), bid if isinstance(bid, Rate) else USD(bid), not holds or mine is None, False)
        for number, bid in enumerate(rivals, start=1)
    ]
    if mine is not None:
        bids.append(SpotBid(OrderId(900), USD(mine), holds, True))
    return SpotMarket(ServerId(server_id), True, tuple(bids), (USD(least),), MarketRates(rates), True, NOW)


def serving(price: str = "1.0", **changes: object) -> Lease:
    since = NOW - minutes(70)
    changes = {"plan": spot_plan(bid=price), "created_at": since, "ordered_at": since} | changes
    changes = {"phase_since": NOW - minutes(60)} | changes
    return lease(phase=changes.pop("phase", Phase.SERVING), **changes)


def spot_order(bid: str = "1.0", **changes: object):
    return order(price=USD(bid), is_spot=True, **changes)


WISH = deployment(requirement=Requirement("smollm2-135m", parse_budget("16/day"), spot=True))


def decide(*leases: Lease, **changes: object):
    changes = {"deployments": (WISH,), "leases": leases} | changes
    return reconcile(snapshot(**changes))


def of_kind(kind: type, actions: tuple) -> list:
    return [each for each in actions if isinstance(each, kind)]


# -- the first bid


@pytest.mark.parametrize(
    "rivals, bid",
    [
        ((), "1.0"),
        (("0.5",), "1.0"),
        (("1.2",), "1.212"),
        (("1.2", "1.5"), "1.515"),
        ((Rate.per_day("100", Currency.CLORE),), "1.515"),
    ],
    ids=["nobody", "below the least", "one", "the highest", "in a coin"],
)
def test_the_first_bid_is_the_least_that_has_the_server(rivals, bid):
    coin = ExchangeRate(Currency.CLORE, Decimal("0.015"), NOW, "test")
    found = spot.first_bid(spot_plan(), auction("1.0", *rivals, rates=(coin,)))
    assert found is not None and found.price.billed == USD(bid)
    more = sum((term.value for term in found.price.terms), Decimal(0))
    assert found.price.all_in_usd_per_day.amount == USD("1.05").amount + more


def test_nothing_is_bid_above_the_on_demand_price():
    assert spot.first_bid(spot_plan(), auction("1.0", "1.99")) is None
    assert spot.first_bid(spot_plan(bid="2.5"), None) is None
    on_demand = plan(7)
    assert spot.first_bid(on_demand, None) is on_demand


def test_without_an_on_demand_price_only_the_least_is_bid():
    alone = spot_plan(on_demand=None)
    assert spot.first_bid(alone, auction()) == alone
    assert spot.first_bid(alone, auction("1.0", "1.1")) is None


def test_a_rent_carries_the_bid_and_is_checked_at_it():
    found = decide(plans={"tiny": report(spot_plan())}, spot_markets={ServerId(7): auction("1.0", "1.2")})
    [rent] = of_kind(Rent, found)
    assert rent.plan.price.billed == USD("1.212")
    tight = replace(WISH, requirement=replace(WISH.requirement, budget=parse_budget("1.2/day")))
    dear = decide(
        deployments=(tight,),
        plans={"tiny": report(spot_plan(), spot_plan(8, "1.05"))},
        spot_markets={ServerId(7): auction("1.0", "1.2")},
    )
    assert [each.plan.offer.server_id for each in of_kind(Rent, dear)] == [8]


# -- lowering


def lower(bid: str, market: SpotMarket, **changes: object) -> Rate | None:
    held = serving(bid, **changes)
    return spot.lower_bid(held, spot_order(bid), market, now=NOW, limits=DEFAULT_LIMITS).desired


def test_a_bid_falls_to_what_keeps_the_server_and_by_no_more_than_a_step():
    assert lower("1.05", auction("1.0", mine="1.05")) == USD("1.0")
    assert lower("1.5", auction("1.0", mine="1.5")) == USD("1.35"), "a tenth, until the market tells a step"
    assert lower("1.5", auction("1.0", mine="1.5"), bid_step_max=Decimal("0.3")) == USD("1.2")
    assert lower("1.5", auction("1.0", "1.4", mine="1.5")) == USD("1.414"), "a rival waits"
    assert lower("1.01", auction("1.0", mine="1.01")) is None, "a cent is not worth ten minutes"
    assert lower("1.5", replace(auction(mine="1.5"), min_prices=())) is None


@pytest.mark.parametrize("ago_s, may", [(-86_400, False), (0, False), (600, False), (631, True)])
def test_a_bid_falls_at_most_once_in_600_s_whatever_the_clock_does(ago_s: int, may: bool):
    at = NOW - timedelta(seconds=ago_s)
    assert (lower("1.5", auction(mine="1.5"), lowered_at=at) is not None) is may


def test_a_serving_replica_bids_less_and_a_bid_in_doubt_is_not_bid_again():
    held = serving("1.5")
    seen = {"orders": orders(spot_order("1.5")), "nodes": {held.lease_id: ANSWERS},
            "spot_markets": {ServerId(7): auction("1.0", mine="1.5")}}  # fmt: skip
    [bid] = of_kind(SetSpotPrice, decide(held, **seen))
    assert bid.desired == USD("1.35")


def test_a_lowered_bid_lowers_what_is_approved_once_the_list_shows_it():
    old = minutes(3)
    held = serving("1.5", bid=USD("1.35"), bid_at=NOW - old, lowered_at=NOW - old)
    nodes = {held.lease_id: ANSWERS}
    [approved] = of_kind(ApproveBid, decide(held, orders=orders(spot_order("1.35")), nodes=nodes))
    assert approved.approved == USD("1.35")
    assert not of_kind(ApproveBid, decide(held, orders=orders(spot_order("1.5")), nodes=nodes))
    fresh = replace(held, bid_at=NOW)
    assert not of_kind(ApproveBid, decide(fresh, orders=orders(spot_order("1.35")), nodes=nodes))


# -- lost, and seen so


@pytest.mark.parametrize(
    "market, view, found",
    [
        (auction("1.0", "1.2", mine="1.0", holds=False), SILENT, Standing.OUTBID),
        (auction("1.0", mine="1.0", holds=False), SILENT, Standing.OUTBID),
        (auction("1.0", "1.2", mine="1.0", holds=False), ANSWERS, Standing.HOLDS),
        (auction("1.0", mine="1.0"), SILENT, Standing.HOLDS),
        (auction("1.0"), SILENT, Standing.UNKNOWN),
        (None, SILENT, Standing.UNKNOWN),
        (None, None, Standing.UNKNOWN),
    ],
    ids=["outbid", "taken on demand", "it answers", "holds", "not listed", "not read", "not looked"],
)
def test_only_the_markets_word_and_a_silent_server_together_tell_a_loss(market, view, found):
    held = serving()
    seen = spot.standing(held, spot_order(), view, market, now=NOW, limits=DEFAULT_LIMITS)
    assert seen is found


def test_an_order_that_has_not_begun_is_not_taken_for_a_lost_one():
    waiting = auction("1.0", mine="1.0", holds=False)
    new = serving(phase=Phase.WAITING, phase_since=NOW - minutes(1))

    def seen(held: Lease, market: SpotMarket) -> Standing:
        return spot.standing(held, spot_order(), None, market, now=NOW, limits=DEFAULT_LIMITS)

    assert seen(new, waiting) is Standing.UNKNOWN
    assert seen(replace(new, phase_since=NOW - minutes(6)), waiting) is Standing.OUTBID
    assert seen(new, auction("1.0", "1.3", mine="1.0", holds=False)) is Standing.OUTBID


def test_a_spot_order_that_is_gone_was_outbid_and_nobody_failed():
    held = serving()
    found = decide(held, orders=orders(spot_order(is_expired=True)))
    [end] = of_kind(End, found)
    assert end.cause is Cause.OUTBID and "outbid" in end.reason
    over = serving(ordered_at=NOW - timedelta(hours=72))
    [end] = of_kind(End, decide(over, orders=orders(spot_order(is_expired=True))))
    assert end.cause is None and "outbid" not in end.reason, "its longest rental was over"


# -- raise, wait or move

OUTBID = auction("1.0", "1.2", mine="1.0", holds=False)
LOST = serving(
    phase=Phase.WAITING,
    outbid_since=NOW - minutes(1),
    phase_since=NOW - minutes(1),
    ordered_at=NOW - timedelta(hours=60),
)


def outbid_with(*plans: Plan, market: SpotMarket = OUTBID, held: Lease = LOST, **changes: object):
    return decide(
        held,
        orders=orders(spot_order(ssh=None)),
        plans={"tiny": report(*plans)},
        spot_markets={ServerId(7): market},
        **changes,
    )


def test_a_silent_server_whose_bid_is_not_active_is_noted_and_not_blamed():
    held = serving()
    found = decide(
        held,
        orders=orders(spot_order()),
        nodes={held.lease_id: SILENT},
        spot_markets={ServerId(7): OUTBID},
    )
    assert [type(each) for each in found] == [NoteOutbid]


def test_a_higher_bid_is_made_where_it_costs_less_than_moving():
    found = outbid_with(spot_plan(8, "1.9"))
    [bid] = of_kind(SetSpotPrice, found)
    assert bid.desired == USD("1.212") and "moving would cost more" in bid.reason
    assert not of_kind(Rent, found), "nothing is rented in its place meanwhile"


def test_a_cheaper_server_is_taken_instead_of_a_higher_bid():
    found = outbid_with(spot_plan(8, "0.2"))
    assert not of_kind(SetSpotPrice, found)
    [rent] = of_kind(Rent, found)
    assert rent.plan.offer.server_id == 8 and "outbid" in rent.reason
    assert not of_kind(GiveBack, found), "the order that waits costs nothing, and its disk may come back"


@pytest.mark.parametrize(("rate_now", "is_raised"), [("0.01", True), ("0.02", False)])
def test_what_staying_costs_is_counted_at_the_coins_present_rate(rate_now: str, is_raised: bool):
    """Rented at $0.02; 121.2 CLORE are $2.42 then, and $1.21 once the coin is worth half."""
    clore = replace(spot_plan().price, billed=CLORE("100"), usd_per_unit=Decimal("0.02"))
    offered = replace(spot_plan().offer, on_demand=(CLORE("200"),), spot=(CLORE("100"),))
    held = replace(LOST, plan=replace(LOST.plan, price=clore, offer=offered))
    market = replace(auction("1.0", CLORE("120")), min_prices=(CLORE("100"),))
    raised = spot.raise_bid(
        held,
        order(price=CLORE("100"), is_spot=True),
        market,
        spot_plan(8, "1.9"),
        now=NOW,
        until=None,
        limits=DEFAULT_LIMITS,
        usd_per_unit={Currency.CLORE: Decimal(rate_now)},
    )
    assert (raised.desired == CLORE("121.2")) is is_raised, raised.reason


def test_no_bid_passes_the_on_demand_price_or_the_budget():
    dear = auction("1.0", "1.99", mine="1.0", holds=False)
    found = outbid_with(spot_plan(8, "1.9"), market=dear)
    assert not of_kind(SetSpotPrice, found) and of_kind(Rent, found)
    tight = replace(WISH, requirement=replace(WISH.requirement, budget=parse_budget("1.15/day")))
    assert not of_kind(SetSpotPrice, outbid_with(spot_plan(8, "1.9"), deployments=(tight,)))


def test_a_server_taken_on_demand_is_not_bid_for():
    taken = auction("1.0", mine="1.0", holds=False)
    found = outbid_with(spot_plan(8, "1.9"), market=taken)
    assert not of_kind(SetSpotPrice, found) and of_kind(Rent, found)


def test_where_nothing_else_is_to_be_had_the_bid_rises_to_its_ceiling():
    [bid] = of_kind(SetSpotPrice, outbid_with(market=auction("1.0", "1.9", mine="1.0", holds=False)))
    assert bid.desired == USD("1.919")


def test_spot_only_waits_and_its_order_is_kept():
    only = replace(WISH, requirement=replace(WISH.requirement, spot_only=True))
    taken = auction("1.0", mine="1.0", holds=False)
    found = outbid_with(market=taken, deployments=(only,))
    assert not of_kind(Rent, found) and not of_kind(GiveBack, found)


def test_where_the_budget_does_not_carry_both_the_waiting_one_is_given_up_first():
    tight = replace(WISH, requirement=replace(WISH.requirement, budget=parse_budget("2.2/day")))
    taken = auction("1.0", mine="1.0", holds=False)
    found = outbid_with(spot_plan(8, "1.9"), market=taken, deployments=(tight,), spending=spending_of(LOST))
    assert [each.lease_id for each in of_kind(GiveBack, found)] == [LOST.lease_id]
    assert not of_kind(Rent, found)


@pytest.mark.parametrize(
    "leaving",
    [
        replace(LOST, phase=Phase.DRAINING),
        replace(LOST, phase=Phase.DRAINING, state=LeaseState.ENDING, cancel_asked_at=NOW),
        replace(LOST, plan=replace(LOST.plan, setup=replace(LOST.plan.setup, model="another"))),
    ],
    ids=["drains", "is being cancelled", "is given back in this very tick"],
)
def test_a_waiting_one_that_leaves_already_is_not_given_up_twice(leaving: Lease):
    """Found by the simulation: the second time cannot be performed, and ended the tick."""
    tight = replace(WISH, requirement=replace(WISH.requirement, budget=parse_budget("2.2/day")))
    taken = auction("1.0", mine="1.0", holds=False)
    found = outbid_with(
        spot_plan(8, "1.9"), market=taken, held=leaving, deployments=(tight,), spending=spending_of(leaving)
    )
    assert len(of_kind(GiveBack, found)) == (leaving.phase is Phase.WAITING)
    assert not of_kind(Rent, found)


def spending_of(*leases: Lease):
    from clorefleet.fleet.budget import FleetSpending

    return FleetSpending(open_leases=leases)


def test_a_server_that_is_back_starts_anew_and_is_not_replaced():
    found = outbid_with(spot_plan(8, "0.2"), market=auction("1.0", mine="1.0"))
    [back] = of_kind(NoteOutbid, found)
    assert back.since is None and not of_kind(Rent, found)


def test_one_that_no_key_ever_opened_is_told_to_be_back_too_and_its_bid_is_left_alone():
    """F14o, C3k: it waited for its key without end, and billed once its server was back. S9: its bid may be
    somebody else's."""
    unproven = replace(LOST, is_proven=False)
    [back] = of_kind(NoteOutbid, outbid_with(market=auction("1.0", mine="1.0"), held=unproven))
    assert back.since is None, "from then on the time limit of waiting counts again"
    assert not of_kind(SetSpotPrice, outbid_with(spot_plan(8, "1.9"), held=unproven))


def test_who_serves_first_stays_whether_it_is_the_old_server_or_the_new_one():
    new = serving(lease_id="l2", plan=spot_plan(8), order_id=OrderId(901), phase_since=NOW - minutes(1))
    both = orders(spot_order(ssh=None), spot_order(order_id=901, server_id=8))
    nodes = {new.lease_id: ANSWERS}
    [given] = of_kind(GiveBack, decide(LOST, new, orders=both, nodes=nodes))
    assert given.lease_id == LOST.lease_id and given.cause is Cause.OUTBID


def test_of_two_that_come_back_at_once_beside_a_replacement_one_is_given_up():
    """S2, found by the simulation: three servers of one slot billed, and the audit stopped all renting."""
    other = replace(LOST, lease_id="l3", plan=spot_plan(9), order_id=OrderId(902))
    new = serving(
        lease_id="l2", plan=spot_plan(8), order_id=OrderId(901), phase=Phase.PROBING, phase_since=NOW
    )
    listed = orders(
        spot_order(), spot_order(order_id=901, server_id=8), spot_order(order_id=902, server_id=9)
    )
    found = decide(LOST, other, new, orders=listed, nodes={LOST.lease_id: ANSWERS, "l3": ANSWERS})
    [back], [given] = of_kind(NoteOutbid, found), of_kind(GiveBack, found)
    assert (back.lease_id, given.lease_id) == (LOST.lease_id, other.lease_id)
    assert "two others" in given.reason
    slow = replace(new, phase_since=NOW - minutes(60))
    found = decide(LOST, other, slow, orders=listed, nodes={LOST.lease_id: ANSWERS, "l3": ANSWERS})
    assert len(of_kind(NoteOutbid, found)) == 2, "the replacement leaves in this very tick"


@pytest.mark.parametrize("wish", [replace(WISH, replicas=0), replace(WISH, desired=Desired.STOPPED)])
def test_what_nobody_wants_any_more_does_not_wait(wish):
    assert of_kind(GiveBack, outbid_with(deployments=(wish,)))


def test_after_losses_spot_goes_first_and_after_too_many_on_demand():
    plans = (plan(8, "1.5"), spot_plan(9, "1.6"), plan(10, "1.7"))
    assert [p.offer.server_id for p in spot.preferred(plans, 0)] == [8, 9, 10]
    assert [p.offer.server_id for p in spot.preferred(plans, 1)] == [9, 8, 10]
    assert [p.offer.server_id for p in spot.preferred(plans, spot.OUTBIDS_MAX)] == [8, 10, 9]
    lost = [
        serving(
            state=LeaseState.ENDED, phase=Phase.ENDED, lease_id=f"old{n}", cause=Cause.OUTBID,
            ended_at=NOW - timedelta(hours=hours), order_id=OrderId(n),
        )
        for n, hours in enumerate((1, 5, 7))
    ]  # fmt: skip
    assert spot.losses_lately(WISH.deployment_id, lost, NOW) == 2
    [rent] = of_kind(Rent, decide(plans={"tiny": report(*plans)}, closed_leases=tuple(lost)))
    assert rent.plan.offer.server_id == 9 and "outbid 2 times within 6 h, spot now" in rent.reason


# -- whole lives, in memory


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, (spot_plan(7), spot_plan(8, "1.9"), plan(9, "2.5")))
    made.market.least_bids = {ServerId(7): USD("1.0"), ServerId(8): USD("1.9")}
    made.wish(requirement=WISH.requirement)
    made.tick(30)
    [held] = made.leases()
    assert held.phase is Phase.SERVING and held.server_id == 7
    return made


def events(world: World) -> list[str]:
    with world.store.read() as tx:
        return [event.name for _, event in tx.events(limit=1000)]


def settles(world: World) -> None:
    """Ledger and bill agree to the last unit once all is over."""
    world.wish(requirement=WISH.requirement, desired=Desired.STOPPED)
    world.tick(40)
    assert world.leases() == () and not world.market.live


def test_outbid_and_ended_it_is_replaced_and_both_are_counted(world: World):
    world.market.outbid_ends = True
    world.market.bid_against_us(7, USD("1.99"))
    world.tick(30)
    [held] = world.leases()
    assert held.phase is Phase.SERVING and held.server_id == 8
    assert "order_lost" in events(world)
    with world.store.read() as tx:
        assert not tx.faulty_servers(since=NOW - minutes(600))
    settles(world)
    assert world.ledger() == world.bill()


def test_outbid_and_waiting_it_bids_more_and_goes_on_where_it_was(world: World):
    [before] = world.leases()
    world.market.bid_against_us(7, USD("1.3"))
    world.tick(40)
    [held] = world.leases()
    assert (held.lease_id, held.phase, held.restarts) == (before.lease_id, Phase.SERVING, 1)
    assert held.price == held.plan.price.billed == USD("1.313")
    assert {"spot_outbid", "spot_returned"} <= set(events(world))
    assert world.market.rent_calls == 1


def test_when_the_rival_leaves_the_bid_falls_back_step_by_step(world: World):
    world.market.bid_against_us(7, USD("1.3"))
    world.tick(40)
    world.market.bid_against_us(7, None)
    world.tick(400, every_s=20)
    [held] = world.leases()
    assert held.price == held.plan.price.billed == USD("1.0")
    falls = [(at, old, new) for at, old, new in world.market.bids if new != old and new <= old]
    assert len(falls) == 3
    assert all(b[0] - a[0] >= timedelta(seconds=600) for a, b in pairwise(falls))
    with world.store.read() as tx:
        segments = [each.price.amount for each in tx.segments()]
    assert segments == [Decimal(text) for text in ("1.0", "0", "1.313", "1.1817", "1.0636", "1.0")]


def test_above_the_ceiling_it_is_replaced_and_the_order_that_waits_costs_nothing(world: World):
    world.market.bid_against_us(7, USD("1.99"))
    world.tick(6)
    waiting = next(each for each in world.leases() if each.server_id == 7)
    assert waiting.outbid_since is not None
    world.tick(30)
    [held] = world.leases()
    assert held.phase is Phase.SERVING and held.server_id == 8
    with world.store.read() as tx:
        assert [s.price.amount for s in tx.segments() if s.lease_id == waiting.lease_id][-1] == 0


def test_a_move_to_another_spot_server_bids_what_has_it_or_is_not_made(world: World):
    """It is listed from 0.4 a day; a rival there bids more, first too much to leave for, then less."""
    with world.store.write() as tx:
        tx.put_deployment(replace(tx.deployment("tiny"), consolidate=ConsolidatePolicy()))
    world.tick(60, every_s=1800)
    world.plans = (spot_plan(12, "0.4"), *world.plans)
    world.market.least_bids[ServerId(12)] = USD("0.4")
    world.market.rivals[ServerId(12)] = USD("0.97")
    world.tick(90, every_s=60)
    assert [held.server_id for held in world.leases()] == [7]
    world.market.rivals[ServerId(12)] = USD("0.5")
    world.tick(90, every_s=60)
    [held] = world.leases()
    assert held.server_id == 12 and held.phase is Phase.SERVING and held.price == USD("0.505")


# -- whatever rivals do


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_no_bid_is_above_its_ceiling_and_none_falls_before_its_time(seed: int):
    """The policy against a market that keeps its own rules on its own, somewhat later clock."""
    chance = random.Random(seed)
    now, rival, step = NOW, None, chance.choice([None, Decimal("0.05")])
    held = serving()
    current, falls = held.plan.price.billed, []
    for _ in range(200):
        now += timedelta(seconds=chance.randint(5, 200))
        if chance.random() < 0.15:
            rival = None if chance.random() < 0.4 else USD(str(round(chance.uniform(0.8, 2.6), 3)))
        holds = rival is None or rival <= current
        bids = () if rival is None else (rival,)
        market = auction("1.0", *bids, mine=str(current.amount), holds=holds)
        known = spot_order(str(current.amount))
        if holds:
            asked = spot.lower_bid(held, known, market, now=now, limits=DEFAULT_LIMITS)
        else:
            asked = spot.raise_bid(
                held, known, market, None, now=now, until=None, limits=DEFAULT_LIMITS, usd_per_unit={}
            )
        if asked.desired is None:
            continue
        assert asked.desired <= spot.ceiling(held.plan)
        is_lower = asked.desired != current and asked.desired <= current
        sent_at = now + timedelta(seconds=chance.randint(0, 20))
        if is_lower:
            assert not falls or sent_at - falls[-1] >= timedelta(seconds=600)
            falls.append(sent_at)
            market_step = (current.amount * Decimal("0.1")) if step is None else step
            told = None if current.amount - asked.desired.amount <= market_step + Decimal("0.0001") else step
            held = replace(held, bid_step_max=told or held.bid_step_max, lowered_at=sent_at)
            if told is not None:
                continue
        held = replace(held, bid=asked.desired, bid_at=sent_at)
        current, now = asked.desired, sent_at
