"""Decide: from one snapshot to the actions of one tick. Pure; start-up and recovery are the same tick.

Leases are decided first, each by the two things it stands for: its *order* (does it bill, should it,
is it gone?) and its *node* (what phase, did the work of the phase succeed, fail, or run out of time?).
Then deployments: which slots are empty, and which plan may fill them. Then orders that nothing explains.

Rules that keep money safe:

- Without a reading of the order list, nothing is adopted, dropped or ended, and nothing is rented.
  Cancels still go out: stopping never waits.
- One absence proves nothing. An order counts as gone when the list showed it ended, or missed it in
  `absent_polls` readings in a row.
- A slot with a rent in doubt is locked, and so is its server.
- A failed replica is given back first; whether its successor may start before the old order is gone
  is the budget's decision, not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Desired
from clorefleet.domain.download import estimate
from clorefleet.domain.failure import Cause, blames_host
from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import OpenBill
from clorefleet.domain.node import JobReport, JobState, NodeView
from clorefleet.domain.order import NO_SERVER, Order, OrderList, is_same_image
from clorefleet.domain.text import clean_line
from clorefleet.fleet import bidding, budget, failover, idle
from clorefleet.fleet.action import (
    LEAVING,
    Action,
    Adopt,
    Advance,
    Cancel,
    Disown,
    DropRent,
    End,
    GiveBack,
    NoteAbsence,
    NoteHealth,
    NoteOutbid,
    NoteProgress,
    NoteUse,
    NoteWanted,
    Rent,
    Reopen,
    ReportForeign,
    Settle,
    StartWork,
    StopRenting,
)
from clorefleet.fleet.doubt import conclusions
from clorefleet.fleet.filling import fill_slots
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits
from clorefleet.fleet.snapshot import Snapshot

_NOTHING_SEEN = NodeView()
_SYNC_SLACK = 1.25
"""Lines get faster too: only what misses the limit by this much is given up before it [assumed]."""
_FRACTION_MIN = 1e-6
"""A host tells any fraction, and no duration holds all of them."""
_LAST_MINUTES = timedelta(minutes=5)
"""An order that ends this near to its longest rental has reached it."""


def reconcile(snapshot: Snapshot, limits: FleetLimits = DEFAULT_LIMITS) -> tuple[Action, ...]:
    """The actions that bring the fleet nearer to what is wanted, in the order to perform them."""
    actions: list[Action] = list(conclusions(snapshot))
    over = budget.overspending(
        snapshot.deployments,
        spent_today_usd=snapshot.spent_today_usd,
        fleet=snapshot.spending,
        now=snapshot.now,
        limits=limits,
    )
    adopted: set[tuple[OrderId, ServerId]] = set()
    decisions: list[tuple[Lease, tuple[Action, ...]]] = []
    for lease in snapshot.leases:
        decided = tuple(_decide_lease(snapshot, lease, limits))
        orders = {(each.order.order_id, each.order.server_id) for each in decided if isinstance(each, Adopt)}
        if orders & adopted:
            continue  # another lease has the order from this tick on: the next one finds none for this
        adopted |= orders
        if (
            lease.lease_id in over
            and lease.is_proven
            and not any(isinstance(each, LEAVING) for each in decided)
        ):
            decided = (GiveBack(lease.lease_id, over[lease.lease_id]),)
        decisions.append((lease, decided))
    actions.extend(bidding.without_thirds(snapshot, decisions))
    if snapshot.orders is not None:
        actions.extend(_unexplained(snapshot, snapshot.orders, limits))
        actions.extend(_settlements(snapshot, snapshot.orders))
    for deployment_id, wanted in snapshot.wanted.items():
        if snapshot.wanted_before.get(deployment_id) != wanted:
            actions.append(NoteWanted(deployment_id, wanted))
    trouble = _broken(snapshot) or budget.why_stop_renting(
        (*snapshot.leases, *snapshot.closed_leases),
        snapshot.host_faults,
        snapshot.spending.guard,
        snapshot.now,
        limits,
    )
    if trouble:
        return (*actions, StopRenting(trouble))
    leases = bidding.as_coming_back(snapshot, actions, limits)
    if leases != snapshot.leases:
        snapshot = replace(snapshot, leases=leases)
    leaving = {each.lease_id for each in actions if isinstance(each, LEAVING)}
    for deployment in snapshot.deployments:
        found = tuple(
            each
            for each in fill_slots(snapshot, deployment)
            if not (isinstance(each, GiveBack) and each.lease_id in leaving)
        )
        rented = {each.plan.offer.server_id for each in found if isinstance(each, Rent)}
        snapshot = replace(snapshot, asked_servers=snapshot.asked_servers | rented) if rented else snapshot
        actions.extend(found)
    return tuple(actions)


def _broken(snapshot: Snapshot) -> str:
    """Why renting must stop although no ceiling is passed: the audit found what never may be."""
    if not snapshot.violations or snapshot.spending.guard.is_stopped:
        return ""
    return f"what must always hold does not: {clean_line(snapshot.violations[0])}"


# -- leases


def _decide_lease(snapshot: Snapshot, lease: Lease, limits: FleetLimits) -> Iterator[Action]:
    match lease.state:
        case LeaseState.INTENT:
            if snapshot.orders is not None:
                yield from _resolve_doubt(snapshot, snapshot.orders, lease, limits)
        case LeaseState.ORDERED:
            yield from _decide_ordered(snapshot, lease, limits)
        case LeaseState.ENDING:
            yield from _decide_ending(snapshot, lease, limits)
        case LeaseState.ENDED | LeaseState.REFUSED:
            return


def _resolve_doubt(
    snapshot: Snapshot, orders: OrderList, lease: Lease, limits: FleetLimits
) -> Iterator[Action]:
    """A rent was written down; the list says whether it became an order."""
    listed, gone = orders.live_on(lease.server_id), orders.all_on(lease.server_id)
    live = next((order for order in listed if is_order_of(order, lease, snapshot)), None)
    ended = next((order for order in gone if _has_come_and_gone(order, lease, snapshot, limits)), None)
    if live is not None and (ended is None or not _came_after(live, lease, limits)):
        yield Adopt(lease.lease_id, live, "the market lists the order")
        return
    if ended is not None:
        yield Adopt(lease.lease_id, ended, "the market lists the order, and that it has ended")
        return
    intent = snapshot.intent(lease.intent_id)
    was_accepted = intent is None
    doubted_at = lease.phase_since if intent is None else intent.doubted_at or intent.created_at
    if orders.unreadable:
        return
    # A tick reads the store before the list, so that this list was read after the doubt was written.
    polls = lease.absent_polls + 1
    yield NoteAbsence(lease.lease_id, polls)
    grace = limits.accepted_grace if was_accepted else limits.doubt_grace
    waited = _waited(orders, lease, doubted_at, limits)
    # A clock that was set back says nothing about the time that has passed; many readings do.
    is_over = polls >= limits.doubt_polls_without_clock or (waited is not None and waited >= grace)
    if polls >= limits.doubt_polls and is_over:
        yield DropRent(
            lease.lease_id,
            f"no order for server {lease.server_id} appeared in {polls} readings over "
            f"{_words(orders.read_at - doubted_at)}",
        )


def _waited(orders: OrderList, lease: Lease, doubted_at: datetime, limits: FleetLimits) -> timedelta | None:
    """Since the market was asked for the order; None where no clock can tell.

    Ours may have jumped meanwhile, and another machine's, which asked, may differ from it: where the market
    told its time then and now, no more than that has passed.
    """
    ours = orders.read_at - doubted_at
    known = [ours] if ours >= timedelta(0) else []
    if orders.told_at is not None and lease.asked_at_market is not None:
        # The request left within the lead after that.
        known.append(max(timedelta(0), orders.told_at - lease.asked_at_market - limits.effect_lead))
    return min(known, default=None)


def is_order_of(order: Order, lease: Lease, snapshot: Snapshot) -> bool:
    """True when `order` can only be the one that `lease` asked for.

    The market gives no id and echoes no marker, so the server and the image have to do. A server holds
    one order at a time, and none is rented while the list shows an order on it: one that shows up there
    afterwards is ours. The order's own time is not asked, because our clock may have been a day off.
    """
    if order.server_id != lease.server_id or order.is_spot != lease.plan.price.is_spot:
        return False
    if order.image and lease.image and not is_same_image(order.image, lease.image):
        return False
    if (order.order_id, order.server_id) in snapshot.foreign:
        return False
    others = snapshot.leases_with(order.order_id, order.server_id)
    return all(other.lease_id == lease.lease_id for other in others)


def _has_come_and_gone(order: Order, lease: Lease, snapshot: Snapshot, limits: FleetLimits) -> bool:
    """An order of this rent that ended before any list showed it alive: what it cost is still to be counted.

    Older orders on the same server look the same, so that here the time has to be right.
    """
    return order.is_expired and _is_of_its_time(order, lease, limits) and is_order_of(order, lease, snapshot)


def _came_after(order: Order, lease: Lease, limits: FleetLimits) -> bool:
    """By the market's own clock, far too late for what `lease` asked for: a rent of somebody else, once the
    server was free again."""
    return lease.asked_at_market is not None and not _is_of_its_time(order, lease, limits)


def _is_of_its_time(order: Order, lease: Lease, limits: FleetLimits) -> bool:
    """The order was made when `lease` asked for one: by the market's clock both times, where it told its time
    then, since ours may jump by a day."""
    return _time_apart(order, lease) <= limits.order_ct_skew


def _time_apart(order: Order, lease: Lease) -> timedelta:
    asked_at = lease.asked_at_market or lease.created_at
    return timedelta.max if order.created_at is None else abs(order.created_at - asked_at)


def _decide_ordered(snapshot: Snapshot, lease: Lease, limits: FleetLimits) -> Iterator[Action]:
    order: Order | None = None
    if snapshot.orders is not None and lease.order_id is not None:
        order = snapshot.orders.on_server(lease.order_id, lease.server_id)
        gone = tuple(_if_gone(snapshot.orders, order, lease, limits))
        yield from gone
        if gone:
            return
    overrun = "" if lease.outbid_since is not None else _overrun(snapshot, lease, limits)
    if not lease.is_proven and lease.phase is Phase.WAITING and lease.outbid_since is None:
        found = tuple(_prove(snapshot, lease, order, limits))
        if not overrun or isinstance(found[-1], (Advance, Disown)):
            yield from found
            return
    if order is not None:
        if lease.absent_polls:
            yield NoteAbsence(lease.lease_id, 0)
        too_dear = _too_dear(order, lease, limits)
        if too_dear:
            yield Cancel(lease.lease_id, order.order_id, too_dear)
            return
    view = snapshot.nodes.get(lease.lease_id, _NOTHING_SEEN)
    if lease.phase is Phase.DRAINING:
        yield from _drain(snapshot, lease, view, limits)
        return
    if order is not None and lease.plan.price.is_spot:
        told = tuple(bidding.bid(snapshot, lease, order, _why_unwanted(snapshot, lease), limits))
        yield from told
        if lease.outbid_since is not None or any(isinstance(each, NoteOutbid) for each in told):
            return
    elif lease.outbid_since is not None:
        return
    reason = _why_unwanted(snapshot, lease)
    if reason:
        yield GiveBack(lease.lease_id, reason)
        return
    superseded = failover.why_superseded(lease, snapshot.in_slot_of(lease))
    if superseded:
        yield GiveBack(lease.lease_id, superseded, cause=Cause.SUPERSEDED)
        return
    if overrun:
        yield _failed(lease, view, overrun, Cause.TOOK_TOO_LONG)
        return
    yield from _work(snapshot, lease, order, view, limits)


def _prove(snapshot: Snapshot, lease: Lease, order: Order | None, limits: FleetLimits) -> Iterator[Action]:
    """Our key opens the server, or the order is somebody else's: another fleet of the account, or the user,
    may have rented the very server whose rent was in doubt. Until then nothing cancels it (S9), at most for
    the time limit of the phase.

    Where another machine asked for it, its key is there, and this one will never know for certain. Then the
    order has to be what was asked for in all that can be read; it waits out the same limit, in which that
    machine may be back, and is ended.
    """
    view = snapshot.nodes.get(lease.lease_id, _NOTHING_SEEN)
    if order is not None and lease.absent_polls:
        yield NoteAbsence(lease.lease_id, 0)
    if (view.is_hostile or view.lacks_key) and order is not None:
        # Without a key no request has left: the process died before it made one.
        yield Disown(lease.lease_id, order, view.trouble)
    elif view.key_is_elsewhere and order is not None and (stranger := _why_not_ours(order, lease, limits)):
        yield Disown(lease.lease_id, order, f"{view.trouble}, and {stranger}", may_be_ours=True)
    elif view.host_key:
        yield Advance(lease.lease_id, Phase.PROBING, "SSH answers", host_key=view.host_key)
    else:
        yield NoteProgress(lease.lease_id, _boot_progress(order, view))


def _why_not_ours(order: Order, lease: Lease, limits: FleetLimits) -> str:
    """What differs from what was asked for, beside server, image and kind; "" when nothing does."""
    if not _is_of_its_time(order, lease, limits):
        return "the order was not made when ours was asked for"
    return _too_dear(order, lease, limits)


def _failed(lease: Lease, view: NodeView, why: str, cause: Cause) -> GiveBack:
    """Given back, and the host to blame; not where it is our key that is missing."""
    if view.key_is_elsewhere or view.lacks_key:
        return GiveBack(lease.lease_id, view.trouble, cause=Cause.NO_KEY_HERE)
    return GiveBack(lease.lease_id, why, blocks_host=True, cause=cause)


def _if_gone(orders: OrderList, order: Order | None, lease: Lease, limits: FleetLimits) -> Iterator[Action]:
    """The order is not live in this reading: ended for certain, or absent so far."""
    if lease.order_id is None or (order is not None and not order.is_expired):
        return
    was_asked = lease.state is LeaseState.ENDING
    lost = None if was_asked else _why_lost(orders, lease)
    if order is not None:
        why = lease.reason if was_asked else lost or "the market ended the order"
        yield End(lease.lease_id, lease.order_id, order.spend.amount, why, Cause.OUTBID if lost else None)
        return
    if orders.unreadable:
        return
    polls = lease.absent_polls + 1
    yield NoteAbsence(lease.lease_id, polls)
    if polls >= limits.absent_polls:
        why = lease.reason if was_asked else lost or "the order is no longer in the market's list"
        yield End(lease.lease_id, lease.order_id, None, why, Cause.OUTBID if lost else None)


def _why_lost(orders: OrderList, lease: Lease) -> str:
    """Why a spot order ended without us; "" for others. The market gives no reason: that it was outbid is
    what is left where its longest rental was not reached."""
    if not lease.plan.price.is_spot:
        return ""
    longest, age = lease.plan.offer.max_rental_s, orders.read_at - (lease.ordered_at or lease.created_at)
    if longest is not None and age >= timedelta(seconds=longest) - _LAST_MINUTES:
        return ""
    return (
        f"the market ended the spot order without a reason; most likely another renter outbid "
        f"{lease.price or lease.plan.price.billed} or took the server on demand"
    )


def _too_dear(order: Order, lease: Lease, limits: FleetLimits) -> str:
    approved = lease.plan.price.billed
    if order.price.currency is not approved.currency:
        return f"the order bills in {order.price.currency}, and {approved.currency} was approved"
    if order.price.amount > approved.amount * (1 + limits.price_tolerance):
        return f"the order's own price is {order.price}, above the approved {approved}"
    return ""


def _why_unwanted(snapshot: Snapshot, lease: Lease) -> str:
    deployment = snapshot.deployment(lease.deployment_id)
    if deployment is None:
        return "its deployment is gone"
    if deployment.desired is Desired.STOPPED:
        return "you asked to stop"
    if lease.plan.setup.model.lower() != deployment.model.lower():
        return f"the deployment runs {deployment.model} now"
    useless = idle.why_useless(lease, has_given_up=deployment.has_given_up)
    if useless:
        return useless
    follower = snapshot.ready_follower_of(lease)
    if follower is not None:
        return f"server {follower.server_id} serves in its place for less"
    if snapshot.is_surplus(lease):
        wanted = snapshot.wanted_of(deployment)
        return f"{wanted.replicas} replica(s) are wanted: {wanted.reason}"
    return ""


def _overrun(snapshot: Snapshot, lease: Lease, limits: FleetLimits) -> str:
    """Why the replica's phase has taken too long, or its bootstrap cost too much; "" when not."""
    limit = limits.phase.get(lease.phase)
    if limit is not None and snapshot.now - lease.phase_since > limit:
        return f"{lease.phase} took longer than {_words(limit)}"
    if lease.phase is Phase.SERVING or lease.measured_tokens_per_s is not None:
        return ""
    spent = sum(
        (each.cost_usd(snapshot.now) for each in snapshot.segments_of(lease.lease_id)),
        Decimal(0),
    )
    # The creation fee is spent whatever we do; the limit is about time that is paid and not served.
    allowed = (
        lease.plan.price.running_usd_per_day * limits.bootstrap_days_of_rate
        + lease.plan.price.creation_fee * lease.plan.price.usd_per_unit
    )
    if spent > allowed:
        return f"it cost ${spent:.2f} without serving, more than the limit of ${allowed:.2f}"
    return ""


