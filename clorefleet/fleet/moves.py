"""Make before break: a cheaper server is rented to follow one that serves. Pure; `consolidate` judges.

The follower takes the slot of its predecessor, names it, and does not count as a replica while that one is
held (`slots`). Once it serves, the predecessor is given back; if it fails, it is given back itself, and
nothing was lost but its start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from decimal import Decimal
from functools import partial

from clorefleet.domain.deployment import ConsolidatePolicy, Deployment
from clorefleet.domain.identity import ServerId
from clorefleet.domain.lease import Phase
from clorefleet.domain.plan import Plan
from clorefleet.fleet import budget, spot
from clorefleet.fleet.action import Action, Rent
from clorefleet.fleet.consolidate import Verdict, candidates_of, judge
from clorefleet.fleet.snapshot import Snapshot


def move(snapshot: Snapshot, deployment: Deployment) -> Iterator[Action]:
    """Rent a cheaper server to follow one that serves, where that pays (`consolidate`)."""
    if deployment.consolidate is None or snapshot.orders is None:
        return
    best = next(iter(move_verdicts(snapshot, deployment)), None)
    if best is None or not best.pays or best.plan is None:
        return
    lease = next(each for each in snapshot.leases if each.lease_id == best.lease_id)
    yield Rent(
        deployment.deployment_id,
        lease.slot,
        best.plan,
        f"it will follow server {lease.server_id}: {best.reason}",
        replaces=lease.lease_id,
    )


def _affordable(plans: Iterable[Plan]) -> Iterator[Plan]:
    """Those that the wallets can pay."""
    return (plan for plan in plans if plan.price.lacking is None)


def bid_servers(plans: Iterable[Plan], avoided: AbstractSet[ServerId]) -> Iterator[ServerId]:
    """The servers whose spot market `move_verdicts` has to know."""
    yield from (
        plan.offer.server_id for plan in candidates_of(_affordable(plans), avoided) if plan.price.is_spot
    )


def _at_bid(snapshot: Snapshot, plan: Plan) -> Plan | str:
    """At the least bid that has the server now: the listed least price would be outbid from the start."""
    market = snapshot.spot_markets.get(plan.offer.server_id)
    if plan.price.is_spot and market is None:
        return "what others bid for it could not be read"
    return spot.first_bid(plan, market) or "what others bid for it leaves no bid below its on-demand price"


def _forbidden(snapshot: Snapshot, deployment: Deployment, plan: Plan) -> str:
    found = budget.refusal(
        deployment,
        plan,
        open_leases=snapshot.leases_of(deployment.deployment_id),
        spent_today_usd=snapshot.spent_today_usd.get(deployment.deployment_id, Decimal(0)),
        now=snapshot.now,
        fleet=snapshot.spending,
    )
    return "" if found is None else found.text


def move_verdicts(snapshot: Snapshot, deployment: Deployment) -> tuple[Verdict, ...]:
    """What speaks for and against each move of a deployment, the best first; () without plans."""
    report = snapshot.plans.get(deployment.deployment_id)
    if report is None:
        return ()
    mine = snapshot.leases_of(deployment.deployment_id)
    known = (*snapshot.leases, *snapshot.closed_leases)
    moves = [
        each.created_at for each in known if each.replaces and each.deployment_id == deployment.deployment_id
    ]
    moving = next(
        (each for each in snapshot.leases if each.replaces and each.phase is not Phase.SERVING), None
    )
    refused = snapshot.refused_servers.get(deployment.deployment_id, frozenset())
    return judge(
        deployment,
        deployment.consolidate or ConsolidatePolicy(),
        mine,
        _affordable(report.plans),
        avoided=snapshot.locked_servers | refused | snapshot.faulty_servers,
        now=snapshot.now,
        last_move_at=max(moves, default=None),
        until=snapshot.wanted_of(deployment).until,
        busy="" if moving is None else f"{moving.deployment_id} moves to server {moving.server_id} just now",
        at_bid=partial(_at_bid, snapshot),
        forbids=partial(_forbidden, snapshot, deployment),
        usd_per_unit=snapshot.spending.usd_per_unit,
    )
