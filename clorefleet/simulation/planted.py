"""Deliberate bugs, each a small one that somebody could write, and the invariant that must catch it.

A bug goes in through a seam that the fleet has anyway: an edge (market, nodes, store), the limits, or one of
the steps of `Fleet` (`decide`, `journal`, `observer`). An invariant that lets one of these pass proves
nothing, so that a bug that no life catches fails the tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from clorefleet.domain.errors import MarketError, OfferGone
from clorefleet.domain.identity import IntentId, LeaseId, OrderId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Rate
from clorefleet.domain.node import Credentials, NodeView
from clorefleet.domain.order import Order, OrderList, RentRequest
from clorefleet.domain.outcome import (
    CancelAccepted,
    CancelOutcome,
    RentOutcome,
    RentRefused,
    RentUnknown,
    SpotPriceOutcome,
)
from clorefleet.fleet.action import (
    Action,
    Adopt,
    Cancel,
    Conclude,
    DropRent,
    End,
    GiveBack,
    Rent,
    Reopen,
    ReportForeign,
    SetSpotPrice,
    Settle,
)
from clorefleet.fleet.edges import Market, Nodes
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.limits import FleetLimits
from clorefleet.fleet.loop import Fleet
from clorefleet.fleet.reconcile import reconcile
from clorefleet.fleet.slots import empty_slots
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.store.database import FencingToken, Store
from clorefleet.store.queries import Transaction

log = logging.getLogger("clorefleet.planted")


def _same(edge: Any) -> Any:
    return edge


@dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug."""

    name: str
    caught_by: tuple[str, ...] = ()
    """The invariants that may speak first."""
    provoked_by: tuple[str, ...] = ()
    """Faults that a life must have for the bug to do harm; "" where any life will do."""
    fleet: Callable[..., Fleet] = Fleet
    market: Callable[[Market], Market] = _same
    nodes: Callable[[Nodes], Nodes] = _same
    store: Callable[[Store], Store] = _same
    limits: Callable[[FleetLimits], FleetLimits] = _same
    hand: Callable[[Market], Market] = _same
    """The market as the user has it who stops everything without a store."""


HARMLESS = Bug("none")


class _Around:
    """An edge with some of its methods replaced."""

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._edge, name)


# -- in the market's edge


class _TimeoutIsRefusal(_Around):
    def rent(self, request: RentRequest) -> RentOutcome:
        outcome: RentOutcome = self._edge.rent(request)
        return RentRefused(OfferGone("timed out")) if isinstance(outcome, RentUnknown) else outcome


class _OfferMore(_Around):
    def rent(self, request: RentRequest) -> RentOutcome:
        dearer = replace(request, approved_price=request.approved_price * 3)
        outcome: RentOutcome = self._edge.rent(dearer)
        return outcome


class _FailedListIsEmpty(_Around):
    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        try:
            listed: OrderList = self._edge.fetch_orders(include_completed=include_completed)
        except MarketError:
            return OrderList((), self._edge._clock.now(), include_completed)
        return listed


class _UnreadableIsAbsent(_Around):
    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        listed: OrderList = self._edge.fetch_orders(include_completed=include_completed)
        return replace(listed, unreadable=0)


class _AsksForEachOrder(_Around):
    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        for _ in range(70):
            self._edge.fetch_orders(include_completed=include_completed)
        listed: OrderList = self._edge.fetch_orders(include_completed=include_completed)
        return listed


class _BidsMore(_Around):
    """Bids so much that no rival comes near."""

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> SpotPriceOutcome:
        outcome: SpotPriceOutcome = self._edge.set_spot_price(order_id, desired * 2, current=current)
        return outcome


class _CancelledIsGone(_Around):
    """Takes an accepted cancel for an ended order, and does not look."""

    def __init__(self, edge: Any) -> None:
        super().__init__(edge)
        self._gone: set[OrderId] = set()

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        outcome: CancelOutcome = self._edge.cancel(order_id, issue=issue)
        if isinstance(outcome, CancelAccepted):
            self._gone.add(order_id)
        return outcome

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        listed: OrderList = self._edge.fetch_orders(include_completed=include_completed)
        return replace(
            listed, orders=tuple(each for each in listed.orders if each.order_id not in self._gone)
        )


# -- in the nodes' edge


class _KeepsKeys(_Around):
    def forget(self, lease_id: LeaseId) -> None:
        return


class _TakesKeyForNeverMade(_Around):
    """As if what another machine has the key of had never been asked for."""

    def look(self, lease: Lease, order: Order) -> NodeView:
        view: NodeView = self._edge.look(lease, order)
        return replace(view, key_is_elsewhere=False, lacks_key=view.lacks_key or view.key_is_elsewhere)