def _drain(snapshot: Snapshot, lease: Lease, view: NodeView, limits: FleetLimits) -> Iterator[Action]:
    waited = snapshot.now - lease.phase_since
    if lease.order_id is not None and (view.in_flight == 0 or waited >= limits.drain):
        yield Cancel(lease.lease_id, lease.order_id, lease.reason)


def _decide_ending(snapshot: Snapshot, lease: Lease, limits: FleetLimits) -> Iterator[Action]:
    if snapshot.orders is not None and lease.order_id is not None:
        order = snapshot.orders.on_server(lease.order_id, lease.server_id)
        gone = tuple(_if_gone(snapshot.orders, order, lease, limits))
        if gone:
            yield from gone
            return
        if lease.absent_polls:
            yield NoteAbsence(lease.lease_id, 0)
        if _is_reopened_and_unproven(lease):
            if order is not None:
                yield from _prove_reopened(snapshot, lease, order, limits)
            return
    elif _is_reopened_and_unproven(lease):
        return
    asked = lease.cancel_asked_at
    is_due = asked is None or snapshot.now - asked >= limits.cancel_repeat or snapshot.now < asked
    if lease.order_id is not None and is_due:
        yield Cancel(lease.lease_id, lease.order_id, lease.reason)


def _is_reopened_and_unproven(lease: Lease) -> bool:
    return not lease.is_proven and lease.cancel_asked_at is None


