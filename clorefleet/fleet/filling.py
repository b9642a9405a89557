"""Which plan fills an empty slot, and why none does. Pure; never without fresh readings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import format_usd
from clorefleet.domain.plan import Plan, PlanReport
from clorefleet.fleet import budget, failover, moves, spot
from clorefleet.fleet.action import Action, Explain, GiveBack, Rent
from clorefleet.fleet.slots import empty_slots
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.planner.mix import capacity_of, choose_mix
from clorefleet.planner.owners import prefer_other_owners


def fill_slots(snapshot: Snapshot, deployment: Deployment) -> Iterator[Action]:
    """Rent for empty slots, one plan each, never without a fresh reading of orders and offers."""
    if deployment.desired is not Desired.RUNNING:
        return
    mine = snapshot.leases_of(deployment.deployment_id)
    empty = empty_slots(mine, snapshot.wanted_of(deployment).replicas)
    if not empty:
        if deployment.note:
            yield Explain(deployment.deployment_id, "")
        hedged = tuple(_hedge(snapshot, deployment, list(mine)))
        yield from hedged or moves.move(snapshot, deployment)
        return
    guard = snapshot.spending.guard
    if guard.is_stopped:
        yield Explain(
            deployment.deployment_id,
            f"Renting is stopped: {guard.stopped_because}. Look at `clorefleet logs "
            f"{deployment.deployment_id}`; `clorefleet budget --resume` goes on.",
        )
        return
    if snapshot.orders is None:
        yield Explain(deployment.deployment_id, "The market's order list cannot be read: renting waits.")
        return
    attempts = snapshot.attempts.get(deployment.deployment_id, 0)
    if attempts >= deployment.attempts_max:
        told = failover.tried(
            deployment, (*snapshot.closed_leases, *snapshot.leases), snapshot.segments, snapshot.now
        )
        yield Explain(
            deployment.deployment_id,
            f"{attempts} servers were tried without success. {told} See `clorefleet logs "
            f"{deployment.deployment_id}`; run the same `clorefleet deploy` again to try on.",
            is_final=True,
        )
        return
    pause = snapshot.pauses.get(deployment.deployment_id, "")
    if pause:
        yield Explain(deployment.deployment_id, pause)
        return
    report = snapshot.plans.get(deployment.deployment_id)
    if report is None:
        why = snapshot.unplanned.get(deployment.deployment_id) or snapshot.offers_trouble
        yield Explain(deployment.deployment_id, why or "The offers are being read.")
        return
    taken = set(snapshot.locked_servers)
    # Also what the list shows and offers do not: an order found there later must be the one we ask for.
    taken |= {order.server_id for order in snapshot.orders.live()}
    refused = snapshot.refused_servers.get(deployment.deployment_id, frozenset())
    held = list(mine)
    everyone = (*snapshot.closed_leases, *snapshot.leases)
    losses = spot.losses_lately(deployment.deployment_id, everyone, snapshot.now)
    avoided = taken | refused | snapshot.faulty_servers
    for slot in empty[: deployment.attempts_max - attempts]:
        plans = spot.preferred(_mixed(report.plans, deployment, len(empty), held, avoided), losses)
        plan, why_not = first_allowed(plans, deployment, held, snapshot, avoided=avoided)
        outbid = [lease for lease in held if lease.outbid_since is not None and not _is_leaving(lease)]
        if plan is None and outbid:
            # It may bill again at any moment, so that the budget counts it. Would there be one without it?
            left = [lease for lease in held if lease not in outbid]
            found, _ = first_allowed(plans, deployment, left, without(snapshot, outbid), avoided=avoided)
            if found is not None:
                why = "the budget does not carry another server beside the one that was outbid"
                yield from (GiveBack(lease.lease_id, why, cause=Cause.OUTBID) for lease in outbid)
                return
        if plan is None:
            told = failover.tried(deployment, everyone, snapshot.segments, snapshot.now)
            if not report.plans:
                why_not = _why_no_plan(report)
            yield Explain(deployment.deployment_id, f"{why_not} {told}".strip())
            return
        yield Rent(deployment.deployment_id, slot, plan, _why_rented(slot, held, losses, plan))
        # One rent per deployment and tick: the next one sees this one's outcome and cost.
        return


def _is_leaving(lease: Lease) -> bool:
    return lease.state is LeaseState.ENDING or lease.phase is Phase.DRAINING


def _why_rented(slot: int, held: Iterable[Lease], losses: int, plan: Plan) -> str:
    if any(lease.slot == slot and lease.outbid_since is not None for lease in held):
        why = f"the spot server of slot {slot} was outbid"
    else:
        why = f"slot {slot} has no server"
    if not losses:
        return why
    hours = spot.OUTBID_MEMORY.total_seconds() / 3600
    times = "once" if losses == 1 else f"{losses} times"
    kind = "spot" if plan.price.is_spot else "on demand"
    return f"{why}; outbid {times} within {hours:g} h, {kind} now"


def _hedge(snapshot: Snapshot, deployment: Deployment, mine: list[Lease]) -> Iterator[Action]:
    """A second server for a slot whose first is not ready. Whatever is in the way, the first one goes on."""
    slots = failover.hedge_slots(deployment, mine)
    attempts = snapshot.attempts.get(deployment.deployment_id, 0)
    report = snapshot.plans.get(deployment.deployment_id)
    is_paused = bool(snapshot.pauses.get(deployment.deployment_id, ""))
    if not slots or snapshot.orders is None or report is None or is_paused:
        return
    if attempts >= deployment.attempts_max:
        return
    refused = snapshot.refused_servers.get(deployment.deployment_id, frozenset())
    avoided = snapshot.locked_servers | refused | snapshot.faulty_servers
    plan, _ = first_allowed(report.plans, deployment, mine, snapshot, avoided=avoided)
    if plan is not None:
        why = f"a second server for slot {slots[0]}: the one that is ready first is kept"
        yield Rent(deployment.deployment_id, slots[0], plan, why)


def _mixed(
    plans: tuple[Plan, ...],
    deployment: Deployment,
    empty: int,
    held: list[Lease],
    avoided: AbstractSet[ServerId],
) -> tuple[Plan, ...]:
    """Where load asks for several servers at once: first those that carry it together for the least."""
    usable = [plan for plan in plans if plan.offer.server_id not in avoided and plan.price.lacking is None]
    if deployment.scale is None or empty < 2 or not usable:
        return plans
    ceiling = deployment.requirement.budget
    committed = budget.committed_usd_per_day(held)
    mix = choose_mix(
        usable,
        empty * capacity_of(usable[0]),
        replicas_max=empty,
        budget_usd_per_day=None if ceiling is None else ceiling.per_day.amount - committed,
        per_owner=max(1, (len(held) + empty + 1) // 2),
    )
    chosen = {plan.key for plan in mix.plans}
    return (*mix.plans, *(plan for plan in plans if plan.key not in chosen))


def first_allowed(
    plans: Iterable[Plan],
    deployment: Deployment,
    held: list[Lease],
    snapshot: Snapshot,
    *,
    avoided: AbstractSet[ServerId],
) -> tuple[Plan | None, str]:
    """The best plan that is not excluded and keeps the budget, or the sentence that says why none is."""
    spent = snapshot.spent_today_usd.get(deployment.deployment_id, Decimal(0))
    first_refusal = ""
    listed = list(plans)
    everyone = (*snapshot.closed_leases, *snapshot.leases)
    fails_again = failover.would_fail_again(deployment, everyone, snapshot.now)
    usable = [plan for plan in listed if plan.offer.server_id not in avoided and not fails_again(plan)]
    skipped = len(listed) - len(usable)
    for listed_plan in prefer_other_owners(
        usable, {lease.plan.offer.owner_id for lease in held if lease.is_open}
    ):
        plan = spot.first_bid(listed_plan, snapshot.spot_markets.get(listed_plan.offer.server_id))
        if plan is None:
            skipped += 1
            continue
        refusal = budget.refusal(
            deployment,
            plan,
            open_leases=held,
            spent_today_usd=spent,
            now=snapshot.now,
            fleet=snapshot.spending,
        )
        if refusal is None:
            return plan, ""
        first_refusal = first_refusal or refusal.text
    if first_refusal:
        return None, f"Renting waits: {first_refusal}."
    if skipped:
        return None, (
            f"All {skipped} fitting servers are in use, were refused lately, failed before, or would cost "
            "more by spot than on demand; the market is read again with each tick."
        )
    return None, _NOTHING_FITS


_NOTHING_FITS = "No server on the market fits; the market is read again with each tick."


def _why_no_plan(report: PlanReport) -> str:
    """A budget that is too small is told as such: the user can wait for the market, and for that in vain."""
    if report.requirement.budget is None or not report.over_budget:
        return _NOTHING_FITS
    nearest = report.over_budget[0]
    return (
        f"Nothing runs {report.requirement.model} within its budget of {report.requirement.budget}; a budget "
        f"from ${format_usd(nearest.price.first_day_usd)}/day would do now (server "
        f"{nearest.offer.server_id}). The market is read again with each tick."
    )


def without(snapshot: Snapshot, gone: Collection[Lease]) -> Snapshot:
    """As if those leases, and what they may bill, were not there."""
    ids = {lease.lease_id for lease in gone}
    held = tuple(each for each in snapshot.spending.open_leases if each.lease_id not in ids)
    return replace(
        snapshot,
        leases=tuple(each for each in snapshot.leases if each.lease_id not in ids),
        spending=replace(snapshot.spending, open_leases=held),
    )