class _LogsPassword(_Around):
    def prepare(self, lease_id: LeaseId) -> Credentials:
        credentials: Credentials = self._edge.prepare(lease_id)
        log.info("prepared lease=%s password=%s", lease_id, credentials.ssh_password.reveal())
        return credentials


class _LogsRaw(_Around):
    def look(self, lease: Lease, order: Order) -> NodeView:
        view: NodeView = self._edge.look(lease, order)
        if view.trouble:
            log.info("look_failed lease=%s why=%s", lease.lease_id, view.trouble)
        return view


# -- in the store


class _NoFencing(Store):
    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with self._inner.read() as tx:
            yield tx

    @contextmanager
    def write(self, token: FencingToken | None = None) -> Iterator[Transaction]:
        with self._inner.write() as tx:
            yield tx


# -- in what is decided


def _deciding(change: Callable[[Fleet, Snapshot, tuple[Action, ...]], Iterable[Action]]) -> type[Fleet]:
    """A fleet whose decisions pass through `change`."""

    class Deciding(Fleet):
        __slots__ = ()

        def decide(self, snapshot: Snapshot) -> tuple[Action, ...]:
            return tuple(change(self, snapshot, reconcile(snapshot, self.limits)))

    return Deciding


def _without(*kinds: type) -> type[Fleet]:
    return _deciding(lambda fleet, snapshot, actions: (a for a in actions if not isinstance(a, kinds)))