def _prove_reopened(snapshot: Snapshot, lease: Lease, order: Order, limits: FleetLimits) -> Iterator[Action]:
    """A late order of a rent that was in doubt, or somebody else's on that server: as in `_prove`, nothing
    cancels it before our key has opened the server. Where the key does not within the time of waiting, the
    order is reported, not ended: our slot was filled long ago, and this may be another fleet's.

    That goes for a key on another machine too: since the rent was dropped, its server was free for anybody,
    unlike that of a rent in doubt, so that what can be read of the order says too little."""
    view = snapshot.nodes.get(lease.lease_id, _NOTHING_SEEN)
    waited = _words(limits.phase[Phase.WAITING])
    if view.is_hostile:
        yield Disown(lease.lease_id, order, view.trouble)
    elif view.host_key:
        yield Cancel(lease.lease_id, order.order_id, lease.reason)
    elif snapshot.now - lease.phase_since <= limits.phase[Phase.WAITING]:
        return
    else:
        why = f"our key did not open its server within {waited}"
        if view.key_is_elsewhere:
            why = f"{view.trouble}, which was not back within {waited}"
        yield Disown(lease.lease_id, order, why, may_be_ours=True)


# -- the work of each phase on the node


def _work(
    snapshot: Snapshot,
    lease: Lease,
    order: Order | None,
    view: NodeView,
    limits: FleetLimits,
) -> Iterator[Action]:
    if view.is_hostile:
        yield GiveBack(lease.lease_id, view.trouble, blocks_host=True)
        return
    match lease.phase:
        case Phase.RENTING | Phase.WAITING:
            if view.host_key:
                yield Advance(lease.lease_id, Phase.PROBING, "SSH answers", host_key=view.host_key)
            else:
                yield NoteProgress(lease.lease_id, _boot_progress(order, view))
        case Phase.PROBING:
            yield from _probed(lease, view, snapshot.now)
        case Phase.INSTALLING:
            if view.engine_missing is None and view.job is not None:
                yield from _follow_job(lease, view, limits)
            elif view.engine_missing is None:
                yield NoteProgress(lease.lease_id, view.trouble or "checking the engine")
            elif view.engine_missing:
                cause = view.job_cause or Cause.ENGINE_TOO_OLD
                blocks = blames_host(cause, lease.plan.setup)
                yield GiveBack(lease.lease_id, view.engine_missing, blocks_host=blocks, cause=cause)
            else:
                yield Advance(lease.lease_id, Phase.SYNCING, "the engine is there")
        case Phase.SYNCING if too_slow := _too_slow(snapshot, lease, view.job, limits):
            yield GiveBack(lease.lease_id, too_slow, blocks_host=True)
        case Phase.SYNCING | Phase.LAUNCHING:
            yield from _follow_job(lease, view, limits)
        case Phase.VERIFYING:
            if view.answered:
                yield failover.verified(lease, view, limits)
            elif _job_ended(view.job) or view.job_cause is not None:
                yield from failover.restart(lease, view, limits)
            else:
                yield NoteProgress(lease.lease_id, view.trouble or "asking it a question")
        case Phase.SERVING:
            yield from _serving(snapshot, lease, view, limits)
        case Phase.DRAINING | Phase.ENDED:
            return


