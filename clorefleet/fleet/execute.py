"""Act: perform the actions of a tick, each effect behind its intent. Nothing here decides.

An action that cannot be performed is an event, never the end of the tick: the next one looks again.
The exception is a lost leadership, after which this process must not write or act any more. Cancels
differ once: they go out even when the store cannot be written, because stopping never waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from clorefleet.clock import Clock
from clorefleet.domain.errors import BudgetExceeded, LostLeadership, NodeError, StoreError
from clorefleet.domain.event import Event
from clorefleet.domain.identity import IntentId, LeaseId
from clorefleet.domain.intent import IntentState
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.node import Credentials
from clorefleet.domain.order import Order, RentRequest
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
    CancelRefused,
    CancelUnknown,
    Rented,
    RentRefused,
    RentUnknown,
)
from clorefleet.domain.secret import Secret
from clorefleet.domain.text import clean_line
from clorefleet.fleet.action import (
    Action,
    Adopt,
    Advance,
    Cancel,
    DropRent,
    End,
    Explain,
    GiveBack,
    NoteAbsence,
    NoteHealth,
    NoteProgress,
    Rent,
    Reopen,
    ReportForeign,
    Settle,
    StartWork,
)
from clorefleet.fleet.edges import Market, Nodes
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.snapshot import Snapshot

log = logging.getLogger("clorefleet.fleet")

NONCE_VARIABLE = "CLOREFLEET_NONCE"
NewId = Callable[[], str]
StartupCommand = Callable[[Credentials], str]
"""The order's start-up script for what `Nodes.prepare` made."""
_FRESH_COUNTS = {(Phase.INSTALLING, Phase.SYNCING), (Phase.SYNCING, Phase.LAUNCHING)}
"""Steps after which attempts are counted from zero. A relaunch of an engine that died is not one."""


