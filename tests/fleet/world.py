"""A market and nodes in memory, on a clock that only moves when told, to run real ticks against.

The market keeps the awkward habits that matter for money: answers without an id, orders that show up
late, answers that are lost after the effect. `kill_at` raises at a boundary of an effect, as if the
process had been killed there; everything in memory of the fleet is then thrown away. Every edge is watched:
what is not a reading may only be called inside an effect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from clorefleet.domain.errors import MarketUnreachable, NodeError, OfferGone, Refused
from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Boundary, Effect
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Money, Rate
from clorefleet.domain.node import Backend, Credentials, Discrepancy, JobReport, JobState, NodeView
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, MarketView
from clorefleet.domain.order import Order, OrderList, RentRequest, SshAddress, Wallet
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
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
from clorefleet.domain.plan import Plan, PlanReport, Requirement
from clorefleet.domain.spot import SpotBid, SpotMarket
from clorefleet.fleet.action import Action
from clorefleet.fleet.edges import READINGS, Market, Nodes
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.loop import Fleet
from clorefleet.store import leadership
from clorefleet.store.database import Store, open_store
from tests.fleet.builders import FACTS, NOW, plan

OLD_DRIVER = Discrepancy("cuda", "13.0", "12.2", is_fatal=True)


class Killed(BaseException):
    """The process died here."""


@dataclass
class VirtualClock:
    current: datetime = NOW

    def now(self) -> datetime:
        return self.current

    def monotonic_s(self) -> float:
        return self.current.timestamp()

    def sleep(self, seconds: float) -> None:
        self.current += timedelta(seconds=seconds)


@dataclass
class Hazards:
    """What goes wrong, by count: each is used up as it happens."""

    rent_lost_after: int = 0
    rent_lost_before: int = 0
    rent_refused: int = 0
    cancel_lost: int = 0
    cancel_lies: int = 0
    list_fails: int = 0
    list_lag: timedelta = timedelta(0)
    bid_lost_after: int = 0
    kill_at: set[tuple[Effect, Boundary]] = field(default_factory=set)

    def strikes(self, name: str) -> bool:
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0

    def reached(self, effect: Effect, boundary: Boundary) -> None:
        if (effect, boundary) in self.kill_at:
            self.kill_at.discard((effect, boundary))
            raise Killed(effect, boundary)


class WatchedEdge:
    """An edge whose effects may only happen between an intent and its record."""

    def __init__(self, edge: object, kind: type, within: Callable[[], Effect | None]) -> None:
        self._edge, self._readings, self._within = edge, READINGS[kind], within

    def __getattr__(self, name: str) -> object:
        if name not in self._readings:
            assert self._within() is not None, f"{name} was called outside an effect"
        return getattr(self._edge, name)


@dataclass
class MemoryMarket:
    clock: VirtualClock
    hazards: Hazards
    orders: dict[int, Order] = field(default_factory=dict)
    visible_from: dict[int, datetime] = field(default_factory=dict)
    before_rent: Callable[[], None] = lambda: None
    """While a rent waits for its turn."""
    rent_calls: int = 0
    rivals: dict[ServerId, Rate | None] = field(default_factory=dict)
    least_bids: dict[ServerId, Rate] = field(default_factory=dict)
    """By server; one that is missing here has no spot market to read."""
    waiting: set[OrderId] = field(default_factory=set)
    """Spot orders that were outbid and are listed all the same."""
    outbid_ends: bool = False
    bids: list[tuple[datetime, Rate, Rate]] = field(default_factory=list)
    """When a price was set, from and to what."""
    _ids: itertools.count = field(default_factory=lambda: itertools.count(900))

    def fetch_view(self) -> MarketView:
        return MarketView((), MarketRates(()), DOCUMENTED_FEES, self.clock.now())

    def fetch_wallets(self) -> tuple[Wallet, ...]:
        return ()

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        if self.hazards.strikes("list_fails"):
            raise MarketUnreachable("no answer")
        now = self.clock.now()
        shown = [
            self._billed(order)
            for order in self.orders.values()
            if (not order.is_expired or include_completed) and self.visible_from[order.order_id] <= now
        ]
        return OrderList(tuple(shown), now, include_completed)

    def _billed(self, order: Order) -> Order:
        if order.is_expired:
            return order
        minutes = int((self.clock.now() - order.created_at).total_seconds()) // 60
        return replace(order, spend=order.price.for_seconds(minutes * 60))

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket:
        """Our orders, and the rivals that a test put there; who bids most has the server."""
        mine = [o for o in self.live if o.is_spot and o.server_id == server_id]
        rival = self.rivals.get(server_id)
        least = self.least_bids.get(server_id)
        bids = [SpotBid(o.order_id, o.price, o.order_id not in self.waiting, is_mine=True) for o in mine]
        if rival is not None:
            bids.append(SpotBid(OrderId(1), rival, all(o.order_id in self.waiting for o in mine), False))
        floors = () if least is None else (least,)
        return SpotMarket(
            server_id, least is not None, tuple(bids), floors, MarketRates(()), True, self.clock.now()
        )

    def bid_against_us(self, server_id: int, rival: Rate | None) -> None:
        """Another renter bids this, or leaves (None)."""
        self.rivals[ServerId(server_id)] = rival
        self._settle_bids(ServerId(server_id))

    def _settle_bids(self, server_id: ServerId) -> None:
        rival = self.rivals.get(server_id)
        for order in self.live:
            if order.is_spot and order.server_id == server_id:
                if rival is None or rival <= order.price:
                    self.waiting.discard(order.order_id)
                elif self.outbid_ends:
                    self.orders[order.order_id] = replace(self._billed(order), is_expired=True)
                else:
                    self.waiting.add(order.order_id)

    def rent(self, request: RentRequest) -> RentOutcome:
        self.before_rent()
        if not request.is_timely():
            return RentRefused(MarketUnreachable("nothing was sent"))
        self.rent_calls += 1
        if self.hazards.strikes("rent_lost_before"):
            return RentUnknown("timed out")
        if self.hazards.strikes("rent_refused"):
            return RentRefused(OfferGone("rented by another"))
        if any(o.server_id == request.server_id and not o.is_expired for o in self.orders.values()):
            return RentRefused(OfferGone("server-already-rented"))
        order_id = OrderId(next(self._ids))
        self.orders[order_id] = Order(
            order_id=order_id,
            server_id=request.server_id,
            owner_id=None,
            price=request.approved_price,
            spend=Money.usd(0),
            creation_fee=None,
            created_at=self.clock.now(),
            max_rental_s=None,
            image=request.image,
            is_spot=request.is_spot,
            is_expired=False,
            is_online=True,
            ssh=SshAddress(("127.0.0.1",), 22),
            container_state=2,
        )
        self.visible_from[order_id] = self.clock.now() + self.hazards.list_lag
        return RentUnknown("cut") if self.hazards.strikes("rent_lost_after") else Rented()

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        order = self.orders[order_id]
        if self.hazards.strikes("cancel_lost"):
            return CancelUnknown("timed out")
        if order.is_expired:
            return AlreadyEnded()
        if not self.hazards.strikes("cancel_lies"):
            self.orders[order_id] = replace(self._billed(order), is_expired=True)
        return CancelAccepted()

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> SpotPriceOutcome:
        order = self.orders[order_id]
        if order.is_expired:
            return SpotPriceRefused(Refused("gone", reason="gone"))
        self.bids.append((self.clock.now(), order.price, desired))
        self.orders[order_id] = replace(order, price=desired)
        self._settle_bids(order.server_id)
        return SpotPriceUnknown("cut") if self.hazards.strikes("bid_lost_after") else SpotPriceSet()

    @property
    def live(self) -> list[Order]:
        return [order for order in self.orders.values() if not order.is_expired]


@dataclass
class MemoryNodes:
    hazards: Hazards
    started: dict[str, int] = field(default_factory=dict)
    bad_servers: set[ServerId] = field(default_factory=set)
    old_drivers: set[ServerId] = field(default_factory=set)
    """Offered with a newer CUDA than they have."""
    damaged: set[ServerId] = field(default_factory=set)
    """Whose disks damage the weights that came first."""
    prepared: set[LeaseId] = field(default_factory=set)
    forgotten: set[LeaseId] = field(default_factory=set)
    silent: set[OrderId] = field(default_factory=set)
    place: str = "here"

    def prepare(self, lease_id: LeaseId) -> Credentials:
        self.prepared.add(lease_id)
        return Credentials("ssh-ed25519 AAAA", "nonce")

    def look(self, lease: Lease, order: Order) -> NodeView:
        if order.order_id in self.silent:
            return NodeView(trouble="no answer", is_healthy=False)
        if lease.key_place not in ("", self.place):
            return NodeView(trouble="its key is elsewhere", key_is_elsewhere=True, is_healthy=False)
        is_started = lease.job_id(lease.phase, max(1, lease.launches)) in self.started
        match lease.phase:
            case Phase.WAITING:
                return NodeView(host_key="ssh-ed25519 HOST")
            case Phase.PROBING:
                if lease.server_id in self.old_drivers:
                    return NodeView(facts=replace(FACTS, cuda_version=(12, 2)), discrepancies=(OLD_DRIVER,))
                return NodeView(facts=FACTS)
            case Phase.INSTALLING:
                bad = lease.server_id in self.bad_servers
                return NodeView(engine_missing="no engine" if bad else "")
            case Phase.SYNCING:
                return NodeView(job=JobReport(JobState.SUCCEEDED if is_started else JobState.ABSENT, 0))
            case Phase.LAUNCHING if is_started and lease.server_id in self.damaged and not lease.corrections:
                return NodeView(
                    job=JobReport(JobState.FAILED, 1),
                    job_cause=Cause.BAD_CHECKPOINT,
                    correction=Correction.FETCH_AGAIN,
                )
            case Phase.LAUNCHING:
                state = JobState.RUNNING if is_started else JobState.ABSENT
                return NodeView(job=JobReport(state), is_healthy=is_started)
            case _:
                return NodeView(
                    job=JobReport(JobState.RUNNING), is_healthy=True, answered=True, measured_tokens_per_s=9.0
                )

    def start_work(self, lease: Lease, phase: Phase, attempt: int) -> None:
        key = str(lease.job_id(phase, attempt))
        if lease.lease_id in self.forgotten:
            raise NodeError("gone")
        self.started[key] = self.started.get(key, 0) + 1

    def backend(self, lease: Lease) -> Backend | None:
        return Backend(lease.lease_id, lease.plan.setup.model, Path("/nowhere"))

    def forget(self, lease_id: LeaseId) -> None:
        self.forgotten.add(lease_id)

    def kept_keys(self) -> frozenset[LeaseId]:
        return frozenset(self.prepared - self.forgotten)

    def key_place(self) -> str:
        return self.place


class World:
    """A store on disk, a market and nodes in memory, and a fleet that may die and be made anew."""

    def __init__(
        self,
        folder: Path,
        plans: tuple[Plan, ...] = (plan(7), plan(8), plan(9)),
        *,
        store: Store | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.hazards = Hazards()
        self.market = MemoryMarket(self.clock, self.hazards)
        self.nodes = MemoryNodes(self.hazards, silent=self.market.waiting)
        self.plans = plans
        self.routes: tuple[Backend, ...] = ()
        self.store: Store = store or open_store(f"sqlite:///{folder / 'state' / 'fleet.db'}")
        self._ids = itertools.count(1)
        self.start()

    def start(self) -> None:
        """A new process: everything but the store is forgotten."""
        self.routes = ()  # they lived in the process
        self.token = leadership.acquire(self.store, f"p{next(self._ids)}", now=self.clock.now(), force=True)
        self.within: Effect | None = None
        self.fleet = Fleet(
            store=self.store,
            market=WatchedEdge(self.market, Market, lambda: self.within),
            nodes=WatchedEdge(self.nodes, Nodes, lambda: self.within),
            planner=self._plan,
            clock=self.clock,
            set_routes=self._set_routes,
            in_flight=lambda lease_id: 0,
            startup_command=lambda nonce: "#!/bin/sh\n",
            new_id=lambda: f"l{next(self._ids)}",
            reached=self._reached,
        )

    def _reached(self, effect: Effect, boundary: Boundary) -> None:
        self.within = effect if boundary is Boundary.AFTER_INTENT else None
        self.hazards.reached(effect, boundary)

    def act(self, *actions: Action) -> None:
        """Perform actions that no decision makes yet, in a tick of their own."""
        fleet = self.fleet
        snapshot, _ = fleet.observer().observe()
        try:
            fleet.executor(snapshot, Journal(self.store, self.token)).perform(actions)
        except Killed:
            self.start()

    def _plan(self, requirement: Requirement, view: MarketView) -> PlanReport:
        return PlanReport(requirement, self.plans, (), (), len(self.plans))

    def _set_routes(self, backends: tuple[Backend, ...]) -> None:
        assert self.within is Effect.ROUTE
        self.routes = backends

    def tick(self, count: int = 1, *, every_s: float = 10) -> None:
        for _ in range(count):
            try:
                self.fleet.tick(self.token)
            except Killed:
                self.start()
            self.clock.sleep(every_s)

    def wish(self, **changes: object) -> None:
        from tests.fleet.builders import deployment

        with self.store.write() as tx:
            tx.put_deployment(deployment(created_at=NOW, **changes))

    def leases(self) -> tuple[Lease, ...]:
        with self.store.read() as tx:
            return tx.open_leases()

    def bill(self) -> Decimal:
        return sum((order.spend.amount for order in self.market.orders.values()), Decimal(0))

    def ledger(self) -> Decimal:
        with self.store.read() as tx:
            return sum((each.cost_usd(self.clock.now()) for each in tx.segments()), Decimal(0))
