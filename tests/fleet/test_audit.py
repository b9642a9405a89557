"""What the daemon's own audit finds in a snapshot, and that a finding stops renting and nothing else."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, Rate
from clorefleet.fleet.action import Cancel, Rent, StopRenting
from clorefleet.fleet.audit import READINGS_TO_EXPLAIN, Audit, BidFacts, at_bid, audit
from clorefleet.fleet.reconcile import reconcile
from tests.fleet.builders import NOW, deployment, lease, minutes, order, orders, plan, report, snapshot

TINY = DeploymentId("tiny")
SEGMENT = LedgerSegment(
    LeaseId("l1"), TINY, OrderId(900), Rate.per_day(2), False, Decimal(5), Decimal(0), Decimal(1), "test", NOW
)
FINE = {"leases": (lease(phase=Phase.SERVING),), "orders": orders(order()), "segments": (SEGMENT,)}
OTHER = lease(phase=Phase.SERVING, lease_id=LeaseId("l2"), server_id=8, order_id=OrderId(901))
BROKEN = [
    ("S1", {"orders": orders(order(), order(999, 55))}),
    ("S2", {"leases": (*FINE["leases"], OTHER), "segments": (SEGMENT, replace(SEGMENT, lease_id="l2"))}),
    ("S4", {"orders": orders(order(price=Rate.per_day("2.01")))}),
    (
        "S6",
        {
            "leases": (),
            "segments": (),
            "closed_leases": (lease(LeaseState.ENDED, Phase.ENDED),),
            "foreign": frozenset({(OrderId(900), ServerId(7))}),
        },
    ),
    ("S7", {"segments": ()}),
    ("S7", {"segments": (replace(SEGMENT, ended_at=NOW - minutes(1)),)}),
    ("S14", {"leases": (replace(FINE["leases"][0], reason="\x1b[2J"),)}),
]


def audited(readings: int, **changes: object) -> Audit:
    found = Audit()
    for _ in range(readings):
        found = audit(snapshot(**{**FINE, **changes}), found)
    return found


def test_a_fleet_that_is_as_it_should_be_has_no_violation():
    assert audited(10) == Audit()


@pytest.mark.parametrize("invariant, change", BROKEN, ids=[f"{i}-{n}" for n, (i, _) in enumerate(BROKEN)])
def test_what_must_never_be_is_found_within_some_readings(invariant: str, change: dict):
    found = audited(READINGS_TO_EXPLAIN, **change)
    assert invariant in {each.invariant for each in found.violations}


def test_an_old_number_on_another_server_is_another_order():
    """A21: neither its price nor its end is our lease's, and a lease of the number does not explain it."""
    reused = order(900, 55, price=Rate.per_day("9.0"))
    known = {"foreign": frozenset({(reused.order_id, reused.server_id)})}
    assert audited(READINGS_TO_EXPLAIN, orders=orders(reused), **known).violations == ()
    ended = {"leases": (), "segments": (), "closed_leases": (lease(LeaseState.ENDED, Phase.ENDED),)}
    assert audited(READINGS_TO_EXPLAIN, orders=orders(reused), **known, **ended).violations == ()
    [found] = audited(READINGS_TO_EXPLAIN, orders=orders(reused)).violations
    assert found.invariant == "S1"
    # Seed 66509: the old order's end could not be read yet when the new one was leased.
    leaving = lease(LeaseState.ENDING, Phase.DRAINING)
    second = lease(phase=Phase.SERVING, lease_id=LeaseId("l2"), server_id=55)
    lists = {"orders": orders(reused), "segments": (SEGMENT, replace(SEGMENT, lease_id=LeaseId("l2")))}
    found_s2 = audited(READINGS_TO_EXPLAIN, leases=(leaving, second), **lists).violations
    assert "S2" not in {each.invariant for each in found_s2}


def test_what_one_lagging_list_shows_is_no_violation():
    assert audited(1, orders=orders(order(), order(999, 55))).violations == ()


def test_a_hedged_deployment_may_hold_two_servers_for_one_slot():
    hedged = deployment(requirement=replace(deployment().requirement, hedge=True))
    both = {"leases": (*FINE["leases"], OTHER), "segments": (SEGMENT, replace(SEGMENT, lease_id="l2"))}
    assert audited(1, deployments=(hedged,), **both).violations == ()


def test_a_violation_stops_renting_with_its_reason_and_never_a_cancel():
    ending = lease(LeaseState.ENDING, Phase.DRAINING)
    situation = snapshot(
        leases=(ending,),
        orders=orders(order()),
        plans={TINY: report(plan(8))},
        violations=("S1 order 9: bills, and nothing of ours explains it",),
    )
    actions = reconcile(situation)
    [stop] = [each for each in actions if isinstance(each, StopRenting)]
    assert "S1 order 9" in stop.reason
    assert any(isinstance(each, Cancel) for each in actions)
    assert not any(isinstance(each, Rent) for each in actions)


RAISE = Rate.per_day("1.3")
BIDDER = lease(order_id=OrderId(900), plan=replace(plan(), price=replace(plan().price, billed=RAISE)))
ASKED = Intent(
    IntentId("l1-bid-1"), Effect.SPOT_PRICE, BIDDER.lease_id, BIDDER.deployment_id, IntentState.OPEN, NOW
)
BID = BidFacts(
    lease=BIDDER,
    intents=(ASKED,),
    order_id=OrderId(900),
    desired=RAISE,
    is_ours=True,
    token=1,
    leader=1,
    ceiling_usd_per_day=Decimal(2),
    running_usd_per_day=Decimal("1.365"),
)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, set()),
        ({"desired": Rate.per_day("0.9")}, set()),
        ({"is_ours": False}, {"S9"}),
        ({"leader": 2}, {"S8"}),
        ({"intents": ()}, {"S5"}),
        ({"intents": (replace(ASKED, state=IntentState.DONE),)}, {"S5"}),
        ({"desired": Rate.per_day("1.31")}, {"S4"}),
        ({"desired": Rate.per_day(1, Currency.CLORE)}, {"S4"}),
        ({"running_usd_per_day": Decimal("2.01")}, {"S3"}),
    ],
)
def test_a_bid_is_ours_journalled_approved_and_within_the_budget(change: dict, broken: set):
    assert {each.invariant for each in at_bid(replace(BID, **change))} == broken
