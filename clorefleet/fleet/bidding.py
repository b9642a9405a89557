"""Decide about the order of a spot server: its bid, the loss of its server, its return. Pure; `spot` judges.

A spot order that was outbid is kept where the market keeps it: it bills nothing, and the host may still have
the weights. Its slot counts as empty meanwhile, so that a replacement is rented; whichever of the two serves
first stays (`failover.why_superseded`). Where the budget does not carry both, the waiting one is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from clorefleet.domain.duration import in_words
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease
from clorefleet.domain.order import Order
from clorefleet.domain.plan import Plan
from clorefleet.domain.spot import SpotMarket
from clorefleet.fleet import budget, failover
from clorefleet.fleet.action import (
    LEAVING,
    Action,
    ApproveBid,
    GiveBack,
    NoteOutbid,
    NoteProgress,
    SetSpotPrice,
)
from clorefleet.fleet.filling import first_allowed, without
from clorefleet.fleet.limits import FleetLimits
from clorefleet.fleet.slots import is_held
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.fleet.spot import Rebid, Standing, lower_bid, raise_bid, standing


def bid(
    snapshot: Snapshot, lease: Lease, order: Order, unwanted: str, limits: FleetLimits
) -> Iterator[Action]:
    """What the bid asks for in this tick; `unwanted` is why the replica is not wanted any more, or "".

    Where it yields `NoteOutbid`, or the lease is outbid already, nothing else is decided about the lease.
    """
    market = snapshot.spot_markets.get(lease.server_id)
    view = snapshot.nodes.get(lease.lease_id)
    found = standing(lease, order, view, market, now=snapshot.now, limits=limits)
    if lease.outbid_since is not None:
        yield from _decide_outbid(snapshot, lease, order, found, unwanted, limits)
        return
    if found is Standing.OUTBID:
        yield NoteOutbid(lease.lease_id, snapshot.now, "another renter has its server now; it bills nothing")
        return
    if not lease.is_proven or lease.lease_id in snapshot.bids_in_doubt:
        return
    is_settled = lease.bid_at is None or snapshot.now - lease.bid_at >= limits.bid_settles
    if lease.bid == order.price != lease.plan.price.billed and is_settled:
        yield ApproveBid(lease.lease_id, order.price)
    if found is Standing.HOLDS and market is not None and market.exists:
        lower = lower_bid(lease, order, market, now=snapshot.now, limits=limits)
        if lower.desired is not None:
            yield SetSpotPrice(lease.lease_id, order.order_id, lower.desired, lower.reason)


def _decide_outbid(
    snapshot: Snapshot, lease: Lease, order: Order, found: Standing, unwanted: str, limits: FleetLimits
) -> Iterator[Action]:
    """Its order waits without a server: back, bid more, wait beside a replacement, or given up."""
    unwanted = unwanted or _why_not_awaited(snapshot, lease)
    unwanted = unwanted or failover.why_superseded(lease, snapshot.in_slot_of(lease))
    since = lease.outbid_since or snapshot.now
    if not unwanted and snapshot.now - since > limits.outbid_kept:
        unwanted = f"its server did not come back within {in_words(limits.outbid_kept)}"
    if unwanted:
        yield GiveBack(lease.lease_id, unwanted, cause=Cause.OUTBID)
        return
    if found is Standing.HOLDS:
        yield NoteOutbid(lease.lease_id, None, "it has its server back; what is on its disk is used again")
        return
    if not lease.is_proven:
        return  # it may be somebody else's bid
    market = snapshot.spot_markets.get(lease.server_id)
    report = snapshot.plans.get(lease.deployment_id)
    waiting = f"outbid for {in_words(snapshot.now - since)}; it bills nothing"
    if (
        market is None
        or report is None
        or found is Standing.UNKNOWN
        or lease.lease_id in snapshot.bids_in_doubt
    ):
        return
    raised = _raise(snapshot, lease, order, market, report.plans, limits)
    if raised.desired is None:
        yield NoteProgress(lease.lease_id, f"{waiting}; {raised.reason}")
    else:
        yield SetSpotPrice(lease.lease_id, order.order_id, raised.desired, raised.reason)


def without_thirds(
    snapshot: Snapshot, decisions: Iterable[tuple[Lease, tuple[Action, ...]]]
) -> Iterator[Action]:
    """What was decided of each lease; but of spot servers that come back, a slot keeps no more than two that
    are on the way to serving. One of them is enough, and a third would only bill."""
    decisions = tuple(decisions)
    leaving = {
        lease.lease_id for lease, decided in decisions for each in decided if isinstance(each, LEAVING)
    }
    back: Counter[tuple[DeploymentId, int]] = Counter()
    for lease, decided in decisions:
        if any(isinstance(each, NoteOutbid) and each.since is None for each in decided):
            slot = (lease.deployment_id, lease.slot)
            others = (each for each in snapshot.in_slot_of(lease) if is_held(each))
            if back[slot] + sum(each.lease_id not in leaving for each in others) >= 2:
                why = "its server came back, and its slot has two others by now"
                yield GiveBack(lease.lease_id, why, cause=Cause.OUTBID)
                continue
            back[slot] += 1
        yield from decided


def _why_not_awaited(snapshot: Snapshot, lease: Lease) -> str:
    """Enough other replicas are held, beside the one of its own slot."""
    deployment = snapshot.deployment(lease.deployment_id)
    if deployment is None:
        return ""
    wanted = snapshot.wanted_of(deployment)
    others = snapshot.held_slots(lease.deployment_id) - {lease.slot}
    if len(others) < wanted.replicas:
        return ""
    return f"{wanted.replicas} replica(s) are wanted: {wanted.reason}"


def _raise(
    snapshot: Snapshot,
    lease: Lease,
    order: Order,
    market: SpotMarket,
    plans: Iterable[Plan],
    limits: FleetLimits,
) -> Rebid:
    """A higher bid, where it costs less than moving and no ceiling forbids it."""
    deployment = snapshot.deployment(lease.deployment_id)
    if deployment is None:
        return Rebid(None, "its deployment is gone")
    others = [each for each in snapshot.leases_of(lease.deployment_id) if each.lease_id != lease.lease_id]
    rest = without(snapshot, (lease,))
    avoided = rest.locked_servers | snapshot.faulty_servers | {lease.server_id}
    avoided |= snapshot.refused_servers.get(deployment.deployment_id, frozenset())
    alternative, _ = first_allowed(plans, deployment, others, rest, avoided=avoided)
    until = snapshot.wanted_of(deployment).until
    raised = raise_bid(
        lease,
        order,
        market,
        alternative,
        now=snapshot.now,
        until=until,
        limits=limits,
        usd_per_unit=snapshot.spending.usd_per_unit,
    )
    if raised.desired is None:
        return raised
    plan = replace(lease.plan, price=replace(lease.plan.price, billed=raised.desired))
    refusal = budget.refusal(
        deployment,
        plan,
        open_leases=others,
        spent_today_usd=snapshot.spent_today_usd.get(deployment.deployment_id, Decimal(0)),
        now=snapshot.now,
        fleet=rest.spending,
    )
    return raised if refusal is None else Rebid(None, f"a higher bid is not allowed: {refusal.text}")


def as_coming_back(snapshot: Snapshot, actions: Iterable[Action], limits: FleetLimits) -> tuple[Lease, ...]:
    """The leases, with those that were outbid counted as held where this tick or the last ones bid enough to
    have them back: nothing is rented in their place."""
    back = {
        each.lease_id
        for each in actions
        if isinstance(each, SetSpotPrice) or (isinstance(each, NoteOutbid) and each.since is None)
    }
    return tuple(
        replace(lease, outbid_since=None)
        if lease.lease_id in back or _has_just_bid(lease, snapshot.now, limits)
        else lease
        for lease in snapshot.leases
    )


def _has_just_bid(lease: Lease, now: datetime, limits: FleetLimits) -> bool:
    if lease.outbid_since is None or lease.bid_at is None or lease.bid_at < lease.outbid_since:
        return False
    return timedelta(0) <= now - lease.bid_at < limits.rebid_grace
