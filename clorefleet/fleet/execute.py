"""Act: perform the actions of a tick, each effect behind its intent. Nothing here decides.

Every effect passes `Executor._through`: intent, effect, record, with a place to die between each two of
them. The kill test takes its cases from there, so that an effect that went another way would be found.

An action that cannot be performed is an event, never the end of the tick: the next one looks again.
The exception is a lost leadership, after which this process must not write or act any more. Cancels
differ once: they go out even when the store cannot be written, because stopping never waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from clorefleet.clock import Clock
from clorefleet.domain.duration import in_words
from clorefleet.domain.errors import (
    BidStepTooLarge,
    BudgetExceeded,
    ClorefleetError,
    LostLeadership,
    MarketUnreachable,
    NodeError,
    StoreError,
)
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId
from clorefleet.domain.intent import Boundary, Effect, Intent, IntentState
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment, Segments, counted, in_order, switched
from clorefleet.domain.money import Rate
from clorefleet.domain.node import Backend, Credentials
from clorefleet.domain.order import Order, RentRequest
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
    CancelRefused,
    CancelUnknown,
    Rented,
    RentOutcome,
    RentRefused,
    RentUnknown,
    SpotPriceOutcome,
    SpotPriceRefused,
    SpotPriceSet,
    SpotPriceUnknown,
)
from clorefleet.domain.secret import Secret
from clorefleet.domain.text import clean_line
from clorefleet.fleet.action import (
    Action,
    Adopt,
    Advance,
    ApproveBid,
    Cancel,
    Conclude,
    Disown,
    DropRent,
    End,
    Explain,
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
    SetSpotPrice,
    Settle,
    StartWork,
    StopRenting,
)
from clorefleet.fleet.edges import Market, Nodes, SetRoutes
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits
from clorefleet.fleet.snapshot import Snapshot

log = logging.getLogger("clorefleet.fleet")

NONCE_VARIABLE = "CLOREFLEET_NONCE"
NewId = Callable[[], str]
StartupCommand = Callable[[Credentials], str]
"""The order's start-up script for what `Nodes.prepare` made."""
Reached = Callable[[Effect, Boundary], None]
"""Called at each boundary of each effect; a test dies in it."""
T = TypeVar("T")
U = TypeVar("U")


def nothing_happens(effect: Effect, boundary: Boundary) -> None:
    """The boundary of a process that lives on."""


@dataclass(slots=True)
class RouteTable:
    """Where requests go now. It lives and dies with the process, and so do the routes themselves."""

    backends: tuple[Backend, ...] | None = None
    """None: nothing was stated yet."""


_FRESH_COUNTS = {
    (Phase.INSTALLING, Phase.SYNCING),
    (Phase.SYNCING, Phase.LAUNCHING),
    (Phase.LAUNCHING, Phase.SYNCING),
}
"""Steps after which attempts are counted from zero. A relaunch of an engine that died is not one."""