def _boot_progress(order: Order | None, view: NodeView) -> str:
    if order is None:
        return "waiting for the market"
    if order.ssh is None:
        return "the market has not published an address yet"
    if order.container_state in (0, 1):
        return "the host is still deploying the container"
    return view.trouble or "waiting for SSH to answer"


def _probed(lease: Lease, view: NodeView, now: datetime) -> Iterator[Action]:
    if view.facts is None:
        yield NoteProgress(lease.lease_id, view.trouble or "measuring the server")
        return
    fatal = [each for each in view.discrepancies if each.is_fatal]
    if fatal:
        lies = "; ".join(f"{each.code}: offered {each.offered}, found {each.found}" for each in fatal)
        yield GiveBack(
            lease.lease_id,
            f"the server is not what was offered: {lies}",
            blocks_host=True,
            cause=Cause.NOT_AS_OFFERED,
            facts=view.facts,
            discrepancies=view.discrepancies,
        )
        return
    weights = estimate(lease.plan.offer, lease.plan.setup, view.facts).text(now)
    yield Advance(
        lease.lease_id,
        Phase.INSTALLING,
        f"the server is what was offered; {weights}",
        facts=view.facts,
        discrepancies=view.discrepancies,
    )


def _follow_job(lease: Lease, view: NodeView, limits: FleetLimits) -> Iterator[Action]:
    """INSTALLING, SYNCING and LAUNCHING: start the phase's job, follow it, go on when it is done.

    An install that succeeded does not come here: what it brought has been looked at (`engine_missing`).
    """
    job = view.job
    if job is None:
        yield NoteProgress(lease.lease_id, view.trouble or "looking at the node")
    elif job.state is JobState.ABSENT and lease.start_failures >= limits.start_failures:
        text = f"{lease.phase} could not be started: {lease.progress}"
        yield GiveBack(lease.lease_id, text, cause=Cause.UNKNOWN)
    elif job.state is JobState.ABSENT:
        yield StartWork(lease.lease_id, lease.phase, max(1, lease.launches), f"{lease.phase} begins")
    elif lease.phase is Phase.SYNCING and job.state is JobState.SUCCEEDED:
        yield Advance(lease.lease_id, Phase.LAUNCHING, "the weights are complete and verified")
    elif lease.phase is Phase.LAUNCHING and job.state is JobState.RUNNING and view.is_healthy:
        yield Advance(lease.lease_id, Phase.VERIFYING, "the engine is ready")
    elif job.state is JobState.RUNNING:
        yield NoteProgress(lease.lease_id, job.progress_text, _fraction(job))
    else:
        yield from failover.restart(lease, view, limits)