def _cancel_foreign(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    for action in actions:
        if isinstance(action, ReportForeign):
            fleet.market.cancel(action.order.order_id)
        yield action


def _cancelled_is_ended(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    ending = {x.lease_id: x for x in snapshot.leases if x.state is LeaseState.ENDING}
    yield from (a for a in actions if getattr(a, "lease_id", None) not in ending)
    for lease in ending.values():
        if lease.order_id is not None:
            yield End(lease.lease_id, lease.order_id, None, "the cancel was accepted")


def _cancel_once(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    asked = {x.lease_id for x in snapshot.leases if x.cancel_attempts}
    return (a for a in actions if not (isinstance(a, Cancel) and a.lease_id in asked))


def _adopt_any(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    leased = {lease.order_id for lease in snapshot.leases}
    free = [o for o in snapshot.orders.live() if o.order_id not in leased] if snapshot.orders else []
    for lease in snapshot.leases:
        if lease.state is LeaseState.INTENT and free:
            yield Adopt(lease.lease_id, free.pop(), "it must be ours")
        else:
            yield from (a for a in actions if getattr(a, "lease_id", "") == lease.lease_id)
    yield from (a for a in actions if not hasattr(a, "lease_id"))


def _any_price(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    return (a for a in actions if not (isinstance(a, Cancel) and "own price" in a.reason))


def _keep_serving(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    return (a for a in actions if not (isinstance(a, GiveBack) and "asked to stop" in a.reason))


def _restless(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    yield from actions
    leaving = {a.lease_id for a in actions if isinstance(a, (GiveBack, Cancel, End))}
    for lease in snapshot.leases:
        is_old = snapshot.now - lease.phase_since > timedelta(hours=2)
        if lease.phase is Phase.SERVING and is_old and lease.lease_id not in leaving:
            yield GiveBack(lease.lease_id, "another server may be cheaper")


def _drop_at_once(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    """What recovery would do that takes the death of the process for the death of the request."""
    yield from actions
    adopted = {a.lease_id for a in actions if isinstance(a, (Adopt, DropRent))}
    for lease in snapshot.leases:
        if lease.state is LeaseState.INTENT and lease.lease_id not in adopted:
            yield DropRent(lease.lease_id, "the request was surely lost")


def _rent_beside_doubt(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    yield from actions
    for deployment in snapshot.deployments:
        mine = [x for x in snapshot.leases if x.deployment_id == deployment.deployment_id]
        settled = [x for x in mine if x.state is not LeaseState.INTENT]
        report = snapshot.plans.get(deployment.deployment_id)
        taken = {x.server_id for x in snapshot.leases}
        doubtful = {x.slot for x in mine} - {x.slot for x in settled}
        empty = set(empty_slots(settled, snapshot.wanted_of(deployment).replicas))
        plans = [p for p in report.plans if p.offer.server_id not in taken] if report else []
        for slot in sorted(empty & doubtful):
            if plans:
                yield Rent(deployment.deployment_id, slot, plans.pop(0), "the slot looks empty")


def _rent_all_slots(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    """Each plan keeps the budget as the snapshot has it; together they need not."""
    yield from actions
    for rent in [a for a in actions if isinstance(a, Rent)]:
        deployment = snapshot.deployment(rent.deployment_id)
        if deployment is None:
            continue
        mine = [x for x in snapshot.leases if x.deployment_id == rent.deployment_id]
        slots = empty_slots(mine, snapshot.wanted_of(deployment).replicas)
        plans = [p for p in snapshot.plans[rent.deployment_id].plans if p != rent.plan]
        for slot, plan in zip([s for s in slots if s != rent.slot], plans, strict=False):
            yield Rent(rent.deployment_id, slot, plan, "another empty slot")


def _each_for_itself(fleet: Fleet, snapshot: Snapshot, actions: tuple[Action, ...]) -> Iterator[Action]:
    """The best plan of each deployment, whatever another one sets out to rent in this tick."""
    wanted: int | None = None
    for action in actions:
        if isinstance(action, Rent):
            plans = snapshot.plans[action.deployment_id].plans
            same = [plan for plan in plans if plan.offer.server_id == wanted]
            wanted = action.plan.offer.server_id if wanted is None else wanted
            yield replace(action, plan=same[0]) if same else action
        else:
            yield action


# -- in the journal


def _journalling(kind: type[Journal], base: type[Fleet] = Fleet) -> type[Fleet]:
    class Journalling(base):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def journal(self, token: FencingToken) -> Journal:
            return kind(self.store, token)

    return Journalling


class _NoIntent(Journal):
    def begin_rent(self, action: Rent, lease: Lease, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            tx.put_lease(lease)


class _NoLeaseBeforeRent(Journal):
    """Writes it down when it is done."""

    def begin_rent(self, action: Rent, lease: Lease, *, now: datetime) -> None:
        return

    def finish_rent_accepted(self, lease: Lease, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            tx.put_lease(lease)
            self._put(tx, _rent_intent(lease, IntentState.DONE, now))


class _NoBudgetInTransaction(Journal):
    """Trusts what the snapshot said."""

    def begin_rent(self, action: Rent, lease: Lease, *, now: datetime) -> None:
        with self._store.write(self._token) as tx:
            tx.put_lease(lease)
            self._put(tx, _rent_intent(lease, IntentState.OPEN, now))


class _NoCancelIntent(Journal):
    def begin_cancel(self, lease: Lease, order_id: OrderId, reason: str, *, now: datetime) -> Lease:
        return replace(lease.moved(LeaseState.ENDING), cancel_asked_at=now) if lease.order_id else lease


class _NoBidIntent(Journal):
    def begin_spot_price(self, lease: Lease, action: SetSpotPrice, *, now: datetime) -> tuple[Lease, Intent]:
        told = super().begin_spot_price(lease, action, now=now)
        self.conclude(told[1], IntentState.DONE, "it will be taken", now=now)
        return told


class _CountsFromNow(Journal):
    """The ledger begins anew with each adoption and forgets to count."""

    def adopt(self, lease: Lease, order: Order, reason: str, *, now: datetime) -> Lease:
        adopted = super().adopt(lease, order, reason, now=now)
        with self._store.write(self._token) as tx:
            counted = tx.order_segments(order.order_id)
            ended = (replace(each, ended_at=each.started_at) for each in counted)
            tx.put_order_segments(order.order_id, tuple(ended))
        return adopted


class _GapAtRestart(Journal):
    """Closes the count with each process and opens another where it begins: the time between is free."""

    def __init__(self, store: Store, token: FencingToken) -> None:
        super().__init__(store, token)
        with store.read() as tx:
            leases, segments = tx.open_leases(), tx.segments()
        cut = [
            each
            for each in segments
            if each.ended_at is None and any(lease.order_id == each.order_id for lease in leases)
        ]
        if not cut or _GapAtRestart._seen == token.number:
            return
        _GapAtRestart._seen = token.number
        with store.write(token) as tx:
            for each in cut:
                closed = replace(each, ended_at=each.started_at + timedelta(minutes=1))
                begun = replace(each, started_at=each.started_at + timedelta(minutes=2))
                tx.put_order_segments(each.order_id, (closed, begun))

    _seen = 0


class _Settles(Journal):
    def settle(self, lease_id: LeaseId, order_id: OrderId, settled: Decimal, *, now: datetime) -> None:
        super().settle(lease_id, order_id, settled + Decimal("1E-8"), now=now)

    def end(self, lease: Lease, action: End, *, now: datetime) -> Lease:
        return super().end(lease, replace(action, settled=None), now=now)


def _rent_intent(lease: Lease, state: IntentState, now: datetime) -> Intent:
    return Intent(
        intent_id=IntentId(lease.intent_id),
        effect=Effect.RENT,
        lease_id=lease.lease_id,
        deployment_id=lease.deployment_id,
        state=state,
        created_at=now,
    )


_HOURS = timedelta(hours=9)
BUGS = (
    Bug("a timeout is taken for a refusal", ("S1", "S2"), ("A2", "A3"), market=_TimeoutIsRefusal),
    Bug("a rent in doubt is dropped at once", ("S2",), ("A1", "A2"), fleet=_deciding(_drop_at_once)),
    Bug("a rent is made beside one in doubt", ("S2", "S3"), ("A2", "A9"),
        fleet=_deciding(_rent_beside_doubt)),
    Bug("one absent reading ends a lease", ("S6",), ("A9v", "A22"),
        limits=lambda limits: replace(limits, absent_polls=1)),
    Bug("a list that failed is an empty list", ("S6", "S2"), ("A6", "A18"), market=_FailedListIsEmpty),
    Bug("a record that cannot be read is an order that is gone", ("S6",), ("A8",),
        market=_UnreadableIsAbsent),
    Bug("an accepted cancel is an ended order", ("S6",), ("A14",), fleet=_deciding(_cancelled_is_ended)),
    Bug("a cancel is asked for once", ("L3", "L1"), ("A14", "A16"), fleet=_deciding(_cancel_once)),
    Bug("a stop is not obeyed", ("L1", "L3"), fleet=_deciding(_keep_serving)),
    Bug("orders that reappear are forgotten", ("S1", "S6"), ("A9v", "A9v"), fleet=_without(Reopen)),
    Bug("foreign orders are not reported", ("S1",), ("B8",), fleet=_without(ReportForeign)),
    Bug("foreign orders are cancelled", ("S9",), ("B8",), fleet=_deciding(_cancel_foreign)),
    Bug("any order is adopted", ("S9", "S2", "S4", "S1", "S6"), ("B8", "A1"), fleet=_deciding(_adopt_any)),
    Bug("a dearer order is kept", ("S4",), ("A12", "A12", "A12"), fleet=_deciding(_any_price)),
    Bug("more than the approved price is offered", ("S4",), market=_OfferMore),
    Bug("the budget is not checked beside the intent", ("S3", "S2"),
        fleet=_journalling(_NoBudgetInTransaction, _deciding(_rent_all_slots))),
    Bug("two deployments rent one server", ("S2",),
        fleet=_journalling(_NoBudgetInTransaction, _deciding(_each_for_itself))),
    Bug("the intent is skipped", ("S5",), fleet=_journalling(_NoIntent)),
    Bug("the intent is written afterwards", ("S5",), fleet=_journalling(_NoLeaseBeforeRent)),
    Bug("the intent of a cancel is skipped", ("S5",), fleet=_journalling(_NoCancelIntent)),
    Bug("a bid is changed without an intent", ("S5",), ("F14o",), fleet=_journalling(_NoBidIntent)),
    Bug("more is bid than was approved", ("S4",), ("F14o",), market=_BidsMore),
    Bug("the fencing token is ignored", ("S8", "S6", "S2", "L5"), ("C3", "C5", "C5", "C5"),
        store=_NoFencing),
    Bug("a paused process acts all the same", ("S8", "S2"), ("C3", "C5", "C5", "C5"),
        limits=lambda limits: replace(limits, effect_lead=_HOURS)),
    Bug("an adopted order is not counted", ("S7",), fleet=_journalling(_CountsFromNow)),
    Bug("the count has a gap at each restart", ("S7",), ("C1", "C1"), fleet=_journalling(_GapAtRestart)),
    Bug("a bill is off by the last unit", ("S7",), fleet=_journalling(_Settles)),
    Bug("final bills are not asked for", ("S7",), ("A9v", "A17"), fleet=_without(Settle)),
    Bug("a key is not deleted", ("S10",), nodes=_KeepsKeys),
    Bug("a key on another machine counts as never made", ("S1", "S2"), ("C3k", "A2", "A2"),
        nodes=_TakesKeyForNeverMade),
    Bug("a password is logged", ("S10",), nodes=_LogsPassword),
    Bug("a host's words are logged as they are", ("S14",), ("G3", "G3"), nodes=_LogsRaw),
    Bug("the list is asked for again and again", ("S15",), market=_AsksForEachOrder),
    Bug("replicas that serve are exchanged", ("L1",), fleet=_deciding(_restless)),
    Bug("a stop without a store believes the market's answer", ("L6",), hand=_CancelledIsGone),
    Bug("doubts are never concluded", ("L2",), ("C1", "C1", "E2", "E2"), fleet=_without(Conclude)),
)  # fmt: skip
