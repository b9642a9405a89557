"""Make before break: a cheaper server is rented to follow one that serves. Pure; `consolidate` judges.

The follower takes the slot of its predecessor, names it, and does not count as a replica while that one is
held (`slots`). Once it serves, the predecessor is given back; if it fails, it is given back itself, and
nothing was lost but its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from clorefleet.domain.deployment import ConsolidatePolicy, Deployment
from clorefleet.domain.lease import Phase
from clorefleet.fleet import budget
from clorefleet.fleet.action import Action, Rent
from clorefleet.fleet.consolidate import Verdict, judge
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
    ceiling = deployment.requirement.budget
    committed = sum((budget.running_usd_per_day(lease) for lease in mine), Decimal(0))
    return judge(
        deployment,
        deployment.consolidate or ConsolidatePolicy(),
        mine,
        [plan for plan in report.plans if plan.price.lacking is None],
        avoided=snapshot.locked_servers | refused | snapshot.faulty_servers,
        now=snapshot.now,
        last_move_at=max(moves, default=None),
        until=snapshot.wanted_of(deployment).until,
        budget_left_usd_per_day=None if ceiling is None else ceiling.per_day.amount - committed,
        busy="" if moving is None else f"{moving.deployment_id} moves to server {moving.server_id} just now",
    )