def _too_slow(snapshot: Snapshot, lease: Lease, job: JobReport | None, limits: FleetLimits) -> str:
    """Why the weights would not be there in time at the speed so far: waiting for the limit would be paid."""
    limit, waited = limits.phase.get(lease.phase), snapshot.now - lease.phase_since
    if limit is None or job is None or job.state is not JobState.RUNNING or waited < limits.sync_patience:
        return ""
    fraction = _fraction(job)
    if not fraction:
        return "" if fraction is None else f"not one byte of the weights came in {_words(waited)}"
    expected = waited / max(fraction, _FRACTION_MIN)
    if expected <= limit * _SYNC_SLACK:
        return ""
    return (
        f"the weights would take {_words(expected)} at the speed so far, {fraction:.0%} in "
        f"{_words(waited)}; the limit is {_words(limit)}"
    )


def _job_ended(job: JobReport | None) -> bool:
    return job is not None and job.state in (JobState.FAILED, JobState.LOST, JobState.SUCCEEDED)


def _serving(snapshot: Snapshot, lease: Lease, view: NodeView, limits: FleetLimits) -> Iterator[Action]:
    if _job_ended(view.job):
        yield from failover.restart(lease, view, limits)
        return
    if view.is_healthy:
        if lease.unhealthy_since is not None:
            yield NoteHealth(lease.lease_id, None, "it answers again")
        deployment = snapshot.deployment(lease.deployment_id)
        has_rule = deployment is not None and deployment.idle is not None
        used = idle.use_seen(lease, view, now=snapshot.now) if has_rule else None
        if used is not None and used.used_at is not None:
            yield NoteUse(lease.lease_id, used.used_at, used.engine_tokens)
        return
    if view == _NOTHING_SEEN:
        return
    if lease.unhealthy_since is None or snapshot.now < lease.unhealthy_since:
        # A clock that was set back would give a silent server as much more time, which bills.
        yield NoteHealth(lease.lease_id, snapshot.now, view.trouble or "the engine does not answer")
    elif snapshot.now - lease.unhealthy_since > limits.unhealthy:
        why = f"it has not answered for {_words(limits.unhealthy)}: {view.trouble or 'no reason known'}"
        yield _failed(lease, view, why, Cause.UNKNOWN)


