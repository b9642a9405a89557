"""Write it down, do it, record how it came out. What the process dying on any line means is said here.

    begin_*      one transaction: the intent, the lease it is about, the checks that allow it
    (effect)     outside any transaction
    finish_*     one transaction: the outcome

=====================  ===============================================================================
killed                 what the next tick finds, and does
=====================  ===============================================================================
before `begin_rent`    nothing; the slot is empty and is planned again
after `begin_rent`     a lease in `intent` with an open intent: in doubt, looked for in the order list
after the request      the same; the list shows the order and it is adopted, or the grace runs out
after `finish_rent`    a lease in `intent` with a finished intent: adopted when the list shows it
around a cancel        a lease in `ending`: the cancel is repeated until the list shows the order gone
around a spot price    an intent in doubt; the order list shows the price in force, which concludes it
around a job           the job's id is the same on the next start: it runs once
around a route         the routes died with the process; the next one states all of them anew
=====================  ===============================================================================

`clorefleet.domain.intent.KILL_POINTS` is this table as data.

Bids are in `bid_entries`, what is merely noted in `beliefs`, what an order costs in `counting`; `entries` is
what they share. Nothing here talks to a market or a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import BudgetExceeded, LostLeadership, MarketError, StoreError
from clorefleet.domain.failure import Cause
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import IntentId, LeaseId, OrderId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import NO_ORDER, NO_ORDER_AFTER_YES, Lease, LeaseState, Phase
from clorefleet.domain.money import Period, Rate
from clorefleet.domain.order import Order
from clorefleet.domain.text import clean_line
from clorefleet.fleet import budget, strange
from clorefleet.fleet.action import Disown, End, Rent
from clorefleet.fleet.beliefs import Beliefs, note_strange
from clorefleet.fleet.bid_entries import BidEntries
from clorefleet.fleet.counting import close_count, open_count
from clorefleet.fleet.spending import load_spending
from clorefleet.store.database import check_fencing


class Journal(BidEntries, Beliefs):
    """The only writer of leases, intents and ledger segments."""

    # -- rent

    def begin_rent(self, action: Rent, lease: Lease, *, now: datetime) -> None:
        """The intent, durable. Checks once more what may have changed since the snapshot.

        Raises:
            BudgetExceeded: the plan would pass the ceiling now; nothing was written.
        """
        with self._store.write(self._token) as tx:
            deployment = tx.deployment(action.deployment_id)
            if deployment is None or deployment.desired is not Desired.RUNNING:
                raise BudgetExceeded("The deployment was stopped meanwhile.")
            everyone = tx.open_leases()
            if any(each.server_id == lease.server_id for each in everyone):
                raise BudgetExceeded(f"Server {lease.server_id} has an order or a rent in doubt already.")
            held = [each for each in everyone if each.deployment_id == action.deployment_id]
            if any(each.slot == lease.slot and each.state is LeaseState.INTENT for each in held):
                raise BudgetExceeded(f"Slot {lease.slot} has a rent in doubt.")
            spending = load_spending(tx, now)
            if spending.fleet.guard.is_stopped:
                raise BudgetExceeded(f"Renting is stopped: {spending.fleet.guard.stopped_because}.")
            refusal = budget.refusal(
                deployment,
                action.plan,
                open_leases=held,
                spent_today_usd=spending.today_usd.get(action.deployment_id, Decimal(0)),
                now=now,
                fleet=spending.fleet,
            )
            if refusal is not None:
                raise BudgetExceeded(f"Not rented: {refusal.text}.")
            tx.put_lease(lease)
            self._open_intent(
                tx,
                lease,
                Effect.RENT,
                lease.intent_id,
                action.reason,
                worst_case_usd_per_day=Rate.per_day(action.plan.price.first_day_usd),
                now=now,
            )
            self._event(
                tx,
                lease,
                "rent_intended",
                f"Renting server {lease.server_id} ({action.plan.offer.gpu_summary}) at "
                f"{action.plan.price.billed} for {lease.deployment_id}: {action.reason}",
                now,
            )

    def is_still_wished(self, deployment: Deployment) -> bool:
        """False where the user stopped it, or changed what may be rented for it, since the snapshot.

        Asked again when a rent is sent: its turn at the market may have been long in coming.
        """
        try:
            with self._store.read() as tx:
                now = tx.deployment(deployment.deployment_id)
        except StoreError:
            return False
        return (
            now is not None and now.desired is Desired.RUNNING and now.requirement == deployment.requirement
        )

    def finish_rent_accepted(self, lease: Lease, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            # From the answer on, not from the intent: a request may have taken minutes.
            tx.put_lease(replace(tx.lease(lease.lease_id) or lease, phase_since=now))
            self._close_intent(tx, lease, lease.intent_id, IntentState.DONE, now)
            self._event(tx, lease, "rent_accepted", "The market accepted the order.", now)

    def finish_rent_refused(self, lease: Lease, error: MarketError, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            current = tx.lease(lease.lease_id) or lease
            text = clean_line(error.what)
            refused = replace(
                current.moved(LeaseState.REFUSED).entered(Phase.ENDED, now, reason=text),
                refusal=type(error).__name__,
                ended_at=now,
            )
            tx.put_lease(refused)
            self._close_intent(tx, lease, lease.intent_id, IntentState.REFUSED, now, text)
            self._event(tx, lease, "rent_refused", f"Server {lease.server_id} was not rented: {text}", now)

    def finish_rent_unknown(self, lease: Lease, why: str, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            intent = self._intent(tx, lease, lease.intent_id)
            if intent is not None and intent.is_in_doubt:
                self._put(
                    tx,
                    replace(intent, state=IntentState.UNKNOWN, doubted_at=now, detail=clean_line(why)),
                )
            self._event(
                tx,
                lease,
                "rent_in_doubt",
                f"Whether server {lease.server_id} was rented is unknown ({clean_line(why)}); "
                "the order list decides.",
                now,
            )

    def adopt(self, lease: Lease, order: Order, reason: str, *, now: datetime) -> Lease:
        """The order exists: the lease is ordered, the ledger counts."""
        with self._store.write(self._token) as tx:
            # Our clock counts, so our clock says since when: no order is older than its intent, whatever
            # the market's clock, and none begins in the future, whatever ours.
            started_at = min(max(order.created_at or lease.created_at, lease.created_at), now)
            intent = self._intent(tx, lease, lease.intent_id)
            adopted = replace(
                lease.moved(LeaseState.ORDERED).entered(Phase.WAITING, now),
                is_proven=intent is not None and intent.state is IntentState.DONE,
                order_id=order.order_id,
                ordered_at=started_at,
                price=order.price,
                address=order.ssh,
                absent_polls=0,
            )
            tx.put_lease(adopted)
            self._close_intent(tx, lease, lease.intent_id, IntentState.DONE, now)
            open_count(tx, adopted, order, started_at)
            self._event(tx, lease, "order_adopted", f"Order {order.order_id}: {reason}.", now)
        return adopted

    def adopt_orphan(self, lease: Lease, order: Order, *, now: datetime) -> None:
        """An order that the records had lost is explained by `lease` from now on; counted from its
        beginning."""
        with self._store.write(self._token) as tx:
            tx.put_lease(lease)
            open_count(tx, lease, order, lease.ordered_at or now)
            self._event(tx, lease, "orphan_adopted", f"Order {order.order_id} was taken over.", now)

    def drop_rent(self, lease: Lease, reason: str, *, now: datetime) -> Lease:
        with self._store.write(self._token) as tx:
            intent = self._intent(tx, lease, lease.intent_id)
            was_accepted = intent is not None and intent.state is IntentState.DONE
            dropped = replace(
                lease.moved(LeaseState.REFUSED).entered(Phase.ENDED, now, reason=reason),
                refusal=NO_ORDER_AFTER_YES if was_accepted else NO_ORDER,
                ended_at=now,
            )
            tx.put_lease(dropped)
            self._close_intent(tx, lease, lease.intent_id, IntentState.REFUSED, now, reason)
            self._event(tx, lease, "rent_dropped", f"No order came of it: {reason}.", now)
        return dropped

    # -- ending

    def give_back(self, lease: Lease, reason: str, *, blocks_host: bool, now: datetime) -> Lease:
        with self._store.write(self._token) as tx:
            draining = replace(lease.entered(Phase.DRAINING, now, reason=reason), blocks_host=blocks_host)
            tx.put_lease(draining)
            if blocks_host:
                spent = sum(
                    (
                        s.cost_usd(now)
                        for s in tx.segments(lease.deployment_id)
                        if s.lease_id == lease.lease_id
                    ),
                    Decimal(0),
                )
                tx.add_host_fault(HostFault(lease.server_id, now, clean_line(reason), spent))
            name = "server_failed" if blocks_host else "giving_back"
            self._event(tx, lease, name, f"Giving back server {lease.server_id}: {reason}.", now)
        return draining

    def begin_cancel(self, lease: Lease, order_id: OrderId, reason: str, *, now: datetime) -> Lease:
        with self._store.write(self._token) as tx:
            ending = lease if lease.state is LeaseState.ENDING else lease.moved(LeaseState.ENDING)
            if ending.phase is not Phase.DRAINING:
                ending = ending.entered(Phase.DRAINING, now, reason=reason)
            if lease.state is not LeaseState.ENDING:
                self._event(tx, lease, "cancelling", f"Cancelling order {order_id}: {reason}.", now)
            ending = replace(ending, cancel_asked_at=now, cancel_attempts=lease.cancel_attempts + 1)
            tx.put_lease(ending)
            intent_id = IntentId(f"{lease.lease_id}-cancel-{ending.cancel_attempts}")
            self._open_intent(tx, lease, Effect.CANCEL, intent_id, f"order {order_id}: {reason}", now=now)
        return ending

    def check_leadership(self) -> None:
        """By a read alone, for where nothing can be written; where nothing can be read, nothing is said.

        Raises:
            LostLeadership: another has taken over.
        """
        try:
            with self._store.read() as tx:
                check_fencing(tx, self._token)
        except LostLeadership:
            raise
        except StoreError:
            return

    def finish_cancel(self, lease: Lease, state: IntentState, text: str, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            self._close_intent(
                tx, lease, IntentId(f"{lease.lease_id}-cancel-{lease.cancel_attempts}"), state, now, text
            )
            self._event(tx, lease, f"cancel_{state}", f"Cancel of order {lease.order_id}: {text}", now)

    def end(self, lease: Lease, action: End, *, now: datetime) -> Lease:
        """The list showed the order gone: the lease ends, the ledger's count stops."""
        with self._store.write(self._token) as tx:
            ended = replace(
                lease.moved(LeaseState.ENDED).entered(Phase.ENDED, now, reason=action.reason),
                ended_at=now,
                cause=action.cause or lease.cause,
            )
            tx.put_lease(ended)
            # The market stops charging when it takes the cancel, not when we see the list.
            stopped_at = lease.cancel_asked_at or now
            close_count(
                tx, action.order_id, lease.lease_id, ended_at=stopped_at, settled=action.settled, now=now
            )
            for intent in tx.intents_of(lease.lease_id):
                if intent.is_in_doubt:
                    self._put(tx, replace(intent, state=IntentState.DONE, finished_at=now))
            name = "order_ended" if lease.state is LeaseState.ENDING else "order_lost"
            self._event(tx, lease, name, f"Order {action.order_id} has ended: {action.reason}.", now)
        return ended

    def reopen(self, lease: Lease, order: Order, reason: str, *, now: datetime) -> Lease:
        """An order shows up alive although its lease was closed: to be ended, once it is proven to be ours.
        For the late order of a dropped rent only server and time speak: our key has to open it."""
        with self._store.write(self._token) as tx:
            reopened = replace(
                lease.moved(LeaseState.ENDING).entered(Phase.DRAINING, now, reason=reason),
                is_proven=lease.is_proven and lease.order_id is not None,
                order_id=order.order_id,
                ordered_at=lease.ordered_at or order.created_at or lease.created_at,
                price=order.price,
                ended_at=None,
                cancel_asked_at=None,
                absent_polls=0,
            )
            tx.put_lease(reopened)
            open_count(tx, reopened, order, reopened.ordered_at or now)
            self._event(tx, lease, "order_reappeared", f"Order {order.order_id}: {reason}.", now)
        return reopened

    def disown(self, lease: Lease, action: Disown, *, now: datetime) -> Lease:
        """The order is not ours after all, or nobody can tell: nothing of it is counted, none ends it."""
        order, reason = action.order, clean_line(action.reason)
        with self._store.write(self._token) as tx:
            ended = replace(
                lease.moved(LeaseState.ENDED).entered(Phase.ENDED, now, reason=reason),
                order_id=None,
                ended_at=now,
                cause=Cause.UNPROVEN if action.may_be_ours else None,
            )
            tx.put_lease(ended)
            close_count(tx, order.order_id, lease.lease_id, ended_at=now, settled=Decimal(0), now=now)
            note_strange(tx, order, now=now)
            price = order.price.per(Period.HOUR)
            text = (
                f"Order {order.order_id} on server {order.server_id} bills {price} and is not ours: {reason}."
            )
            if action.may_be_ours:
                text = strange.words(order.order_id, order.server_id, str(price), ended)
            self._event(tx, lease, "order_disowned", text, now)
        return ended

    def settle(self, lease_id: LeaseId, order_id: OrderId, settled: Decimal, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            close_count(tx, order_id, lease_id, ended_at=now, settled=settled, now=now)

    # -- jobs

    def begin_job(self, lease: Lease, phase: Phase, attempt: int, reason: str, *, now: datetime) -> Lease:
        with self._store.write(self._token) as tx:
            started = replace(lease, launches=attempt)
            tx.put_lease(started)
            tx.put_job(
                lease.job_id(phase, attempt),
                lease.lease_id,
                phase,
                attempt,
                now=now,
                state="running",
            )
            intent_id = IntentId(lease.job_id(phase, attempt))
            self._open_intent(tx, lease, Effect.START_JOB, intent_id, clean_line(reason), now=now)
            self._event(tx, lease, "job_started", f"{phase.capitalize()}, attempt {attempt}: {reason}.", now)
        return started

    def finish_job_start(
        self, lease: Lease, phase: Phase, attempt: int, error: str, *, now: datetime
    ) -> None:
        with self._store.write(self._token) as tx:
            intent_id = IntentId(lease.job_id(phase, attempt))
            state = IntentState.UNKNOWN if error else IntentState.DONE
            self._close_intent(tx, lease, intent_id, state, now, error)
            if error:
                self._event(tx, lease, "job_start_failed", f"{phase.capitalize()}: {error}", now)

    # -- routes

    def begin_routes(
        self, opened: Iterable[Lease], left: Iterable[LeaseId], *, serial: str, now: datetime
    ) -> tuple[Intent, ...]:
        """One intent for each replica that requests begin, or cease, to reach."""
        intents = []
        with self._store.write(self._token) as tx:
            gone = [lease for lease in map(tx.lease, left) if lease is not None]
            for lease, word in [*((each, "opened") for each in opened), *((each, "closed") for each in gone)]:
                intent_id = IntentId(f"{lease.lease_id}-route-{serial}")
                intents.append(self._open_intent(tx, lease, Effect.ROUTE, intent_id, word, now=now))
        return tuple(intents)

    def finish_routes(self, intents: Iterable[Intent], *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            for intent in intents:
                self._put(tx, replace(intent, state=IntentState.DONE, finished_at=now))