class Executor:
    """Performs one tick's actions. Made anew for each tick, from its snapshot."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        journal: Journal,
        market: Market,
        nodes: Nodes,
        clock: Clock,
        new_id: NewId,
        startup_command: StartupCommand,
    ) -> None:
        self._snapshot = snapshot
        self._journal = journal
        self._market = market
        self._nodes = nodes
        self._clock = clock
        self._new_id = new_id
        self._startup_command = startup_command
        self._leases: dict[LeaseId, Lease] = {
            lease.lease_id: lease for lease in (*snapshot.closed_leases, *snapshot.leases)
        }
        self._noted: set[LeaseId] = set()
        self._events: list[Event] = []

    def perform(self, actions: Iterable[Action]) -> None:
        """Cancels first, since they stop money; then the rest in the given order."""
        ordered = sorted(actions, key=lambda action: not isinstance(action, Cancel))
        self._take_order_news()
        for action in ordered:
            try:
                self._perform_one(action)
            except LostLeadership:
                raise
            except StoreError as error:
                log.error("action_failed action=%s why=%s", type(action).__name__, error.what)
        self._flush()

    def _perform_one(self, action: Action) -> None:
        now = self._clock.now()
        match action:
            case Cancel():
                self._cancel(action, now)
            case Rent():
                self._rent(action, now)
            case Adopt(lease_id, order, reason):
                self._keep(self._journal.adopt(self._lease(lease_id), order, reason, now=now))
            case DropRent(lease_id, reason):
                self._keep(self._journal.drop_rent(self._lease(lease_id), reason, now=now))
                self._nodes.forget(lease_id)
            case GiveBack(lease_id, reason, blocks_host):
                self._keep(
                    self._journal.give_back(
                        self._lease(lease_id), clean_line(reason), blocks_host=blocks_host, now=now
                    )
                )
            case End(lease_id, _, _, _):
                self._keep(self._journal.end(self._lease(lease_id), action, now=now))
                self._nodes.forget(lease_id)
            case Reopen(lease_id, order, reason):
                self._keep(self._journal.reopen(self._lease(lease_id), order, reason, now=now))
            case Settle(order_id, settled):
                self._journal.settle(order_id, settled, now=now)
            case Advance():
                self._advance(action, now)
            case StartWork():
                self._start_work(action, now)
            case NoteAbsence(lease_id, absent_polls):
                self._note(replace(self._lease(lease_id), absent_polls=absent_polls))
            case NoteProgress(lease_id, text, fraction):
                self._note(
                    replace(self._lease(lease_id), progress=clean_line(text), progress_fraction=fraction)
                )
            case NoteHealth(lease_id, unhealthy_since, text):
                lease = replace(self._lease(lease_id), unhealthy_since=unhealthy_since)
                name = "replica_silent" if unhealthy_since else "replica_answers"
                self._note(lease, (name, f"{lease.deployment_id}: {text}"), now)
            case Explain(deployment_id, text, is_final):
                self._journal.explain(deployment_id, text, is_final=is_final, now=now)
            case ReportForeign(order):
                self._journal.report_foreign(order, usd_per_day=_usd(order), now=now)

    # -- effects

    def _rent(self, action: Rent, now: datetime) -> None:
        lease_id = LeaseId(self._new_id())
        image = action.plan.setup.image
        lease = Lease(
            lease_id=lease_id,
            deployment_id=action.deployment_id,
            slot=action.slot,
            plan=action.plan,
            intent_id=IntentId(f"{lease_id}-rent"),
            state=LeaseState.INTENT,
            phase=Phase.RENTING,
            created_at=now,
            phase_since=now,
            image=image,
        )
        credentials = self._nodes.prepare(lease_id)
        try:
            self._journal.begin_rent(action, lease, now=now)
        except BudgetExceeded as refusal:
            self._nodes.forget(lease_id)
            self._journal.explain(action.deployment_id, refusal.what, now=now)
            return
        outcome = self._market.rent(
            RentRequest(
                server_id=lease.server_id,
                is_spot=action.plan.price.is_spot,
                approved_price=action.plan.price.billed,
                image=image,
                env=((NONCE_VARIABLE, credentials.nonce),),
                ssh_public_key=credentials.ssh_public_key,
                ssh_password=credentials.ssh_password,
                command=Secret(self._startup_command(credentials)),
                needs_ssh_entrypoint=not image.startswith("cloreai/"),
            )
        )
        now = self._clock.now()
        match outcome:
            case Rented():
                self._journal.finish_rent_accepted(lease, now=now)
            case RentRefused(error):
                self._journal.finish_rent_refused(lease, error, now=now)
                self._nodes.forget(lease_id)
            case RentUnknown(reason):
                self._journal.finish_rent_unknown(lease, reason, now=now)

    def _cancel(self, action: Cancel, now: datetime) -> None:
        lease = self._lease(action.lease_id)
        try:
            lease = self._keep(
                self._journal.begin_cancel(lease, action.order_id, clean_line(action.reason), now=now)
            )
        except LostLeadership:
            raise
        except StoreError as error:
            log.error("cancel_not_journaled order=%s why=%s", action.order_id, error.what)
        outcome = self._market.cancel(action.order_id)
        state, text = _cancel_words(outcome)
        self._journal.finish_cancel(lease, state, text, now=self._clock.now())

    def _start_work(self, action: StartWork, now: datetime) -> None:
        lease = self._keep(
            self._journal.begin_job(
                self._lease(action.lease_id), action.phase, action.attempt, action.reason, now=now
            )
        )
        trouble = ""
        try:
            self._nodes.start_work(lease, action.phase, action.attempt)
        except NodeError as error:
            trouble = clean_line(error.what)
        self._journal.finish_job_start(lease, action.phase, action.attempt, trouble, now=self._clock.now())
        failures = lease.start_failures + 1 if trouble else 0
        self._note(replace(lease, start_failures=failures, progress=trouble))

    # -- beliefs

    def _advance(self, action: Advance, now: datetime) -> None:
        lease = self._lease(action.lease_id)
        begins_afresh = (lease.phase, action.phase) in _FRESH_COUNTS
        moved = replace(
            lease.entered(action.phase, now),
            host_key=action.host_key or lease.host_key,
            measured_tokens_per_s=action.measured_tokens_per_s or lease.measured_tokens_per_s,
            launches=0 if begins_afresh else lease.launches,
            engine_is_simulated=action.engine_is_simulated or lease.engine_is_simulated,
            unhealthy_since=None,
        )
        if action.facts is not None:
            self._journal.record_facts(lease, action.facts, action.discrepancies, now=now)
        name = "replica_serving" if action.phase is Phase.SERVING else "phase_entered"
        self._note(moved, (name, f"{moved.deployment_id}: {action.phase}: {action.reason}."), now)
        self._flush()

    def _take_order_news(self) -> None:
        """Address, price and the market's spend counter, from this tick's reading of the orders."""
        orders = self._snapshot.orders
        if orders is None:
            return
        for lease in self._snapshot.leases:
            order = None if lease.order_id is None else orders.by_id(lease.order_id)
            if order is None:
                continue
            news = replace(lease, address=order.ssh or lease.address, spend_seen=order.spend)
            if news != lease:
                self._note(news)

    def _lease(self, lease_id: LeaseId) -> Lease:
        return self._leases[lease_id]

    def _keep(self, lease: Lease) -> Lease:
        """`lease` is what the store has now."""
        self._leases[lease.lease_id] = lease
        self._noted.discard(lease.lease_id)
        return lease

    def _note(self, lease: Lease, event: tuple[str, str] | None = None, now: datetime | None = None) -> None:
        if lease != self._leases[lease.lease_id]:
            self._leases[lease.lease_id] = lease
            self._noted.add(lease.lease_id)
        if event is not None and now is not None:
            name, text = event
            self._events.append(Event(now, name, text, lease.deployment_id, lease.lease_id))

    def _flush(self) -> None:
        leases = [self._leases[lease_id] for lease_id in sorted(self._noted)]
        self._journal.record(leases, self._events, now=self._clock.now())
        self._noted.clear()
        self._events.clear()


def _cancel_words(outcome: CancelOutcome) -> tuple[IntentState, str]:
    match outcome:
        case CancelAccepted():
            return IntentState.DONE, "accepted; waiting until the market's list shows it gone"
        case AlreadyEnded():
            return IntentState.DONE, "the market says it has already ended"
        case CancelRefused(error):
            return IntentState.REFUSED, f"refused: {clean_line(error.what)}"
        case CancelUnknown(reason):
            return IntentState.UNKNOWN, f"unknown: {clean_line(reason)}"


def _usd(order: Order) -> Decimal | None:
    return order.price.amount if order.price.currency == "USD" else None