def _fraction(job: JobReport) -> float | None:
    if job.progress_done is None or not job.progress_total:
        return None
    return min(1.0, job.progress_done / job.progress_total)


# -- orders that nothing explains


def _unexplained(snapshot: Snapshot, orders: OrderList, limits: FleetLimits) -> Iterator[Action]:
    reopened: set[LeaseId] = set()
    for order in orders.live():
        if (order.order_id, order.server_id) in snapshot.leased_orders or order.server_id == NO_SERVER:
            continue
        if any(is_order_of(order, lease, snapshot) for lease in snapshot.in_doubt_on(order.server_id)):
            continue
        is_foreign = (order.order_id, order.server_id) in snapshot.foreign
        closed = None if is_foreign else _closed_lease_of(order, snapshot, limits)
        if closed is not None and closed.lease_id not in reopened:
            reopened.add(closed.lease_id)
            yield Reopen(closed.lease_id, order, "its order is alive in the market's list")
        else:
            yield ReportForeign(order)


def _closed_lease_of(order: Order, snapshot: Snapshot, limits: FleetLimits) -> Lease | None:
    """The lease we closed too early: by its order id, or a rent that was dropped and came late.

    Where several rents of that server were dropped, it is the one that was asked for nearest to the order's
    time: each has its own key, and by another's the order would look like a stranger's.
    """
    closed = snapshot.closed_on(order.server_id)
    for lease in closed:
        if lease.order_id == order.order_id:
            return lease
    dropped = (
        lease
        for lease in closed
        if lease.was_dropped and lease.order_id is None and is_order_of(order, lease, snapshot)
    )
    of_its_time = [lease for lease in dropped if _is_of_its_time(order, lease, limits)]
    return min(of_its_time, key=lambda lease: _time_apart(order, lease), default=None)


def _settlements(snapshot: Snapshot, orders: OrderList) -> Iterator[Action]:
    """Each ended order settles the one bill that it is nearest to in time, of those of its number and server:
    a number may have been given twice (A21), and either order may be missing from the list."""
    if not snapshot.unsettled:
        return
    found: dict[OpenBill, list[Order]] = {}
    for order in orders.orders:
        bills = [
            bill
            for bill in snapshot.unsettled
            if order.is_expired and (bill.order_id, bill.server_id) == (order.order_id, order.server_id)
        ]
        if bills:
            found.setdefault(min(bills, key=lambda bill: _apart(order, bill)), []).append(order)
    for bill, ended in found.items():
        order = min(ended, key=lambda order: _apart(order, bill))
        yield Settle(bill.lease_id, bill.order_id, order.spend.amount)


def _apart(order: Order, bill: OpenBill) -> timedelta:
    return timedelta.max if order.created_at is None else abs(order.created_at - bill.started_at)


def _words(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds / 3600:.1f} h"