_BEGINS = (Rent, StartWork, SetSpotPrice)
"""What a process does not begin any more that was asked to end, or slept since it read the market. Cancels go
out all the same."""


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
        limits: FleetLimits = DEFAULT_LIMITS,
        reached: Reached = nothing_happens,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._snapshot = snapshot
        self._journal = journal
        self._market = market
        self._nodes = nodes
        self._clock = clock
        self._new_id = new_id
        self._startup_command = startup_command
        self._limits = limits
        self._reached = reached
        self._is_ending = is_ending
        self._ledger: dict[LeaseId, tuple[Segments, Segments]] = {}
        self._leases: dict[LeaseId, Lease] = {
            lease.lease_id: lease for lease in (*snapshot.closed_leases, *snapshot.leases)
        }
        self._noted: set[LeaseId] = set()
        self._events: list[Event] = []
        self._foreign: list[Order] = []
        self._notes = {each.deployment_id: each.note for each in snapshot.deployments}
        self._outdated = 0
        self.fault = ""
        """The kind of an exception that nobody expected, of the last action that raised one."""

    def _through(
        self,
        effect: Effect,
        *,
        write: Callable[[], T],
        act: Callable[[T], U],
        record: Callable[[T, U], None],
    ) -> tuple[T, U]:
        """The one way of every effect."""
        self._reached(effect, Boundary.BEFORE_INTENT)
        written = write()
        self._reached(effect, Boundary.AFTER_INTENT)
        outcome = act(written)
        self._reached(effect, Boundary.AFTER_EFFECT)
        record(written, outcome)
        self._reached(effect, Boundary.AFTER_RECORD)
        return written, outcome

    def perform(self, actions: Iterable[Action]) -> None:
        """Cancels first, since they stop money; then the rest in the given order."""
        ordered = sorted(actions, key=lambda action: not isinstance(action, Cancel))
        for take_news in (self._take_money_news, self._take_order_news):
            try:
                take_news()
            except ClorefleetError:
                raise
            except Exception as error:
                log.exception("news_failed")
                self.fault = type(error).__name__
        failed: set[LeaseId] = set()
        for action in ordered:
            lease_id = getattr(action, "lease_id", None)
            if lease_id in failed:
                continue  # what is known here of that lease may be older than what was written
            left = self._why_left(action)
            if left:
                self._outdated += left == "outdated"
                # The effect in hand was finished; the next tick, of whichever daemon, decides this anew.
                log.info("action_left action=%s why=%s", type(action).__name__, left)
                continue
            try:
                self._perform_one(action)
            except LostLeadership:
                raise
            except StoreError as error:
                log.error("action_failed action=%s why=%s", type(action).__name__, error.what)
            except ClorefleetError:
                raise
            except Exception as error:
                # For this lease as if we had been killed here; the others' servers are ended all the same.
                log.exception("action_failed action=%s lease=%s", type(action).__name__, lease_id)
                self.fault = type(error).__name__
                if lease_id is not None:
                    failed.add(lease_id)
        self._flush()

    @property
    def trouble(self) -> str:
        """What the user should know of what was left; "" where nothing was."""
        if self.fault:
            return f"a fault in clorefleet ({self.fault}; the log has it): a step was left"
        if not self._outdated:
            return ""
        steps = "1 step was" if self._outdated == 1 else f"{self._outdated} steps were"
        age = in_words(self._limits.reading_life)
        return (
            f"What it had read was over {age} old when it came to act: {steps} left to the next tick. "
            "Servers that hang make reading slow"
        )

    def _perform_one(self, action: Action) -> None:
        now = self._clock.now()
        match action:
            case Cancel():
                self._cancel(action, now)
            case Rent():
                self._rent(action, now)
            case SetSpotPrice():
                self._set_spot_price(action, now)
            case ApproveBid(lease_id, approved):
                self._keep(self._journal.approve_bid(self._lease(lease_id), approved))
            case NoteOutbid(lease_id, since, reason):
                self._keep(self._journal.note_outbid(self._lease(lease_id), since, reason, now=now))
            case Conclude(intent, state, reason):
                self._journal.conclude(intent, state, reason, now=now)
            case StopRenting(reason):
                self._journal.stop_renting(reason, now=now)
            case Adopt(lease_id, order, reason):
                self._keep(self._journal.adopt(self._lease(lease_id), order, reason, now=now))
            case DropRent(lease_id, reason):
                # Its key stays for a while: should the order come late, the key is what proves it ours.
                self._keep(self._journal.drop_rent(self._lease(lease_id), reason, now=now))
            case GiveBack(lease_id, reason, blocks_host, cause):
                lease = replace(self._lease(lease_id), cause=cause)
                if action.facts is not None:
                    lease = replace(lease, cuda_found=action.facts.cuda_version)
                    self._journal.record_facts(lease, action.facts, action.discrepancies, now=now)
                self._keep(
                    self._journal.give_back(lease, clean_line(reason), blocks_host=blocks_host, now=now)
                )
            case End(lease_id, order_id, settled, _):
                # This tick's news of the count must not open again what ends here.
                self._ledger.pop(lease_id, None)
                if settled is not None or self._lease(lease_id).cancel_asked_at is not None:
                    self._nodes.forget(lease_id)
                # Else it left the list unasked, and may come back: only its key proves then that it is ours.
                self._keep(self._journal.end(self._lease(lease_id), action, now=now))
            case Reopen(lease_id, order, reason):
                self._keep(self._journal.reopen(self._lease(lease_id), order, reason, now=now))
            case Disown(lease_id):
                self._ledger.pop(lease_id, None)
                if not action.may_be_ours:
                    self._nodes.forget(lease_id)
                self._keep(self._journal.disown(self._lease(lease_id), action, now=now))
            case Settle(lease_id, order_id, settled):
                self._journal.settle(lease_id, order_id, settled, now=now)
            case NoteWanted(deployment_id, wanted):
                self._journal.note_wanted(deployment_id, wanted, now=now)
            case Advance():
                self._advance(action, now)
            case StartWork():
                self._start_work(action, now)
            case NoteAbsence(lease_id, absent_polls):
                self._note(replace(self._lease(lease_id), absent_polls=absent_polls))
            case NoteProgress(lease_id, text, fraction):
                lease, line = self._lease(lease_id), clean_line(text)
                if (line, fraction) != (lease.progress, lease.progress_fraction):
                    self._note(replace(lease, progress=line, progress_fraction=fraction))
            case NoteHealth(lease_id, unhealthy_since, text):
                lease = replace(self._lease(lease_id), unhealthy_since=unhealthy_since)
                name = "replica_silent" if unhealthy_since else "replica_answers"
                self._note(lease, (name, f"{lease.deployment_id}: {text}"), now)
            case NoteUse(lease_id, used_at, engine_tokens):
                self._note(replace(self._lease(lease_id), used_at=used_at, engine_tokens=engine_tokens))
            case Explain(deployment_id, text, is_final):
                self._explain(deployment_id, text, now, is_final=is_final)
            case ReportForeign(order):
                self._foreign.append(order)

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
            replaces=action.replaces,
            asked_at_market=self._market_time(now),
            key_place=self._nodes.key_place(),
        )
        began_s = self._clock.monotonic_s()

        def act(_: None) -> RentOutcome:
            if self._has_slept(now, began_s):
                return RentRefused(MarketUnreachable(f"Nothing was sent: {_PAUSED}"))
            credentials = self._nodes.prepare(lease_id)
            request = RentRequest(
                server_id=lease.server_id,
                is_spot=action.plan.price.is_spot,
                approved_price=action.plan.price.billed,
                image=image,
                env=((NONCE_VARIABLE, credentials.nonce),),
                ssh_public_key=credentials.ssh_public_key,
                ssh_password=credentials.ssh_password,
                command=Secret(self._startup_command(credentials)),
                needs_ssh_entrypoint=not image.startswith("cloreai/"),
                is_timely=lambda: not self._has_slept(now, began_s) and self._is_still_wished(action),
            )
            return self._market.rent(request)

        try:
            self._through(
                Effect.RENT,
                write=lambda: self._journal.begin_rent(action, lease, now=now),
                act=act,
                record=lambda _, outcome: self._record_rent(lease, outcome),
            )
        except BudgetExceeded as refusal:
            self._explain(action.deployment_id, refusal.what, now)

    def _record_rent(self, lease: Lease, outcome: RentOutcome) -> None:
        now = self._clock.now()
        match outcome:
            case Rented():
                self._journal.finish_rent_accepted(lease, now=now)
            case RentRefused(error):
                self._nodes.forget(lease.lease_id)
                self._journal.finish_rent_refused(lease, error, now=now)
            case RentUnknown(reason):
                self._journal.finish_rent_unknown(lease, reason, now=now)

    def _cancel(self, action: Cancel, now: datetime) -> None:
        reason = clean_line(action.reason)

        def write() -> Lease:
            lease = self._lease(action.lease_id)
            try:
                return self._keep(self._journal.begin_cancel(lease, action.order_id, reason, now=now))
            except LostLeadership:
                raise
            except StoreError as error:
                # What cannot be written may still be read: who slept meanwhile must not act.
                self._journal.check_leadership()
                log.error("cancel_not_journaled order=%s why=%s", action.order_id, error.what)
                return lease

        def record(lease: Lease, outcome: CancelOutcome) -> None:
            state, text = _cancel_words(outcome)
            self._journal.finish_cancel(lease, state, text, now=self._clock.now())

        began_s = self._clock.monotonic_s()

        def act(_: Lease) -> CancelOutcome:
            if self._has_slept(now, began_s):
                return CancelUnknown(f"Nothing was sent: {_PAUSED}")
            return self._market.cancel(action.order_id)

        self._through(Effect.CANCEL, write=write, act=act, record=record)

    def _market_time(self, now: datetime) -> datetime | None:
        """Of this moment, from what the market said when this tick read the orders."""
        orders = self._snapshot.orders
        if orders is None or orders.told_at is None:
            return None
        return orders.told_at + max(timedelta(0), now - orders.read_at)

    def _why_left(self, action: Action) -> str:
        """Why it is not begun any more; "" for what is."""
        if not isinstance(action, _BEGINS):
            return ""
        return "ending" if self._is_ending() else "outdated" if self._is_outdated() else ""

    def _is_outdated(self) -> bool:
        """What this tick read is too old to rent for, or our clock has jumped since."""
        orders = self._snapshot.orders
        read_at = self._snapshot.now if orders is None else orders.read_at
        return abs(self._clock.now() - read_at) > self._limits.reading_life

    def _is_still_wished(self, action: Rent) -> bool:
        deployment = self._snapshot.deployment(action.deployment_id)
        return deployment is not None and self._journal.is_still_wished(deployment)

    def _has_slept(self, since: datetime, since_s: float) -> bool:
        """A process that slept between intent and effect has perhaps been given up by another daemon: it is
        too late to act. The next tick of whoever leads looks again."""
        waited = max(self._clock.now() - since, timedelta(seconds=self._clock.monotonic_s() - since_s))
        return abs(waited) > self._limits.effect_lead

    def _set_spot_price(self, action: SetSpotPrice, now: datetime) -> None:
        before = self._lease(action.lease_id)
        current = before.price or action.desired
        began_s = self._clock.monotonic_s()

        def write() -> Intent:
            lease = self._lease(action.lease_id)
            approved, intent = self._journal.begin_spot_price(lease, action, now=now)
            self._keep(approved)
            return intent

        def act(_: Intent) -> SpotPriceOutcome:
            if self._has_slept(now, began_s):
                return SpotPriceRefused(MarketUnreachable(f"Nothing was sent: {_PAUSED}"))
            return self._market.set_spot_price(action.order_id, action.desired, current=current)

        def record(intent: Intent, outcome: SpotPriceOutcome) -> None:
            state, text = _spot_price_words(outcome)
            refusal = outcome.error if isinstance(outcome, SpotPriceRefused) else None
            told = self._journal.finish_spot_price(
                self._lease(action.lease_id),
                intent,
                state,
                text,
                approved_before=before.plan.price.billed,
                max_step=refusal.max_step if isinstance(refusal, BidStepTooLarge) else None,
                now=self._clock.now(),
            )
            self._keep(told)

        try:
            self._through(Effect.SPOT_PRICE, write=write, act=act, record=record)
        except BudgetExceeded as refusal:
            lease = self._lease(action.lease_id)
            self._events.append(
                Event(now, "spot_price_not_set", refusal.what, lease.deployment_id, lease.lease_id)
            )

    def _start_work(self, action: StartWork, now: datetime) -> None:
        def write() -> Lease:
            lease = self._lease(action.lease_id)
            if action.correction is not None:
                lease = replace(lease, corrections=(*lease.corrections, action.correction))
            return self._keep(
                self._journal.begin_job(lease, action.phase, action.attempt, action.reason, now=now)
            )

        def act(lease: Lease) -> str:
            try:
                self._nodes.start_work(lease, action.phase, action.attempt)
            except NodeError as error:
                return clean_line(error.what)
            return ""

        def record(lease: Lease, trouble: str) -> None:
            self._journal.finish_job_start(
                lease, action.phase, action.attempt, trouble, now=self._clock.now()
            )

        lease, trouble = self._through(Effect.START_JOB, write=write, act=act, record=record)
        failures = lease.start_failures + 1 if trouble else 0
        self._note(replace(lease, start_failures=failures, progress=trouble))

    def update_routes(self, leases: Iterable[Lease], routed: RouteTable, set_routes: SetRoutes) -> None:
        """Requests reach exactly the replicas that the store says are serving.

        Routes are stated when they change, and by each new process once.

        Raises:
            StoreError: the change could not be written down; the routes are as they were.
        """
        backends = tuple(
            backend
            for lease in leases
            if lease.state is LeaseState.ORDERED and lease.phase is Phase.SERVING
            for backend in [self._nodes.backend(lease)]
            if backend is not None
        )
        if backends == routed.backends:
            return
        known = {each.lease_id: each for each in routed.backends or ()}
        changed = {each.lease_id for each in backends if known.get(each.lease_id) != each}
        opened = [lease for lease in leases if lease.lease_id in changed]
        left = known.keys() - {each.lease_id for each in backends}

        def record(intents: tuple[Intent, ...], _: None) -> None:
            routed.backends = backends
            self._journal.finish_routes(intents, now=self._clock.now())

        self._through(
            Effect.ROUTE,
            write=lambda: self._journal.begin_routes(
                opened, sorted(left), serial=self._new_id(), now=self._clock.now()
            ),
            act=lambda _: set_routes(backends),
            record=record,
        )

    # -- beliefs

    def _advance(self, action: Advance, now: datetime) -> None:
        lease = self._lease(action.lease_id)
        begins_afresh = (lease.phase, action.phase) in _FRESH_COUNTS
        moved = replace(
            lease.entered(action.phase, now),
            host_key=action.host_key or lease.host_key,
            is_proven=lease.is_proven or bool(action.host_key),
            measured_tokens_per_s=action.measured_tokens_per_s or lease.measured_tokens_per_s,
            measured_together_tokens_per_s=action.measured_together_tokens_per_s
            or lease.measured_together_tokens_per_s,
            measured_streams=max(action.measured_streams, lease.measured_streams),
            launches=0 if begins_afresh else lease.launches,
            engine_is_simulated=action.engine_is_simulated or lease.engine_is_simulated,
            degraded=action.degraded,
            unhealthy_since=None,
        )
        if action.facts is not None:
            moved = replace(moved, cuda_found=action.facts.cuda_version)
            self._journal.record_facts(lease, action.facts, action.discrepancies, now=now)
        if action.phase is Phase.SERVING and lease.measured_tokens_per_s is None:
            self._journal.record_start_up(lease, now=now)
        name = "replica_serving" if action.phase is Phase.SERVING else "phase_entered"
        self._note(moved, (name, f"{moved.deployment_id}: {action.phase}: {action.reason}."), now)
        self._flush()

    def _take_money_news(self) -> None:
        """Coin rates and wallets, where this tick read them."""
        snapshot = self._snapshot
        if not snapshot.rates and snapshot.wallets is None:
            return
        try:
            self._journal.note_money(snapshot.rates, snapshot.wallet_readings())
        except LostLeadership:
            raise
        except StoreError as error:
            log.error("money_not_noted why=%s", error.what)

    def _explain(
        self, deployment_id: DeploymentId, text: str, now: datetime, *, is_final: bool = False
    ) -> None:
        """A note that says already what it should is not written: each writing is a sync of the disk."""
        if self._notes.get(deployment_id) != text:
            self._journal.explain(deployment_id, text, is_final=is_final, now=now)
            self._notes[deployment_id] = text

    def _take_order_news(self) -> None:
        """Address and price, and the market's spend counter, from this tick's reading of the orders.

        The counter moves in each minute: it is the ledger's alone, so that a lease whose server merely runs
        is not written again.
        """
        orders = self._snapshot.orders
        if orders is None:
            return
        counts: dict[tuple[OrderId, LeaseId], list[LedgerSegment]] = {}
        for segment in self._snapshot.segments:
            counts.setdefault((segment.order_id, segment.lease_id), []).append(segment)
        for lease in self._snapshot.leases:
            order = None if lease.order_id is None else orders.on_server(lease.order_id, lease.server_id)
            if order is None:
                continue
            price = order.price if order.price.amount > 0 else lease.price
            address = order.ssh or lease.address
            if (address, price) != (lease.address, lease.price):
                self._note(replace(lease, address=address, price=price))
            before = in_order(counts.get((order.order_id, lease.lease_id), ()))
            after = self._counted(before, order, is_paid=lease.outbid_since is None)
            if after != before:
                self._ledger[lease.lease_id] = (before, after)

    def _counted(self, segments: Segments, order: Order, *, is_paid: bool) -> Segments:
        """The order's segments after this reading: another price or coin rate begins another segment. A spot
        order that was outbid costs nothing while it waits."""
        if not segments or segments[-1].settled_at is not None:
            return segments
        last = segments[-1]
        price = order.price if order.price.amount > 0 else last.price
        if not is_paid:
            price = Rate.per_day(0, last.currency)
        rate, source = self._snapshot.spending.usd_per_unit.get(last.currency), last.rate_source
        is_moved = rate is not None and abs(rate / last.usd_per_unit - 1) > self._limits.coin_rate_step
        if price.currency is last.currency and (price != last.price or is_moved):
            segments = switched(
                segments,
                self._snapshot.now,
                price=price,
                usd_per_unit=rate if is_moved and rate is not None else last.usd_per_unit,
                rate_source="the market's rate" if is_moved else source,
            )
        return counted(segments, order.spend.amount)

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
            self._events.append(Event(now, name, clean_line(text), lease.deployment_id, lease.lease_id))

    def _flush(self) -> None:
        leases = [self._leases[lease_id] for lease_id in sorted(self._noted)]
        self._journal.record(
            leases, self._events, now=self._clock.now(), ledger=self._ledger, foreign=self._foreign
        )
        self._noted.clear()
        self._events.clear()
        self._ledger.clear()
        self._foreign.clear()


_PAUSED = "the process stood still between the intent and the request."


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


def _spot_price_words(outcome: SpotPriceOutcome) -> tuple[IntentState, str]:
    match outcome:
        case SpotPriceSet():
            return IntentState.DONE, "the market took the bid"
        case SpotPriceRefused(error):
            return IntentState.REFUSED, f"refused: {clean_line(error.what)}"
        case SpotPriceUnknown(reason):
            return IntentState.UNKNOWN, f"unknown: {clean_line(reason)}"
